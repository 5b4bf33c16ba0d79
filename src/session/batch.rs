//! Questions that are answered together: products read their weights once for all of them, and what their prompts have in
//! common is read once.

use web_time::Instant;

use super::{Answer, Chat, Event, FinishReason, Model, Seen, milliseconds, placed};
use crate::image::Rgb8;
use crate::language::{BatchCache, BatchGenerator, PREFILL_POSITIONS, Position};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A question, ready to be answered together with others: its whole prompt, and the pictures in it.
#[derive(Debug, Clone)]
pub struct Request {
    positions: Vec<Position>,
    pictures: Vec<Seen>,
    vision_ms: f64,
}

impl Chat {
    /// A question about these pictures (and all earlier ones), to be answered by [`Model::answer_all`]. Pictures are looked at
    /// now; those of the last request are known. The conversation stays as it is.
    ///
    /// # Errors
    /// As [`Chat::ask`].
    pub async fn request(
        &mut self,
        question: &str,
        images: &[Rgb8],
        max_new_tokens: usize,
        on_event: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Request> {
        let (conversation, pictures) = (self.conversation.clone(), self.images.clone());
        let prompt = self.prompt(question, &super::pictures(images), max_new_tokens, on_event).await;
        self.conversation = conversation;
        let pictures = std::mem::replace(&mut self.images, pictures);
        self.known.clone_from(&pictures);
        let (positions, vision_ms) = prompt?;
        Ok(Request { positions, pictures, vision_ms })
    }
}

impl Model {
    /// The likeliest answers to questions, which are of one [`Chat`]. `go_on` is asked after every portion of the prompts and
    /// every step, and gives `false` to stop. Of the times in the answers only that of looking is an answer's own.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if it was stopped; [`Error::OutOfMemory`] where fewer questions may fit.
    pub async fn answer_all(
        &self,
        requests: &[Request],
        max_new_tokens: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Answer>> {
        let prompts: Vec<&[Position]> = requests.iter().map(|request| request.positions.as_slice()).collect();
        let context = self.language.config().max_positions;
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let room = max_new_tokens.min(context.saturating_sub(longest));
        if room == 0 {
            return Err(Error::InvalidArgument("at least one new token must be allowed".to_owned()));
        }
        let common = common_beginning(&prompts);
        let own: Vec<usize> = prompts.iter().map(|prompt| prompt.len() - common).collect();
        let mut cache = self.language.batch_cache(common, &own)?;

        let started = Instant::now();
        let ends = self.prefill_all(requests, common, &own, &mut cache, go_on).await?;
        let mut answers: Vec<Answer> = requests
            .iter()
            .map(|request| Answer {
                prompt_tokens: request.positions.len(),
                cached_tokens: 0,
                token_ids: Vec::new(),
                text: String::new(),
                finish_reason: FinishReason::Length,
                vision_ms: request.vision_ms,
                prefill_ms: 0.0,
                decode_ms: 0.0,
            })
            .collect();
        let mut generator = BatchGenerator::new(&self.language, &self.gpu, &mut cache, ends, room)?;
        let mut first = None;
        while let Some(ids) = generator.next().await? {
            let first = first.get_or_insert_with(|| (milliseconds(started), Instant::now()));
            for (answer, id) in answers.iter_mut().zip(ids).filter(|(answer, _)| !has_stopped(answer)) {
                answer.token_ids.push(id);
                if self.stop.contains(id) {
                    answer.finish_reason = FinishReason::Stop;
                }
                (answer.prefill_ms, answer.decode_ms) = (first.0, milliseconds(first.1));
            }
            if answers.iter().all(has_stopped) {
                break;
            }
            if !go_on() {
                return Err(Error::Cancelled);
            }
        }
        for answer in &mut answers {
            answer.text = self.tokenizer.answer(&answer.token_ids);
        }
        Ok(answers)
    }

    /// Runs prompts through the model; gives the residual stream of their ends, [requests, hidden].
    async fn prefill_all(
        &self,
        requests: &[Request],
        common: usize,
        own: &[usize],
        cache: &mut BatchCache,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Tensor> {
        let mut pictures: Vec<Seen> = Vec::new();
        for picture in requests.iter().flat_map(|request| &request.pictures) {
            if pictures.iter().all(|known| known.number != picture.number) {
                pictures.push(picture.clone());
            }
        }
        let images: Vec<Tensor> = pictures.iter().map(|picture| picture.tokens.clone()).collect();
        let beginning = placed(&requests[0].positions[..common], &pictures);
        let rest: Vec<Position> =
            requests.iter().flat_map(|request| placed(&request.positions[common..], &pictures)).collect();
        let lasts = own.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - 1)
        });
        let lasts: Vec<usize> = lasts.collect();
        let ends = Tensor::zeros(&self.gpu, &[requests.len(), self.language.config().hidden_size], "ends of prompts")?;
        let (all, mut done) = (common + rest.len(), 0);
        for (part, of_rest) in [(&beginning, false), (&rest, true)] {
            for (index, portion) in part.chunks(PREFILL_POSITIONS).enumerate() {
                let mut recorder = self.gpu.record();
                let x = self.language.embed(&mut recorder, portion, &images)?;
                let x = self.language.forward_batch(&mut recorder, &x, cache)?;
                let first = index * PREFILL_POSITIONS;
                for (sequence, last) in lasts.iter().enumerate().filter(|_| of_rest) {
                    if (first..first + portion.len()).contains(last) {
                        x.slice_rows(last - first..last - first + 1).copy_to(&mut recorder, &ends, sequence);
                    }
                }
                done += portion.len();
                let read = (done < all).then(|| x.slice_rows(0..1).read_back(&mut recorder));
                recorder.submit()?;
                if let Some(read) = read {
                    // So that a stop takes effect.
                    read.bytes().await?;
                }
                if !go_on() {
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

/// Positions that all prompts begin with; each keeps one of its own at least, whose logits are wanted.
fn common_beginning(prompts: &[&[Position]]) -> usize {
    let Some((first, others)) = prompts.split_first() else { return 0 };
    let alike = |other: &&[Position]| first.iter().zip(*other).take_while(|(a, b)| a == b).count();
    let shortest = prompts.iter().map(|prompt| prompt.len()).min().unwrap_or(0);
    others.iter().map(alike).min().unwrap_or(first.len()).min(shortest.saturating_sub(1))
}
