//! Answers that may call tools: free until a call begins, then constrained.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use mgm::engine::Constraint;
use mgm::session::ModelText;
use mgm_grammar::{Error, Matcher};

use super::format::{CallFormat, ToolStyle};

/// The texts of tokens.
pub trait TokenTexts: Debug + Send + Sync {
    /// The bytes of a token, if it is text.
    fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>>;
}

impl TokenTexts for ModelText {
    fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        self.tokenizer().token_bytes(id)
    }
}

/// Lets an answer be any text until it calls a tool. The call has its grammar.
#[derive(Debug, Clone)]
pub struct CallTrigger {
    tokens: Arc<dyn TokenTexts>,
    style: ToolStyle,
    /// Tokens that are no text, and those that end an answer.
    others: Arc<[u32]>,
    state: State,
    /// Matches a call after the token of the opening.
    after_opening: Matcher,
    /// The answer's text, or its end.
    tail: Vec<u8>,
}

#[derive(Debug, Clone)]
enum State {
    /// Any text, which this follows to the first call. `None` if it cannot lead to one any more, except by the token of
    /// the opening.
    Free(Option<Matcher>),
    /// In a call or after it.
    Called(Matcher),
}

impl CallTrigger {
    /// `from_text` matches any text with a call, `after_opening` a call after its opening.
    pub fn new(
        tokens: Arc<dyn TokenTexts>,
        style: ToolStyle,
        others: Arc<[u32]>,
        from_text: Matcher,
        after_opening: Matcher,
    ) -> Self {
        Self { tokens, style, others, state: State::Free(Some(from_text)), after_opening, tail: Vec::new() }
    }

    /// Whether the next token of text can be the end of the opening, and the beginning of a call.
    fn is_in_opening(&self) -> bool {
        let opening = self.style.format.opening().as_bytes();
        match self.style.format {
            // What is no call is text.
            CallFormat::Llama => false,
            CallFormat::Hermes | CallFormat::Mistral => {
                (1..opening.len()).any(|length| self.tail.ends_with(&opening[..length]))
            }
        }
    }

    /// Whether the text has led to a call.
    fn has_opened(&self) -> bool {
        let contains = |text: &[u8]| self.tail.windows(text.len()).any(|part| part == text);
        match self.style.format {
            CallFormat::Llama => {
                let text: Vec<u8> = self.tail.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
                text.starts_with(b"{\"name\"")
            }
            format => contains(format.opening().as_bytes()),
        }
    }

    /// Text that was generated freely.
    fn accept_free(&mut self, id: u32, bytes: &[u8]) -> Result<(), Error> {
        let State::Free(matcher) = &mut self.state else { return Ok(()) };
        if let Some(found) = matcher {
            match found.accept(id) {
                Ok(()) => {}
                Err(Error::NotAllowed(_)) => *matcher = None,
                Err(error) => return Err(error),
            }
        }
        self.tail.extend_from_slice(bytes);
        if self.has_opened() {
            if let State::Free(Some(matcher)) = &self.state {
                self.state = State::Called(matcher.clone());
            }
            self.tail.clear();
        } else if self.style.format != CallFormat::Llama {
            let longest = self.style.format.opening().len();
            self.tail.drain(..self.tail.len().saturating_sub(longest));
        }
        Ok(())
    }
}

impl Constraint for CallTrigger {
    fn fill_mask(&mut self, mask: &mut [u32]) -> mgm::Result<()> {
        let in_opening = self.is_in_opening();
        match &mut self.state {
            State::Called(matcher) => matcher.fill_mask(mask).map_err(engine_error),
            State::Free(Some(matcher)) if in_opening => {
                matcher.fill_mask(mask).map_err(engine_error)?;
                mask.iter_mut().zip(self.others.iter()).for_each(|(mask, other)| *mask |= other);
                Ok(())
            }
            State::Free(_) => {
                mask.fill(u32::MAX);
                Ok(())
            }
        }
    }

    fn accept(&mut self, id: u32) -> mgm::Result<()> {
        if let State::Called(matcher) = &mut self.state {
            return matcher.accept(id).map_err(engine_error);
        }
        if self.style.opening.is_some_and(|opening| opening.id == id) {
            self.state = State::Called(self.after_opening.clone());
            return Ok(());
        }
        let tokens = self.tokens.clone();
        match tokens.token_bytes(id) {
            Some(bytes) => self.accept_free(id, &bytes).map_err(engine_error),
            None => Ok(()),
        }
    }

