//! Scores answers as each benchmark's own evaluation does.

mod choice;
mod open;
mod python_random;
mod words;

use std::collections::HashSet;

use super::answers::Answer;
use super::dataset::{GroundTruth, Question};
use python_random::PythonRandom;

/// The seed of MMMU's evaluation.
const SEED: u32 = 42;

/// The score of one answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// From 0 (wrong) to 1 (correct).
    pub value: f64,
    /// Whether the answer has a form that could be correct: a known word, a letter, yes or no.
    pub understood: bool,
    /// For yes/no questions: (expected, predicted).
    pub yes_no: Option<(bool, bool)>,
}

impl Score {
    fn exact(correct: bool, understood: bool) -> Self {
        Self { value: f64::from(u8::from(correct)), understood, yes_no: None }
    }
}

/// Scores answers in the order of their questions, which decides the random options.
pub struct Scorer {
    /// MMMU's evaluation draws an option if an answer names none.
    random: PythonRandom,
}

impl Scorer {
    pub fn new() -> Self {
        Self { random: PythonRandom::new(SEED) }
    }

    /// Scores an answer. `None` if the ground truth is unknown.
    pub fn score(&mut self, question: &Question, answer: &Answer) -> Option<Score> {
        if answer.error.is_some() {
            // A question that could not be asked counts as wrong, whatever the scripts make of an empty text.
            let yes_no = match question.truth {
                GroundTruth::Unknown => return None,
                GroundTruth::YesNo(expected) => Some((expected, !expected)),
                _ => None,
            };
            return Some(Score { yes_no, ..Score::exact(false, false) });
        }
        let answer = answer.text.as_str();
        let understood = !answer.trim().is_empty();
        Some(match &question.truth {
            GroundTruth::Unknown => return None,
            GroundTruth::Word { answer: expected, vocabulary } => {
                let word = words::plain(answer);
                Score::exact(word == words::plain(expected), vocabulary.contains(&word))
            }
            GroundTruth::AnyOf(answers) => {
                let normalized = words::normalize(answer);
                Score::exact(answers.iter().any(|expected| words::normalize(expected) == normalized), understood)
            }
            GroundTruth::VqaV2(answers) => {
                Score { value: words::agreement_vqa(answers, answer), understood, yes_no: None }
            }
            GroundTruth::TextVqa(answers) => {
                Score { value: words::agreement_text_vqa(answers, answer), understood, yes_no: None }
            }
            GroundTruth::YesNo(expected) => {
                let (predicted, understood) = yes_no(answer);
                Score { yes_no: Some((*expected, predicted)), ..Score::exact(predicted == *expected, understood) }
            }
            GroundTruth::Choice { options, answer: expected, random_fallback } => {
                let named = choice::named(options, answer);
                let named = if *random_fallback { named } else { named.or_else(|| choice::leading(options, answer)) };
                let mut random = || self.random.below(options.len() as u32) as usize;
                let option = named.or_else(|| random_fallback.then(&mut random));
                Score::exact(option.is_some_and(|option| choice::letter(option) == *expected), named.is_some())
            }
            GroundTruth::Open(answers) => Score::exact(open::is_correct(answers, answer), understood),
        })
    }
}

