//! Questions that are answered together: every matrix product reads its weights once for all of them, and the beginning
//! that their prompts share is prefilled once.

use std::ops::ControlFlow;

use web_time::Instant;

use super::image::EncodedImage;
use super::{Answer, FinishReason, Model, milliseconds};
use crate::language::{BatchCache, BatchGenerator, ImageId, Position, prefill_chunk};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A question with its whole prompt and its encoded images, made by [`Ask::prepare`](super::Ask::prepare).
#[derive(Debug, Clone)]
pub struct PreparedQuestion {
    pub(super) positions: Vec<Position>,
    pub(super) images: Vec<EncodedImage>,
    pub(super) vision_ms: f64,
}

impl Model {
    /// The most likely answers to questions that one [`Chat`](super::Chat) prepared. `on_step` is called after every
    /// chunk of the prompts and after every step. In the answers, prefill and decode times are those of the batch.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a question; [`Error::Cancelled`] if `on_step` stopped it;
    /// [`Error::OutOfMemory`] if the batch does not fit, where fewer questions may.
    pub async fn answer_batch(
        &self,
        questions: &[PreparedQuestion],
        max_new_tokens: usize,
        on_step: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Vec<Answer>> {
        let prompts: Vec<&[Position]> = questions.iter().map(|question| question.positions.as_slice()).collect();
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let max_new = max_new_tokens.min(self.context().saturating_sub(longest));
        if max_new == 0 {
            return Err(Error::InvalidArgument("at least one new token must be allowed".to_owned()));
        }
        let shared = shared_prefix(&prompts);
        let suffixes: Vec<usize> = prompts.iter().map(|prompt| prompt.len() - shared).collect();
        let mut cache = self.language().batch_cache(shared, &suffixes)?;

        let started = Instant::now();
        let ends = self.prefill_batch(questions, shared, &suffixes, &mut cache, on_step).await?;
        let mut answers: Vec<Answer> =
            questions.iter().map(|question| Answer::new(question.positions.len(), 0, question.vision_ms)).collect();
        let mut generator = BatchGenerator::new(self.language(), self.gpu(), &mut cache, ends, max_new)?;
        let mut first = None;
        while let Some(ids) = generator.next().await? {
            let first = first.get_or_insert_with(|| (milliseconds(started), Instant::now()));
            for (answer, id) in answers.iter_mut().zip(ids).filter(|(answer, _)| !has_stopped(answer)) {
                answer.token_ids.push(id);
                if self.is_stop(id) {
                    answer.finish_reason = FinishReason::Stop;
                }
                (answer.prefill_ms, answer.decode_ms) = (first.0, milliseconds(first.1));
            }
            if answers.iter().all(has_stopped) {
                break;
            }
            if on_step().is_break() {
                return Err(Error::Cancelled);
            }
        }
        for answer in &mut answers {
            answer.text = self.tokenizer().answer(&answer.token_ids);
        }
        Ok(answers)
    }

    /// Runs the prompts through the model. Returns the residual stream of their ends, [questions, hidden].
    async fn prefill_batch(
        &self,
        questions: &[PreparedQuestion],
        shared: usize,
        suffixes: &[usize],
        cache: &mut BatchCache,
        on_step: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Tensor> {
        let mut images: Vec<(ImageId, Tensor)> = Vec::new();
        for image in questions.iter().flat_map(|question| &question.images) {
            if images.iter().all(|(id, _)| *id != image.id) {
                images.push((image.id, image.tokens.clone()));
            }
        }
        let prefix = &questions[0].positions[..shared];
        let rest: Vec<Position> =
            questions.iter().flat_map(|question| &question.positions[shared..]).copied().collect();
        let lasts = suffixes.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - 1)
        });
        let lasts: Vec<usize> = lasts.collect();
        let ends =
            Tensor::zeros(self.gpu(), &[questions.len(), self.language().config().hidden_size], "ends of prompts")?;
        let (total, mut done) = (shared + rest.len(), 0);
        for (part, is_rest) in [(prefix, false), (&rest[..], true)] {
            let positions = prefill_chunk(self.gpu(), part.len());
            for (index, chunk) in part.chunks(positions).enumerate() {
                let mut recorder = self.gpu().record();
                let x = self.language().embed(&mut recorder, chunk, &images)?;
                let x = self.language().forward_batch(&mut recorder, &x, cache)?;
                let first = index * positions;
                for (sequence, last) in lasts.iter().enumerate().filter(|_| is_rest) {
                    if (first..first + chunk.len()).contains(last) {
                        x.slice_rows(last - first..last - first + 1).copy_to(&mut recorder, &ends, sequence);
                    }
                }
                done += chunk.len();
                let read = (done < total).then(|| x.slice_rows(0..1).read_back(&mut recorder));
                recorder.submit()?;
                if let Some(read) = read {
                    // Wait, so that a stop takes effect.
                    read.bytes().await?;
                }
                if on_step().is_break() {
                    return Err(Error::Cancelled);
                }
            }
        }
        Ok(ends)
    }
}

fn has_stopped(answer: &Answer) -> bool {
    answer.finish_reason == FinishReason::Stop
}

/// The number of positions with which all prompts begin. Each prompt keeps at least one position after them, for its
/// logits.
fn shared_prefix(prompts: &[&[Position]]) -> usize {
    let Some((first, others)) = prompts.split_first() else { return 0 };
    let equal = |other: &&[Position]| first.iter().zip(*other).take_while(|(a, b)| a == b).count();
    let shortest = prompts.iter().map(|prompt| prompt.len()).min().unwrap_or(0);
    others.iter().map(equal).min().unwrap_or(first.len()).min(shortest.saturating_sub(1))
}
