//! Attention over block tables: keys and values of many sequences in one cache, in blocks that need not be neighbours.

use bytemuck::{Pod, Zeroable};

use super::attention::{Attention, AttentionKernel, Combine, KvCache, ScoreForm, Variant, head_chunks};
use super::{cost, element_grid};
use crate::gpu::{Access, Cost, Gpu, Kernel, PipelineKey, Recorder, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 16;
/// Keys of a split, counted from the start of a sequence: its results do not depend on what else is in a step.
const SPLIT_KEYS: usize = 256;
/// Words of a sequence before the tables.
const HEADER: usize = 4;

/// A sequence of a step.
#[derive(Debug, Clone, Copy)]
pub struct PagedSequence<'a> {
    /// Query positions, the last of all.
    pub queries: usize,
    /// Key positions, those of the queries included.
    pub keys: usize,
    /// The blocks of the keys, in order.
    pub blocks: &'a [u32],
}

/// Which kernels compute attention. A position's result depends on the form, and on nothing else in the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PagedForm {
    /// Few queries of each sequence: keys are split, and the splits are combined.
    Decode,
    /// Many queries: a workgroup takes all keys.
    Prefill,
}

/// The block tables of a step's sequences, on the device.
#[derive(Debug)]
pub struct BlockTables {
    words: Tensor,
    shape: StepShape,
}

/// What the host knows of a step.
#[derive(Debug, Clone, Copy, Default)]
struct StepShape {
    sequences: usize,
    /// Query positions of all sequences, and of the one that has most.
    queries: usize,
    most_queries: usize,
    most_keys: usize,
    /// Keys of all sequences, and pairs of queries and keys.
    keys: usize,
    pairs: f64,
    /// Blocks that the cache must have.
    blocks: usize,
}

