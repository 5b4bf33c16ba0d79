//! Cases of attention.

use half::f16;

use super::{ATTENTION_F16, Case, F32, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops::{
    self, AttentionSegment, BlockTables, KeyValues, KvCache, PagedForm, PagedSequence, Scores, StridedRows,
};
use crate::tensor::Tensor;

/// Where keys and values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Next to the queries; the same number of keys and queries.
    Packed,
    /// In an f32 cache.
    F32,
    /// In an f16 cache.
    F16,
}

/// softmax(q k^T / sqrt(head_dim)) v: `ops::attention`.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Query positions, the last of all.
    pub times: usize,
    /// Key positions.
    pub keys: usize,
    /// Each query attends only to its own position and those before.
    pub causal: bool,
    /// Where keys and values lie.
    pub storage: Storage,
    /// Nothing is rounded to f16.
    pub exact: bool,
}

/// Unused positions of the cache, filled with NaN.
pub(super) const SPARE: usize = 3;

impl Attention {
    fn layer(&self) -> ops::Attention {
        ops::Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            causal: self.causal,
            exact: self.exact,
            scores: Scores::default(),
        }
    }

    /// Queries [times, heads * d], keys and values [keys, kv_heads * d].
    fn inputs(&self) -> [Vec<f32>; 3] {
        let mut random = Random::new(&self.name());
        let kv = self.keys * self.kv_heads * self.head_dim;
        // Scores of standard deviation 4 / 3: neither flat nor a single spike.
        let queries = random.values(self.times * self.heads * self.head_dim, 2.0);
        let mut inputs = [queries, random.values(kv, 2.0), random.values(kv, 1.0)];
        if !self.exact {
            // Scores of the second half are larger by 12: kernels that scale their sums rarely have to. The difference
            // is the same for all keys that matter, so that rounding it changes nothing.
            let d = self.head_dim;
            let [queries, keys, _] = &mut inputs;
            queries.iter_mut().step_by(d).for_each(|x| *x = 0.75 * (d as f32).sqrt());
            let heads = keys.iter_mut().step_by(d).enumerate();
            heads.for_each(|(at, x)| *x = if at / self.kv_heads < self.keys / 2 { 0.0 } else { 16.0 });
        }
        if self.storage == Storage::F16 {
            inputs[1..].iter_mut().flatten().for_each(|x| *x = f16::from_f32(*x).to_f32());
        }
        inputs
    }
}

/// `values` as a cache stores them, followed by NaN.
fn cache_bytes(values: &[f32], spare: usize, half: bool) -> Vec<u8> {
    let values = values.iter().copied().chain(std::iter::repeat_n(f32::NAN, spare));
    if half {
        values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect()
    } else {
        values.flat_map(f32::to_le_bytes).collect()
    }
}

impl Case for Attention {
    fn bound(&self) -> f64 {
        if self.exact { F32 } else { ATTENTION_F16 }
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move { self.run_with(gpu, Scores::default()).await })
    }

    fn reference(&self) -> Vec<f32> {
        let [queries, keys, values] = self.inputs();
        self.attend(&queries, &keys, &values)
    }
}

