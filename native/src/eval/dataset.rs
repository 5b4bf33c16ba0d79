//! What is asked, and what would be right.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mgm::image::{Rgb8, decode};
use mgm::{Error, Result};
use mgm_native::files::io_error;

/// The questions of a benchmark.
#[derive(Debug)]
pub struct Dataset {
    pub questions: Vec<Question>,
    /// What to generate at most, as the reference's script for this benchmark has it.
    pub max_new_tokens: u32,
}

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Tells it from all others of its data.
    pub id: String,
    /// Where it stands, for messages.
    pub place: String,
    /// The picture that it is about.
    pub picture: Option<Picture>,
    /// Questions and answers before it, in the same conversation.
    pub history: Vec<(String, String)>,
    /// What is put to the model.
    pub prompt: String,
    /// What it is counted under.
    pub kind: Option<String>,
    pub truth: Truth,
}

/// Where a question's picture is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Picture {
    File(PathBuf),
    /// In the data themselves.
    Bytes(Rc<[u8]>),
}

/// What would be right.
#[derive(Debug, Clone, PartialEq)]
pub enum Truth {
    /// Not told: test splits whose answers are kept elsewhere.
    Hidden,
    /// This word, of a few that there are.
    Word { answer: String, vocabulary: Rc<HashSet<String>> },
    /// Any of these, but for case, articles, punctuation and the like.
    AnyOf(Vec<String>),
    /// As far as annotators agree with it; VQA v2's evaluation.
    Annotators(Vec<String>),
    /// The same as TextVQA's evaluation has it.
    Readers(Vec<String>),
    /// Yes or no.
    YesNo(bool),
    /// The letter of one of these options; where none is named, a drawn one, as MMMU's evaluation has it, or wrong.
    Choice { options: Vec<String>, answer: String, drawn: bool },
    /// Any of these, somewhere in the answer; MMMU's open questions.
    Open(Vec<String>),
}

impl Picture {
    /// Reads it. `question` is for messages.
    pub fn read(&self, question: &Question) -> Result<Rgb8> {
        match self {
            Self::File(path) => {
                let bytes = std::fs::read(path).map_err(|error| io_error(path, error))?;
                decode(&path.display().to_string(), &bytes)
            }
            Self::Bytes(bytes) => decode(&format!("of {}", question.place), bytes),
        }
    }
}

impl Dataset {
    /// Checks that every question has an id of its own.
    ///
    /// # Errors
    /// [`Error::Config`] if two have the same, or if there are no questions.
    pub fn check(&self, data: &Path) -> Result<()> {
        let wrong = |reason| Err(Error::Config { file: data.display().to_string(), reason });
        if self.questions.is_empty() {
            return wrong("there are no questions in it".to_owned());
        }
        let mut seen = HashSet::new();
        match self.questions.iter().find(|question| !seen.insert(&question.id)) {
            Some(again) => wrong(format!("{}: there is another question with the id {:?}", again.place, again.id)),
            None => Ok(()),
        }
    }
}

/// Checks that the pictures of these questions are there, before a model is loaded.
///
/// # Errors
/// [`Error::MissingFile`] with the first that is not, and how many more there are.
pub fn check_pictures(questions: &[&Question]) -> Result<()> {
    let mut looked_for = HashSet::new();
    let mut missing = Vec::new();
    for question in questions {
        if let Some(Picture::File(path)) = &question.picture
            && looked_for.insert(path)
            && !path.is_file()
        {
            missing.push((path, &question.place));
        }
    }
    let Some((path, place)) = missing.first() else { return Ok(()) };
    let others = match missing.len() - 1 {
        0 => String::new(),
        others => format!("; {others} other images are missing too"),
    };
    let hint = format!("{place} asks about it (--images names the folder of the images){others}");
    Err(Error::MissingFile { file: path.display().to_string(), hint })
}

