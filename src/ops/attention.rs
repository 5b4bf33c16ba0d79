//! Attention and the key/value cache.

use std::mem::offset_of;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::checked::Checked;
use super::{cost, element_grid};
use crate::gpu::{Access, Binding, Capabilities, Cost, Gpu, Kernel, PipelineKey, Recorder, Source, wgsl};
use crate::tensor::{Matrix, Scores, Tensor};
use crate::{Error, Result};

/// Keys above which they are split among workgroups (flash decoding), and the keys of a split on software adapters.
const SPLIT_KEYS: usize = 256;
/// Workgroups of 64 invocations that keep a large GPU's memory busy.
const FULL_DEVICE: usize = 256;
/// Splits of up to 16384 keys, at most: a row's partial results are read again.
const MAX_SPLITS: usize = 32;
/// Query rows of a workgroup of [`AttentionKernel::Tiled`] and of [`AttentionKernel::Subgroup`], at most.
const MAX_ROWS: usize = 16;
/// Query rows of a workgroup of [`AttentionKernel::Decode`], at most.
const MAX_DECODE_ROWS: usize = 8;
/// Elements of a head, at most.
pub(crate) const MAX_HEAD_DIM: usize = 256;

/// The sizes of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; query head h uses number h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Elements of a head: a multiple of 4, at most 256.
    pub head_dim: usize,
    /// Whether a query attends only to keys at its own position and before.
    pub causal: bool,
    /// No factor may be rounded to f16: for models with f32 weights. Keys and values in an f32 cache never are.
    pub exact: bool,
    /// What happens to scores before the softmax.
    pub scores: Scores,
}

impl Scores {
    /// The parameters of kernels: scale, cap and window.
    pub(super) fn params(self, head_dim: usize) -> (f32, f32, u32) {
        let scale = self.scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
        (scale, self.cap.unwrap_or(0.0), self.window.map_or(0, |window| window.min(u32::MAX as usize >> 1) as u32))
    }

    pub(super) fn form(self) -> ScoreForm {
        ScoreForm { capped: self.cap.is_some(), windowed: self.window.is_some() }
    }
}

/// What decides a specialisation about scores. Only some kernels have these steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct ScoreForm {
    pub capped: bool,
    pub windowed: bool,
}

impl ScoreForm {
    /// Neither a cap nor a window.
    pub(super) fn is_plain(self) -> bool {
        self == Self::default()
    }
}

/// Where an attention's keys and values are.
#[derive(Debug, Clone, Copy)]
pub enum KeyValues<'a> {
    /// Next to the queries, as columns of the same tensor [query_len, (heads + 2 kv_heads) head_dim].
    Packed,
    /// In the first `length` positions of a cache; the queries are at its last ones.
    Cached {
        /// The cache.
        cache: &'a KvCache,
        /// Positions in use.
        length: usize,
    },
    /// Keys and values next to each other in a tensor of their own, [keys, 2 kv_heads head_dim], of another sequence
    /// (cross attention). Not causal.
    Separate(&'a Tensor),
}

/// Keys and values of one layer, [capacity, kv_heads * head_dim] each; the columns are a multiple of 4.
#[derive(Debug)]
pub struct KvCache {
    keys: Tensor,
    values: Tensor,
    capacity: usize,
    columns: usize,
    half: bool,
}