impl Attention {
    async fn run_with(&self, gpu: &Gpu, scores: Scores) -> Result<Vec<f32>> {
        let inputs = self.inputs();
        let [queries, keys, values] = &inputs;
        let (width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let layer = ops::Attention { scores, ..self.layer() };
        let mut recorder = gpu.record();
        let y = if self.storage == Storage::Packed {
            let mut packed = Vec::new();
            for time in 0..self.times {
                packed.extend_from_slice(&queries[time * width..][..width]);
                packed.extend_from_slice(&keys[time * kv_width..][..kv_width]);
                packed.extend_from_slice(&values[time * kv_width..][..kv_width]);
            }
            let packed = Tensor::new(gpu, &[self.times, width + 2 * kv_width], &packed, "packed")?;
            ops::attention(&mut recorder, layer, &packed, KeyValues::Packed)?
        } else {
            let half = self.storage == Storage::F16;
            let cache = KvCache::new(gpu, self.keys + SPARE, kv_width, half)?;
            for (tensor, content) in cache.stored().into_iter().zip([keys, values]) {
                tensor.write(gpu, 0, &cache_bytes(content, SPARE * kv_width, half));
            }
            let queries = Tensor::new(gpu, &[self.times, width], queries, "queries")?;
            ops::attention(&mut recorder, layer, &queries, KeyValues::Cached { cache: &cache, length: self.keys })?
        };
        read(recorder, &[&y]).await
    }
}

/// The same with a scale, a cap or a window: [`ops::Scores`].
#[derive(Debug, Clone, Copy)]
pub struct ScoredAttention(pub Attention, pub Scores);

impl Case for ScoredAttention {
    fn bound(&self) -> f64 {
        self.0.bound()
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(self.0.run_with(gpu, self.1))
    }

    fn reference(&self) -> Vec<f32> {
        let [queries, keys, values] = self.0.inputs();
        self.0.attend_with(self.1, &queries, &keys, &values)
    }
}

impl Attention {
    /// The definition, row by row.
    fn attend(&self, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
        self.attend_with(Scores::default(), queries, keys, values)
    }

    fn attend_with(&self, steps: Scores, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
        let d = self.head_dim;
        let scale = steps.scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
        let cap = |score: f64| steps.cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        let mut y = Vec::new();
        for time in 0..self.times {
            for head in 0..self.heads {
                let kv_head = head / (self.heads / self.kv_heads);
                let query = &queries[(time * self.heads + head) * d..][..d];
                let of = |all: &'_ [f32], key: usize, i: usize| f64::from(all[(key * self.kv_heads + kv_head) * d + i]);
                let seen = if self.causal { self.keys - self.times + time + 1 } else { self.keys };
                let first = steps.window.map_or(0, |window| seen.saturating_sub(window));
                let scores: Vec<f64> = (first..seen)
                    .map(|key| {
                        let dot: f64 = query.iter().enumerate().map(|(i, q)| f64::from(*q) * of(keys, key, i)).sum();
                        cap(dot * scale)
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                y.extend((0..d).map(|i| {
                    let sum: f64 =
                        weights.iter().enumerate().map(|(key, weight)| weight * of(values, first + key, i)).sum();
                    (sum / total) as f32
                }));
            }
        }
        y
    }
}

/// Attention of several sequences, each to its own keys: [`ops::attention_batched`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionBatched {
    /// Sequences, one after the other.
    pub sequences: usize,
    /// Heads of queries, keys and values.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Queries of a sequence.
    pub times: usize,
    /// Keys of a sequence, if they are another's; else they are next to the queries.
    pub keys: Option<usize>,
    /// Nothing is rounded to f16.
    pub exact: bool,
}

impl AttentionBatched {
    /// One sequence's.
    fn one(&self) -> Attention {
        let Self { heads, head_dim, times, keys, exact, .. } = *self;
        let keys = keys.unwrap_or(times);
        Attention { heads, kv_heads: heads, head_dim, times, keys, causal: false, storage: Storage::Packed, exact }
    }

