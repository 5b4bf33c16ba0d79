//! Cases of attention and rotary embedding.

use half::f16;

use super::{Case, F32, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::ops::{self, KeyValues, KvCache, RotaryTable};
use crate::tensor::Tensor;
use crate::weights::source::LocalFuture;

/// Where keys and values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Beside the queries; as many keys as queries.
    Packed,
    /// In an f32 cache.
    F32,
    /// In an f16 cache.
    F16,
}

/// softmax(q k^T / sqrt(head_dim)) v: [`ops::attention`].
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
    /// Each query sees only what is not behind it.
    pub causal: bool,
    /// Where keys and values lie.
    pub storage: Storage,
}

/// Positions of the cache beyond those that count. They hold NaN.
const SPARE: usize = 3;

impl Attention {
    fn layer(&self) -> ops::Attention {
        ops::Attention { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim, causal: self.causal }
    }

    /// Queries [times, heads * d], keys and values [keys, kv_heads * d].
    fn inputs(&self) -> [Vec<f32>; 3] {
        let mut random = Random::new(&self.name());
        let kv = self.keys * self.kv_heads * self.head_dim;
        // Scores of standard deviation 4 / 3: neither flat nor a single spike.
        let queries = random.values(self.times * self.heads * self.head_dim, 2.0);
        let mut inputs = [queries, random.values(kv, 2.0), random.values(kv, 1.0)];
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
    fn flops(&self) -> f64 {
        let seen = if self.causal { self.keys as f64 - (self.times - 1) as f64 / 2.0 } else { self.keys as f64 };
        4.0 * seen * (self.times * self.heads * self.head_dim) as f64
    }

    fn bytes(&self) -> f64 {
        let element = if self.storage == Storage::F16 { 2 } else { 4 };
        (8 * self.times * self.heads * self.head_dim + 2 * element * self.keys * self.kv_heads * self.head_dim) as f64
    }

    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let inputs = self.inputs();
            let [queries, keys, values] = &inputs;
            let (width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
            let mut recorder = gpu.record();
            let y = if self.storage == Storage::Packed {
                let mut packed = Vec::new();
                for time in 0..self.times {
                    packed.extend_from_slice(&queries[time * width..][..width]);
                    packed.extend_from_slice(&keys[time * kv_width..][..kv_width]);
                    packed.extend_from_slice(&values[time * kv_width..][..kv_width]);
                }
                let packed = Tensor::new(gpu, &[self.times, width + 2 * kv_width], &packed, "packed")?;
                ops::attention(&mut recorder, self.layer(), &packed, KeyValues::Packed(&packed))?
            } else {
                let half = self.storage == Storage::F16;
                let cache = KvCache::new(gpu, self.keys + SPARE, kv_width, half)?;
                for (tensor, content) in cache.stored().into_iter().zip([keys, values]) {
                    tensor.write(gpu, 0, &cache_bytes(content, SPARE * kv_width, half));
                }
                let queries = Tensor::new(gpu, &[self.times, width], queries, "queries")?;
                ops::attention(&mut recorder, self.layer(), &queries, KeyValues::Cached(&cache, self.keys))?
            };
            read(recorder, &[&y]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let [queries, keys, values] = self.inputs();
        let d = self.head_dim;
        let mut y = Vec::new();
        for time in 0..self.times {
            for head in 0..self.heads {
                let kv_head = head / (self.heads / self.kv_heads);
                let query = &queries[(time * self.heads + head) * d..][..d];
                let of = |all: &'_ [f32], key: usize, i: usize| f64::from(all[(key * self.kv_heads + kv_head) * d + i]);
                let seen = if self.causal { self.keys - self.times + time + 1 } else { self.keys };
                let scores: Vec<f64> = (0..seen)
                    .map(|key| {
                        let dot: f64 = query.iter().enumerate().map(|(i, q)| f64::from(*q) * of(&keys, key, i)).sum();
                        dot / (d as f64).sqrt()
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                y.extend((0..d).map(|i| {
                    let sum: f64 = weights.iter().enumerate().map(|(key, weight)| weight * of(&values, key, i)).sum();
                    (sum / total) as f32
                }));
            }
        }
        y
    }
}

/// Rotary embedding and the write into the cache: [`ops::rotary`]. The result is queries, keys, values.
#[derive(Debug, Clone, Copy)]
pub struct Rotary {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Positions.
    pub times: usize,
    /// The first of them.
    pub position: usize,
    /// An f16 cache.
    pub half: bool,
}

const THETA: f64 = 10000.0;

impl Rotary {
    fn inputs(&self) -> Vec<f32> {
        let columns = (self.heads + 2 * self.kv_heads) * self.head_dim;
        Random::new(&self.name()).values(self.times * columns, 2.0)
    }

    fn capacity(&self) -> usize {
        self.position + self.times + SPARE
    }
}

impl Case for Rotary {
    fn flops(&self) -> f64 {
        (3 * self.times * (self.heads + self.kv_heads) * self.head_dim) as f64
    }

    fn bytes(&self) -> f64 {
        (8 * self.times * (self.heads + 2 * self.kv_heads) * self.head_dim) as f64
    }

    /// Angles are f32 (as in the reference implementation): position * frequency, each rounded. Values in an f16 cache have
    /// 10 bits after the leading one, and may be rounded either way.
    fn bound(&self) -> f64 {
        let angle = (self.capacity() as f64 * 2.0f64.powi(-23)).powi(2);
        F32 + angle + if self.half { 2.0f64.powi(-10).powi(2) / 3.0 } else { 0.0 }
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let Self { heads, kv_heads, head_dim, times, position, half } = *self;
            let layer = ops::Attention { heads, kv_heads, head_dim, causal: true };
            let qkv = Tensor::new(gpu, &[times, layer.packed_columns()], &self.inputs(), "qkv")?;
            let table = RotaryTable::new(
                gpu,
                self.capacity(),
                head_dim,
                &ops::Rotary { theta: THETA as f32, divisors: Vec::new() },
            )?;
            let cache = KvCache::new(gpu, self.capacity(), kv_heads * head_dim, half)?;
            let mut recorder = gpu.record();
            let queries = ops::rotary(&mut recorder, layer, &qkv, &table, &cache, position)?;
            let [keys, stored_values] = cache.stored();
            let readbacks = [&queries, keys, stored_values].map(|tensor| tensor.read_back(&mut recorder));
            recorder.submit()?;
            let mut values = Vec::new();
            for (index, readback) in readbacks.into_iter().enumerate() {
                if half && index > 0 {
                    values.extend(readback.values::<f16>().await?.into_iter().map(f16::to_f32));
                } else {
                    values.extend(readback.values::<f32>().await?);
                }
            }
            Ok(values)
        })
    }

    fn reference(&self) -> Vec<f32> {
        let Self { heads, kv_heads, head_dim: d, times, position, .. } = *self;
        let qkv = self.inputs();
        let all = heads + 2 * kv_heads;
        // Elements i and i + d / 2 as real and imaginary part, times e^(i angle).
        let turned = |time: usize, head: usize, i: usize| {
            let part = |i: usize| f64::from(qkv[(time * all + head) * d + i]);
            let angle = (position + time) as f64 * THETA.powf(-((2 * (i % (d / 2))) as f64) / d as f64);
            if i < d / 2 {
                part(i) * angle.cos() - part(i + d / 2) * angle.sin()
            } else {
                part(i) * angle.cos() + part(i - d / 2) * angle.sin()
            }
        };
        let mut y = Vec::new();
        for time in 0..times {
            for head in 0..heads {
                y.extend((0..d).map(|i| turned(time, head, i) as f32));
            }
        }
        for is_key in [true, false] {
            let mut cache = vec![0.0; self.capacity() * kv_heads * d];
            for time in 0..times {
                for head in 0..kv_heads {
                    for i in 0..d {
                        cache[((position + time) * kv_heads + head) * d + i] = if is_key {
                            turned(time, heads + head, i) as f32
                        } else {
                            qkv[(time * all + heads + kv_heads + head) * d + i]
                        };
                    }
                }
            }
            y.extend(cache);
        }
        y
    }
}
