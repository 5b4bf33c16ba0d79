//! The lines of earlier conversations, in a file: whatever interrupts a write, the file keeps what was in it.
//!
//! Own reader and writer: those of rustyline empty the file before they write a long history anew, and stop for good at
//! bytes that are not UTF-8, which a full disk leaves of half a character. The format is theirs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use mgm::Result;

use crate::files::{io_error, replace};
use crate::lock::open_locked;

/// First line of the format with escapes.
const VERSION: &str = "#V2";
/// Most lines that a conversation reads. A file with twice as many is shortened.
pub const MAX_LINES: usize = 1000;
/// Most bytes that are read, from the end of the file.
const MAX_BYTES: u64 = 4 << 20;

/// A history file.
pub struct History(PathBuf);

impl History {
    /// Opens or creates a file, and returns the last [`MAX_LINES`] lines in it.
    ///
    /// # Errors
    /// [`mgm::Error::Io`].
    pub fn open(path: PathBuf) -> Result<(Self, Vec<String>)> {
        let mut file = open_locked(&path, || ())?;
        let (mut lines, whole) = read_lines(&mut file).map_err(|error| io_error(&path, error))?;
        if !whole || lines.len() > 2 * MAX_LINES {
            lines.drain(..lines.len().saturating_sub(MAX_LINES));
            let text: String = lines.iter().map(|line| escape(line)).collect();
            // On failure the file stays long.
            let _ = replace(&path, format!("{VERSION}\n{text}").as_bytes());
        }
        lines.drain(..lines.len().saturating_sub(MAX_LINES));
        Ok((Self(path), lines))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`mgm::Error::Io`]; the file is then as it was.
    pub fn append(&self, line: &str) -> Result<()> {
        let mut file = open_locked(&self.0, || ())?;
        let mut write = || {
            let length = file.seek(SeekFrom::End(0))?;
            let mut text = escape(line);
            if length == 0 {
                text.insert_str(0, &format!("{VERSION}\n"));
            } else if !ends_with_newline(&mut file, length)? {
                text.insert(0, '\n');
            }
            file.write_all(text.as_bytes()).inspect_err(|_| drop(file.set_len(length)))
        };
        write().map_err(|error| io_error(&self.0, error))
    }
}

/// The lines at the end of a file, and whether they are all.
fn read_lines(file: &mut File) -> std::io::Result<(Vec<String>, bool)> {
    let length = file.seek(SeekFrom::End(0))?;
    let start = length.saturating_sub(MAX_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line may have lost its beginning.
    let lines = text.lines().skip(usize::from(start > 0)).filter(|line| !line.is_empty() && *line != VERSION);
    Ok((lines.map(unescape).collect(), start == 0))
}

fn ends_with_newline(file: &mut File, length: u64) -> std::io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::Start(length - 1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// A line as it is in the file: pasted texts have several.
fn escape(line: &str) -> String {
    line.replace('\\', "\\\\").replace('\n', "\\n") + "\n"
}

fn unescape(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match (c, rest.as_str().chars().next()) {
            ('\\', Some('n')) => text.push('\n'),
            ('\\', Some('\\')) => text.push('\\'),
            _ => {
                text.push(c);
                continue;
            }
        }
        rest.next();
    }
    text
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn lines(path: &std::path::Path) -> Vec<String> {
        History::open(path.to_owned()).expect("a history").1
    }

    #[test]
    fn lines_of_several_conversations_come_back() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("history");
        let open = || History::open(path.clone()).expect("a history").0;
        let (first, second) = (open(), open());
        let texts = ["one", "two\nlines", r"C:\new \\ \", "é #V2", "\\n"];
        for (index, text) in texts.into_iter().enumerate() {
            [&first, &second][index % 2].append(text).expect("an entry");
        }
        assert_eq!(lines(&path), texts);
        // rustyline reads and wrote the same format.
        let mut editor = rustyline::DefaultEditor::new().expect("an editor");
        editor.load_history(&path).expect("its format");
        assert!(editor.history().iter().eq(texts.iter()), "{:?}", editor.history().iter().collect::<Vec<_>>());
    }

    /// As after a full disk or a kill: half a character, half a line, no line.
    #[test]
    fn a_damaged_file_keeps_its_lines_and_takes_new_ones() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("history");
        for damage in [&b"#V2\none\nca\xc3"[..], b"#V2\none\nca", b"#V2\none\n\xff\xfe\n", b"one\n"] {
            std::fs::write(&path, damage).expect("a file");
            let (history, before) = History::open(path.clone()).expect("a history");
            assert_eq!(before[0], "one");
            history.append("new").expect("an entry");
            let after = lines(&path);
            assert_eq!(after[..before.len()], before);
            assert_eq!(after[before.len()..], ["new"]);
        }
        std::fs::write(&path, "").expect("a file");
        assert!(lines(&path).is_empty());
    }

    #[test]
    fn a_long_file_is_shortened_and_keeps_its_end() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("history");
        let count = 2 * MAX_LINES + 1;
        let text: String = (0..count).map(|index| format!("line {index}\n")).collect();
        std::fs::write(&path, format!("#V2\n{text}")).expect("a file");
        for _ in 0..2 {
            let found = lines(&path);
            assert_eq!((found.len(), found[0].as_str()), (MAX_LINES, format!("line {}", count - MAX_LINES).as_str()));
        }
        assert!(std::fs::read_to_string(&path).expect("a file").lines().count() == MAX_LINES + 1);
        // One line longer than what is read.
        std::fs::write(&path, "x".repeat(MAX_BYTES as usize + 5) + "\nlast\n").expect("a file");
        assert_eq!(lines(&path), ["last"]);
    }
}