impl KvCache {
    /// A cache for `capacity` positions of `columns` = kv_heads * head_dim elements, in f16 where `half`, else f32.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn new(gpu: &Gpu, capacity: usize, columns: usize, half: bool) -> Result<Self> {
        let bytes = Self::bytes_for(capacity, columns, half) / 2;
        let words = if half { columns / 2 } else { columns };
        let limit = gpu.capabilities().max_binding_bytes;
        if bytes > limit {
            return Err(Error::OutOfMemory {
                what: format!("the keys of {capacity} positions in one binding"),
                needed: bytes,
                available: limit,
            });
        }
        Ok(Self {
            keys: Tensor::zeros(gpu, &[capacity, words], "key cache")?,
            values: Tensor::zeros(gpu, &[capacity, words], "value cache")?,
            capacity,
            columns,
            half,
        })
    }

    /// Bytes that a cache takes.
    pub fn bytes_for(capacity: usize, columns: usize, half: bool) -> u64 {
        (capacity * columns) as u64 * if half { 4 } else { 8 }
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Records a copy of the first `length` positions into a larger cache.
    pub fn copy_to(&self, recorder: &mut Recorder, larger: &KvCache, length: usize) {
        if length > 0 {
            self.keys.slice_rows(0..length).copy_to(recorder, &larger.keys, 0);
            self.values.slice_rows(0..length).copy_to(recorder, &larger.values, 0);
        }
    }

    /// Records a copy of `rows` rows, from row `from` on, to those from `to` on.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn copy_within(&self, recorder: &mut Recorder, from: usize, to: usize, rows: usize) -> Result<()> {
        for tensor in self.stored() {
            // A buffer cannot be copied to itself.
            let copy = Tensor::temporary(recorder.gpu(), &[rows, tensor.columns()], "copied rows")?;
            tensor.slice_rows(from..from + rows).copy_to(recorder, &copy, 0);
            copy.copy_to(recorder, tensor, to);
        }
        Ok(())
    }

    /// Keys and values as they are stored, [capacity, columns] words of f32, or [capacity, columns / 2] of two f16.
    pub(super) fn stored(&self) -> [&Tensor; 2] {
        [&self.keys, &self.values]
    }

    /// Elements of a position's keys.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Whether it is in f16.
    pub(super) fn is_half(&self) -> bool {
        self.half
    }
}

/// Rows of a cache: `count` of them, `step` apart, from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StridedRows {
    /// The first.
    pub start: usize,
    /// From one to the next.
    pub step: usize,
    /// How many; not none.
    pub count: usize,
}

/// Neighbouring queries, and keys and values that all of them attend to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionSegment {
    /// Rows of the queries.
    pub queries: Range<usize>,
    /// Rows of the cache.
    pub keys: StridedRows,
    /// The queries are at the last of the keys, and attend only to keys at their own position and before.
    pub causal: bool,
}

/// Where keys and values lie, in elements.
struct Layout<'a> {
    /// Keys in all.
    rows: usize,
    half: bool,
    query_stride: usize,
    bindings: [Binding<'a>; 2],
    stride: usize,
    /// Of keys and of values.
    starts: [usize; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    query_len: u32,
    keys: u32,
    group: u32,
    first_position: u32,
    query_stride: u32,
    query_start: u32,
    key_stride: u32,
    key_start: u32,
    value_stride: u32,
    value_start: u32,
    split_keys: u32,
    scale: f32,
    output_start: u32,
    head_chunks: u32,
    cap: f32,
    window: u32,
}

/// What decides a specialisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub head_dim: usize,
    /// Query rows of a workgroup.
    pub rows: usize,
    pub causal: bool,
    pub split: bool,
    /// The cache is in f16.
    pub half: bool,
    pub scores: ScoreForm,
    /// Which kernel.
    pub kernel: AttentionKernel,
}

/// The kernels that compute attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum AttentionKernel {
    /// For GPUs and many rows: queries and scores in workgroup memory, tiles of rows and keys in registers.
    Tiled,
    /// For the matrix units of GPUs and many rows.
    Cooperative(CooperativeAttention),
    /// For GPUs and few rows: keys and values read once, in chunks of 16 bytes, all invocations busy.
    Decode,
    /// For software adapters without suitable subgroups: a key of all rows at a time.
    Workgroup,
    /// For software adapters with subgroups of four: rows and whole ranges of keys enough for every invocation.
    Subgroup4,
    /// For software adapters with subgroups of eight.
    Subgroup,
}

/// The sizes of [`AttentionKernel::Cooperative`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CooperativeAttention {
    /// Rows and columns of a matrix: 8 or 16.
    pub size: u32,
    /// Invocations of a subgroup.
    pub lanes: u32,
    /// Parts of the rows, and of the keys and of the columns of the head: a subgroup has one of each.
    pub parts: [u32; 2],
    /// Matrices of rows in a part.
    pub row_matrices: u32,
    /// Keys of a block.
    pub keys: u32,
    /// Queries stay in registers.
    pub held: bool,
}

