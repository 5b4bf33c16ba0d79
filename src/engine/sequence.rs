//! An answer that is being computed.

use super::blocks::{BLOCK_ROWS, BlockPool, BlockTable};
use super::digest::CachedPosition;
use super::encoder::SequenceImages;
use super::lookup::PromptLookup;
use super::request::Request;
use crate::Error;
use crate::generation::{AnswerText, Draws};
use crate::language::{Constraint, RowControls};
use crate::ops::NO_ROW;
use crate::text::stop::StopIds;
use crate::text::tokenizer::Tokenizer;

/// An answer with blocks of the cache, or several before their prompt is computed.
#[derive(Debug)]
pub(super) struct Sequence<'a> {
    pub request: Request,
    /// The number of admissions before this one. Steps in flight refer to it: a job that was preempted meanwhile has
    /// another.
    pub admission: u64,
    /// A number below that of sequences at a time; no other has it.
    pub seat: usize,
    pub table: BlockTable,
    /// The prompt and all tokens that are known.
    pub positions: Vec<CachedPosition>,
    /// The images of its prompt, until that is computed.
    pub images: SequenceImages,
    /// The end of what is computed as a prompt.
    pub prefill: usize,
    /// Rows that are recorded to be written, from the start.
    pub written: usize,
    /// Which of the chosen tokens is the one at position `written`, if it is not in `positions`.
    pub token: u32,
    /// Slices of other prompts since one of this.
    pub waited: usize,
    /// Whether others have computed more of its prompt since its admission.
    pub shares_prefix: bool,
    /// What the known tokens say.
    pub text: AnswerText<'a>,
    pub constraint: Option<Box<dyn Constraint>>,
    /// What is likely to come next.
    pub lookup: PromptLookup,
    /// Why the answer cannot be continued.
    pub error: Option<Error>,
    draws: Draws,
    /// Tokens that are forbidden before `min_tokens`.
    ends: Vec<u32>,
    /// Positions that others may use: in deterministic mode not those that were computed as generated tokens.
    shareable: usize,
}

/// What the tokens of an answer lead to.
#[derive(Debug)]
pub(super) struct AnswerState<'a> {
    pub text: AnswerText<'a>,
    constraint: Option<Box<dyn Constraint>>,
    error: Option<Error>,
}

impl<'a> AnswerState<'a> {
    /// The state after the tokens of a request that exist.
    pub(super) fn new(text: Option<(&'a Tokenizer, &'a StopIds)>, request: &Request) -> Self {
        let mut text = AnswerText::new(text, &request.job.options);
        let mut constraint = request.job.constraint.clone();
        let mut error = None;
        for id in &request.begun {
            text.push(*id);
            if let Some(constraint) = &mut constraint {
                error = error.or(constraint.accept(*id).err());
            }
        }
        Self { text, constraint, error }
    }

    /// Whether the constraint ends the answer.
    pub(super) fn is_terminated(&self) -> bool {
        self.constraint.as_ref().is_some_and(|constraint| constraint.is_terminated())
    }
}

