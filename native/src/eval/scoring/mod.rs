//! How right an answer is, as each benchmark's own evaluation says.

mod choice;
mod open;
mod python_random;
mod words;

use std::collections::HashSet;

use super::answers::Answer;
use super::dataset::{Question, Truth};
use python_random::PythonRandom;

/// What an answer is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// From 0, wrong, to 1, right.
    pub score: f64,
    /// Whether it says anything that could be right: one of the words, a letter, yes or no.
    pub understood: bool,
    /// Of questions to be answered yes or no: what is right, and what was said.
    pub yes_no: Option<(bool, bool)>,
}

/// Marks answers, one after another.
pub struct Marker {
    /// Where an answer names no option, MMMU's evaluation draws one.
    draws: PythonRandom,
}

impl Marker {
    pub fn new() -> Self {
        Self { draws: PythonRandom::new(SEED) }
    }

    /// The mark of an answer; `None` if nobody knows what is right.
    pub fn mark(&mut self, question: &Question, answer: &Answer) -> Option<Mark> {
        if answer.error.is_some() {
            // A question that could not be asked is not answered rightly, whatever would be made of no text.
            let yes_no = match question.truth {
                Truth::Hidden => return None,
                Truth::YesNo(right) => Some((right, !right)),
                _ => None,
            };
            return Some(Mark { score: 0.0, understood: false, yes_no });
        }
        let answer = answer.text.as_str();
        let told = |score: f64| Mark { score, understood: !answer.trim().is_empty(), yes_no: None };
        Some(match &question.truth {
            Truth::Hidden => return None,
            Truth::Word { answer: right, vocabulary } => {
                let said = words::plain(answer);
                Mark {
                    score: f64::from(u8::from(said == words::plain(right))),
                    understood: vocabulary.contains(&said),
                    yes_no: None,
                }
            }
            Truth::AnyOf(answers) => {
                let said = words::normalised(answer);
                told(f64::from(u8::from(answers.iter().any(|right| words::normalised(right) == said))))
            }
            Truth::Annotators(answers) => told(words::agreement_vqa(answers, answer)),
            Truth::Readers(answers) => told(words::agreement_text_vqa(answers, answer)),
            Truth::YesNo(right) => {
                let (said, understood) = yes_no(answer);
                Mark { score: f64::from(u8::from(said == *right)), understood, yes_no: Some((*right, said)) }
            }
            Truth::Choice { options, answer: right, drawn } => {
                let said = match drawn {
                    true => choice::chosen(options, answer),
                    false => choice::chosen(options, answer).or_else(|| choice::leading(options, answer)),
                };
                let letter = said.or_else(|| drawn.then(|| self.draws.below(options.len() as u32) as usize));
                let right = letter.is_some_and(|letter| choice::letter(letter) == *right);
                Mark { score: f64::from(u8::from(right)), understood: said.is_some(), yes_no: None }
            }
            Truth::Open(answers) => told(f64::from(u8::from(open::is_right(answers, answer)))),
        })
    }
}

/// Of MMMU's evaluation.
const SEED: u32 = 42;

