//! A conversation and its key/value cache.

use std::ops::ControlFlow;

use web_time::Instant;

use super::choice::ChoiceInProgress;
use super::image::EncodedImage;
use super::model::no_vision_error;
use super::{
    Answer, AnswerOptions, Choice, Event, FinishReason, ImageSource, Model, OnEvent, PreparedQuestion, milliseconds,
};
use crate::generation::{AnswerText, Draws};
use crate::language::{AnyConstraint, Cache, ImageId, LogitControls, Position, TokenGenerator, prefill_chunk};
use crate::ops::token_counts;
use crate::tensor::Tensor;
use crate::text::conversation::{Conversation, Turn};
use crate::text::tokenizer::PromptToken;
use crate::vision::Vision;
use crate::{Error, Result};

/// A conversation with a model. The keys and values of earlier turns stay cached: a turn prefills only what is new.
#[derive(Debug)]
pub struct Chat {
    model: Model,
    conversation: Conversation,
    /// The images of all turns, in order.
    images: Vec<EncodedImage>,
    /// Images of the conversation before [`Chat::restore`], which the next one may use again.
    reusable: Vec<EncodedImage>,
    cache: Cache,
    /// What the positions of the cache hold.
    cached: Vec<Position>,
    next_image: ImageId,
}

/// The conversation with a question that has no answer yet.
struct Draft {
    conversation: Conversation,
    images: Vec<EncodedImage>,
    /// The prompt.
    positions: Vec<Position>,
    vision_ms: f64,
}

impl Model {
    /// A new conversation.
    pub fn chat(&self) -> Chat {
        Chat {
            model: self.clone(),
            conversation: Conversation::new(self.prompt_format().clone()),
            images: Vec::new(),
            reusable: Vec::new(),
            cache: self.language().cache(),
            cached: Vec::new(),
            next_image: ImageId(0),
        }
    }
}

impl Chat {
    /// The conversation with a system prompt.
    pub fn with_system(mut self, system: impl Into<String>) -> Self {
        self.conversation.system = Some(system.into());
        self
    }

