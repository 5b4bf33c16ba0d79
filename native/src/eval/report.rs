//! Figures with how sure they are, as a table or as JSON.

use std::io::Write;

use serde::Serialize;

use super::answers::Settings;
use super::dataset::Question;
use super::scoring::Mark;

/// Of the normal distribution: 95 % lie within so many standard deviations.
const Z: f64 = 1.959_963_984_540_054;

/// Figures of some questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Answered questions whose truth is known.
    pub questions: usize,
    /// The mean mark, from 0 to 1.
    pub accuracy: f64,
    /// The 95 % confidence interval of the accuracy.
    pub interval: [f64; 2],
    /// Answers that say nothing that could be right.
    pub not_understood: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yes_no: Option<YesNo>,
}

/// POPE's figures; yes is positive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct YesNo {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    /// The part of answers that say yes.
    pub yes_ratio: f64,
}

#[derive(Debug, Serialize)]
pub struct Kind {
    pub kind: String,
    #[serde(flatten)]
    pub figures: Figures,
}

/// All that is told of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub format: String,
    pub data: String,
    /// `None` for answers from elsewhere.
    pub settings: Option<Settings>,
    /// Questions that were to be asked.
    pub asked: usize,
    pub answered: usize,
    /// Questions that do not fit the model; wrong.
    pub failed: usize,
    #[serde(flatten)]
    pub figures: Option<Figures>,
    pub kinds: Vec<Kind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
}

/// How a run went.
#[derive(Debug, Serialize)]
pub struct Run {
    pub adapter: String,
    pub load_ms: f64,
    /// Questions answered in this run, not in ones before it.
    pub questions: usize,
    pub total_ms: f64,
    pub questions_per_s: f64,
}

/// The Wilson score interval (Wilson, 1927) of a mean of `count` marks between 0 and 1. Where marks lie between them it is wider
/// than it need be: no marks of the same mean vary more than zeros and ones.
pub fn wilson(mean: f64, count: usize) -> [f64; 2] {
    let n = count as f64;
    if count == 0 {
        return [0.0, 1.0];
    }
    let z2 = Z * Z;
    let centre = mean + z2 / (2.0 * n);
    let half = Z * (mean * (1.0 - mean) / n + z2 / (4.0 * n * n)).sqrt();
    // At the ends exactly, whatever was rounded.
    let low = if mean > 0.0 { (centre - half) / (1.0 + z2 / n) } else { 0.0 };
    let high = if mean < 1.0 { (centre + half) / (1.0 + z2 / n) } else { 1.0 };
    [low, high]
}

impl Figures {
    /// `None` of no marks.
    pub fn of<'a>(marks: impl Iterator<Item = &'a Mark> + Clone) -> Option<Self> {
        let questions = marks.clone().count();
        if questions == 0 {
            return None;
        }
        let accuracy = marks.clone().map(|mark| mark.score).sum::<f64>() / questions as f64;
        let said: Vec<(bool, bool)> = marks.clone().filter_map(|mark| mark.yes_no).collect();
        Some(Self {
            questions,
            accuracy,
            interval: wilson(accuracy, questions),
            not_understood: marks.filter(|mark| !mark.understood).count(),
            yes_no: (said.len() == questions).then(|| YesNo::of(&said)),
        })
    }
}

impl YesNo {
    /// Of what is right, and what was said.
    fn of(said: &[(bool, bool)]) -> Self {
        let count =
            |which: &dyn Fn(bool, bool) -> bool| said.iter().filter(|(right, said)| which(*right, *said)).count();
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let hits = count(&|right, said| right && said) as f64;
        let yes = count(&|_, said| said) as f64;
        let precision = ratio(hits, yes);
        let recall = ratio(hits, count(&|right, _| right) as f64);
        let f1 = ratio(2.0 * precision * recall, precision + recall);
        Self { precision, recall, f1, yes_ratio: ratio(yes, said.len() as f64) }
    }
}

/// Figures of each kind, in the order in which kinds come first; none where there are no kinds, or one alone.
pub fn by_kind(marks: &[(&Question, Mark)]) -> Vec<Kind> {
    let mut kinds: Vec<&str> = Vec::new();
    for kind in marks.iter().filter_map(|(question, _)| question.kind.as_deref()) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    if kinds.len() < 2 {
        return Vec::new();
    }
    let figures = |kind: &str| {
        let of_kind = marks.iter().filter(|(question, _)| question.kind.as_deref() == Some(kind));
        Some(Kind { kind: kind.to_owned(), figures: Figures::of(of_kind.map(|(_, mark)| mark))? })
    };
    kinds.into_iter().filter_map(figures).collect()
}

impl Report {
    /// As text for people.
    pub fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        match &self.settings {
            Some(settings) => {
                let sight = if settings.high_resolution { "" } else { ", low resolution alone" };
                writeln!(
                    out,
                    "{}, {} of {} questions of {}{sight}",
                    settings.model, self.answered, self.asked, self.format
                )?;
            }
            None => writeln!(out, "{} of {} questions of {}", self.answered, self.asked, self.format)?,
        }
        if self.failed > 0 {
            writeln!(out, "{} questions do not fit the model and count as wrong", self.failed)?;
        }
        let Some(figures) = &self.figures else {
            return writeln!(out, "the data do not tell what is right: there are no figures");
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
    fn intervals_are_wilson_s() {
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

    /// By hand: 3 hits, 1 false alarm, 2 misses, 4 rightly not.
    #[test]
    fn precision_recall_f1_and_yes_ratio() {
        let said =
            [vec![(true, true); 3], vec![(false, true)], vec![(true, false); 2], vec![(false, false); 4]].concat();
        let YesNo { precision, recall, f1, yes_ratio } = YesNo::of(&said);
        for (found, wanted) in [(precision, 0.75), (recall, 0.6), (f1, 2.0 / 3.0), (yes_ratio, 0.4)] {
            assert!((found - wanted).abs() < 1e-12, "{found}, not {wanted}");
        }
        let never = YesNo::of(&[(true, false), (false, false)]);
        assert_eq!(never, YesNo { precision: 0.0, recall: 0.0, f1: 0.0, yes_ratio: 0.0 });
    }
}
