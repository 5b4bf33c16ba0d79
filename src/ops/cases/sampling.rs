//! Cases of token sampling.

use super::{Case, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops::{self, RowBias, RowPenalties, RowSampling, Sampling};
use crate::tensor::Tensor;

/// The chosen tokens as numbers.
async fn tokens(recorder: crate::gpu::Recorder, chosen: &Tensor) -> Result<Vec<f32>> {
    Ok(read(recorder, &[chosen]).await?.into_iter().map(|token| token.to_bits() as f32).collect())
}

/// Greedy choice: [`ops::sample`], over logits whose largest value occurs several times. The first must win.
#[derive(Debug, Clone, Copy)]
pub struct Argmax {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Logits to choose from.
    pub rows: usize,
    /// All rows at once.
    pub together: bool,
}

impl Argmax {
    fn inputs(&self) -> Vec<Vec<f32>> {
        let mut random = Random::new(&self.name());
        (0..self.rows)
            .map(|row| {
                // All below zero in some rows, and one row with nothing but ties.
                let base = if row % 2 == 0 { -40.0 } else { 0.0 };
                let steps = if row == 2 { 1 } else { 64 };
                let mut logits: Vec<f32> = (0..self.vocab).map(|_| base + random.below(steps) as f32 / 8.0).collect();
                for _ in 0..3 {
                    let at = random.below(self.vocab);
                    logits[at] = base + 8.0;
                }
                match row {
                    3 => logits[random.below(self.vocab)] = f32::NEG_INFINITY,
                    // What a diverged model computes: never sampled.
                    4 => (0..self.vocab).step_by(3).for_each(|at| logits[at] = f32::NAN),
                    _ => {}
                }
                logits
            })
            .collect()
    }
}

impl Case for Argmax {
    fn bound(&self) -> f64 {
        0.0
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let chosen = Tensor::zeros(gpu, &[self.rows], "chosen")?;
            let mut recorder = gpu.record();
            let inputs = self.inputs();
            let at_once = if self.together { self.rows } else { 1 };
            for (index, rows) in inputs.chunks(at_once).enumerate() {
                let logits = Tensor::new(gpu, &[rows.len(), self.vocab], &rows.concat(), "logits")?;
                ops::sample(&mut recorder, &logits, Sampling::GREEDY, 0.0, &chosen, index * at_once)?;
            }
            tokens(recorder, &chosen).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        self.inputs()
            .iter()
            .map(|logits| {
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                logits.iter().position(|x| *x == largest).unwrap_or(0) as f32
            })
            .collect()
    }
}

/// Sampling: [`ops::sample`] for several draws. Each draw lies inside some token's part of the exact cumulative
/// distribution (temperature, then top-k, then top-p, by sorting), and that token must come out.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Divides the logits.
    pub temperature: f32,
    /// Only the k best and their ties; 0 for all.
    pub top_k: u32,
    /// The approximate probability of the remaining tokens; 1 for all.
    pub top_p: f32,
    /// Logits are multiples of 1/4, so that cut-offs fall among equals.
    pub tied: bool,
    /// Draws.
    pub draws: usize,
}

struct Inputs {
    logits: Vec<f32>,
    /// With a top_p and min_p in the middle of a step of the distribution, so that rounding cannot change what remains.
    sampling: Sampling,
    mask: Option<Vec<u32>>,
    draws: Vec<f32>,
    expected: Vec<usize>,
}

/// Tokens whose part is narrower are not aimed at: masses are integers of 2^-30 and exponentials f32.
const NARROWEST: f64 = 1e-4;
/// Logits of a min_p cut-off are at least this far apart.
const GAP: f64 = 1e-3;