    /// Queries, keys and values of each sequence.
    fn inputs(&self) -> Vec<[Vec<f32>; 3]> {
        let mut random = Random::new(&self.name());
        let one = self.one();
        let width = self.heads * self.head_dim;
        let sequence = |_| {
            let queries = random.values(self.times * width, 2.0);
            [queries, random.values(one.keys * width, 2.0), random.values(one.keys * width, 1.0)]
        };
        (0..self.sequences).map(sequence).collect()
    }
}

/// Matrices with rows of `width` values, concatenated row by row.
fn concat_columns(parts: &[&[f32]], width: usize) -> Vec<f32> {
    let rows = parts.first().map_or(0, |part| part.len() / width);
    (0..rows).flat_map(|row| parts.iter().flat_map(move |part| &part[row * width..][..width])).copied().collect()
}

impl Case for AttentionBatched {
    fn bound(&self) -> f64 {
        if self.exact { F32 } else { ATTENTION_F16 }
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let inputs = self.inputs();
            let (width, layer) = (self.heads * self.head_dim, self.one().layer());
            let rows = self.sequences * self.times;
            let mut recorder = gpu.record();
            let y = if let Some(keys) = self.keys {
                let queries: Vec<f32> = inputs.iter().flat_map(|[queries, ..]| queries).copied().collect();
                let other: Vec<f32> =
                    inputs.iter().flat_map(|[_, keys, values]| concat_columns(&[keys, values], width)).collect();
                let queries = Tensor::new(gpu, &[rows, width], &queries, "queries")?;
                let other = Tensor::new(gpu, &[self.sequences * keys, 2 * width], &other, "keys and values")?;
                ops::attention_batched(&mut recorder, layer, &queries, KeyValues::Separate(&other), self.sequences)?
            } else {
                let packed: Vec<f32> = inputs
                    .iter()
                    .flat_map(|[queries, keys, values]| concat_columns(&[queries, keys, values], width))
                    .collect();
                let packed = Tensor::new(gpu, &[rows, 3 * width], &packed, "packed")?;
                ops::attention_batched(&mut recorder, layer, &packed, KeyValues::Packed, self.sequences)?
            };
            read(recorder, &[&y]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let one = self.one();
        self.inputs().iter().flat_map(|[queries, keys, values]| one.attend(queries, keys, values)).collect()
    }
}

/// Attention of three sequences whose keys and values lie in one cache: [`ops::attention_segments`]. They have a common
/// prefix, then keys of their own, then generated keys, interleaved.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSegments {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Keys in common.
    pub prefix: usize,
    /// Keys of each one's own.
    pub suffixes: [usize; 3],
    /// Generated keys of each. If 0, the queries are at the positions of the suffixes; else there is one of each
    /// sequence, at its last position.
    pub generated: usize,
    /// The cache is in f16.
    pub half: bool,
    /// Nothing is rounded to f16.
    pub exact: bool,
}

impl AttentionSegments {
    /// One sequence's.
    fn one(&self, sequence: usize) -> Attention {
        let Self { heads, kv_heads, head_dim, prefix, suffixes, generated, half, exact } = *self;
        let times = if generated == 0 { suffixes[sequence] } else { 1 };
        let storage = if half { Storage::F16 } else { Storage::F32 };
        Attention {
            heads,
            kv_heads,
            head_dim,
            times,
            keys: prefix + suffixes[sequence] + generated,
            causal: true,
            storage,
            exact,
        }
    }

    /// Queries, keys and values of each sequence, the same at the beginning.
    fn inputs(&self) -> Vec<[Vec<f32>; 3]> {
        let mut random = Random::new(&self.name());
        let kv_width = self.kv_heads * self.head_dim;
        let mut values = |count, spread| {
            let mut values = random.values(count, spread);
            if self.half {
                values.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
            }
            values
        };
        let prefix = [values(self.prefix * kv_width, 2.0), values(self.prefix * kv_width, 1.0)];
        let sequence = |index| {
            let one = self.one(index);
            let more = (one.keys - self.prefix) * kv_width;
            let queries = values(one.times * self.heads * self.head_dim, 2.0);
            let [keys, attended] = &prefix;
            [queries, [keys.clone(), values(more, 2.0)].concat(), [attended.clone(), values(more, 1.0)].concat()]
        };
        (0..self.suffixes.len()).map(sequence).collect()
    }

