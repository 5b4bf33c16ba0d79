//! Scores with confidence intervals, as a table or as JSON.

use std::io::Write;

use serde::Serialize;

use super::answers::Settings;
use super::dataset::Question;
use super::scoring::Score;

/// 95 % of a normal distribution lie within this many standard deviations.
const Z: f64 = 1.959_963_984_540_054;

/// Scores of a set of questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Number of answered questions with a known ground truth.
    pub questions: usize,
    /// The mean score, from 0 to 1.
    pub accuracy: f64,
    /// The 95 % confidence interval of the accuracy.
    pub interval: [f64; 2],
    /// Number of answers without an option, yes or no, or known word.
    pub not_understood: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yes_no: Option<YesNo>,
}

/// POPE's figures. "Yes" is the positive class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct YesNo {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    /// The fraction of answers that are "yes".
    pub yes_ratio: f64,
}

#[derive(Debug, Serialize)]
pub struct Kind {
    pub kind: String,
    #[serde(flatten)]
    pub figures: Figures,
}

/// The report of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub format: String,
    pub data: String,
    /// `None` for answers of other programs.
    pub settings: Option<Settings>,
    /// Number of selected questions.
    pub asked: usize,
    pub answered: usize,
    /// Number of questions that don't fit into the model's context; they count as wrong.
    pub failed: usize,
    #[serde(flatten)]
    pub figures: Option<Figures>,
    pub kinds: Vec<Kind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
}

/// Speed of a run.
#[derive(Debug, Serialize)]
pub struct Run {
    pub adapter: String,
    pub load_ms: f64,
    /// Number of questions answered in this run, without earlier runs.
    pub questions: usize,
    pub total_ms: f64,
    pub questions_per_s: f64,
}

/// The Wilson score interval (Wilson, 1927) of a mean of `count` scores from 0 to 1. It is conservative for scores
/// between 0 and 1: zeros and ones have the largest variance for a given mean.
pub fn wilson(mean: f64, count: usize) -> [f64; 2] {
    let n = count as f64;
    if count == 0 {
        return [0.0, 1.0];
    }
    let z2 = Z * Z;
    let centre = mean + z2 / (2.0 * n);
    let half = Z * (mean * (1.0 - mean) / n + z2 / (4.0 * n * n)).sqrt();
    // Exact at both ends, regardless of rounding.
    let low = if mean > 0.0 { (centre - half) / (1.0 + z2 / n) } else { 0.0 };
    let high = if mean < 1.0 { (centre + half) / (1.0 + z2 / n) } else { 1.0 };
    [low, high]
}

impl Figures {
    /// `None` for no scores.
    pub fn from_scores<'a>(scores: impl Iterator<Item = &'a Score> + Clone) -> Option<Self> {
        let questions = scores.clone().count();
        if questions == 0 {
            return None;
        }
        let accuracy = scores.clone().map(|score| score.value).sum::<f64>() / questions as f64;
        let yes_no: Vec<(bool, bool)> = scores.clone().filter_map(|score| score.yes_no).collect();
        Some(Self {
            questions,
            accuracy,
            interval: wilson(accuracy, questions),
            not_understood: scores.filter(|score| !score.understood).count(),
            yes_no: (yes_no.len() == questions).then(|| YesNo::from_pairs(&yes_no)),
        })
    }
}

impl YesNo {
    /// From pairs of (expected, predicted).
    fn from_pairs(pairs: &[(bool, bool)]) -> Self {
        let count = |which: &dyn Fn(bool, bool) -> bool| pairs.iter().filter(|pair| which(pair.0, pair.1)).count();
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let true_positives = count(&|expected, predicted| expected && predicted) as f64;
        let positives = count(&|_, predicted| predicted) as f64;
        let precision = ratio(true_positives, positives);
        let recall = ratio(true_positives, count(&|expected, _| expected) as f64);
        let f1 = ratio(2.0 * precision * recall, precision + recall);
        Self { precision, recall, f1, yes_ratio: ratio(positives, pairs.len() as f64) }
    }
}