impl Inputs {
    fn new(random: &mut Random, vocab: usize, mut sampling: Sampling, tied: bool, masked: bool, draws: usize) -> Self {
        let logits: Vec<f32> = (0..vocab)
            .map(|_| {
                // The sum of uniforms: a bell, as logits are.
                let x: f64 = (0..4).map(|_| 4.0 * random.unit() - 2.0).sum();
                if tied { (x * 4.0).round() as f32 / 4.0 } else { x as f32 }
            })
            .collect();
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let mask = masked.then(|| {
            // Without the best tokens, and without some of the others.
            let best = order[..vocab / 3].to_vec();
            order.retain(|token| !best.contains(token) && (random.below(3) > 0 || *token == vocab - 1));
            if order.is_empty() {
                order.push(vocab - 1);
            }
            let mut words = vec![0; vocab.div_ceil(32)];
            order.iter().for_each(|token| words[token / 32] |= 1 << (token % 32));
            words
        });
        let temperature = f64::from(sampling.temperature);
        if temperature == 0.0 {
            let best = order.iter().copied().filter(|token| logits[*token] == logits[order[0]]).min().unwrap_or(0);
            return Self { logits, sampling, mask, draws: vec![0.5; draws], expected: vec![best; draws] };
        }
        if sampling.top_k > 0 && (sampling.top_k as usize) < order.len() {
            let lowest = logits[order[sampling.top_k as usize - 1]];
            order.retain(|token| logits[*token] >= lowest);
        }
        let largest = f64::from(logits[order[0]]);
        let weight = |token: usize| ((f64::from(logits[token]) - largest) / temperature).exp();
        let total: f64 = order.iter().map(|token| weight(*token)).sum();
        if sampling.top_p < 1.0 {
            let wanted = f64::from(sampling.top_p);
            let mut sum = 0.0;
            let mut remaining = 0;
            while remaining < order.len() && sum < wanted {
                // Equals stay together.
                let equal =
                    order[remaining..].iter().take_while(|token| logits[**token] == logits[order[remaining]]).count();
                let step: f64 = order[remaining..remaining + equal].iter().map(|token| weight(*token) / total).sum();
                sampling.top_p = (sum + step / 2.0) as f32;
                sum += step;
                remaining += equal;
            }
            order.truncate(remaining);
        }
        if sampling.min_p > 0.0 {
            let cut = largest + temperature * f64::from(sampling.min_p).ln();
            let is_cut = |pair: &[usize]| {
                let [upper, lower] = [pair[0], pair[1]].map(|token| f64::from(logits[token]));
                lower < cut && upper - lower > GAP
            };
            if let Some(at) = order.windows(2).position(is_cut) {
                let middle = (f64::from(logits[order[at]]) + f64::from(logits[order[at + 1]])) / 2.0;
                sampling.min_p = ((middle - largest) / temperature).exp() as f32;
                order.truncate(at + 1);
            } else {
                sampling.min_p = 0.0;
            }
        }
        order.sort_unstable();
        let total: f64 = order.iter().map(|token| weight(*token)).sum();
        // The cumulative distribution in token order.
        let mut parts = Vec::new();
        let mut sum = 0.0;
        for token in order {
            let share = weight(token) / total;
            if share > NARROWEST {
                parts.push((token, sum, share));
            }
            sum += share;
        }
        let (mut aims, mut expected) = (Vec::new(), Vec::new());
        for draw in 0..draws {
            // The first and the last for certain.
            let index = match draw {
                0 => 0,
                1 => parts.len() - 1,
                _ => random.below(parts.len()),
            };
            let (token, start, share) = parts[index];
            aims.push((start + share * (0.1 + 0.8 * random.unit())) as f32);
            expected.push(token);
        }
        Self { logits, sampling, mask, draws: aims, expected }
    }
}

impl Sample {
    fn inputs(&self) -> Inputs {
        let sampling =
            Sampling::GREEDY.with_temperature(self.temperature).with_top_k(self.top_k).with_top_p(self.top_p);
        Inputs::new(&mut Random::new(&self.name()), self.vocab, sampling, self.tied, false, self.draws)
    }
}

