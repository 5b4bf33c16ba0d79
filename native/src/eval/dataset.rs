//! Questions and their ground truth.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::images::read_image;
use mgm::image::{Image, ImageDecoding, decode_as};
use mgm::{Error, Result};

/// The questions of a benchmark.
#[derive(Debug)]
pub struct Dataset {
    pub questions: Vec<Question>,
    /// Maximum number of tokens to generate, as in Mini-Gemini's script for this benchmark.
    pub max_new_tokens: u32,
}

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Unique within the dataset.
    pub id: String,
    /// File and line or row, for messages.
    pub location: String,
    pub image: Option<ImageSource>,
    /// Earlier questions and answers of the same conversation.
    pub history: Vec<(String, String)>,
    /// The text sent to the model.
    pub prompt: String,
    /// The category that its score is reported under.
    pub kind: Option<String>,
    pub truth: GroundTruth,
}

/// Location of a question's image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageSource {
    File(PathBuf),
    /// Encoded image data from the dataset's file.
    Bytes(Rc<[u8]>),
}

/// The correct answer of a question, in the form that its benchmark's scoring uses.
#[derive(Debug, Clone, PartialEq)]
pub enum GroundTruth {
    /// Not published, as for test splits.
    Unknown,
    /// One word of a small vocabulary.
    Word {
        answer: String,
        vocabulary: Rc<HashSet<String>>,
    },
    /// Any of these answers after normalisation (case, articles, punctuation).
    AnyOf(Vec<String>),
    /// The annotators' answers; scored by agreement as VQA v2's evaluation does.
    VqaV2(Vec<String>),
    /// The annotators' answers; scored by agreement as TextVQA's evaluation does.
    TextVqa(Vec<String>),
    YesNo(bool),
    /// Multiple choice: the letter of the correct option. If an answer contains no letter, a random option is scored
    /// (`random_fallback`, as in MMMU's evaluation), or it counts as wrong.
    Choice {
        options: Vec<String>,
        answer: String,
        random_fallback: bool,
    },
    /// Any of these strings, anywhere in the answer, as in MMMU's open questions.
    #[cfg_attr(not(feature = "parquet"), allow(dead_code, reason = "MMMU's files are Parquet"))]
    Open(Vec<String>),
}

impl ImageSource {
    /// Reads and decodes the image. `question` is for error messages.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Image`].
    pub fn read(&self, question: &Question, decoding: ImageDecoding) -> Result<Image> {
        match self {
            Self::File(path) => read_image(path, decoding),
            Self::Bytes(bytes) => decode_as(&format!("of {}", question.location), bytes, decoding),
        }
    }
}

impl Dataset {
    /// Checks that ids are unique.
    ///
    /// # Errors
    /// [`Error::Config`] if two questions have the same id, or if there are no questions.
    pub fn check(&self, data: &Path) -> Result<()> {
        let fail = |reason| Err(Error::Config { file: data.display().to_string(), reason });
        if self.questions.is_empty() {
            return fail("the data has no questions".to_owned());
        }
        let mut locations = HashMap::new();
        for Question { id, location, .. } in &self.questions {
            if let Some(first) = locations.insert(id, location) {
                return fail(format!(
                    "{location}: the question id {id:?} is already used at {first}; ids must be unique"
                ));
            }
        }
        Ok(())
    }
}

/// Checks that the image files of these questions exist, before a model is loaded.
///
/// # Errors
/// [`Error::MissingFile`] with the first missing file and the number of others.
pub fn check_images(questions: &[&Question]) -> Result<()> {
    let mut checked = HashSet::new();
    let mut missing = Vec::new();
    for question in questions {
        if let Some(ImageSource::File(path)) = &question.image
            && checked.insert(path)
            && !path.is_file()
        {
            missing.push((path, &question.location));
        }
    }
    let Some((path, location)) = missing.first() else { return Ok(()) };
    let others = match missing.len() - 1 {
        0 => String::new(),
        1 => "; 1 other image is missing too".to_owned(),
        others => format!("; {others} other images are missing too"),
    };
    let hint = format!("required by {location}; use --images to set the image folder{others}");
    Err(Error::MissingFile { file: path.display().to_string(), hint })
}

