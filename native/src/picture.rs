//! Pictures out: PNG files that say what they were made with, and terminals that can show them.

use std::io::{IsTerminal, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mgm::diffusion::settings::Settings;
use mgm::image::Rgb8;
use mgm::{Error, Result};
use mgm_native::files::io_error;

/// The bytes of a PNG file. Of what it was made with, "parameters" is the text that other programs read, "mgm" all of it as JSON.
pub fn png(image: &Rgb8, settings: Option<&Settings>) -> Result<Vec<u8>> {
    let failed = |error: png::EncodingError| Error::Image { name: "PNG".to_owned(), reason: error.to_string() };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width() as u32, image.height() as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    if let Some(settings) = settings {
        let parameters = settings.parameters();
        // Plain chunks hold Latin-1, and readers differ in what they take beyond ASCII for.
        if parameters.is_ascii() {
            encoder.add_text_chunk("parameters".to_owned(), parameters).map_err(failed)?;
        } else {
            encoder.add_itxt_chunk("parameters".to_owned(), parameters).map_err(failed)?;
        }
        let json = serde_json::to_string(settings)
            .map_err(|error| Error::Image { name: "PNG".to_owned(), reason: error.to_string() })?;
        encoder.add_itxt_chunk("mgm".to_owned(), json).map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(image.data()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

/// Writes a PNG file.
pub fn save(path: &Path, image: &Rgb8, settings: &Settings) -> Result<()> {
    let bytes = png(image, Some(settings))?;
    std::fs::write(path, bytes).map_err(|error| io_error(path, error))
}

/// How the terminal on standard error shows pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// kitty's graphics protocol (also Ghostty's and others').
    Kitty,
    /// iTerm2's inline images (also WezTerm's and others').
    Iterm,
}

/// Rows of text that a picture takes on the screen.
const ROWS: usize = 16;
/// Bytes of one piece of kitty's protocol.
const PIECE: usize = 4096;
/// The number of the picture on the screen, so that the next one takes its place.
const NUMBER: u32 = 4712;

impl Screen {
    /// What the terminal says of itself; `None` where standard error is no terminal, or one that shows text alone.
    pub fn detect() -> Option<Self> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        Self::named(&|name| std::env::var(name).unwrap_or_default())
    }

    fn named(variable: &dyn Fn(&str) -> String) -> Option<Self> {
        // A multiplexer passes the variables on, but not the pictures.
        if !variable("TMUX").is_empty() || variable("TERM").starts_with("screen") {
            return None;
        }
        let program = variable("TERM_PROGRAM");
        let kitty = !variable("KITTY_WINDOW_ID").is_empty() || variable("TERM").contains("kitty");
        if kitty || program == "ghostty" || variable("TERM").contains("ghostty") {
            Some(Self::Kitty)
        } else if ["iTerm.app", "WezTerm", "mintty"].contains(&program.as_str()) || variable("LC_TERMINAL") == "iTerm2"
        {
            Some(Self::Iterm)
        } else {
            None
        }
    }

    /// Shows a picture where the cursor is, or where the last one was shown if it was just before (`again`). The cursor comes to
    /// stand below.
    pub fn show(self, out: &mut impl Write, image: &Rgb8, again: bool) -> std::io::Result<()> {
        if !again {
            out.write_all("\n".repeat(ROWS).as_bytes())?;
        }
        // Up to the picture's place, and, when it is drawn, back to where the cursor was.
        write!(out, "\x1b7\x1b[{ROWS}A\r")?;
        match self {
            Self::Kitty => {
                let encoded = STANDARD.encode(image.data());
                let (width, height) = (image.width(), image.height());
                let mut pieces = encoded.as_bytes().chunks(PIECE).peekable();
                let mut head = format!("a=T,f=24,s={width},v={height},i={NUMBER},p=1,r={ROWS},C=1,q=2,");
                while let Some(piece) = pieces.next() {
                    let more = u8::from(pieces.peek().is_some());
                    write!(out, "\x1b_G{head}m={more};")?;
                    out.write_all(piece)?;
                    out.write_all(b"\x1b\\")?;
                    head.clear();
                }
            }
            Self::Iterm => {
                let bytes = png(image, None).map_err(std::io::Error::other)?;
                let size = bytes.len();
                let encoded = STANDARD.encode(bytes);
                write!(out, "\x1b]1337;File=inline=1;size={size};height={ROWS};preserveAspectRatio=1:{encoded}\x07")?;
            }
        }
        write!(out, "\x1b8")?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_known_by_what_they_say() {
        let screen = |pairs: &'static [(&str, &str)]| {
            Screen::named(&move |name| {
                pairs.iter().find(|(key, _)| *key == name).map_or(String::new(), |(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(screen(&[("TERM", "xterm-kitty")]), Some(Screen::Kitty));
        assert_eq!(screen(&[("TERM_PROGRAM", "iTerm.app")]), Some(Screen::Iterm));
        assert_eq!(screen(&[("TERM_PROGRAM", "iTerm.app"), ("TMUX", "x")]), None);
        assert_eq!(screen(&[("TERM", "xterm-256color")]), None);
    }

    #[test]
    fn pictures_go_to_screens_in_pieces() {
        let image = Rgb8::new(64, 64, vec![7; 64 * 64 * 3]).unwrap();
        let mut out = Vec::new();
        Screen::Kitty.show(&mut out, &image, true).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\x1b_G").count(), 64 * 64 * 4 / PIECE);
        assert!(text.contains("s=64,v=64") && text.contains("m=0;") && text.ends_with("\x1b8"));
        let mut out = Vec::new();
        Screen::Iterm.show(&mut out, &image, false).unwrap();
        assert!(String::from_utf8(out).unwrap().starts_with("\n\n"));
    }
}