/// Reads a yes/no answer as POPE does: "no" if its first sentence contains the word, otherwise "yes". Also returns
/// whether the answer contains either word.
fn yes_no(answer: &str) -> (bool, bool) {
    let first = answer.split('.').next().unwrap_or(answer).replace(',', "");
    let words: HashSet<&str> = first.split(' ').collect();
    let no = ["No", "not", "no"].iter().any(|word| words.contains(word));
    let yes = first
        .split_whitespace()
        .any(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).eq_ignore_ascii_case("yes"));
    (!no, no || yes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::rc::Rc;

    use serde_json::Value;

    use super::*;

    fn fixture() -> Value {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/eval/scoring.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    fn texts(value: &Value) -> Vec<String> {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn answer(text: &str) -> Answer {
        Answer { id: String::new(), prompt: None, text: text.to_owned(), error: None }
    }

    fn all_scores(truth: GroundTruth, answers: &[&str]) -> Vec<Score> {
        let question = Question {
            id: String::new(),
            location: String::new(),
            image: None,
            history: Vec::new(),
            prompt: String::new(),
            kind: None,
            truth,
        };
        let mut scorer = Scorer::new();
        answers.iter().map(|text| scorer.score(&question, &answer(text)).unwrap()).collect()
    }

    fn scores(truth: GroundTruth, answers: &[&str]) -> Vec<f64> {
        all_scores(truth, answers).iter().map(|score| score.value).collect()
    }

    /// Compares scores with those of the independent implementations in tests/reference/make_scoring.py.
    fn assert_scores(table: &str, truth: impl Fn(Vec<String>) -> GroundTruth) {
        for case in fixture()[table].as_array().unwrap() {
            let annotators = texts(&case["answers"]);
            for (answer, score) in case["scores"].as_object().unwrap() {
                let found = scores(truth(annotators.clone()), &[answer])[0];
                assert!(
                    (found - score.as_f64().unwrap()).abs() < 1e-9,
                    "{answer:?} of {annotators:?}: {found}, expected {score}"
                );
            }
        }
    }

    #[test]
    fn text_vqa_matches_lmms_eval() {
        assert_scores("text_vqa", GroundTruth::TextVqa);
    }

    #[test]
    fn normalization_matches_lmms_eval() {
        for (text, wanted) in fixture()["normalised"].as_object().unwrap() {
            assert_eq!(words::normalize(text), wanted.as_str().unwrap(), "{text:?}");
        }
    }

    /// Expected values are from LAVIS' copy of the VQA evaluation.
    #[test]
    fn vqa_matches_lavis() {
        assert_scores("vqa", GroundTruth::VqaV2);
    }

    #[test]
    fn choices_and_random_options_match_lmms_eval() {
        let fixture = fixture();
        let mut random = PythonRandom::new(SEED);
        for case in fixture["choices"].as_array().unwrap() {
            let options = texts(&case["options"]);
            let answer = case["answer"].as_str().unwrap();
            let named = choice::named(&options, answer);
            let option = named.unwrap_or_else(|| random.below(options.len() as u32) as usize);
            assert_eq!(choice::letter(option), case["letter"].as_str().unwrap(), "{answer:?} of {options:?}");
        }
    }

    #[test]
    fn open_answers_match_lmms_eval() {
        for case in fixture()["open"].as_array().unwrap() {
            let (expected, answer) = (texts(&case["right"]), case["answer"].as_str().unwrap());
            assert_eq!(
                open::is_correct(&expected, answer),
                case["correct"].as_bool().unwrap(),
                "{answer:?} for {expected:?}"
            );
        }
    }

    /// Derived by hand from POPE's script: first sentence only, commas removed, "No", "no" or "not" as a word between
    /// spaces.
    #[test]
    fn yes_and_no_follow_pope() {
        let table = [
            ("Yes", true, true),
            ("yes.", true, true),
            ("No", false, true),
            ("No, there is no dog.", false, true),
            ("There is not a dog. Yes", false, true),
            ("Yes. No", true, true),
            ("NO", true, false),
            ("no!", true, false),
            ("A dog", true, false),
            ("", true, false),
            ("Yes, it is", true, true),
            ("Nothing", true, false),
        ];
        for (answer, predicted, understood) in table {
            assert_eq!(yes_no(answer), (predicted, understood), "{answer:?}");
        }
        assert_eq!(scores(GroundTruth::YesNo(false), &["No", "Yes", "NO"]), [1.0, 0.0, 0.0]);
    }

    /// Derived by hand for cases where lmms-eval has more rules: letters before a period inside an answer.
    #[test]
    fn answers_without_an_option_are_not_understood() {
        let options = ["red", "blue"].map(str::to_owned).to_vec();
        let choice = |answer: &str| choice::named(&options, answer);
        let table = [
            ("A. red", None),
            ("A", Some(0)),
            ("B.", Some(1)),
            ("(B) or (A)", Some(0)),
            ("red", None),
            ("I think that the sky is Blue", Some(1)),
            ("I think it is red, and not blue", Some(1)),
            ("", None),
            ("C", None),
        ];
        for (answer, expected) in table {
            assert_eq!(choice(answer), expected, "{answer:?}");
        }
        let choice =
            |random_fallback| GroundTruth::Choice { options: options.clone(), answer: "A".to_owned(), random_fallback };
        let found = all_scores(choice(true), &["", "A"]);
        assert_eq!((found[0].understood, found[1].understood, found[1].value), (false, true, 1.0));
        // Without the random fallback, a leading letter with its option counts too.
        let answers = ["A. red", "A) red", "A: red", "Ared", "a dog", "B. blue", ""];
        assert_eq!(scores(choice(false), &answers), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn words_and_any_of_several_answers() {
        let vocabulary = Rc::new(["yes", "no", "red"].map(str::to_owned).into_iter().collect());
        let found = all_scores(
            GroundTruth::Word { answer: "red".to_owned(), vocabulary },
            &["Red.", " red\n", "yes", "a red one", ""],
        );
        assert_eq!(found.iter().map(|score| score.value).collect::<Vec<_>>(), [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(found.iter().map(|score| score.understood).collect::<Vec<_>>(), [true, true, true, false, false]);
        let any_of = GroundTruth::AnyOf(vec!["two cats".to_owned(), "2".to_owned()]);
        assert_eq!(scores(any_of, &["Two cats.", "the two cats", "two", "cats"]), [1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn an_unknown_ground_truth_gives_no_score() {
        let question = Question {
            id: String::new(),
            location: String::new(),
            image: None,
            history: Vec::new(),
            prompt: String::new(),
            kind: None,
            truth: GroundTruth::Unknown,
        };
        assert_eq!(Scorer::new().score(&question, &answer("A")), None);
    }
}