impl BlockTables {
    /// Room for steps of up to `sequences` sequences with `queries` query positions and `blocks` blocks in all.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn new(gpu: &Gpu, sequences: usize, queries: usize, blocks: usize) -> Result<Self> {
        let words = Tensor::zeros(gpu, &[HEADER * sequences + queries + blocks], "block tables")?;
        Ok(Self { words, shape: StepShape::default() })
    }

    /// Sets the sequences of the steps recorded from now on. What was recorded before must be submitted.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a sequence has no queries, more queries than keys or too few blocks, or if there
    /// is not enough room.
    pub fn set(&mut self, gpu: &Gpu, sequences: &[PagedSequence<'_>]) -> Result<()> {
        let mut shape = StepShape { sequences: sequences.len(), ..StepShape::default() };
        for PagedSequence { queries, keys, blocks } in sequences.iter().copied() {
            if queries == 0 || queries > keys || blocks.len() * BLOCK_ROWS < keys {
                return Err(Error::InvalidArgument(format!(
                    "{queries} queries over {keys} keys in {} blocks of {BLOCK_ROWS}",
                    blocks.len()
                )));
            }
            shape.queries += queries;
            shape.most_queries = shape.most_queries.max(queries);
            shape.most_keys = shape.most_keys.max(keys);
            shape.keys += keys;
            shape.pairs += queries as f64 * (keys as f64 - (queries - 1) as f64 / 2.0);
            let used = blocks.iter().take(keys.div_ceil(BLOCK_ROWS));
            shape.blocks = used.map(|block| *block as usize + 1).max().unwrap_or(0).max(shape.blocks);
        }
        let mut words = Vec::with_capacity(self.words.len());
        let (mut first_query, mut table) = (0, HEADER * sequences.len() + shape.queries);
        for PagedSequence { queries, keys, .. } in sequences {
            words.extend([first_query as u32, *queries as u32, *keys as u32, table as u32]);
            first_query += queries;
            table += keys.div_ceil(BLOCK_ROWS);
        }
        for PagedSequence { queries, keys, .. } in sequences {
            words.extend((keys - queries..*keys).map(|position| (position / SPLIT_KEYS + 1) as u32));
        }
        for PagedSequence { keys, blocks, .. } in sequences {
            words.extend_from_slice(&blocks[..keys.div_ceil(BLOCK_ROWS)]);
        }
        if words.len() > self.words.len() {
            return Err(Error::InvalidArgument(format!(
                "block tables of {} words, expected at most {}",
                words.len(),
                self.words.len()
            )));
        }
        self.words.write(gpu, 0, bytemuck::cast_slice(&words));
        self.shape = shape;
        Ok(())
    }

    /// Blocks that the cache must have.
    pub fn blocks(&self) -> usize {
        self.shape.blocks
    }

    /// Splits of the longest sequence: steps with as many, and with as many queries, have the same dispatches.
    pub fn splits(&self) -> usize {
        self.shape.most_keys.div_ceil(SPLIT_KEYS)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    query_len: u32,
    blocks: u32,
    group: u32,
    query_stride: u32,
    key_stride: u32,
    key_start: u32,
    value_stride: u32,
    value_start: u32,
    split_keys: u32,
    scale: f32,
    head_chunks: u32,
    output_stride: u32,
    cap: f32,
    window: u32,
}

/// The kernel of [`Variant`] with block tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PagedVariant(pub Variant);

impl PipelineKey for PagedVariant {
    fn kernel(&self) -> Kernel {
        self.0.kernel_over(
            wgsl!("attention/attention_paged.wgsl"),
            &[Access::Read, Access::Read, Access::Read, Access::Write, Access::Read],
        )
    }
}

/// The kernel of [`Combine`] for splits of which every query position has a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PagedCombine(pub Combine);

impl PipelineKey for PagedCombine {
    fn kernel(&self) -> Kernel {
        self.0.kernel_over(wgsl!("attention/combine_paged.wgsl"), &[Access::Read, Access::Write, Access::Read])
    }
}

impl PagedForm {
    /// The kernel, and the rows of its workgroups for sequences of up to `query_rows` query rows.
    fn kernel(self, gpu: &Gpu, head_dim: usize, query_rows: usize, scores: ScoreForm) -> (AttentionKernel, usize) {
        let kernel = match (gpu.software_subgroups(), self) {
            (Some(8), _) if scores.is_plain() => AttentionKernel::Subgroup,
            _ if gpu.is_software() => AttentionKernel::Workgroup,
            (_, Self::Decode) => AttentionKernel::Decode,
            (_, Self::Prefill) => AttentionKernel::Tiled,
        };
        let most = kernel.max_rows(head_dim, gpu.capabilities().max_workgroup_bytes);
        let rows = match kernel {
            AttentionKernel::Tiled => most,
            _ => query_rows.next_power_of_two().min(most),
        };
        (kernel, rows)
    }
}

/// Causal attention of queries [rows, heads * head_dim]: the last positions of the sequences in `tables`, one sequence
/// after the other. Their keys and values are rows of `cache`: row i of a block b is row [`BLOCK_ROWS`] b + i.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn attention_paged(
    recorder: &mut Recorder,
    layer: Attention,
    queries: &Tensor,
    cache: &KvCache,
    tables: &BlockTables,
    form: PagedForm,
) -> Result<Tensor> {
    layer.check()?;
    let Attention { heads, kv_heads, head_dim, scores, .. } = layer;
    let (width, kv_width, group) = (heads * head_dim, kv_heads * head_dim, heads / kv_heads);
    let shape = tables.shape;
    queries.expect("queries", &[shape.queries, width])?;
    if cache.columns() != kv_width || shape.blocks * BLOCK_ROWS > cache.capacity() {
        return Err(Error::InvalidArgument(format!(
            "blocks up to {} of {BLOCK_ROWS} rows of {kv_width} columns; the cache holds {} rows of {} columns",
            shape.blocks,
            cache.capacity(),
            cache.columns()
        )));
    }
    let gpu = recorder.gpu().clone();
    let (kernel, rows) = form.kernel(&gpu, head_dim, shape.most_queries * group, scores.form());
    let split = form == PagedForm::Decode;
    let splits = if split { tables.splits() } else { 1 };
    let blocks = (shape.most_queries * group).div_ceil(rows);
    let y = Tensor::temporary(&gpu, &[shape.queries, width], "attention")?;
    let query_rows = shape.queries * group;
    let partial = if split {
        Some(Tensor::temporary(&gpu, &[splits * query_rows * kv_heads, head_dim + 4], "attention splits")?)
    } else {
        None
    };
    let (scale, cap, window) = scores.params(head_dim);
    let params = Params {
        query_len: shape.queries as u32,
        blocks: blocks as u32,
        group: group as u32,
        query_stride: (width / 4) as u32,
        key_stride: (kv_width / 4) as u32,
        key_start: 0,
        value_stride: (kv_width / 4) as u32,
        value_start: 0,
        split_keys: if split { SPLIT_KEYS } else { shape.most_keys.next_multiple_of(64) } as u32,
        scale,
        head_chunks: head_chunks(head_dim, cache.is_half()),
        output_stride: (width / 4) as u32,
        cap,
        window,
    };
    let [keys, values] = cache.stored().map(Tensor::binding);
    let element = if cache.is_half() { 2 } else { 4 };
    let (half, scores) = (cache.is_half(), scores.form());
    recorder.dispatch(
        &PagedVariant(Variant { head_dim, rows, causal: true, split, half, scores, kernel }),
        &[queries.binding(), keys, values, partial.as_ref().unwrap_or(&y).binding(), tables.words.binding()],
        &params,
        [(shape.sequences * blocks) as u32, kv_heads as u32, splits as u32],
        Cost {
            bytes: (2 * shape.queries * width * 4 + 2 * shape.keys * kv_width * element) as f64,
            flops: 4.0 * shape.pairs * width as f64,
        },
    )?;
    if let Some(partial) = partial {
        recorder.dispatch(
            &PagedCombine(Combine { head_dim }),
            &[partial.binding(), y.binding(), tables.words.binding()],
            &[query_rows as u32, kv_heads as u32, group as u32, (HEADER * shape.sequences) as u32],
            element_grid(query_rows * kv_heads * head_dim / 4),
            cost(partial.len() + y.len(), 2 * partial.len()),
        )?;
    }
    Ok(y)
}
