//! Images in terminals that can show them. The `viuer` crate prints to standard output only and asks the terminal on
//! standard input; previews go to standard error, replace each other in place, and must not touch a conversation's
//! input.

use std::io::{IsTerminal, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mgm::image::{Image, encode_png};

/// The protocol by which the terminal on standard error shows images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageProtocol {
    /// kitty's graphics protocol (kitty, Ghostty and others).
    Kitty,
    /// iTerm2's inline images (iTerm2, WezTerm, mintty and others).
    Iterm,
}

/// Height of an image on the screen, in rows of text.
const ROWS: usize = 16;
/// Maximum payload of one escape sequence of kitty's protocol, in bytes.
const CHUNK: usize = 4096;
/// Id of the image on the screen, so that the next one replaces it.
const IMAGE_ID: u32 = 4712;

impl ImageProtocol {
    /// Detects the protocol from environment variables. `None` if standard error is not a terminal, or one without
    /// images.
    pub fn detect() -> Option<Self> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        Self::from_variables(&|name| std::env::var(name).unwrap_or_default())
    }

    fn from_variables(variable: &dyn Fn(&str) -> String) -> Option<Self> {
        // A terminal multiplexer inherits the variables but doesn't pass images through.
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

    /// Shows an image at the cursor, or in place of the previous one if that is right above the cursor (`replace`).
    /// Leaves the cursor below the image.
    pub fn show(self, out: &mut impl Write, image: &Image, replace: bool) -> std::io::Result<()> {
        if !replace {
            out.write_all("\n".repeat(ROWS).as_bytes())?;
        }
        // Saves the cursor, moves up to the image's place, and restores the cursor at the end.
        write!(out, "\x1b7\x1b[{ROWS}A\r")?;
        match self {
            Self::Kitty => {
                let encoded = STANDARD.encode(image.data());
                let (width, height) = (image.width(), image.height());
                let mut chunks = encoded.as_bytes().chunks(CHUNK).peekable();
                let mut head = format!("a=T,f=24,s={width},v={height},i={IMAGE_ID},p=1,r={ROWS},C=1,q=2,");
                while let Some(chunk) = chunks.next() {
                    let more = u8::from(chunks.peek().is_some());
                    write!(out, "\x1b_G{head}m={more};")?;
                    out.write_all(chunk)?;
                    out.write_all(b"\x1b\\")?;
                    head.clear();
                }
            }
            Self::Iterm => {
                let bytes = encode_png(image, &[]).map_err(std::io::Error::other)?;
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
    fn environment_variables_select_the_protocol() {
        let detect = |pairs: &'static [(&str, &str)]| {
            ImageProtocol::from_variables(&move |name| {
                pairs.iter().find(|(key, _)| *key == name).map_or(String::new(), |(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(detect(&[("TERM", "xterm-kitty")]), Some(ImageProtocol::Kitty));
        assert_eq!(detect(&[("TERM_PROGRAM", "iTerm.app")]), Some(ImageProtocol::Iterm));
        assert_eq!(detect(&[("TERM_PROGRAM", "iTerm.app"), ("TMUX", "x")]), None);
        assert_eq!(detect(&[("TERM", "xterm-256color")]), None);
    }

    #[test]
    fn images_are_sent_in_chunks() {
        let image = Image::new(64, 64, vec![7; 64 * 64 * 3]).unwrap();
        let mut out = Vec::new();
        ImageProtocol::Kitty.show(&mut out, &image, true).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\x1b_G").count(), 64 * 64 * 4 / CHUNK);
        assert!(text.contains("s=64,v=64") && text.contains("m=0;") && text.ends_with("\x1b8"));
        let mut out = Vec::new();
        ImageProtocol::Iterm.show(&mut out, &image, false).unwrap();
        assert!(String::from_utf8(out).unwrap().starts_with("\n\n"));
    }
}