impl CooperativeAttention {
    /// The sizes for heads of `head_dim` elements, a multiple of 8.
    pub(crate) fn new(head_dim: usize, size: u32, lanes: u32) -> Self {
        let long = head_dim > 128;
        Self {
            size,
            lanes,
            parts: if long { [2, 2] } else { [4, 1] },
            row_matrices: 1,
            keys: if head_dim > 96 && !long { 16 } else { 32 },
            held: !long,
        }
    }

    fn rows(self) -> u32 {
        self.parts[0] * self.row_matrices * self.size
    }

    fn workgroup(self) -> u32 {
        self.parts[0] * self.parts[1] * self.lanes
    }

    /// Workgroup memory, as the shader declares it.
    fn workgroup_bytes(self, head_dim: usize) -> u32 {
        let head = (head_dim as u32).next_multiple_of(self.size * self.parts[1]);
        let queries = self.rows() * (head + 8);
        let tiles = self.keys * (head + 8) + (head + self.rows()) * (self.keys + 8);
        let tiles = if self.held { tiles.max(queries) } else { tiles + queries };
        2 * tiles + 4 * self.rows() * (self.keys + 4) + 12 * self.rows() + 4
    }

    /// The kernel of a device, if there is one for these heads.
    pub(crate) fn of(capabilities: &Capabilities, head_dim: usize) -> Option<Self> {
        let Capabilities { subgroup_min_size: least, subgroup_max_size: most, .. } = *capabilities;
        let runs = |sizes: &Self| {
            capabilities.cooperative_sizes.contains(&sizes.size)
                && (least..=most).contains(&sizes.lanes)
                && sizes.workgroup_bytes(head_dim) <= capabilities.max_workgroup_bytes
                && sizes.workgroup() <= capabilities.max_workgroup_invocations
        };
        let all = COOPERATIVE_LANES.into_iter().map(|(size, lanes)| Self::new(head_dim, size, lanes));
        let best = all.filter(runs).max_by_key(|sizes| (sizes.size, sizes.lanes));
        best.filter(|_| head_dim.is_multiple_of(8))
    }
}

/// Sizes of matrices, with the subgroups that hold them.
pub(crate) const COOPERATIVE_LANES: [(u32, u32); 4] = [(8, 8), (8, 32), (16, 32), (16, 64)];

/// Rows of a workgroup of [`AttentionKernel::Subgroup4`].
const SUBGROUP4_ROWS: usize = 64;

/// Keys of a split, a multiple of 64, when the queries of each of `kv_heads` heads attend to `keys` keys.
fn split_keys(gpu: &Gpu, keys: usize, kv_heads: usize) -> usize {
    if gpu.is_software() {
        return SPLIT_KEYS;
    }
    (keys * kv_heads).div_ceil(FULL_DEVICE).max(keys.div_ceil(MAX_SPLITS)).next_multiple_of(64).min(2 * SPLIT_KEYS)
}

/// Whether a load of 16 bytes is eight elements of f16, and heads are a whole number of them.
fn is_wide(head_dim: usize, half: bool) -> bool {
    half && head_dim.is_multiple_of(8)
}

/// Loads of a head: 8 or 4 elements each.
pub(super) fn head_chunks(head_dim: usize, half: bool) -> u32 {
    (head_dim / if is_wide(head_dim, half) { 8 } else { 4 }) as u32
}