    /// Keys or values in the order of the cache.
    fn cached(&self, of_sequences: &[&Vec<f32>]) -> Vec<f32> {
        let width = self.kv_heads * self.head_dim;
        let rows =
            |sequence: usize, from: usize, count: usize| &of_sequences[sequence][from * width..][..count * width];
        let mut cached = rows(0, 0, self.prefix).to_vec();
        for (sequence, suffix) in self.suffixes.iter().enumerate() {
            cached.extend_from_slice(rows(sequence, self.prefix, *suffix));
        }
        for step in 0..self.generated {
            for (sequence, suffix) in self.suffixes.iter().enumerate() {
                cached.extend_from_slice(rows(sequence, self.prefix + suffix + step, 1));
            }
        }
        cached
    }

    fn passes(&self) -> Vec<Vec<AttentionSegment>> {
        let count = self.suffixes.len();
        let rows = if self.generated == 0 { self.suffixes.iter().sum() } else { count };
        let all = |keys| vec![AttentionSegment { queries: 0..rows, keys, causal: false }];
        let mut passes = Vec::new();
        if self.prefix > 0 {
            passes.push(all(StridedRows { start: 0, step: 1, count: self.prefix }));
        }
        let starts = self.suffixes.iter().scan(0, |end, suffix| {
            *end += suffix;
            Some(*end - suffix)
        });
        let suffixes = starts.zip(self.suffixes).enumerate().map(|(sequence, (start, suffixes))| {
            let keys = StridedRows { start: self.prefix + start, step: 1, count: suffixes };
            let queries = if self.generated == 0 { start..start + suffixes } else { sequence..sequence + 1 };
            AttentionSegment { queries, keys, causal: self.generated == 0 }
        });
        passes.push(suffixes.collect());
        if self.generated > 0 {
            let first = self.prefix + self.suffixes.iter().sum::<usize>();
            let of_sequence = |sequence| {
                let keys = StridedRows { start: first + sequence, step: count, count: self.generated };
                AttentionSegment { queries: sequence..sequence + 1, keys, causal: false }
            };
            passes.push((0..count).map(of_sequence).collect());
        }
        passes
    }
}

impl Case for AttentionSegments {
    fn bound(&self) -> f64 {
        if self.exact { F32 } else { ATTENTION_F16 }
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let inputs = self.inputs();
            let queries: Vec<f32> = inputs.iter().flat_map(|[queries, ..]| queries).copied().collect();
            let (width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
            let contents = [1, 2].map(|which| {
                let of_sequences: Vec<&Vec<f32>> = inputs.iter().map(|inputs| &inputs[which]).collect();
                self.cached(&of_sequences)
            });
            let cache = KvCache::new(gpu, contents[0].len() / kv_width + SPARE, kv_width, self.half)?;
            for (tensor, content) in cache.stored().into_iter().zip(&contents) {
                tensor.write(gpu, 0, &cache_bytes(content, SPARE * kv_width, self.half));
            }
            let queries = Tensor::new(gpu, &[queries.len() / width, width], &queries, "queries")?;
            let mut recorder = gpu.record();
            let layer = self.one(0).layer();
            let y = ops::attention_segments(&mut recorder, layer, &queries, &cache, &self.passes())?;
            read(recorder, &[&y]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let inputs = self.inputs();
        let sequences = inputs.iter().enumerate();
        sequences.flat_map(|(index, [queries, keys, values])| self.one(index).attend(queries, keys, values)).collect()
    }
}

/// Attention of several sequences over block tables: [`ops::attention_paged`].
#[derive(Debug, Clone)]
pub struct AttentionPaged {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Query positions and key positions of each sequence.
    pub sequences: Vec<(usize, usize)>,
    /// An f16 cache.
    pub half: bool,
    /// Which kernels.
    pub form: PagedForm,
}

/// Blocks of the cache that no sequence has, filled with NaN.
const SPARE_BLOCKS: usize = 2;

impl AttentionPaged {
    fn one(&self, (times, keys): (usize, usize)) -> Attention {
        let Self { heads, kv_heads, head_dim, half, .. } = *self;
        let storage = if half { Storage::F16 } else { Storage::F32 };
        Attention { heads, kv_heads, head_dim, times, keys, causal: true, storage, exact: true }
    }

    /// The blocks of each sequence, and how many there are: none is next to the one before it.
    fn blocks(&self) -> (Vec<Vec<u32>>, usize) {
        let lengths: Vec<usize> = self.sequences.iter().map(|(_, keys)| keys.div_ceil(ops::BLOCK_ROWS)).collect();
        // Not a multiple of 7, so that steps of 7 reach every block once.
        let count = lengths.iter().sum::<usize>() + SPARE_BLOCKS;
        let count = count + usize::from(count.is_multiple_of(7));
        let mut order = (0..count).map(|index| (7 * index % count) as u32);
        (lengths.iter().map(|length| order.by_ref().take(*length).collect()).collect(), count)
    }
}

impl Case for AttentionPaged {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(self.run_with(gpu, Scores::default()))
    }

    fn reference(&self) -> Vec<f32> {
        self.reference_with(Scores::default())
    }
}

impl AttentionPaged {
    async fn run_with(&self, gpu: &Gpu, scores: Scores) -> Result<Vec<f32>> {
        let inputs: Vec<[Vec<f32>; 3]> = self.sequences.iter().map(|lengths| self.one(*lengths).inputs()).collect();
        let queries: Vec<f32> = inputs.iter().flat_map(|[queries, ..]| queries).copied().collect();
        let (width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (blocks, count) = self.blocks();
        let cache = KvCache::new(gpu, count * ops::BLOCK_ROWS, kv_width, self.half)?;
        for (which, tensor) in cache.stored().into_iter().enumerate() {
            let mut rows = vec![f32::NAN; count * ops::BLOCK_ROWS * kv_width];
            for (inputs, blocks) in inputs.iter().zip(&blocks) {
                for (content, block) in inputs[1 + which].chunks(ops::BLOCK_ROWS * kv_width).zip(blocks) {
                    rows[*block as usize * ops::BLOCK_ROWS * kv_width..][..content.len()].copy_from_slice(content);
                }
            }
            tensor.write(gpu, 0, &cache_bytes(&rows, 0, self.half));
        }
        let sequences: Vec<PagedSequence<'_>> = self
            .sequences
            .iter()
            .zip(&blocks)
            .map(|((queries, keys), blocks)| PagedSequence { queries: *queries, keys: *keys, blocks })
            .collect();
        let rows = queries.len() / width;
        let mut tables = BlockTables::new(gpu, sequences.len(), rows, count)?;
        tables.set(gpu, &sequences)?;
        let queries = Tensor::new(gpu, &[rows, width], &queries, "queries")?;
        let mut recorder = gpu.record();
        let layer = ops::Attention { scores, ..self.one((1, 1)).layer() };
        let y = ops::attention_paged(&mut recorder, layer, &queries, &cache, &tables, self.form)?;
        read(recorder, &[&y]).await
    }

    fn reference_with(&self, scores: Scores) -> Vec<f32> {
        let of_sequence = |lengths: &(usize, usize)| {
            let one = self.one(*lengths);
            let [queries, keys, values] = one.inputs();
            one.attend_with(scores, &queries, &keys, &values)
        };
        self.sequences.iter().flat_map(of_sequence).collect()
    }
}

/// The same with a scale, a cap or a window: [`ops::Scores`].
#[derive(Debug, Clone)]
pub struct ScoredPaged(pub AttentionPaged, pub Scores);

impl Case for ScoredPaged {
    fn bound(&self) -> f64 {
        self.0.bound()
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(self.0.run_with(gpu, self.1))
    }

    fn reference(&self) -> Vec<f32> {
        self.0.reference_with(self.1)
    }
}