/// The first `limit` questions, or, with a seed, as many that it draws; in the data's order.
pub fn select(questions: &[Question], limit: Option<usize>, seed: Option<u64>) -> Vec<&Question> {
    let count = limit.unwrap_or(questions.len()).min(questions.len());
    let Some(seed) = seed else { return questions.iter().take(count).collect() };
    // Selection sampling (Knuth, The Art of Computer Programming 2, 3.4.2 S): each subset is equally likely.
    let mut state = seed;
    let mut wanted = count;
    let left = (1..=questions.len() as u64).rev();
    let mut chosen = Vec::with_capacity(count);
    for (question, left) in questions.iter().zip(left) {
        if split_mix(&mut state) % left < wanted as u64 {
            chosen.push(question);
            wanted -= 1;
        }
    }
    chosen
}

/// Numbers without order: SplitMix64 (Steele, Lea and Flood, 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Questions to be asked together, at most so many: those about one picture, so that it is looked at once and what their
/// prompts begin with is read once; and those that are alone with theirs.
pub fn batches<'a>(questions: &[&'a Question], most: usize) -> Vec<Vec<&'a Question>> {
    let mut places = HashMap::new();
    let mut groups: Vec<Vec<&'a Question>> = Vec::new();
    for question in questions {
        let place = *places.entry(&question.picture).or_insert(groups.len());
        if place == groups.len() {
            groups.push(Vec::new());
        }
        groups[place].push(question);
    }
    let mut batches = Vec::new();
    let mut alone = Vec::new();
    for group in groups {
        if group.len() > 1 {
            batches.extend(group.chunks(most).map(<[_]>::to_vec));
        } else {
            alone.extend(group);
        }
        if alone.len() == most {
            batches.push(std::mem::take(&mut alone));
        }
    }
    batches.extend((!alone.is_empty()).then_some(alone));
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(id: usize, picture: &str) -> Question {
        Question {
            id: id.to_string(),
            place: format!("row {id}"),
            picture: Some(Picture::File(picture.into())),
            history: Vec::new(),
            prompt: "What?".to_owned(),
            kind: None,
            truth: Truth::Hidden,
        }
    }

    fn ids(questions: &[&Question]) -> Vec<usize> {
        questions.iter().map(|question| question.id.parse().unwrap()).collect()
    }

    #[test]
    fn a_selection_is_the_first_or_a_drawn_one_in_order() {
        let questions: Vec<Question> = (0..100).map(|id| question(id, "a.png")).collect();
        assert_eq!(ids(&select(&questions, None, None)).len(), 100);
        assert_eq!(ids(&select(&questions, Some(3), None)), [0, 1, 2]);
        let drawn = |seed| ids(&select(&questions, Some(20), Some(seed)));
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_eq!(drawn(1).len(), 20);
        assert!(drawn(1).is_sorted());
        assert_eq!(ids(&select(&questions, Some(200), Some(1))).len(), 100);
        // Every question comes as often as any other: 2,000 draws of a fifth, 400 +- 5 standard deviations of 18.
        let mut counts = [0; 100];
        for seed in 0..2000 {
            drawn(seed).into_iter().for_each(|id| counts[id] += 1);
        }
        assert!(counts.iter().all(|count| (310..490).contains(count)), "{counts:?}");
    }

    #[test]
    fn questions_about_a_picture_come_together() {
        let pictures = ["a", "b", "a", "c", "b", "a", "d", "e"];
        let questions: Vec<Question> = pictures.iter().enumerate().map(|(id, name)| question(id, name)).collect();
        let questions: Vec<&Question> = questions.iter().collect();
        let of = |most| batches(&questions, most).iter().map(|batch| ids(batch)).collect::<Vec<_>>();
        assert_eq!(of(2), [vec![0, 2], vec![5], vec![1, 4], vec![3, 6], vec![7]]);
        assert_eq!(of(16), [vec![0, 2, 5], vec![1, 4], vec![3, 6, 7]]);
        assert_eq!(of(1).concat(), [0, 2, 5, 1, 4, 3, 6, 7]);
    }
}