impl AttentionKernel {
    /// The kernel for `query_rows` query rows, and the rows of its workgroups.
    fn choose(gpu: &Gpu, layer: Attention, query_rows: usize, exact: bool) -> (Self, usize) {
        let head_dim = layer.head_dim;
        let plain = layer.scores.form().is_plain();
        let workgroup_bytes = gpu.capabilities().max_workgroup_bytes;
        let on_matrix_units = || {
            CooperativeAttention::of(gpu.capabilities(), head_dim)
                // More than an eighth of the rows that matrices compute.
                .filter(|sizes| !exact && 8 * query_rows > sizes.rows() as usize)
                .filter(|_| Checked::AttentionOnMatrixUnits.passed(gpu))
        };
        let kernel = match gpu.software_subgroups() {
            Some(8) if plain => Self::Subgroup,
            Some(4) if plain && query_rows >= SUBGROUP4_ROWS / 2 => Self::Subgroup4,
            _ if gpu.is_software() => Self::Workgroup,
            _ if query_rows <= Self::Decode.max_rows(head_dim, workgroup_bytes) => Self::Decode,
            _ if plain => on_matrix_units().map_or(Self::Tiled, Self::Cooperative),
            _ => Self::Tiled,
        };
        let most = kernel.max_rows(head_dim, workgroup_bytes);
        let rows = match kernel {
            Self::Subgroup4 | Self::Tiled | Self::Cooperative(_) => most,
            Self::Subgroup | Self::Workgroup | Self::Decode => query_rows.next_power_of_two().min(most),
        };
        (kernel, rows)
    }

    /// The most rows of a workgroup.
    pub(crate) fn max_rows(self, head_dim: usize, workgroup_bytes: u32) -> usize {
        // Half of `most` fits in WebGPU's least workgroup memory, 16 KiB.
        let fit = |most: usize, row_bytes| if most * row_bytes <= workgroup_bytes as usize { most } else { most / 2 };
        match self {
            // More outputs than 64 vectors of eight lanes would make code that takes seconds to compile.
            Self::Subgroup => (1024 / head_dim).next_power_of_two().clamp(1, MAX_ROWS),
            Self::Tiled => {
                // Of a row: its query, its probabilities, the maxima of four keys each, its factor and its totals.
                let block4 = if head_dim > 128 { 32 } else { 16 };
                fit(MAX_ROWS, 4 * head_dim + 16 * block4 + 4 * block4 + 12)
            }
            // The same, and a vec4 of each of 64 invocations. The query is padded to four chunks of eight elements.
            Self::Decode => fit(MAX_DECODE_ROWS, 4 * head_dim.next_multiple_of(32) + 16 * 16 + 4 * 16 + 12 + 16 * 64),
            Self::Workgroup => MAX_ROWS,
            Self::Cooperative(sizes) => sizes.rows() as usize,
            Self::Subgroup4 => SUBGROUP4_ROWS,
        }
    }
}

impl PipelineKey for Variant {
    fn kernel(&self) -> Kernel {
        self.kernel_over(
            wgsl!("attention/attention_contiguous.wgsl"),
            &[Access::Read, Access::Read, Access::Read, Access::Write],
        )
    }
}