/// POPE's reading of an answer: no, if its first sentence has the word, else yes. And whether it says either.
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

    fn said(text: &str) -> Answer {
        Answer { id: String::new(), prompt: None, text: text.to_owned(), error: None }
    }

    fn marks(truth: Truth, answers: &[&str]) -> Vec<Mark> {
        let question = Question {
            id: String::new(),
            place: String::new(),
            picture: None,
            history: Vec::new(),
            prompt: String::new(),
            kind: None,
            truth,
        };
        let mut marker = Marker::new();
        answers.iter().map(|answer| marker.mark(&question, &said(answer)).unwrap()).collect()
    }

    fn scores(truth: Truth, answers: &[&str]) -> Vec<f64> {
        marks(truth, answers).iter().map(|mark| mark.score).collect()
    }

    /// Holds the scores of answers against those that tests/reference/make_scoring.py had from elsewhere.
    fn agrees(table: &str, truth: impl Fn(Vec<String>) -> Truth) {
        for case in fixture()[table].as_array().unwrap() {
            let people = texts(&case["answers"]);
            for (answer, score) in case["scores"].as_object().unwrap() {
                let found = scores(truth(people.clone()), &[answer])[0];
                assert!(
                    (found - score.as_f64().unwrap()).abs() < 1e-9,
                    "{answer:?} of {people:?}: {found}, not {score}"
                );
            }
        }
    }

    #[test]
    fn text_vqa_agrees_with_lmms_eval() {
        agrees("text_vqa", Truth::Readers);
    }

    #[test]
    fn words_are_normalised_as_by_lmms_eval() {
        for (text, wanted) in fixture()["normalised"].as_object().unwrap() {
            assert_eq!(words::normalised(text), wanted.as_str().unwrap(), "{text:?}");
        }
    }

    /// From LAVIS' copy of the VQA evaluation.
    #[test]
    fn vqa_agrees_with_lavis() {
        agrees("vqa", Truth::Annotators);
    }

    #[test]
    fn choices_agree_with_lmms_eval_draws_included() {
        let fixture = fixture();
        let mut draws = PythonRandom::new(SEED);
        for case in fixture["choices"].as_array().unwrap() {
            let options = texts(&case["options"]);
            let answer = case["answer"].as_str().unwrap();
            let chosen = choice::chosen(&options, answer);
            let letter = chosen.unwrap_or_else(|| draws.below(options.len() as u32) as usize);
            assert_eq!(choice::letter(letter), case["letter"].as_str().unwrap(), "{answer:?} of {options:?}");
        }
    }

    #[test]
    fn open_answers_agree_with_lmms_eval() {
        for case in fixture()["open"].as_array().unwrap() {
            let (right, answer) = (texts(&case["right"]), case["answer"].as_str().unwrap());
            assert_eq!(open::is_right(&right, answer), case["correct"].as_bool().unwrap(), "{answer:?} for {right:?}");
        }
    }

    /// Derived by hand from the specification's section 11: the first sentence alone, commas gone, "No", "no" or "not" a word
    /// between spaces.
    #[test]
    fn yes_and_no_are_read_as_pope_does() {
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
        for (answer, said, understood) in table {
            assert_eq!(yes_no(answer), (said, understood), "{answer:?}");
        }
        assert_eq!(scores(Truth::YesNo(false), &["No", "Yes", "NO"]), [1.0, 0.0, 0.0]);
    }

    /// By hand from the specification where lmms-eval has more rules than it: letters before a period inside an answer.
    #[test]
    fn choices_that_name_no_option_are_not_understood() {
        let options = ["red", "blue"].map(str::to_owned).to_vec();
        let choice = |answer: &str| choice::chosen(&options, answer);
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
        for (answer, wanted) in table {
            assert_eq!(choice(answer), wanted, "{answer:?}");
        }
        let mark = marks(Truth::Choice { options: options.clone(), answer: "A".to_owned(), drawn: true }, &["", "A"]);
        assert_eq!((mark[0].understood, mark[1].understood, mark[1].score), (false, true, 1.0));
        // Where nothing is drawn, a letter with its option behind it counts too.
        let plain = Truth::Choice { options: options.clone(), answer: "A".to_owned(), drawn: false };
        let said = ["A. red", "A) red", "A: red", "Ared", "a dog", "B. blue", ""];
        assert_eq!(scores(plain, &said), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn single_words_and_own_answers() {
        let vocabulary = Rc::new(["yes", "no", "red"].map(str::to_owned).into_iter().collect());
        let mark =
            marks(Truth::Word { answer: "red".to_owned(), vocabulary }, &["Red.", " red\n", "yes", "a red one", ""]);
        assert_eq!(mark.iter().map(|mark| mark.score).collect::<Vec<_>>(), [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(mark.iter().map(|mark| mark.understood).collect::<Vec<_>>(), [true, true, true, false, false]);
        let own = Truth::AnyOf(vec!["two cats".to_owned(), "2".to_owned()]);
        assert_eq!(scores(own, &["Two cats.", "the two cats", "two", "cats"]), [1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn what_nobody_knows_gets_no_mark() {
        let question = Question {
            id: String::new(),
            place: String::new(),
            picture: None,
            history: Vec::new(),
            prompt: String::new(),
            kind: None,
            truth: Truth::Hidden,
        };
        assert_eq!(Marker::new().mark(&question, &said("A")), None);
    }
}
