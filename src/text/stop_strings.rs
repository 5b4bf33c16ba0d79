//! Stop strings: an answer ends before the first occurrence of one in its text.

/// Cuts a streamed text before the first occurrence of a stop string. The end of the text is held back while it may be
/// the beginning of one. A plain search: stop strings are few and short.
#[derive(Debug)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
    found: Option<usize>,
}

impl StopStrings {
    /// Searches for `strings`, none of them empty.
    pub fn new(strings: Vec<String>) -> Self {
        Self { strings, held: String::new(), found: None }
    }

    /// The string that ended the text.
    pub fn found(&self) -> Option<&str> {
        self.found.map(|index| self.strings[index].as_str())
    }

    /// Adds text. Returns the text that cannot be part of a stop string. Of several strings the one that is complete
    /// first counts, so that it does not matter how the text is split.
    pub fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        let mut all = std::mem::take(&mut self.held);
        all.push_str(text);
        let places = self.strings.iter().enumerate().filter_map(|(index, stop)| {
            let start = all.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        let end = if let Some((_, start, index)) = places.min() {
            self.found = Some(index);
            start
        } else {
            let begins = |start: &usize| {
                let rest = &all.as_bytes()[*start..];
                self.strings.iter().any(|stop| stop.as_bytes().starts_with(rest))
            };
            let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
            let first = all.len() - all.len().min(longest.saturating_sub(1));
            // A stop string begins with a character, so no other byte can match.
            let start = (first..all.len()).find(begins).unwrap_or(all.len());
            self.held = all.split_off(start);
            start
        };
        all.truncate(end);
        all
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
