//! Prompt-lookup decoding: drafts of the next tokens from what a prompt and its answer repeat, and how many of them a
//! step should verify.
//!
//! A draft is verified by a row for each of its tokens in the same step as the token before it. Each row chooses its
//! token from its own logits with the random number of its position, and counts only if the tokens that it assumed are
//! those that were chosen. Answers are therefore those without drafts, sampled ones too: for a draft that is a single
//! token, drawing from the model's distribution and comparing is the acceptance rule of speculative sampling
//! (Leviathan, Kalman and Matias, 2023).

use std::collections::HashMap;

use super::digest::CachedPosition;

/// How often predictions were right, before anything is known: too seldom for a draft on most devices.
const FIRST_AGREEMENT: f64 = 0.25;
/// The weight of one more prediction.
const AGREEMENT_WEIGHT: f64 = 0.2;

/// Predicts the tokens of a sequence: those after the latest earlier occurrence of its last tokens. Predictions are
/// compared with the tokens that follow whether they were drafts or not, which costs nothing.
#[derive(Debug)]
pub(super) struct PromptLookup {
    /// The end of the latest occurrence of three, and of two tokens.
    trigrams: HashMap<[u32; 3], usize>,
    bigrams: HashMap<[u32; 2], usize>,
    /// Positions that are taken into account.
    known: usize,
    /// The position whose token is predicted to be the next one.
    source: Option<usize>,
    /// How often a prediction was right, weighted towards the latest.
    agreement: f64,
}

impl PromptLookup {
    pub(super) fn new() -> Self {
        let (trigrams, bigrams) = (HashMap::new(), HashMap::new());
        Self { trigrams, bigrams, known: 0, source: None, agreement: FIRST_AGREEMENT }
    }

    /// Takes positions that are known now into account. Of those from `answer` on, predictions are compared.
    pub(super) fn update(&mut self, positions: &[CachedPosition], answer: usize) {
        for index in self.known..positions.len() {
            if let Some(source) = self.source {
                let is_right = positions[source] == positions[index];
                self.source = is_right.then_some(source + 1);
                if index >= answer {
                    self.agreement += AGREEMENT_WEIGHT * (f64::from(u8::from(is_right)) - self.agreement);
                }
            }
            let end = index + 1;
            let trigram = last_tokens::<3>(&positions[..end]).and_then(|tokens| self.trigrams.insert(tokens, end));
            let bigram = last_tokens::<2>(&positions[..end]).and_then(|tokens| self.bigrams.insert(tokens, end));
            self.source = self.source.or(trigram).or(bigram);
        }
        self.known = positions.len();
    }

    /// The probability that a prediction is right, if there is one.
    pub(super) fn confidence(&self) -> Option<f64> {
        self.source.map(|_| self.agreement)
    }

    /// Up to `most` tokens that are predicted to follow `positions`, which are all taken into account.
    pub(super) fn draft(&self, positions: &[CachedPosition], most: usize) -> Vec<u32> {
        let mut draft = Vec::new();
        let Some(source) = self.source else { return draft };
        for index in source..source + most {
            // What repeats itself continues with the draft.
            let token = match positions.get(index) {
                Some(CachedPosition::Text(id)) => Some(*id),
                Some(CachedPosition::Visual { .. }) => None,
                None => draft.get(index - positions.len()).copied(),
            };
            let Some(token) = token else { break };
            draft.push(token);
        }
        draft
    }
}

/// The last positions, if all are text.
fn last_tokens<const N: usize>(positions: &[CachedPosition]) -> Option<[u32; N]> {
    let last: &[CachedPosition; N] = positions.last_chunk()?;
    let mut tokens = [0; N];
    for (token, position) in tokens.iter_mut().zip(last) {
        let CachedPosition::Text(id) = position else { return None };
        *token = *id;
    }
    Some(tokens)
}

/// What drafts cost, in steps of one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct DraftCost {
    /// A further row of a step.
    pub row: f64,
    /// What it takes that the host reads all tokens before and after a step with drafts.
    pub wait: f64,
}

/// A sequence that could have a draft.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// The probability that a token of the draft is right, if those before it are.
    pub confidence: f64,
    /// Tokens of its draft.
    pub length: usize,
}