impl Variant {
    /// The kernel with a part that says where queries, keys and values are, and its bindings.
    pub(super) fn kernel_over(&self, layout: Source, bindings: &'static [Access]) -> Kernel {
        let cache = if self.half { wgsl!("attention/cache_f16.wgsl") } else { wgsl!("attention/cache_f32.wgsl") };
        let head4 = self.head_dim / 4;
        let lengths = [("HEAD4", head4 as u32), ("ROWS", self.rows as u32)];
        let mut overrides = vec![("CAUSAL", u32::from(self.causal)), ("SPLIT", u32::from(self.split))];
        let ScoreForm { capped, windowed } = self.scores;
        let steps = [("CAPPED", capped), ("WINDOWED", windowed)].into_iter().filter(|(_, has)| *has);
        overrides.extend(steps.map(|(name, _)| (name, 1)));
        let mut consts = Vec::new();
        let wide = is_wide(self.head_dim, self.half);
        let narrow = vec![cache, wgsl!("attention/chunks_vec4.wgsl")];
        let mut sources = vec![wgsl!("attention/attention_common.wgsl"), layout];
        let name = match self.kernel {
            AttentionKernel::Subgroup => {
                consts.extend(lengths);
                consts.push(("HEAD_CHUNKS", head4.div_ceil(8) as u32));
                sources.extend([cache, wgsl!("attention/attention_subgroup.wgsl")]);
                "attention_subgroup"
            }
            AttentionKernel::Subgroup4 => {
                consts.push(("HEAD4", head4 as u32));
                sources.extend([cache, wgsl!("attention/attention_subgroup4.wgsl")]);
                "attention_subgroup4"
            }
            AttentionKernel::Workgroup => {
                overrides.extend(lengths);
                overrides.push(("COLUMNS", head4.next_power_of_two() as u32));
                sources.extend([cache, wgsl!("attention/attention.wgsl")]);
                "attention"
            }
            AttentionKernel::Tiled => {
                consts.extend(lengths);
                sources.extend(if wide { vec![wgsl!("attention/chunks_f16_keys.wgsl")] } else { narrow });
                sources.push(wgsl!("attention/attention_tiled.wgsl"));
                "attention_tiled"
            }
            AttentionKernel::Cooperative(sizes) => {
                consts.push(("HEAD4", head4 as u32));
                consts.push(("ROW_PARTS", sizes.parts[0]));
                consts.push(("COLUMN_PARTS", sizes.parts[1]));
                consts.push(("ROW_MATRICES", sizes.row_matrices));
                consts.push(("KEYS", sizes.keys));
                consts.push(("WORKGROUP", sizes.workgroup()));
                consts.push(("HELD", u32::from(sizes.held)));
                sources.push(wgsl!("matmul/stage_f16.wgsl"));
                sources.push(match self.half {
                    true => wgsl!("attention/runs_f16.wgsl"),
                    false => wgsl!("attention/runs_f32.wgsl"),
                });
                sources.push(match sizes.size {
                    8 => wgsl!("attention/cooperative_8.wgsl"),
                    _ => wgsl!("attention/cooperative_16.wgsl"),
                });
                sources.push(wgsl!("attention/attention_cooperative.wgsl"));
                "attention_cooperative"
            }
            AttentionKernel::Decode => {
                consts.extend(lengths);
                sources.extend(if wide { vec![wgsl!("attention/chunks_f16.wgsl")] } else { narrow });
                sources.push(wgsl!("attention/attention_decode.wgsl"));
                "attention_decode"
            }
        };
        Kernel { name, label: name, sources, overrides, consts, bindings }
    }
}

/// What decides a specialisation of the combining kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Combine {
    pub head_dim: usize,
}

impl PipelineKey for Combine {
    fn kernel(&self) -> Kernel {
        self.kernel_over(wgsl!("attention/combine_contiguous.wgsl"), &[Access::Read, Access::Write])
    }
}

impl Combine {
    /// The kernel with a part that says where queries are, and its bindings.
    pub(super) fn kernel_over(&self, layout: Source, bindings: &'static [Access]) -> Kernel {
        Kernel {
            overrides: vec![("HEAD4", (self.head_dim / 4) as u32)],
            ..Kernel::new("attention_combine", [layout, wgsl!("attention/attention_combine.wgsl")], bindings)
        }
    }
}

impl Attention {
    /// Checks that there is a kernel for these heads.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if not.
    pub fn check(&self) -> Result<()> {
        let fits = self.head_dim.is_multiple_of(4)
            && (4..=MAX_HEAD_DIM).contains(&self.head_dim)
            && self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads);
        if self.scores.window.is_some_and(|window| window == 0 || !self.causal) {
            return Err(Error::InvalidArgument(format!(
                "a window of {:?} keys, expected at least 1 in causal attention",
                self.scores.window
            )));
        }
        if fits {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: "attention with heads, key/value heads, head dimension".to_owned(),
            found: format!("{}, {}, {}", self.heads, self.kv_heads, self.head_dim),
            supported: "heads a multiple of key/value heads, head dimensions that are multiples of 4 up to 256"
                .to_owned(),
        })
    }

    /// Checks the shape of a weight of queries, keys and values, for rows of `columns` elements.
    pub(super) fn expect_weight(&self, weight: &Matrix, columns: usize) -> Result<()> {
        if weight.columns() == columns && weight.rows() == self.packed_columns() {
            return Ok(());
        }
        Err(Error::WrongShape {
            name: "queries, keys and values".to_owned(),
            found: vec![weight.rows(), weight.columns()],
            expected: format!("[{}, {columns}]", self.packed_columns()),
        })
    }

    /// Columns of a tensor of queries, keys and values.
    pub fn packed_columns(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// softmax(q k^T / sqrt(head_dim)) v for all heads: queries [query_len, heads * head_dim] -> the same shape. With
/// [`KeyValues::Packed`] the queries are the first columns of `queries`.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn attention(
    recorder: &mut Recorder,
    layer: Attention,
    queries: &Tensor,
    key_values: KeyValues<'_>,
) -> Result<Tensor> {
    attention_batched(recorder, layer, queries, key_values, 1)
}