    fn is_terminated(&self) -> bool {
        matches!(&self.state, State::Called(matcher) if matcher.is_terminated())
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// The error that an answer ends with.
pub fn engine_error(error: Error) -> mgm::Error {
    mgm::Error::InvalidArgument(error.to_string())
}

#[cfg(test)]
mod tests {
    use mgm_grammar::Vocabulary;
    use serde_json::json;

    use super::super::format::Marker;
    use super::super::grammar::{Place, Tool, calls};
    use super::*;

    /// Ends an answer.
    const END: u32 = 256;
    const OPENING: u32 = 257;

    #[derive(Debug)]
    struct Tokens(Vec<Option<Vec<u8>>>);

    impl TokenTexts for Tokens {
        fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
            self.0.get(id as usize)?.as_deref().map(Cow::Borrowed)
        }
    }

    /// Single bytes, two tokens that are no text, and longer texts.
    fn tokens() -> Vec<Option<Vec<u8>>> {
        let bytes = (0..=255).map(|byte| Some(vec![byte]));
        let longer = [">{", ">x", "\": {\"x\"", "tool_call"].map(|text| Some(text.as_bytes().to_vec()));
        bytes.chain([None, None]).chain(longer).collect()
    }

    fn id(text: &str) -> u32 {
        tokens().iter().position(|token| token.as_deref() == Some(text.as_bytes())).expect(text) as u32
    }

    fn trigger(format: CallFormat) -> CallTrigger {
        let opening = Some(Marker { id: OPENING, is_hidden: true });
        let style = ToolStyle { format, is_native: true, opening, closing: None };
        let schema = json!({ "type": "object", "properties": { "x": { "type": "boolean" } }, "required": ["x"],
            "additionalProperties": false });
        let tool = Tool { name: "f".to_owned(), parameters: schema, strict: true };
        let vocabulary = Vocabulary::new(tokens(), &[END]).expect("a vocabulary");
        let matcher = |from| {
            let grammar = calls(&style, &[&tool], true, from).expect("a grammar");
            vocabulary.compile(&grammar).unwrap_or_else(|error| panic!("{error}: {grammar:?}")).matcher()
        };
        let mut others = vec![0; vocabulary.mask_words()];
        others[END as usize / 32] |= 1 << (END % 32) | 1 << (OPENING % 32);
        let tokens = Arc::new(Tokens(tokens()));
        CallTrigger::new(tokens, style, others.into(), matcher(Place::Text), matcher(Place::Opening))
    }

    /// Whether a token may come next.
    fn allows(trigger: &mut CallTrigger, id: u32) -> bool {
        let mut mask = vec![0; tokens().len().div_ceil(32)];
        trigger.fill_mask(&mut mask).expect("a mask");
        mask[id as usize / 32] >> (id % 32) & 1 == 1
    }

    fn write(trigger: &mut CallTrigger, text: &str) {
        for byte in text.bytes() {
            assert!(allows(trigger, byte.into()), "{:?} of {text}", byte as char);
            trigger.accept(byte.into()).expect("a token");
        }
    }

    #[test]
    fn text_is_free_until_a_call_begins() {
        let mut free = trigger(CallFormat::Hermes);
        write(&mut free, "1 < 2 <tool> {\"name\": \u{e9} <tool_cal");
        assert!(allows(&mut free, END) && allows(&mut free, OPENING) && allows(&mut free, id(">x")));
        write(&mut free, "l");
        // The call's first token must not end in something else.
        assert!(allows(&mut free, id(">{")) && !allows(&mut free, id(">x")) && allows(&mut free, b'x'.into()));
        assert!(allows(&mut free, END));
        let mut called = free.clone();
        called.accept(id(">{")).expect("a token");
        write(&mut called, "\"name\": \"f\"");
        assert!(!allows(&mut called, END) && !allows(&mut called, b'}'.into()));
        write(&mut called, ", \"arguments");
        assert!(allows(&mut called, id("\": {\"x\"")));
        write(&mut called, "\": {\"x\": true}}\n</tool_call>");
        // Another call, or the end.
        assert!(allows(&mut called, END) && allows(&mut called, OPENING) && !allows(&mut called, b'x'.into()));
        write(&mut called, "\n");
        called.accept(OPENING).expect("a token");
        write(&mut called, "{\"name\":\"f\",\"arguments\":{\"x\":false}}</tool_call>");
        assert!(!called.is_terminated());
    }

    #[test]
    fn a_token_opens_a_call() {
        for format in [CallFormat::Hermes, CallFormat::Mistral, CallFormat::Llama] {
            let mut called = trigger(format);
            if format != CallFormat::Llama {
                write(&mut called, "Well, ");
            }
            called.accept(OPENING).expect("a token");
            assert!(!allows(&mut called, END));
            let list = if format == CallFormat::Mistral { "[" } else { "" };
            write(&mut called, &format!("{list}{{\"name\": \"f\", \"{}\": {{\"x\": true}}}}", format.arguments()));
            match format {
                CallFormat::Hermes => write(&mut called, "</tool_call>"),
                CallFormat::Mistral => {
                    assert!(!allows(&mut called, END));
                    write(&mut called, "]");
                }
                CallFormat::Llama => {}
            }
            assert!(allows(&mut called, END), "{format:?}");
        }
    }

    #[test]
    fn hundreds_of_tools_are_taken() {
        let style = ToolStyle { format: CallFormat::Hermes, is_native: true, opening: None, closing: None };
        let schema = json!({ "type": "object", "properties": { "x": { "type": "string", "maxLength": 65536 } } });
        let tool = |index| Tool { name: format!("tool_{index}"), parameters: schema.clone(), strict: true };
        let tools: Vec<Tool> = (0..400).map(tool).collect();
        let grammar = calls(&style, &tools.iter().collect::<Vec<_>>(), false, Place::Call).expect("a grammar");
        let vocabulary = Vocabulary::new(tokens(), &[END]).expect("a vocabulary");
        let mut matcher = vocabulary.compile(&grammar).expect("compiled").matcher();
        for byte in "<tool_call>{\"name\": \"tool_399\", \"arguments\": {\"x\": \"a\"}}</tool_call>".bytes() {
            matcher.accept(byte.into()).expect("a token");
        }
        assert_eq!(matcher.is_accepting(), Ok(true));
    }

    #[test]
    fn llamas_answers_are_calls_if_they_begin_so() {
        let mut called = trigger(CallFormat::Llama);
        write(&mut called, "{\"name\": \"f\", ");
        assert!(!allows(&mut called, END) && !allows(&mut called, b'x'.into()));
        for text in ["I say {\"name\": 1}", "{\"names\": [", "{} {\"name\": ?"] {
            let mut free = trigger(CallFormat::Llama);
            write(&mut free, text);
            assert!(allows(&mut free, END) && allows(&mut free, b'x'.into()), "{text}");
        }
    }
}