impl Case for Sample {
    fn bound(&self) -> f64 {
        0.0
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let inputs = self.inputs();
            let logits = Tensor::new(gpu, &[1, self.vocab], &inputs.logits, "logits")?;
            let chosen = Tensor::zeros(gpu, &[self.draws], "chosen")?;
            let mut recorder = gpu.record();
            for (place, draw) in inputs.draws.iter().enumerate() {
                ops::sample(&mut recorder, &logits, inputs.sampling, *draw, &chosen, place)?;
            }
            tokens(recorder, &chosen).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        self.inputs().expected.into_iter().map(|token| token as f32).collect()
    }
}

/// Sampling of several rows at once, each with other parameters and some with masks: [`ops::sample_rows`]. As in
/// [`Sample`], every draw lies inside some token's part of the exact distribution.
#[derive(Debug, Clone, Copy)]
pub struct SampleRows {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Rows.
    pub rows: usize,
    /// Whether all rows are greedy.
    pub greedy: bool,
    /// Logits are multiples of 1/4.
    pub tied: bool,
    /// Draws of each row.
    pub draws: usize,
}

impl SampleRows {
    fn inputs(&self) -> Vec<Inputs> {
        let mut random = Random::new(&self.name());
        let base = Sampling::GREEDY;
        // In turn: each cut-off alone, together, none, and greedy rows between them.
        let settings = [
            base.with_temperature(0.7).with_min_p(0.05),
            base.with_temperature(1.0).with_top_k(40),
            base,
            base.with_temperature(1.3).with_top_p(0.8),
            base.with_temperature(0.9),
            base.with_temperature(1.1).with_top_k(50).with_top_p(0.9).with_min_p(0.1),
            base.with_temperature(2.0).with_min_p(1.0),
        ];
        (0..self.rows)
            .map(|row| {
                let sampling = if self.greedy { base } else { settings[row % settings.len()] };
                Inputs::new(&mut random, self.vocab, sampling, self.tied, row % 3 == 2 - self.rows % 2, self.draws)
            })
            .collect()
    }
}

impl Case for SampleRows {
    fn bound(&self) -> f64 {
        0.0
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let inputs = self.inputs();
            let logits: Vec<f32> = inputs.iter().flat_map(|row| row.logits.clone()).collect();
            let logits = Tensor::new(gpu, &[self.rows, self.vocab], &logits, "logits")?;
            let chosen = Tensor::zeros(gpu, &[self.rows * self.draws], "chosen")?;
            let words: Vec<u32> = inputs.iter().filter_map(|row| row.mask.clone()).flatten().collect();
            let width = self.vocab.div_ceil(32);
            let mut recorder = gpu.record();
            for draw in 0..self.draws {
                let masks = match words.len() / width {
                    0 => None,
                    masks => Some(Tensor::upload(&mut recorder, &[masks, width], &words, "masks")?),
                };
                let numbers = inputs.iter().scan(0, |masks, row| {
                    *masks += usize::from(row.mask.is_some());
                    Some(row.mask.as_ref().map(|_| *masks - 1))
                });
                let rows: Vec<RowSampling> = inputs
                    .iter()
                    .zip(numbers)
                    .map(|(row, mask)| RowSampling { sampling: row.sampling, draw: row.draws[draw], mask })
                    .collect();
                ops::sample_rows(&mut recorder, &logits, &rows, masks.as_ref(), &chosen, draw * self.rows)?;
            }
            tokens(recorder, &chosen).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let inputs = self.inputs();
        (0..self.draws).flat_map(|draw| inputs.iter().map(move |row| row.expected[draw] as f32)).collect()
    }
}

/// Logit bias, penalties and counts: `ops::adjust` and `ops::count_sampled`. Rows in turn have penalties of their
/// own and none.
#[derive(Debug, Clone, Copy)]
pub struct Adjust {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Rows.
    pub rows: usize,
    /// Biases of each row.
    pub biases: usize,
}

struct AdjustInputs {
    logits: Vec<f32>,
    biases: Vec<RowBias>,
    penalties: Vec<RowPenalties>,
    counts: Vec<u32>,
    sampled: Vec<u32>,
}