    /// Lets control tokens in questions, answers and the system prompt take effect, as in the reference
    /// ([`Conversation::allow_special_tokens`]).
    pub fn allow_special_tokens(&mut self, allow: bool) {
        self.conversation.allow_special_tokens = allow;
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The conversation so far.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Removes all turns and images. The system prompt stays.
    pub fn reset(&mut self) {
        self.conversation.turns.clear();
        self.images.clear();
        self.reusable.clear();
        self.cached.clear();
        self.cache.truncate(0);
    }

    /// Replaces the conversation by `turns`, all of them answered, with all their images in order. The cache keeps the
    /// common beginning, and images of the previous conversation are not encoded again.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the number of images differs from the sum over the turns. After an error the
    /// conversation is as it was before.
    pub async fn restore(
        &mut self,
        system: Option<String>,
        turns: Vec<Turn>,
        images: &[&dyn ImageSource],
        on_event: OnEvent<'_>,
    ) -> Result<()> {
        let expected: usize = turns.iter().map(|turn| turn.images).sum();
        if expected != images.len() || turns.iter().any(|turn| turn.answer.is_none()) {
            let found = images.len();
            return Err(Error::InvalidArgument(format!(
                "every turn of a conversation has an answer, and these turns have {expected} images, not {found}"
            )));
        }
        let mut encoded = Vec::new();
        for image in images {
            encoded.push(self.encode_image(*image, &encoded, on_event).await?);
        }
        self.reusable.append(&mut self.images);
        self.images = encoded;
        self.conversation.system = system;
        self.conversation.turns = turns;
        Ok(())
    }

    pub(super) async fn answer(
        &mut self,
        question: &str,
        images: &[&dyn ImageSource],
        (options, constraint): (&AnswerOptions, Option<&AnyConstraint>),
        on_event: OnEvent<'_>,
    ) -> Result<Answer> {
        options.check(self.model.language().config().vocab_size)?;
        let draft = self.draft(question, images, options.max_new_tokens, on_event).await?;
        self.reusable.clear();

        let started = Instant::now();
        let prompt_tokens = draft.positions.len();
        let limit = options.max_new_tokens.min(self.model.context() - prompt_tokens);
        let most = options.resume_from.iter().map(Vec::len).max().unwrap_or(0);
        if limit == 0 || most > limit || most == limit && options.n == 1 {
            let reason = match most {
                0 => "at least one new token must be allowed".to_owned(),
                found => format!("resume_from has {found} tokens, and an answer may have at most {limit} here"),
            };
            return Err(Error::InvalidArgument(reason));
        }
        let mut answer = Answer::new(prompt_tokens, 0, draft.vision_ms);
        let wanted = (options, constraint);
        let mut choices = self.choices(&draft, limit, wanted, on_event, started, &mut answer).await?.into_iter();
        if let Some(Choice { token_ids, text, finish_reason, stop_reason, logprobs }) = choices.next() {
            answer = Answer { token_ids, text, finish_reason, stop_reason, logprobs, ..answer };
        }
        answer.alternatives = choices.collect();
        (self.conversation, self.images) = (draft.conversation, draft.images);
        self.conversation.answer(answer.text.clone());
        Ok(answer)
    }

    /// Generates all answers to a question, one after the other, of at most `limit` tokens each. The prompt is
    /// processed once.
    async fn choices(
        &mut self,
        draft: &Draft,
        limit: usize,
        (options, constraint): (&AnswerOptions, Option<&AnyConstraint>),
        on_event: OnEvent<'_>,
        started: Instant,
        answer: &mut Answer,
    ) -> Result<Vec<Choice>> {
        let model = self.model.clone();
        let mut choices: Vec<Choice> = Vec::new();
        let mut first_token = None;
        // The residual stream of the prompt's end.
        let mut prompt_end: Option<Tensor> = None;
        self.cache.expect_length(draft.positions.len() + limit);
        for index in 0..options.n {
            if index > 0 && on_event(Event::Choice { index }).is_break() {
                break;
            }
            let resumed = options.resume_from.get(index).map_or(&[] as &[u32], Vec::as_slice);
            let mut choice = ChoiceInProgress::new(&model, options);
            for id in resumed {
                choice.push(*id);
            }
            if choice.has_ended() || resumed.len() == limit {
                choice.finish();
                choices.push(choice.into_choice());
                continue;
            }
            let x = if let Some(x) = prompt_end.as_ref().filter(|_| resumed.is_empty()) {
                self.cached.truncate(draft.positions.len());
                self.cache.truncate(draft.positions.len());
                x.clone()
            } else {
                let mut positions = draft.positions.clone();
                positions.extend(resumed.iter().map(|id| Position::Text(*id)));
                let cached = self.keep_common_prefix(&positions);
                if choices.is_empty() {
                    answer.cached_tokens = cached;
                }
                self.prefill(&positions[cached..], &draft.images, on_event).await?
            };
            if resumed.is_empty() && options.n > index + 1 {
                prompt_end = Some(x.clone());
            }
            let controls = self.controls(options, &draft.positions, resumed);
            let turn = draft.conversation.turns.len();
            let (draws, mut drawn) = (Draws::new(options.seed, turn as u64, index as u64), resumed.len());
            let draw = move || {
                drawn += 1;
                draws.at(drawn - 1)
            };
            let (max_new, sampling) = (limit - resumed.len(), options.sampling);
            let generator =
                TokenGenerator::new(model.language(), model.gpu(), &mut self.cache, x, max_new, sampling, draw)?;
            let mut generator = match controls {
                Some(controls) => generator.with_controls(controls)?,
                None => generator,
            };
            if let Some(constraint) = constraint {
                generator = generator.with_constraint(constraint.clone(), resumed)?;
            }
            let mut is_cancelled = false;
            while let Some(id) = generator.next().await? {
                if first_token.is_none() {
                    answer.prefill_ms = milliseconds(started);
                    first_token = Some(Instant::now());
                }
                let mut flow = on_event(Event::Token { id });
                if let Some(logprobs) = generator.logprobs(id) {
                    if on_event(Event::Logprobs { logprobs: &logprobs }).is_break() {
                        flow = ControlFlow::Break(());
                    }
                    choice.choice().logprobs.push(logprobs);
                }
                if let Some(text) = choice.push(id)
                    && on_event(Event::Text { text: &text }).is_break()
                    && !choice.has_ended()
                {
                    flow = ControlFlow::Break(());
                }
                if choice.has_ended() {
                    break;
                }
                if flow.is_break() {
                    is_cancelled = true;
                    break;
                }
            }
            if let Some(text) = choice.finish() {
                // The answer has ended: there is nothing left to stop.
                let _ = on_event(Event::Text { text: &text });
            }
            if is_cancelled {
                choice.choice().finish_reason = FinishReason::Cancelled;
            } else if generator.is_terminated() {
                choice.choice().finish_reason = FinishReason::Stop;
            }
            let choice = choice.into_choice();
            // The device may have run past the answer's end; those positions are dropped.
            let new = &choice.token_ids[resumed.len()..];
            let cached = generator.cached_tokens().min(new.len());
            drop(generator);
            self.cached.extend(new[..cached].iter().map(|id| Position::Text(*id)));
            self.cache.truncate(self.cached.len());
            choices.push(choice);
            answer.decode_ms = first_token.map_or(0.0, milliseconds);
            if is_cancelled {
                break;
            }
        }
        Ok(choices)
    }

    /// What changes logits and is reported about them. `None` by default.
    fn controls(&self, options: &AnswerOptions, prompt: &[Position], resumed: &[u32]) -> Option<LogitControls> {
        let min_tokens = options.min_tokens.saturating_sub(resumed.len());
        let has_penalties = options.sampling.has_penalties();
        if min_tokens == 0 && !has_penalties && options.logit_bias.is_empty() && options.top_logprobs.is_none() {
            return None;
        }
        let vocab = self.model.language().config().vocab_size;
        let text = AnswerText::new(Some((self.model.tokenizer(), self.model.stop_ids())), options);
        let ends = text.ends().filter(|id| (*id as usize) < vocab).collect();
        let counts = has_penalties.then(|| {
            let prompt = prompt.iter().filter_map(|position| match position {
                Position::Text(id) => Some(*id),
                Position::Visual { .. } => None,
            });
            token_counts(vocab, prompt, resumed.iter().copied())
        });
        let (bias, top_logprobs) = (options.logit_bias.clone(), options.top_logprobs);
        Some(LogitControls { bias, ends, min_tokens, counts, top_logprobs })
    }

    /// The same question for [`Model::answer_batch`].
    pub(super) async fn prepare(
        &mut self,
        question: &str,
        images: &[&dyn ImageSource],
        max_new_tokens: usize,
        on_event: OnEvent<'_>,
    ) -> Result<PreparedQuestion> {
        let Draft { images, positions, vision_ms, .. } = self.draft(question, images, max_new_tokens, on_event).await?;
        // The next question is often about the same images.
        self.reusable.clone_from(&images);
        Ok(PreparedQuestion { positions, images, vision_ms })
    }

    /// The conversation with a question, and its prompt.
    async fn draft(
        &mut self,
        question: &str,
        images: &[&dyn ImageSource],
        max_new_tokens: usize,
        on_event: OnEvent<'_>,
    ) -> Result<Draft> {
        let mut conversation = self.conversation.clone();
        conversation.ask(question, images.len());
        // Before images are encoded, which takes longest.
        let tokens = self.fit_prompt(&mut conversation, max_new_tokens, on_event)?;
        let started = Instant::now();
        let mut all_images = self.images.clone();
        for image in images {
            let encoded = self.encode_image(*image, &all_images, on_event).await?;
            all_images.push(encoded);
        }
        let vision_ms = milliseconds(started);
        let positions = positions(tokens, &all_images)?;
        Ok(Draft { conversation, images: all_images, positions, vision_ms })
    }

    /// The visual tokens of an image. They are computed only if neither `images` nor the conversation has the same
    /// image.
    async fn encode_image(
        &mut self,
        image: &dyn ImageSource,
        images: &[EncodedImage],
        on_event: OnEvent<'_>,
    ) -> Result<EncodedImage> {
        let hash = image.content_hash();
        let mut known = images.iter().chain(&self.images).chain(&self.reusable);
        if let Some(encoded) = known.find(|encoded| encoded.hash == hash) {
            return Ok(encoded.clone());
        }
        let vision = self.model.vision().ok_or_else(no_vision_error)?;
        let mut recorder = self.model.gpu().record();
        let views = vision.preprocess().views(&*image.pixels()?)?;
        let mut on_step = |done, total| on_event(Event::EncodingImage { done, total });
        let encoded = vision.encode_and_wait(&mut recorder, &views, None, &mut on_step).await?;
        let id = self.next_image;
        self.next_image = ImageId(id.0 + 1);
        Ok(EncodedImage { tokens: encoded.tokens, id, hash })
    }

    /// The prompt's tokens. If the prompt is too long or leaves little room for the answer, the oldest turns without
    /// images are dropped first. The assistant's header at the end is never cut off.
    fn fit_prompt(
        &self,
        conversation: &mut Conversation,
        max_new_tokens: usize,
        on_event: OnEvent<'_>,
    ) -> Result<Vec<PromptToken>> {
        let (limit, context) = (self.model.max_prompt_tokens(), self.model.context());
        let comfortable = limit.min(context - max_new_tokens.min(context / 4));
        let tokens_per_image = self.model.vision().map(Vision::tokens);
        let mut dropped = 0;
        loop {
            let tokens = self.model.tokenizer().encode_prompt(&conversation.prompt()?)?;
            let mut positions = 0;
            for token in &tokens {
                positions += match token {
                    PromptToken::Text(_) => 1,
                    PromptToken::Image => tokens_per_image.ok_or_else(no_vision_error)?,
                };
            }
            let last = conversation.turns.len().saturating_sub(1);
            let oldest = conversation.turns[..last].iter().position(|turn| turn.images == 0);
            match oldest {
                Some(oldest) if positions > comfortable => drop(conversation.turns.remove(oldest)),
                _ if positions > limit => return Err(Error::PromptTooLong { tokens: positions, limit }),
                _ => {
                    if dropped > 0 && on_event(Event::DroppedTurns { count: dropped }).is_break() {
                        return Err(Error::Cancelled);
                    }
                    return Ok(tokens);
                }
            }
            dropped += 1;
        }
    }

    /// Truncates the cache to the beginning that it has in common with the prompt. The prompt's last position always
    /// runs again, for its logits.
    fn keep_common_prefix(&mut self, positions: &[Position]) -> usize {
        let common = self.cached.iter().zip(positions).take_while(|(cached, wanted)| cached == wanted).count();
        let cached = common.min(positions.len().saturating_sub(1)).min(self.cache.length());
        self.cache.truncate(cached);
        self.cached.truncate(cached);
        cached
    }

    /// Runs new positions through the model. Returns the residual stream of the last chunk.
    async fn prefill(
        &mut self,
        positions: &[Position],
        images: &[EncodedImage],
        on_event: OnEvent<'_>,
    ) -> Result<Tensor> {
        let model = self.model.clone();
        let images: Vec<(ImageId, Tensor)> = images.iter().map(|image| (image.id, image.tokens.clone())).collect();
        let mut recorder = model.gpu().record();
        self.cache.reserve(&mut recorder, self.cached.len() + positions.len())?;
        recorder.submit()?;
        let mut last = None;
        let mut done = 0;
        for chunk in positions.chunks(prefill_chunk(model.gpu(), positions.len())) {
            let mut recorder = model.gpu().record();
            let x = model.language().embed(&mut recorder, chunk, &images)?;
            let total = positions.len();
            let mut on_wait = || on_event(Event::Prefill { done, total });
            let x = model.language().forward_and_wait(&mut recorder, &x, &mut self.cache, &mut on_wait).await?;
            let more = done + chunk.len() < positions.len();
            let read = more.then(|| x.slice_rows(x.rows() - 1..x.rows()).read_back(&mut recorder));
            recorder.submit()?;
            self.cached.extend_from_slice(chunk);
            done += chunk.len();
            last = Some(x);
            if let Some(read) = read {
                // Wait, so that progress is true and a stop takes effect.
                read.bytes().await?;
            }
            if on_event(Event::Prefill { done, total: positions.len() }).is_break() {
                return Err(Error::Cancelled);
            }
        }
        last.ok_or_else(|| Error::InvalidArgument("the prompt is empty".to_owned()))
    }
}

/// The positions of a prompt, its images in order.
fn positions(prompt: Vec<PromptToken>, images: &[EncodedImage]) -> Result<Vec<Position>> {
    let mut images = images.iter();
    let mut positions = Vec::new();
    for token in prompt {
        match token {
            PromptToken::Text(id) => positions.push(Position::Text(id)),
            PromptToken::Image => {
                let Some(image) = images.next() else {
                    return Err(Error::InvalidArgument(
                        "the prompt has more image placeholders than images".to_owned(),
                    ));
                };
                let rows = image.tokens.rows() as u32;
                positions.extend((0..rows).map(|row| Position::Visual { image: image.id, row }));
            }
        }
    }
    Ok(positions)
}
