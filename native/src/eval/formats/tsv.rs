//! Tab-separated values as pandas reads them: fields in double quotes may contain tabs, line ends and doubled quotes.
//! The `csv` crate accepts a quoted field that never ends, which is how a truncated download looks; pandas and this
//! reader report it.

/// Parses rows. Returns them with the line numbers they start at; errors include a line number too.
pub fn rows(text: &str) -> Result<Vec<(usize, Vec<String>)>, String> {
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut line = 1;
    let mut start = 1;
    let mut rest = text;
    while !rest.is_empty() {
        let (field, after) = field(rest).ok_or_else(|| format!("line {line}: a quoted field has no end"))?;
        line += rest[..rest.len() - after.len()].matches('\n').count();
        row.push(field);
        rest = match after.strip_prefix('\t') {
            Some("") => {
                row.push(String::new());
                ""
            }
            Some(next) => {
                rest = next;
                continue;
            }
            None => {
                let next = after.strip_prefix('\r').unwrap_or(after);
                line += usize::from(next.starts_with('\n'));
                next.strip_prefix('\n').unwrap_or(next)
            }
        };
        let done = std::mem::take(&mut row);
        // Empty lines are skipped.
        if done != [""] {
            rows.push((start, done));
        }
        start = line;
    }
    Ok(rows)
}

/// Parses the first field. Returns it and the rest of the text, or `None` if its quote does not end.
fn field(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(['\t', '\n']).unwrap_or(text.len());
        let end = if text[..end].ends_with('\r') { end - 1 } else { end };
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut field = String::new();
    let mut rest = quoted;
    loop {
        let (before, after) = rest.split_once('"')?;
        field.push_str(before);
        rest = match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                after
            }
            None => {
                // Text between the closing quote and the end of the field belongs to the field.
                let end = after.find(['\t', '\n']).unwrap_or(after.len());
                let end = if after[..end].ends_with('\r') { end - 1 } else { end };
                field.push_str(&after[..end]);
                return Some((field, &after[end..]));
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are from pandas 3.
    #[test]
    fn fields_may_be_quoted() {
        let text = "a\tb\tc\n1\t\"two\nlines \"\"q\"\"\"\t\r\n\n\"x\ty\"z\t\t3";
        let row = |line, fields: &[&str]| (line, fields.iter().map(|field| (*field).to_owned()).collect());
        let expected: Vec<(usize, Vec<String>)> =
            vec![row(1, &["a", "b", "c"]), row(2, &["1", "two\nlines \"q\"", ""]), row(5, &["x\tyz", "", "3"])];
        assert_eq!(rows(text).unwrap(), expected);
        assert_eq!(rows("a\tb\n1\t\"2\n").unwrap_err(), "line 2: a quoted field has no end");
        assert_eq!(rows("a\t").unwrap(), vec![row(1, &["a", ""])]);
        assert!(rows("").unwrap().is_empty());
    }
}
