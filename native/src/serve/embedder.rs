//! Computes embeddings between the turns of the engine.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mgm::language::{Cache, Position};
use mgm::session::Model;
use mgm::{Error, Result};
use tokio::sync::oneshot;

use super::error::ApiError;

/// Positions of a slice at first, at least and at most.
const FIRST_ROWS: usize = 64;
const LEAST_ROWS: usize = 16;
const MOST_ROWS: usize = 512;

/// Inputs to embed.
#[derive(Debug)]
pub struct EmbeddingJob {
    pub inputs: VecDeque<Vec<u32>>,
    /// Those that are computed: `[hidden]` each, of length 1.
    pub done: Vec<Vec<f32>>,
    /// The job is cancelled when the receiver is gone.
    pub reply: oneshot::Sender<std::result::Result<Vec<Vec<f32>>, ApiError>>,
}

/// Computes one input after the other, a slice at a time.
pub struct Embedder<'a> {
    model: &'a Model,
    slice: Duration,
    rows: usize,
    /// The input that is computed.
    current: Option<Input>,
}

/// The first input of the first job.
struct Input {
    cache: Cache,
    done: usize,
    /// Of the last hidden states, `[hidden]`.
    sum: Vec<f64>,
}

impl<'a> Embedder<'a> {
    /// `slice`: the time of a slice.
    pub fn new(model: &'a Model, slice: Duration) -> Self {
        Self { model, slice, rows: FIRST_ROWS, current: None }
    }

    /// Computes a part of the first input of the first job. Ends jobs that are done, cancelled or cannot be computed.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], after which the job can be computed by another embedder.
    pub async fn slice(&mut self, jobs: &mut VecDeque<EmbeddingJob>) -> Result<()> {
        let Some(job) = jobs.front_mut() else { return Ok(()) };
        let part = match (job.reply.is_closed(), job.inputs.front()) {
            (false, Some(ids)) => self.part(ids).await,
            _ => {
                self.current = None;
                if let Some(job) = jobs.pop_front() {
                    // Without a receiver nobody waits for it.
                    let _ = job.reply.send(Ok(job.done));
                }
                return Ok(());
            }
        };
        match part {
            Ok(None) => {}
            Ok(Some(embedding)) => {
                job.done.push(embedding);
                job.inputs.pop_front();
                self.current = None;
            }
            Err(error @ Error::DeviceLost(_)) => return Err(error),
            Err(error) => {
                self.current = None;
                if let Some(job) = jobs.pop_front() {
                    let _ = job.reply.send(Err(ApiError::of_engine(&error)));
                }
            }
        }
        Ok(())
    }

    /// The next part of an input. Returns its embedding after the last one.
    async fn part(&mut self, ids: &[u32]) -> Result<Option<Vec<f32>>> {
        let (gpu, language) = (self.model.gpu(), self.model.language());
        let hidden = language.config().hidden_size;
        let input =
            self.current.get_or_insert_with(|| Input { cache: language.cache(), done: 0, sum: vec![0.0; hidden] });
        let started = Instant::now();
        let rest = ids.get(input.done..).unwrap_or_default();
        let rows: Vec<Position> = rest.iter().take(self.rows).map(|id| Position::Text(*id)).collect();
        let mut recorder = gpu.record();
        let x = language.embed(&mut recorder, &rows, &[])?;
        let x = language.forward(&mut recorder, &x, &mut input.cache)?;
        let states = language.hidden_states(&mut recorder, &x)?;
        let read = states.read_back(&mut recorder);
        recorder.submit()?;
        let values: Vec<f32> = read.values().await?;
        for state in values.chunks_exact(hidden) {
            input.sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        input.done += rows.len();
        if rows.len() == self.rows {
            let ratio = self.slice.as_secs_f64() / started.elapsed().as_secs_f64().max(1e-6);
            self.rows = ((self.rows as f64 * ratio.clamp(0.5, 2.0)) as usize).clamp(LEAST_ROWS, MOST_ROWS);
        }
        if input.done < ids.len() {
            return Ok(None);
        }
        let length = input.sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        if !length.is_finite() || length == 0.0 {
            return Err(Error::Gpu("the hidden states are not finite".to_owned()));
        }
        Ok(Some(input.sum.iter().map(|value| (value / length) as f32).collect()))
    }
}
