//! Cases of the product fused with RoPE.

use half::f16;

use super::attention::SPARE;
use super::{Case, F32, Random, stored};
use crate::Result;
use crate::gpu::{Gpu, Recorder};
use crate::io::LocalFuture;
use crate::ops::{self, KvCache, Norm, Place, Places, QkvRope, RopeTable, Scores};
use crate::tensor::{Matrix, Precision, Tensor};

/// Queries, keys and values, rotated and written to the cache: [`ops::linear_qkv_rope`]. The result is queries, keys,
/// values.
#[derive(Debug, Clone, Copy)]
pub struct Rope {
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
    /// Columns of the weight.
    pub k: usize,
    /// How the weight is stored.
    pub precision: Precision,
    /// An f16 cache.
    pub half: bool,
    /// Frequencies are divided by frequency factors, each by another.
    pub freq_factors: bool,
}

const THETA: f64 = 10000.0;
const EPS: f32 = 1e-2;

impl Rope {
    fn columns(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// x, the gain, and W with the rows of heads in order.
    fn inputs(&self) -> [Vec<f32>; 3] {
        let mut random = Random::new(&self.name());
        let weight = random.values(self.columns() * self.k, 3.0 / (self.k as f64).sqrt());
        [random.values(self.times * self.k, 1.0), random.values(self.k, 1.0), weight]
    }

    fn freq_factors(&self) -> Vec<f32> {
        if self.freq_factors { (0..self.head_dim / 2).map(|i| 1.0 + i as f32 * 0.75).collect() } else { Vec::new() }
    }

    fn capacity(&self) -> usize {
        self.position + self.times + SPARE
    }

    /// The position of each row, and its row of the cache.
    fn rows(&self) -> Vec<(usize, usize)> {
        (self.position..self.position + self.times).map(|position| (position, position)).collect()
    }

    /// The index of element i of a head: next to the one that it is rotated with.
    fn place(&self, i: usize) -> usize {
        let half = self.head_dim / 2;
        2 * (i % half) + i / half
    }
}

impl Case for Rope {
    /// Angles are f32 (as in the reference implementation): position * frequency, each rounded. Values in an f16 cache
    /// have 10 bits after the leading one, and may be rounded either way.
    fn bound(&self) -> f64 {
        let angle = (self.capacity() as f64 * 2.0f64.powi(-23)).powi(2);
        F32 + angle + if self.half { 2.0f64.powi(-10).powi(2) / 3.0 } else { 0.0 }
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(self.product(gpu, None))
    }

    fn reference(&self) -> Vec<f32> {
        self.reference_at(&self.rows())
    }
}

impl Rope {
    /// The device's result, for rows in order or at `places`.
    async fn product(&self, gpu: &Gpu, places: Option<&[(usize, usize)]>) -> Result<Vec<f32>> {
        let Self { heads, kv_heads, head_dim, times, position, k, precision, half, .. } = *self;
        let layer = ops::Attention { heads, kv_heads, head_dim, causal: true, exact: true, scores: Scores::default() };
        let [x, gain, weight] = self.inputs();
        let mut rows: Vec<&[f32]> = weight.chunks_exact(k).collect();
        for (row, values) in weight.chunks_exact(k).enumerate().take((heads + kv_heads) * head_dim) {
            rows[row / head_dim * head_dim + self.place(row % head_dim)] = values;
        }
        let weight = Matrix::new(gpu, precision, k, &rows.concat(), "weight")?;
        let x = Tensor::new(gpu, &[times, k], &x, "x")?;
        let gain = Tensor::new(gpu, &[k], &gain, "gain")?;
        let norm = Norm { weight: gain, bias: None, eps: EPS, unit_offset: half };
        let parameters = ops::Rope { freq_factors: self.freq_factors(), ..ops::Rope::new(THETA as f32, head_dim) };
        let table = RopeTable::new(gpu, self.capacity(), head_dim, &parameters)?;
        let cache = KvCache::new(gpu, self.capacity(), kv_heads * head_dim, half)?;
        let mut recorder = gpu.record();
        let mut placed = Places::new(gpu, times + 1, head_dim, &parameters)?;
        let rows = match places {
            None => ops::RopeRows::From { table: &table, first: position },
            Some(places) => {
                let place = |(token, (position, row)): (usize, &(usize, usize))| Place {
                    token: token as u32,
                    position: *position,
                    row: *row,
                };
                let places: Vec<Place> = places.iter().enumerate().map(place).collect();
                placed.set(gpu, &places)?;
                placed.record(&mut recorder, &table, &Tensor::zeros(gpu, &[times], "tokens")?)?;
                ops::RopeRows::Placed(placed.rows())
            }
        };
        let rope = QkvRope { layer, rows, cache: &cache };
        let queries = ops::linear_qkv_rope(&mut recorder, &x, &norm, &weight, rope)?;
        read_back(recorder, &queries, &cache, half).await
    }