/// The same for several sequences of one length, one after the other in queries, keys and values (not in a cache): each
/// attends to its own.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn attention_batched(
    recorder: &mut Recorder,
    layer: Attention,
    queries: &Tensor,
    key_values: KeyValues<'_>,
    sequences: usize,
) -> Result<Tensor> {
    layer.check()?;
    let Attention { heads, kv_heads, head_dim, causal, exact, scores } = layer;
    let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let rows = queries.rows();
    let source = match key_values {
        KeyValues::Packed => {
            let columns = layer.packed_columns();
            queries.expect("queries, keys and values", &[rows, columns])?;
            let keys = queries.binding();
            Layout {
                rows,
                half: false,
                query_stride: columns,
                bindings: [keys; 2],
                stride: columns,
                starts: [width, width + kv_width],
            }
        }
        KeyValues::Cached { cache, length } => {
            queries.expect("queries", &[rows, width])?;
            if length > cache.capacity || rows > length || cache.columns != kv_width || sequences != 1 {
                return Err(Error::InvalidArgument(format!(
                    "{rows} queries over {length} positions; the cache holds {} positions of {} columns, expected {kv_width} columns",
                    cache.capacity, cache.columns
                )));
            }
            Layout {
                rows: length,
                half: cache.half,
                query_stride: width,
                bindings: cache.stored().map(Tensor::binding),
                stride: kv_width,
                starts: [0, 0],
            }
        }
        KeyValues::Separate(tensor) => {
            queries.expect("queries", &[rows, width])?;
            tensor.expect("keys and values", &[tensor.rows(), 2 * kv_width])?;
            if causal {
                return Err(Error::InvalidArgument("causal attention needs keys of the same sequence".to_owned()));
            }
            let keys = tensor.binding();
            Layout {
                rows: tensor.rows(),
                half: false,
                query_stride: width,
                bindings: [keys; 2],
                stride: 2 * kv_width,
                starts: [0, kv_width],
            }
        }
    };
    if sequences == 0 || !rows.is_multiple_of(sequences) || !source.rows.is_multiple_of(sequences) || source.rows == 0 {
        return Err(Error::InvalidArgument(format!(
            "{rows} queries and {} keys cannot be divided into {sequences} sequences of one length",
            source.rows
        )));
    }
    let (query_len, keys) = (rows / sequences, source.rows / sequences);
    let group = heads / kv_heads;
    let query_rows = query_len * group;
    let exact = exact || (matches!(key_values, KeyValues::Cached { .. }) && !source.half);
    let (kernel, block) = AttentionKernel::choose(recorder.gpu(), layer, query_rows, exact);
    let blocks = query_rows.div_ceil(block);
    // Few queries cannot fill a device by themselves: then the keys are split as well.
    let split = blocks == 1 && keys > SPLIT_KEYS && kernel != AttentionKernel::Subgroup4 && sequences == 1;
    // The same up to the next multiple of 64 keys, so that decoding steps can be replayed until then.
    let rounded = keys.next_multiple_of(64);
    let split_keys = if split { split_keys(recorder.gpu(), rounded, kv_heads) } else { rounded };
    recorder.limit_replays(rounded - keys);
    let splits = keys.div_ceil(split_keys);
    let y = Tensor::temporary(recorder.gpu(), &[rows, width], "attention")?;
    let partial = if split {
        Some(Tensor::temporary(recorder.gpu(), &[splits * query_rows * kv_heads, head_dim + 4], "attention splits")?)
    } else {
        None
    };
    let seen = if causal { keys as f64 - (query_len - 1) as f64 / 2.0 } else { keys as f64 };
    let element = if source.half { 2 } else { 4 };
    let [key_binding, value_binding] = source.bindings;
    let [key_start, value_start] = source.starts;
    let (scale, cap, window) = scores.params(head_dim);
    for sequence in 0..sequences {
        let params = Params {
            query_len: query_len as u32,
            keys: keys as u32,
            group: group as u32,
            first_position: keys.saturating_sub(query_len) as u32,
            query_stride: (source.query_stride / 4) as u32,
            query_start: (sequence * query_len * source.query_stride / 4) as u32,
            key_stride: (source.stride / 4) as u32,
            key_start: ((sequence * keys * source.stride + key_start) / 4) as u32,
            value_stride: (source.stride / 4) as u32,
            value_start: ((sequence * keys * source.stride + value_start) / 4) as u32,
            split_keys: split_keys as u32,
            scale,
            output_start: (sequence * query_len * width / 4) as u32,
            head_chunks: head_chunks(head_dim, source.half),
            cap,
            window,
        };
        recorder.dispatch_at_position(
            &Variant { head_dim, rows: block, causal, split, half: source.half, scores: scores.form(), kernel },
            &[queries.binding(), key_binding, value_binding, partial.as_ref().unwrap_or(&y).binding()],
            &params,
            [blocks as u32, kv_heads as u32, splits as u32],
            Cost {
                bytes: (2 * query_len * width * 4 + 2 * keys * kv_width * element) as f64,
                flops: 4.0 * query_len as f64 * seen * width as f64,
            },
            &[offset_of!(Params, keys), offset_of!(Params, first_position)],
        )?;
    }
    if let Some(partial) = partial {
        combine(recorder, layer, &partial, &y, splits)?;
    }
    Ok(y)
}

