//! Short answers in words: the normalisation of the VQA evaluation (Antol et al., 2015), and how far annotators agree with one.

/// Signs that become nothing, or a space.
const SIGNS: [&str; 21] =
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
/// Periods that go, at most: the evaluation passes a flag whose value is 32 where the count belongs.
const PERIODS: usize = 32;

/// Contractions that are known without any one of their apostrophes (all of it, where there is only one). Words that begin
/// with a capital are left out: what is looked up is in lower case.
const CONTRACTIONS: &str = "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't \
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've \
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's \
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're \
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's \
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all \
    y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at";
/// One that the evaluation's table has the wrong way round.
const ODD: (&str, &str) = ("somebody'd", "somebodyd");

/// An answer of one word: without a period at its end, in lower case.
pub fn plain(text: &str) -> String {
    text.trim().trim_end_matches('.').trim_end().to_lowercase()
}

/// An answer as TextVQA's evaluation compares it (the answer processor of EvalAI).
pub fn normalised(text: &str) -> String {
    let text = text.to_lowercase().replace([',', '?'], "").replace("'s", " 's");
    digits_and_articles(&punctuation(text.trim().replace(['\n', '\t'], " ").trim()))
}

/// TextVQA: the part of the readers who, with at least two others, read the same; every answer normalised.
pub fn agreement_text_vqa(answers: &[String], answer: &str) -> f64 {
    let answers: Vec<String> = answers.iter().map(|answer| normalised(answer)).collect();
    agreement(&answers, &normalised(answer))
}

/// VQA v2: the same, with annotators' answers as they are where all are the same, else without their punctuation. The answer
/// is normalised as for submission to EvalAI before.
pub fn agreement_vqa(answers: &[String], answer: &str) -> f64 {
    let differ = answers.iter().any(|answer| *answer != answers[0]);
    let answers: Vec<String> =
        answers.iter().map(|answer| if differ { punctuation(answer) } else { answer.clone() }).collect();
    agreement(&answers, &digits_and_articles(&punctuation(normalised(answer).trim())))
}

/// The mean, over all annotators, of min(1, how many of the others gave this answer / 3).
fn agreement(answers: &[String], answer: &str) -> f64 {
    let same = answers.iter().filter(|other| *other == answer).count();
    let of_others = |agrees: bool| ((same - usize::from(agrees)) as f64 / 3.0).min(1.0);
    answers.iter().map(|other| of_others(other == answer)).sum::<f64>() / answers.len().max(1) as f64
}

/// Deletes a sign that stands next to a space anywhere (or all, where a comma stands between digits), else makes spaces of it;
/// deletes periods that no digit follows.
fn punctuation(text: &str) -> String {
    let digit = |c: Option<&char>| c.is_some_and(char::is_ascii_digit);
    let chars: Vec<char> = text.chars().collect();
    let thousands = chars.windows(3).any(|part| part[1] == ',' && digit(part.first()) && digit(part.last()));
    let mut out = text.to_owned();
    for sign in SIGNS {
        let delete = thousands || text.contains(&format!("{sign} ")) || text.contains(&format!(" {sign}"));
        out = out.replace(sign, if delete { "" } else { " " });
    }
    let mut left = PERIODS;
    let chars: Vec<char> = out.chars().collect();
    let keep = |(place, c): (usize, &char)| {
        let deleted = *c == '.' && left > 0 && !digit(chars.get(place + 1));
        left -= usize::from(deleted);
        (!deleted).then_some(*c)
    };
    chars.iter().enumerate().filter_map(keep).collect()
}

fn digits_and_articles(text: &str) -> String {
    let text = text.to_lowercase();
    let words = text.split_whitespace().map(number).filter(|word| !ARTICLES.contains(word));
    words.map(contracted).collect::<Vec<_>>().join(" ")
}

fn number(word: &str) -> &str {
    NUMBERS.iter().find(|(name, _)| *name == word).map_or(word, |(_, digits)| digits)
}

fn contracted(word: &str) -> &str {
    if word == ODD.0 {
        return ODD.1;
    }
    CONTRACTIONS.split_whitespace().find(|full| lacks_an_apostrophe(full, word)).unwrap_or(word)
}

/// Whether `word` is `full` without one of its apostrophes.
fn lacks_an_apostrophe(full: &str, word: &str) -> bool {
    let mut places = full.match_indices('\'');
    places.any(|(place, _)| {
        word.split_at_checked(place).is_some_and(|parts| parts == (&full[..place], &full[place + 1..]))
    })
}