    fn reference_at(&self, rows: &[(usize, usize)]) -> Vec<f32> {
        let Self { heads, kv_heads, head_dim: d, times, k, half, .. } = *self;
        let [x, gain, weight] = self.inputs();
        let weight = stored(self.precision, k, &weight);
        let product = |time: usize, row: usize| -> f64 {
            let x = &x[time * k..][..k];
            let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let scale = 1.0 / (squares / k as f64 + f64::from(EPS)).sqrt();
            let gain = gain.iter().map(|gain| f64::from(*gain) + if half { 1.0 } else { 0.0 });
            let terms = x.iter().zip(gain).zip(&weight[row * k..][..k]);
            terms.map(|((x, gain), w)| f64::from(*x) * scale * gain * f64::from(*w)).sum()
        };
        let freq_factors = self.freq_factors();
        // Elements i and i + d / 2 as real and imaginary part, times e^(i angle).
        let rotated = |time: usize, head: usize, i: usize| {
            let part = |i: usize| product(time, head * d + i);
            let pair = i % (d / 2);
            let factor = freq_factors.get(pair).map_or(1.0, |factor| f64::from(*factor));
            let angle = rows[time].0 as f64 * THETA.powf(-((2 * pair) as f64) / d as f64) / factor;
            if i < d / 2 {
                part(i) * angle.cos() - part(i + d / 2) * angle.sin()
            } else {
                part(i) * angle.cos() + part(i - d / 2) * angle.sin()
            }
        };
        let mut queries = vec![0.0; times * heads * d];
        let [mut keys, mut values] = [(); 2].map(|()| vec![0.0; self.capacity() * kv_heads * d]);
        for time in 0..times {
            for i in 0..d {
                for head in 0..heads {
                    queries[(time * heads + head) * d + self.place(i)] = rotated(time, head, i) as f32;
                }
                for head in 0..kv_heads {
                    let at = (rows[time].1 * kv_heads + head) * d;
                    keys[at + self.place(i)] = rotated(time, heads + head, i) as f32;
                    values[at + i] = product(time, (heads + kv_heads + head) * d + i) as f32;
                }
            }
        }
        [queries, keys, values].concat()
    }
}

/// The same with rows at any positions and places, as those of several sequences: [`ops::Places`].
#[derive(Debug, Clone, Copy)]
pub struct PlacedRope(pub Rope);

impl PlacedRope {
    fn rows(&self) -> Vec<(usize, usize)> {
        let capacity = self.0.capacity();
        (0..self.0.times).map(|time| ((self.0.position + 5 * time) % capacity, capacity - 1 - time)).collect()
    }
}

impl Case for PlacedRope {
    fn bound(&self) -> f64 {
        self.0.bound()
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move { self.0.product(gpu, Some(&self.rows())).await })
    }

    fn reference(&self) -> Vec<f32> {
        self.0.reference_at(&self.rows())
    }
}

/// Norms and rotation of a product of queries, keys and values: [`ops::rope_rows`]. The result is queries, keys,
/// values.
#[derive(Debug, Clone, Copy)]
pub struct RopeRows {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of a head that are rotated.
    pub rotated: usize,
    /// Positions.
    pub times: usize,
    /// The first of them.
    pub position: usize,
    /// Whether the norm is centred, and over whole rows.
    pub norm: Option<[bool; 2]>,
    /// Queries have a factor by position.
    pub query_factor: bool,
    /// An f16 cache.
    pub half: bool,
    /// Rows at any positions and places.
    pub placed: bool,
}

impl RopeRows {
    fn rope(&self) -> ops::Rope {
        ops::Rope {
            rotated: self.rotated,
            magnitude: 1.25,
            query_factor: self.query_factor.then_some(ops::QueryFactor { scale: 0.5, period: 2 }),
            ..ops::Rope::new(THETA as f32, self.head_dim)
        }
    }

    fn capacity(&self) -> usize {
        self.position + self.times + SPARE
    }

    /// The position of each row, and its row of the cache.
    fn rows(&self) -> Vec<(usize, usize)> {
        let capacity = self.capacity();
        (0..self.times)
            .map(|time| match self.placed {
                true => ((self.position + 5 * time) % capacity, capacity - 1 - time),
                false => (self.position + time, self.position + time),
            })
            .collect()
    }

    /// The product, with the elements of heads in the order of the device, and the gain.
    fn inputs(&self) -> [Vec<f32>; 2] {
        let mut random = Random::new(&self.name());
        let heads = self.heads + self.kv_heads;
        [
            random.values(self.times * (heads + self.kv_heads) * self.head_dim, 1.0),
            random.values(heads * self.head_dim, 1.0),
        ]
    }
}