impl DraftCost {
    /// Divides `free` rows among the drafts of `candidates`, in a step that has `rows` rows without drafts, so that the
    /// expected number of tokens in relation to the cost of the step is largest. Returns the tokens of each draft.
    pub(super) fn divide(&self, rows: usize, free: usize, candidates: &[Candidate]) -> Vec<usize> {
        let mut lengths = vec![0; candidates.len()];
        let before = (rows as f64, 1.0 + self.row * (rows as f64 - 1.0));
        let (mut tokens, mut cost) = before;
        for _ in 0..free {
            let next = |index: usize| {
                let Candidate { confidence, length } = candidates[index];
                (lengths[index] < length).then(|| confidence.powi(lengths[index] as i32 + 1))
            };
            let all = (0..candidates.len()).filter_map(|index| Some((next(index)?, index)));
            let Some((probability, index)) = all.max_by(|a, b| a.0.total_cmp(&b.0)) else { break };
            if probability * cost <= tokens * self.row {
                break;
            }
            (tokens, cost) = (tokens + probability, cost + self.row);
            lengths[index] += 1;
        }
        if tokens * before.1 <= before.0 * (cost + self.wait) {
            lengths.fill(0);
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::super::digest::ImageDigest;
    use super::*;
    use crate::image::Image;

    fn text(ids: &[u32]) -> Vec<CachedPosition> {
        ids.iter().map(|id| CachedPosition::Text(*id)).collect()
    }

    fn lookup(positions: &[CachedPosition], answer: usize) -> PromptLookup {
        let mut lookup = PromptLookup::new();
        lookup.update(positions, answer);
        lookup
    }

    #[test]
    fn drafts_are_what_followed_the_latest_and_longest_match() {
        // 7 8 was followed by 1 and later by 2; 5 7 8 by 1.
        for (last, expected) in [(&[7, 8][..], &[2, 9, 7, 8][..]), (&[5, 7, 8], &[1, 6, 7, 8]), (&[8, 7], &[])] {
            let mut ids = vec![5, 7, 8, 1, 6, 7, 8, 2, 9];
            ids.extend_from_slice(last);
            let positions = text(&ids);
            assert_eq!(lookup(&positions, 0).draft(&positions, 4), expected, "{last:?}");
        }
    }

    #[test]
    fn what_repeats_itself_continues() {
        let positions = text(&[1, 2, 3, 1, 2, 3]);
        assert_eq!(lookup(&positions, 6).draft(&positions, 8), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert!(lookup(&positions, 6).draft(&positions, 0).is_empty());
    }

    #[test]
    fn images_are_no_part_of_drafts() {
        let image = ImageDigest::new(&Image::new(1, 1, vec![0; 3]).expect("an image"), "");
        let visual = |row| CachedPosition::Visual { image, row };
        let mut positions = text(&[1, 2]);
        positions.extend([visual(0), visual(1), visual(0), visual(1)]);
        assert_eq!(lookup(&positions, 6).confidence(), None);
        positions.extend(text(&[1, 2]));
        assert!(lookup(&positions, 6).draft(&positions, 3).is_empty());
    }

    #[test]
    fn confidence_follows_the_answer_and_not_the_prompt() {
        let ids: Vec<u32> = (0..120).map(|index| index % 30).collect();
        assert_eq!(lookup(&text(&ids), 120).confidence(), Some(FIRST_AGREEMENT));
        let copied = lookup(&text(&ids), 60).confidence().expect("a prediction");
        assert!(copied > 0.99, "{copied}");
        // The same two tokens are followed by others each time.
        let ids: Vec<u32> = (0..60).flat_map(|index| [1, 2, 100 + index]).chain([1, 2]).collect();
        let free = lookup(&text(&ids), 0).confidence().expect("a prediction");
        assert!(free < 0.6, "{free}");
    }

    #[test]
    fn rows_go_to_drafts_that_gain() {
        let software = DraftCost { row: 0.27, wait: 0.0 };
        let candidate = |confidence, length| Candidate { confidence, length };
        // Alone: as long as the probability is above the cost of a row in relation to the tokens so far.
        assert_eq!(software.divide(1, 7, &[candidate(0.2, 7)]), [0]);
        assert_eq!(software.divide(1, 7, &[candidate(0.5, 7)]), [1]);
        assert!(software.divide(1, 7, &[candidate(0.95, 7)])[0] >= 5);
        assert_eq!(software.divide(1, 7, &[candidate(0.95, 2)]), [2]);
        // The more confident one first; in a large batch a row is cheap, but so are the others.
        assert_eq!(software.divide(2, 1, &[candidate(0.6, 7), candidate(0.9, 7)]), [0, 1]);
        assert_eq!(software.divide(7, 1, &[candidate(0.6, 7)]), [0]);
        assert_eq!(software.divide(7, 0, &[candidate(1.0, 7)]), [0]);
        // Where rows cost nothing, all are used, unless reading costs more than they gain.
        assert_eq!(DraftCost { row: 0.0, wait: 0.0 }.divide(1, 7, &[candidate(0.1, 7)]), [7]);
        assert_eq!(DraftCost { row: 0.0, wait: 0.5 }.divide(1, 7, &[candidate(0.1, 7)]), [0]);
    }
}