/// Attention of queries [rows, heads * head_dim] of several sequences, whose keys and values are in one cache. In each
/// pass every query is in one segment, in order; it attends to the keys of its segments in all passes together. Each
/// segment is a dispatch that leaves a partial result, and these are combined as those of split keys are.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn attention_segments(
    recorder: &mut Recorder,
    layer: Attention,
    queries: &Tensor,
    cache: &KvCache,
    passes: &[Vec<AttentionSegment>],
) -> Result<Tensor> {
    layer.check()?;
    let Attention { heads, kv_heads, head_dim, exact, scores, .. } = layer;
    if scores.window.is_some() {
        return Err(Error::Unsupported {
            what: "attention of several sequences with one cache".to_owned(),
            found: "layers with a window".to_owned(),
            supported: "layers without windows".to_owned(),
        });
    }
    let exact = exact || !cache.half;
    let (rows, width, kv_width) = (queries.rows(), heads * head_dim, kv_heads * head_dim);
    queries.expect("queries", &[rows, width])?;
    check_passes(rows, cache, kv_width, passes)?;
    let group = heads / kv_heads;
    let query_rows = rows * group;
    // Partial results come from kernels that can split keys.
    let choose = |gpu: &Gpu, query_rows: usize| match AttentionKernel::choose(gpu, layer, query_rows, exact) {
        (AttentionKernel::Subgroup4, _) => (AttentionKernel::Workgroup, MAX_ROWS),
        chosen => chosen,
    };
    let (_, most) = choose(recorder.gpu(), query_rows);
    // Few queries that all attend to the same keys: the keys are split, as in [`attention`].
    let split_keys_of = |gpu: &Gpu, pass: &[AttentionSegment]| match pass {
        [segment] if query_rows <= most && segment.keys.count > SPLIT_KEYS => {
            Some(split_keys(gpu, segment.keys.count, kv_heads))
        }
        _ => None,
    };
    let splits_of = |split_keys: Option<usize>, pass: &[AttentionSegment]| match (split_keys, pass) {
        (Some(split_keys), [segment]) => segment.keys.count.div_ceil(split_keys),
        _ => 1,
    };
    let splits: usize = passes.iter().map(|pass| splits_of(split_keys_of(recorder.gpu(), pass), pass)).sum();
    let partial =
        Tensor::temporary(recorder.gpu(), &[splits * query_rows * kv_heads, head_dim + 4], "attention splits")?;
    let [keys, values] = cache.stored().map(Tensor::binding);
    let element = if cache.half { 2 } else { 4 };
    let (scale, cap, window) = scores.params(head_dim);
    let mut first_split = 0;
    for pass in passes {
        let split_keys = split_keys_of(recorder.gpu(), pass);
        let splits = splits_of(split_keys, pass);
        for AttentionSegment { queries: range, keys: run, causal } in pass {
            let query_len = range.len();
            let (kernel, block) = choose(recorder.gpu(), query_len * group);
            let (stride, start) = ((run.step * kv_width / 4) as u32, (run.start * kv_width / 4) as u32);
            let params = Params {
                query_len: query_len as u32,
                keys: run.count as u32,
                group: group as u32,
                first_position: if *causal { (run.count - query_len) as u32 } else { 0 },
                query_stride: (width / 4) as u32,
                query_start: (range.start * width / 4) as u32,
                key_stride: stride,
                key_start: start,
                value_stride: stride,
                value_start: start,
                split_keys: split_keys.unwrap_or(run.count.next_multiple_of(64)) as u32,
                scale,
                output_start: ((first_split * query_rows + range.start * group) * kv_heads * (head_dim / 4 + 1)) as u32,
                head_chunks: head_chunks(head_dim, cache.half),
                cap,
                window,
            };
            let (causal, half, scores) = (*causal, cache.half, scores.form());
            recorder.dispatch(
                &Variant { head_dim, rows: block, causal, split: true, half, scores, kernel },
                &[queries.binding(), keys, values, partial.binding()],
                &params,
                [(query_len * group).div_ceil(block) as u32, kv_heads as u32, splits as u32],
                Cost {
                    bytes: (2 * query_len * width * 4 + 2 * run.count * kv_width * element) as f64,
                    flops: 4.0 * (query_len * run.count * width) as f64,
                },
            )?;
        }
        first_split += splits;
    }
    let y = Tensor::temporary(recorder.gpu(), &[rows, width], "attention")?;
    combine(recorder, layer, &partial, &y, splits)?;
    Ok(y)
}