/// Results below are forbidden tokens: they count as this, or their size would hide all errors.
const FORBIDDEN: f32 = -1000.0;

impl Adjust {
    fn inputs(&self) -> AdjustInputs {
        let mut random = Random::new(&self.name());
        let Self { vocab, rows, .. } = *self;
        let logits = random.values(rows * vocab, 8.0);
        let mut biases = Vec::new();
        let (mut penalties, mut counts) = (Vec::new(), Vec::new());
        for row in 0..rows {
            for index in 0..self.biases {
                let bias = if index % 5 == 4 { ops::FORBID } else { (8.0 * random.unit() - 4.0) as f32 };
                // Some twice.
                biases.push(RowBias { row, token: random.below(vocab) as u32, bias });
            }
            let mut value = |scale: f64| (scale * (2.0 * random.unit() - 1.0)) as f32;
            let sampling = Sampling::GREEDY
                .with_repetition_penalty(1.0 + value(0.8))
                .with_presence_penalty(value(2.0))
                .with_frequency_penalty(value(2.0));
            // In another order than the rows.
            let sequence = (row % 3 != 1).then_some(rows - 1 - row);
            penalties.push(RowPenalties { sampling, sequence });
            let mut some = |count: usize| -> Vec<u32> { (0..count).map(|_| random.below(vocab) as u32).collect() };
            let (prompt, answer) = (some(vocab / 4 + 1), some(vocab / 2 + 1));
            counts.extend(ops::token_counts(vocab, prompt, answer));
        }
        let sampled = (0..rows).map(|_| random.below(vocab) as u32).collect();
        AdjustInputs { logits, biases, penalties, counts, sampled }
    }
}

impl Case for Adjust {
    fn bound(&self) -> f64 {
        super::F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let AdjustInputs { logits, biases, penalties, counts, sampled } = self.inputs();
            let shape = [self.rows, self.vocab];
            let mut recorder = gpu.record();
            let logits = Tensor::upload(&mut recorder, &shape, &logits, "logits")?;
            let counts = Tensor::upload(&mut recorder, &shape, &counts, "counts")?;
            let sampled = Tensor::upload(&mut recorder, &[self.rows], &sampled, "sampled")?;
            ops::adjust(&mut recorder, &logits, &biases, &penalties, Some(&counts))?;
            ops::count_sampled(&mut recorder, &logits, &penalties, Some(&counts), &sampled, 0)?;
            let values = read(recorder, &[&logits, &counts]).await?;
            let (logits, counts) = values.split_at(self.rows * self.vocab);
            let logits = logits.iter().map(|value| value.max(FORBIDDEN));
            Ok(logits.chain(counts.iter().map(|count| (count.to_bits() & 0xff_ffff) as f32)).collect())
        })
    }

    fn reference(&self) -> Vec<f32> {
        let AdjustInputs { logits, biases, penalties, mut counts, sampled } = self.inputs();
        let mut logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
        for RowBias { row, token, bias } in biases {
            logits[row * self.vocab + token as usize] += if bias <= ops::FORBID { -1e30 } else { f64::from(bias) };
        }
        for (row, RowPenalties { sampling, sequence }) in penalties.iter().enumerate() {
            let Some(sequence) = sequence else { continue };
            for token in 0..self.vocab {
                let seen = counts[sequence * self.vocab + token];
                let logit = &mut logits[row * self.vocab + token];
                if seen > 0 {
                    let repetition = f64::from(sampling.repetition_penalty);
                    *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
                }
                let count = seen & 0x7fff_ffff;
                if count > 0 {
                    let frequency = f64::from(sampling.frequency_penalty) * f64::from(count);
                    *logit -= frequency + f64::from(sampling.presence_penalty);
                }
            }
        }
        for (row, RowPenalties { sequence, .. }) in penalties.iter().enumerate() {
            if let Some(sequence) = sequence {
                counts[sequence * self.vocab + sampled[row] as usize] += 1;
            }
        }
        let logits = logits.into_iter().map(|value| value.max(f64::from(FORBIDDEN)) as f32);
        logits.chain(counts.into_iter().map(|count| (count & 0xff_ffff) as f32)).collect()
    }
}