impl Case for RopeRows {
    fn bound(&self) -> f64 {
        let angle = (self.capacity() as f64 * 2.0f64.powi(-23)).powi(2);
        F32 + angle + if self.half { 2.0f64.powi(-10).powi(2) / 3.0 } else { 0.0 }
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let Self { heads, kv_heads, head_dim, times, half, .. } = *self;
            let scores = Scores::default();
            let layer = ops::Attention { heads, kv_heads, head_dim, causal: true, exact: true, scores };
            let [qkv, gain] = self.inputs();
            let qkv = Tensor::new(gpu, &[times, layer.packed_columns()], &qkv, "qkv")?;
            let gain = Tensor::new(gpu, &[gain.len()], &gain, "gain")?;
            let norm = self.norm.map(|[centred, whole]| ops::QueryKeyNorm { gain, eps: EPS, centred, whole });
            let rope = self.rope();
            let table = RopeTable::new(gpu, self.capacity(), head_dim, &rope)?;
            let cache = KvCache::new(gpu, self.capacity(), kv_heads * head_dim, half)?;
            let mut recorder = gpu.record();
            let mut placed = Places::new(gpu, times, head_dim, &rope)?;
            let rows = if self.placed {
                let place = |(position, row)| Place { token: ops::NO_ROW, position, row };
                let places: Vec<Place> = self.rows().into_iter().map(place).collect();
                placed.set(gpu, &places)?;
                placed.record(&mut recorder, &table, &Tensor::zeros(gpu, &[1], "tokens")?)?;
                ops::RopeRows::Placed(placed.rows())
            } else {
                ops::RopeRows::From { table: &table, first: self.position }
            };
            let queries = ops::rope_rows(&mut recorder, &qkv, norm.as_ref(), QkvRope { layer, rows, cache: &cache })?;
            read_back(recorder, &queries, &cache, half).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let Self { heads, kv_heads, head_dim: d, rotated, .. } = *self;
        let [qkv, gain] = self.inputs();
        let columns = (heads + 2 * kv_heads) * d;
        let mut queries = Vec::new();
        let [mut keys, mut values] = [(); 2].map(|()| vec![0.0; self.capacity() * kv_heads * d]);
        for (row, (position, place)) in qkv.chunks_exact(columns).zip(self.rows()) {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            // Queries and keys, normalised part by part.
            let [of_queries, of_keys] = [0..heads * d, heads * d..(heads + kv_heads) * d];
            let mut parts = Vec::new();
            for range in [of_queries, of_keys] {
                let length = if self.norm.is_some_and(|[_, whole]| whole) { range.len() } else { d };
                for part in row[range].chunks_exact(length) {
                    let Some([centred, _]) = self.norm else {
                        parts.extend_from_slice(part);
                        continue;
                    };
                    let mean = if centred { part.iter().sum::<f64>() / length as f64 } else { 0.0 };
                    let variance = part.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / length as f64;
                    let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
                    for x in part {
                        parts.push((x - mean) * scale * f64::from(gain[parts.len()]));
                    }
                }
            }
            for (index, pair) in parts.chunks_exact(2).enumerate() {
                // Neighbours as real and imaginary part, times 1.25 e^(i angle).
                let i = index % (d / 2);
                let [real, imaginary] = if 2 * i < rotated {
                    let angle = position as f64 * THETA.powf(-((2 * i) as f64) / rotated as f64);
                    let (sin, cos) = angle.sin_cos();
                    [1.25 * (pair[0] * cos - pair[1] * sin), 1.25 * (pair[1] * cos + pair[0] * sin)]
                } else {
                    [pair[0], pair[1]]
                };
                if 2 * index < heads * d {
                    let factor = if self.query_factor { 1.0 + 0.5 * ((1 + position / 2) as f64).ln() } else { 1.0 };
                    queries.extend([(factor * real) as f32, (factor * imaginary) as f32]);
                } else {
                    let at = place * kv_heads * d + 2 * index - heads * d;
                    (keys[at], keys[at + 1]) = (real as f32, imaginary as f32);
                }
            }
            for (value, x) in values[place * kv_heads * d..].iter_mut().zip(&row[(heads + kv_heads) * d..]) {
                *value = *x as f32;
            }
        }
        [queries, keys, values].concat()
    }
}

/// Submits, and reads the queries, then the stored keys and values, which have f16 if `half`.
async fn read_back(mut recorder: Recorder, queries: &Tensor, cache: &KvCache, half: bool) -> Result<Vec<f32>> {
    let [keys, stored_values] = cache.stored();
    let readbacks = [queries, keys, stored_values].map(|tensor| tensor.read_back(&mut recorder));
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
}