/// Figures by kind, in order of first appearance. Empty if there are fewer than two kinds.
pub fn by_kind(scores: &[(&Question, Score)]) -> Vec<Kind> {
    let mut kinds: Vec<&str> = Vec::new();
    for kind in scores.iter().filter_map(|(question, _)| question.kind.as_deref()) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    if kinds.len() < 2 {
        return Vec::new();
    }
    let figures = |kind: &str| {
        let of_kind = scores.iter().filter(|(question, _)| question.kind.as_deref() == Some(kind));
        Some(Kind { kind: kind.to_owned(), figures: Figures::from_scores(of_kind.map(|(_, score)| score))? })
    };
    kinds.into_iter().filter_map(figures).collect()
}

impl Report {
    /// Prints a table.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        match &self.settings {
            Some(settings) => {
                let resolution = if settings.high_resolution { "" } else { ", low resolution only" };
                let decoding = match settings.image_decoding.as_str() {
                    "reference" => String::new(),
                    other => format!(", {other} image decoding"),
                };
                writeln!(
                    out,
                    "{}, {} of {} questions of {}{resolution}{decoding}",
                    settings.model, self.answered, self.asked, self.format
                )?;
            }
            None => writeln!(out, "{} of {} questions of {}", self.answered, self.asked, self.format)?,
        }
        if self.failed > 0 {
            writeln!(out, "{} questions don't fit into the model's context and count as wrong", self.failed)?;
        }
        let Some(figures) = &self.figures else {
            return writeln!(out, "the data has no ground truth, so there are no scores");
        };
        let all = std::iter::once(("all", figures));
        let rows: Vec<_> = self.kinds.iter().map(|kind| (kind.kind.as_str(), &kind.figures)).chain(all).collect();
        let width = rows.iter().map(|(kind, _)| kind.chars().count()).max().unwrap_or(0).max(8);
        let yes_no = figures.yes_no.is_some();
        write!(out, "\n{:width$}  questions  accuracy  95 % confidence  not understood", "")?;
        writeln!(out, "{}", if yes_no { "  precision  recall      F1     yes" } else { "" })?;
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        for (kind, figures) in rows {
            let [low, high] = figures.interval.map(|bound| 100.0 * bound);
            write!(
                out,
                "{kind:width$}  {:9}  {:>8}  {:>15}  {:14}",
                figures.questions,
                percent(figures.accuracy),
                format!("{low:.1} to {high:.1}"),
                figures.not_understood
            )?;
            if let Some(YesNo { precision, recall, f1, yes_ratio }) = figures.yes_no {
                let [precision, recall, f1, yes] = [precision, recall, f1, yes_ratio].map(percent);
                write!(out, "  {precision:>9}  {recall:>6}  {f1:>6}  {yes:>6}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From statsmodels 0.15: proportion_confint(count, n, method="wilson").
    #[test]
    fn intervals_match_statsmodels() {
        let table = [
            (0, 10, 0.0, 0.277_532_799_862_889_26),
            (10, 10, 0.722_467_200_137_110_6, 1.0),
            (81, 263, 0.255_288_519_878_274_2, 0.366_209_576_982_800_04),
            (1, 1, 0.206_549_314_377_237_4, 1.0),
            (9300, 9673, 0.957_415_176_658_547, 0.965_096_578_648_016),
        ];
        for (hits, count, low, high) in table {
            let [found_low, found_high] = wilson(hits as f64 / count as f64, count);
            assert!((found_low - low).abs() < 1e-9 && (found_high - high).abs() < 1e-9, "{hits} of {count}");
        }
        assert_eq!(wilson(0.0, 0), [0.0, 1.0]);
    }

    /// Computed by hand: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    #[test]
    fn precision_recall_f1_and_yes_ratio() {
        let pairs =
            [vec![(true, true); 3], vec![(false, true)], vec![(true, false); 2], vec![(false, false); 4]].concat();
        let YesNo { precision, recall, f1, yes_ratio } = YesNo::from_pairs(&pairs);
        for (found, wanted) in [(precision, 0.75), (recall, 0.6), (f1, 2.0 / 3.0), (yes_ratio, 0.4)] {
            assert!((found - wanted).abs() < 1e-12, "{found}, expected {wanted}");
        }
        let never = YesNo::from_pairs(&[(true, false), (false, false)]);
        assert_eq!(never, YesNo { precision: 0.0, recall: 0.0, f1: 0.0, yes_ratio: 0.0 });
    }
}