impl<'a> Sequence<'a> {
    /// An answer whose first `cached` positions are in `table`. `deterministic`: generated tokens are
    /// computed by decoding steps, even if they exist already.
    pub(super) fn new(
        request: Request,
        (admission, seat): (u64, usize),
        (table, cached): (BlockTable, usize),
        deterministic: bool,
        (AnswerState { text, constraint, error }, vocab): (AnswerState<'a>, usize),
    ) -> Self {
        let positions = request.positions();
        let (prompt, options) = (request.job.prompt.len(), &request.job.options);
        Self {
            admission,
            seat,
            table,
            prefill: if deterministic { prompt } else { positions.len() },
            positions,
            images: SequenceImages::default(),
            written: cached,
            token: NO_ROW,
            waited: 0,
            shares_prefix: false,
            draws: Draws::new(options.seed, 0, request.choice as u64),
            ends: text.ends().filter(|id| options.min_tokens > 0 && (*id as usize) < vocab).collect(),
            text,
            constraint,
            lookup: PromptLookup::new(),
            error,
            shareable: if deterministic { prompt } else { usize::MAX },
            request,
        }
    }

    /// Whether its prompt is computed.
    pub(super) fn is_running(&self) -> bool {
        self.written >= self.prefill
    }

    /// Whether the last token that it may generate is chosen, or submitted to be.
    pub(super) fn is_submitted(&self) -> bool {
        self.written + 1 >= self.request.job.prompt.len() + self.request.job.options.max_new_tokens
    }

    /// Takes all tokens that are known into account for the next draft.
    pub(super) fn update_lookup(&mut self) {
        if self.is_running() && self.may_have_drafts() {
            self.lookup.update(&self.positions, self.request.job.prompt.len());
        }
    }

    /// Penalties and constraints of a row depend on the tokens before it, which are known too late for a draft.
    fn may_have_drafts(&self) -> bool {
        self.constraint.is_none() && !self.request.job.options.sampling.has_penalties()
    }

    /// Tokens that a draft may have: after each comes one that may still be generated.
    pub(super) fn most_drafts(&self) -> usize {
        let options = &self.request.job.options;
        let end = self.request.job.prompt.len() + options.max_new_tokens;
        if self.may_have_drafts() { end.saturating_sub(self.written + 2) } else { 0 }
    }

    /// Generated tokens that are known.
    pub(super) fn generated(&self) -> usize {
        self.positions.len() - self.request.job.prompt.len()
    }

    /// Sequences that it is, or will be.
    pub(super) fn count(&self) -> usize {
        1 + self.request.forks
    }

    /// How the token at a position is chosen. One that is known may be any.
    pub(super) fn controls(&self, position: usize) -> RowControls<'_> {
        if position < self.positions.len() || self.error.is_some() {
            return RowControls::default();
        }
        let options = &self.request.job.options;
        let index = position - self.request.job.prompt.len();
        RowControls {
            sampling: options.sampling,
            draw: self.draws.at(index),
            bias: &options.logit_bias,
            forbidden: if index < options.min_tokens { &self.ends } else { &[] },
            counts: options.sampling.has_penalties().then_some(self.seat),
            mask: self.constraint.as_ref().map(|_| self.seat),
        }
    }

    /// The number of best tokens to report with the token at a position.
    pub(super) fn top_logprobs(&self, position: usize) -> Option<usize> {
        self.request.job.options.top_logprobs.filter(|_| position >= self.positions.len())
    }

    /// Positions to be computed as a prompt with which both this and another sequence of the same user begin, without
    /// the last of this, which is computed for its logits.
    pub(super) fn common_prefix(&self, other: &Self) -> usize {
        if self.request.job.salt != other.request.job.salt {
            return 0;
        }
        let mine = &self.positions[..self.prefill.min(self.shareable).saturating_sub(1)];
        let others = &other.positions[..other.prefill.min(other.shareable)];
        mine.iter().zip(others).take_while(|(a, b)| a == b).count()
    }

    /// Positions that are both known and written, or recorded to be.
    pub(super) fn stored(&self) -> &[CachedPosition] {
        &self.positions[..self.written.min(self.positions.len()).min(self.shareable)]
    }

    /// Makes its full blocks available to others, once more of them are full.
    pub(super) fn register(&mut self, pool: &mut BlockPool) {
        let end = self.written.min(self.positions.len()).min(self.shareable);
        if end / BLOCK_ROWS > self.table.registered() {
            pool.register(&mut self.table, &self.positions[..end]);
        }
    }

    /// Gives its blocks back. Returns the request with all tokens that are known.
    pub(super) fn release(self, pool: &mut BlockPool) -> Request {
        let stored = self.stored().to_vec();
        pool.release(self.table, &stored);
        let Self { mut request, positions, .. } = self;
        let token = |position: &CachedPosition| match position {
            CachedPosition::Text(id) => Some(*id),
            CachedPosition::Visual { .. } => None,
        };
        request.begun = positions[request.job.prompt.len()..].iter().filter_map(token).collect();
        request
    }
}
