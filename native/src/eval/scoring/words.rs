//! Scores short answers: normalisation as in the VQA evaluation (Antol et al., 2015), and agreement with annotators.

/// Punctuation that is deleted or replaced with a space.
const PUNCTUATION: [&str; 21] =
    [";", "/", "[", "]", "\"", "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"];
const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];
const ARTICLES: [&str; 3] = ["a", "an", "the"];
/// Maximum number of deleted periods. The original passes a regex flag (`re.UNICODE`, 32) as the count by mistake.
const MAX_PERIODS: usize = 32;

/// Contractions that are recognised with one apostrophe missing. The original's capitalised entries are omitted,
/// because lookups are in lower case.
const CONTRACTIONS: &str = "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't \
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've \
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's \
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're \
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's \
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all \
    y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at";
/// The entry whose key and value the original table swaps.
const REVERSED: (&str, &str) = ("somebody'd", "somebodyd");

/// Returns a one-word answer in lower case, without a final period.
pub fn plain(text: &str) -> String {
    text.trim().trim_end_matches('.').trim_end().to_lowercase()
}

/// Normalises an answer as TextVQA's evaluation does (EvalAI's answer processor).
pub fn normalize(text: &str) -> String {
    let text = text.to_lowercase().replace([',', '?'], "").replace("'s", " 's");
    digits_and_articles(&punctuation(text.trim().replace(['\n', '\t'], " ").trim()))
}

/// TextVQA's agreement with the annotators, after [`normalize`] of every answer.
pub fn agreement_text_vqa(answers: &[String], answer: &str) -> f64 {
    let answers: Vec<String> = answers.iter().map(|answer| normalize(answer)).collect();
    agreement(&answers, &normalize(answer))
}

/// VQA v2's agreement with the annotators. Strips punctuation from the annotators' answers unless all are equal.
/// Normalises `answer` first, as for a submission to EvalAI.
pub fn agreement_vqa(answers: &[String], answer: &str) -> f64 {
    let differ = answers.iter().any(|answer| *answer != answers[0]);
    let answers: Vec<String> =
        answers.iter().map(|answer| if differ { punctuation(answer) } else { answer.clone() }).collect();
    agreement(&answers, &digits_and_articles(&punctuation(normalize(answer).trim())))
}

/// The mean over all annotators of min(1, number of other annotators with this answer / 3).
fn agreement(answers: &[String], answer: &str) -> f64 {
    let same = answers.iter().filter(|other| *other == answer).count();
    let without = |agrees: bool| ((same - usize::from(agrees)) as f64 / 3.0).min(1.0);
    answers.iter().map(|other| without(other == answer)).sum::<f64>() / answers.len().max(1) as f64
}

/// Deletes each punctuation character that occurs next to a space (all of them if a comma stands between digits) and
/// replaces the others with spaces. Deletes periods that are not followed by a digit.
fn punctuation(text: &str) -> String {
    let digit = |c: Option<&char>| c.is_some_and(char::is_ascii_digit);
    let chars: Vec<char> = text.chars().collect();
    let thousands = chars.windows(3).any(|part| part[1] == ',' && digit(part.first()) && digit(part.last()));
    let mut out = text.to_owned();
    for character in PUNCTUATION {
        let delete = thousands || text.contains(&format!("{character} ")) || text.contains(&format!(" {character}"));
        out = out.replace(character, if delete { "" } else { " " });
    }
    let mut remaining = MAX_PERIODS;
    let chars: Vec<char> = out.chars().collect();
    let keep = |(index, c): (usize, &char)| {
        let deleted = *c == '.' && remaining > 0 && !digit(chars.get(index + 1));
        remaining -= usize::from(deleted);
        (!deleted).then_some(*c)
    };
    chars.iter().enumerate().filter_map(keep).collect()
}

fn digits_and_articles(text: &str) -> String {
    let text = text.to_lowercase();
    let words = text.split_whitespace().map(number).filter(|word| !ARTICLES.contains(word));
    words.map(contraction).collect::<Vec<_>>().join(" ")
}

fn number(word: &str) -> &str {
    NUMBERS.iter().find(|(name, _)| *name == word).map_or(word, |(_, digits)| digits)
}

fn contraction(word: &str) -> &str {
    if word == REVERSED.0 {
        return REVERSED.1;
    }
    CONTRACTIONS.split_whitespace().find(|full| lacks_one_apostrophe(full, word)).unwrap_or(word)
}

/// Whether `word` is `full` without one of its apostrophes.
fn lacks_one_apostrophe(full: &str, word: &str) -> bool {
    let mut apostrophes = full.match_indices('\'');
    apostrophes.any(|(index, _)| {
        word.split_at_checked(index).is_some_and(|parts| parts == (&full[..index], &full[index + 1..]))
    })
}