/// Checks that every pass has every query once, and that the keys are in the cache.
fn check_passes(rows: usize, cache: &KvCache, kv_width: usize, passes: &[Vec<AttentionSegment>]) -> Result<()> {
    let fits = |segment: &AttentionSegment| {
        let StridedRows { start, step, count } = segment.keys;
        let seen = if segment.causal { segment.queries.len() } else { 1 };
        count >= seen && count > 0 && start + (count - 1) * step < cache.capacity
    };
    for pass in passes {
        let mut next = 0;
        for segment in pass {
            if segment.queries.start != next || segment.queries.is_empty() || !fits(segment) {
                break;
            }
            next = segment.queries.end;
        }
        if next != rows || pass.iter().any(|segment| segment.queries.end > rows) {
            return Err(Error::InvalidArgument(format!(
                "{pass:?} must have each of {rows} queries once, with keys among {}",
                cache.capacity
            )));
        }
    }
    if passes.is_empty() || rows == 0 || cache.columns != kv_width {
        let found = cache.columns;
        return Err(Error::InvalidArgument(format!(
            "{rows} queries in {} passes over keys of {found} columns, expected {kv_width} columns",
            passes.len()
        )));
    }
    Ok(())
}

/// Combines the partial results of split attention.
fn combine(recorder: &mut Recorder, layer: Attention, partial: &Tensor, y: &Tensor, splits: usize) -> Result<()> {
    let Attention { heads, kv_heads, head_dim, .. } = layer;
    let group = heads / kv_heads;
    let query_rows = y.rows() * group;
    recorder.dispatch(
        &Combine { head_dim },
        &[partial.binding(), y.binding()],
        &[query_rows as u32, kv_heads as u32, group as u32, splits as u32],
        element_grid(query_rows * kv_heads * head_dim / 4),
        cost(partial.len() + y.len(), 2 * partial.len()),
    )
}