/// Log-probabilities: `ops::logprobs`. The last value is the number of wrong ids.
#[derive(Debug, Clone, Copy)]
pub struct Logprobs {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Rows.
    pub rows: usize,
    /// Tokens besides the sampled one.
    pub top: usize,
    /// Logits are multiples of 1/4.
    pub tied: bool,
}

impl Logprobs {
    fn inputs(&self) -> (Vec<Vec<f32>>, Vec<u32>) {
        let mut random = Random::new(&self.name());
        let mut logits = || -> Vec<f32> {
            let values = random.values(self.vocab, 12.0);
            values.into_iter().map(|x| if self.tied { (x * 4.0).round() / 4.0 } else { x }).collect()
        };
        let logits = (0..self.rows).map(|_| logits()).collect();
        (logits, (0..self.rows).map(|_| random.below(self.vocab) as u32).collect())
    }

    /// For each row: the sampled token's log-probability, and ids and log-probabilities of the best.
    fn expected(&self) -> Vec<(f32, Vec<(u32, f32)>)> {
        let (logits, sampled) = self.inputs();
        let row = |(logits, sampled): (&Vec<f32>, &u32)| {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|x| (f64::from(*x) - f64::from(largest)).exp()).sum();
            let logprob = |id: u32| (f64::from(logits[id as usize]) - f64::from(largest) - sum.ln()) as f32;
            let mut best: Vec<u32> = Vec::new();
            while best.len() < self.top.min(self.vocab) {
                let is_before = |a: u32, b: u32| {
                    let [x, y] = [a, b].map(|id| logits[id as usize]);
                    x > y || x == y && a < b
                };
                let last = best.last().copied();
                let rest = (0..self.vocab as u32).filter(|id| last.is_none_or(|last| is_before(last, *id)));
                best.extend(rest.reduce(|a, b| if is_before(a, b) { a } else { b }));
            }
            (logprob(*sampled), best.into_iter().map(|id| (id, logprob(id))).collect())
        };
        logits.iter().zip(&sampled).map(row).collect()
    }
}

impl Case for Logprobs {
    fn bound(&self) -> f64 {
        super::F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let (logits, sampled) = self.inputs();
            let logits = Tensor::new(gpu, &[self.rows, self.vocab], &logits.concat(), "logits")?;
            let words = ops::logprob_words(self.top);
            // The first row of the output belongs to another step.
            let output = Tensor::zeros(gpu, &[self.rows + 1, words], "log-probabilities")?;
            let mut recorder = gpu.record();
            let sampled: Vec<u32> = [&[0], sampled.as_slice()].concat();
            let sampled = Tensor::upload(&mut recorder, &[self.rows + 1], &sampled, "sampled")?;
            ops::logprobs(&mut recorder, &logits, &sampled, self.top, &output, 1)?;
            let found = read(recorder, &[&output]).await?;
            let (mut values, mut wrong) = (Vec::new(), 0);
            for (found, (_, best)) in found[words..].chunks(words).zip(self.expected()) {
                values.push(found[0]);
                for (index, pair) in found[1..].chunks(2).enumerate() {
                    let expected = best.get(index).map_or(u32::MAX, |(id, _)| *id);
                    wrong += usize::from(pair[0].to_bits() != expected);
                    values.extend(best.get(index).map(|_| pair[1]));
                }
            }
            values.push(wrong as f32);
            Ok(values)
        })
    }

    fn reference(&self) -> Vec<f32> {
        let rows = self.expected().into_iter();
        rows.flat_map(|(sampled, best)| std::iter::once(sampled).chain(best.into_iter().map(|(_, logprob)| logprob)))
            .chain([0.0])
            .collect()
    }
}