/// The first `limit` questions, or `limit` random ones if there is a seed, in dataset order.
pub fn select(questions: &[Question], limit: Option<usize>, seed: Option<u64>) -> Vec<&Question> {
    let count = limit.unwrap_or(questions.len()).min(questions.len());
    let Some(seed) = seed else { return questions.iter().take(count).collect() };
    // Selection sampling (Knuth, The Art of Computer Programming 2, 3.4.2 S): each subset is equally likely.
    let mut state = seed;
    let mut needed = count;
    let remaining = (1..=questions.len() as u64).rev();
    let mut selected = Vec::with_capacity(count);
    for (question, remaining) in questions.iter().zip(remaining) {
        if split_mix(&mut state) % remaining < needed as u64 {
            selected.push(question);
            needed -= 1;
        }
    }
    selected
}

/// A pseudorandom number: SplitMix64 (Steele, Lea and Flood, 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Groups questions into batches of at most `max_batch`. Questions about the same image share batches, so that the
/// image is encoded once and the common prefix of their prompts is prefilled once. Questions with an image of their own
/// are batched together.
pub fn batches<'a>(questions: &[&'a Question], max_batch: usize) -> Vec<Vec<&'a Question>> {
    let mut group_index = HashMap::new();
    let mut groups: Vec<Vec<&'a Question>> = Vec::new();
    for question in questions {
        let group = *group_index.entry(&question.image).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(question);
    }
    let mut batches = Vec::new();
    let mut single = Vec::new();
    for group in groups {
        if group.len() > 1 {
            batches.extend(group.chunks(max_batch).map(<[_]>::to_vec));
        } else {
            single.extend(group);
        }
        if single.len() == max_batch {
            batches.push(std::mem::take(&mut single));
        }
    }
    batches.extend((!single.is_empty()).then_some(single));
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(id: usize, image: &str) -> Question {
        Question {
            id: id.to_string(),
            location: format!("row {id}"),
            image: Some(ImageSource::File(image.into())),
            history: Vec::new(),
            prompt: "What?".to_owned(),
            kind: None,
            truth: GroundTruth::Unknown,
        }
    }

    fn ids(questions: &[&Question]) -> Vec<usize> {
        questions.iter().map(|question| question.id.parse().unwrap()).collect()
    }

    #[test]
    fn select_takes_the_first_or_a_random_sample_in_order() {
        let questions: Vec<Question> = (0..100).map(|id| question(id, "a.png")).collect();
        assert_eq!(ids(&select(&questions, None, None)).len(), 100);
        assert_eq!(ids(&select(&questions, Some(3), None)), [0, 1, 2]);
        let drawn = |seed| ids(&select(&questions, Some(20), Some(seed)));
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_eq!(drawn(1).len(), 20);
        assert!(drawn(1).is_sorted());
        assert_eq!(ids(&select(&questions, Some(200), Some(1))).len(), 100);
        // Every question is equally likely: 2,000 draws of a fifth give 400 ± 5 standard deviations of 18.
        let mut counts = [0; 100];
        for seed in 0..2000 {
            drawn(seed).into_iter().for_each(|id| counts[id] += 1);
        }
        assert!(counts.iter().all(|count| (310..490).contains(count)), "{counts:?}");
    }

    #[test]
    fn questions_about_an_image_share_a_batch() {
        let images = ["a", "b", "a", "c", "b", "a", "d", "e"];
        let questions: Vec<Question> = images.iter().enumerate().map(|(id, name)| question(id, name)).collect();
        let questions: Vec<&Question> = questions.iter().collect();
        let of = |max_batch| batches(&questions, max_batch).iter().map(|batch| ids(batch)).collect::<Vec<_>>();
        assert_eq!(of(2), [vec![0, 2], vec![5], vec![1, 4], vec![3, 6], vec![7]]);
        assert_eq!(of(16), [vec![0, 2, 5], vec![1, 4], vec![3, 6, 7]]);
        assert_eq!(of(1).concat(), [0, 2, 5, 1, 4, 3, 6, 7]);
    }
}
