//! Answers written by drawing allowed tokens at random, against independent validators: whatever a model prefers, a
//! finished answer has the format.

mod suite;
mod validator;

use mgm_grammar::{Error, Format, Matcher, Vocabulary};
use serde_json::{Value, json};
use validator::is_valid;

/// All bytes, and what JSON and English are often cut into.
const PIECES: [&str; 40] = [
    "\": ", "\":", "\",", ", \"", "{\"", "\"}", "{}", "[]", "[{", "}]", "},{", "true", "false", "null", "name", "id",
    "\n\n", "    ", "\n", " \"", "12", "2024", "-01", "00", "e+", ".5", "the", " the", "ing", "café", "é", "日本",
    "\\n", "\\\"", "\\u00", "http", "://", "@", "red", "green",
];
const END: u32 = 256 + PIECES.len() as u32;

fn bytes() -> Vec<Option<Vec<u8>>> {
    let single = (0..=255u8).map(|byte| Some(vec![byte]));
    let pieces = PIECES.iter().map(|piece| Some(piece.as_bytes().to_vec()));
    // The end of an answer, and a special token.
    single.chain(pieces).chain([None, None]).collect()
}

fn vocabulary() -> Vocabulary {
    Vocabulary::new(bytes(), &[END]).expect("a vocabulary")
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }
}

fn allowed(matcher: &mut Matcher, vocabulary: &Vocabulary) -> Vec<u32> {
    let mut mask = vec![u32::MAX; vocabulary.mask_words()];
    matcher.fill_mask(&mut mask).expect("a mask");
    (0..32 * mask.len() as u32).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 != 0).collect()
}

/// An answer of random allowed tokens, if it ends within `most` tokens. It ends as soon as it may after the first
/// quarter of them.
fn answer(matcher: &mut Matcher, vocabulary: &Vocabulary, random: &mut Random, most: usize) -> Option<Vec<u8>> {
    let bytes = bytes();
    let mut text = Vec::new();
    for count in 0..most {
        let ids = allowed(matcher, vocabulary);
        assert!(!ids.is_empty(), "nothing may follow {:?}", String::from_utf8_lossy(&text));
        let wants_end = count > most / 4;
        // What closes strings, lists and objects, so that most answers end.
        let closes = |id: &u32| [b'"', b']', b'}'].map(u32::from).contains(id);
        let id = match ids.iter().find(|id| wants_end && **id == END) {
            Some(end) => *end,
            None if wants_end && random.below(2) == 0 => {
                ids.iter().copied().find(closes).unwrap_or(ids[random.below(ids.len())])
            }
            None => ids[random.below(ids.len())],
        };
        assert_eq!(matcher.validate(&[id]), Ok(1), "a mask and a check differ");
        matcher.accept(id).expect("an allowed token");
        match &bytes[id as usize] {
            Some(bytes) => text.extend(bytes),
            None => return Some(text),
        }
    }
    None
}

/// Schemas with the keywords that people use.
fn schemas() -> Vec<Value> {
    let thing = json!({"type": "object", "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer",
        "minimum": 1, "maximum": 12}, "text": {"type": ["string", "null"], "maxLength": 8}}, "required": ["colour", "count"],
        "additionalProperties": false});
    vec![
        json!({"type": "string"}),
        json!({"type": "string", "minLength": 2, "maxLength": 5}),
        json!({"type": "string", "pattern": "^[a-z]{2,4}-[0-9]+$"}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "string", "format": "uuid"}),
        json!({"type": "string", "format": "ipv4"}),
        json!({"type": "integer"}),
        json!({"type": "integer", "minimum": -17, "maximum": 305}),
        json!({"type": "number", "exclusiveMinimum": 0.5, "maximum": 2.25}),
        json!({"type": "integer", "multipleOf": 25, "minimum": -100000, "maximum": 100000}),
        json!({"type": "boolean"}),
        json!({"type": "null"}),
        json!({"const": {"a": [1, "b", null]}}),
        json!({"enum": ["x", 2, null, true]}),
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}),
        json!({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string", "maxLength": 3}], "items": false,
            "minItems": 2}),
        json!({"type": "object"}),
        thing.clone(),
        json!({"type": "object", "properties": {"things": {"type": "array", "items": thing, "maxItems": 3}},
            "required": ["things"], "additionalProperties": false}),
        json!({"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3}),
        json!({"type": "object", "patternProperties": {"^s_": {"type": "string"}}, "additionalProperties": false}),
        json!({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "null"}}]}),
        json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]}),
        json!({"oneOf": [{"type": "string", "maxLength": 4}, {"type": "boolean"}]}),
        json!({"$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"}, "next":
            {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["value", "next"],
            "additionalProperties": false}}, "$ref": "#/$defs/node"}),
        json!({"type": "object", "properties": {"kind": {"const": "a"}, "b": {"type": "number"}}, "required": ["kind"]}),
        json!(true),
        json!({}),
    ]
}

#[test]
fn finished_answers_validate() {
    let vocabulary = vocabulary();
    let mut random = Random(6);
    for schema in schemas() {
        let grammar = vocabulary.compile(&Format::JsonSchema { schema: schema.clone(), strict: true });
        let grammar = grammar.unwrap_or_else(|error| panic!("{schema}: {error}"));
        assert!(grammar.ignored().is_empty(), "{schema}: {:?}", grammar.ignored());
        let mut finished = 0;
        for _ in 0..16 {
            let Some(text) = answer(&mut grammar.matcher(), &vocabulary, &mut random, 240) else { continue };
            let text = String::from_utf8(text).expect("UTF-8");
            let value: Value = match serde_json::from_str(&text) {
                Ok(value) => value,
                // 6E834 is JSON that no f64 holds.
                Err(error) if error.to_string().starts_with("number out of range") => continue,
                Err(error) => panic!("{schema}: {text:?}: {error}"),
            };
            assert!(is_valid(&schema, &schema, &value), "{schema}: {text}");
            finished += 1;
        }
        assert!(finished >= 3, "{schema}: {finished} answers ended");
    }
}

#[test]
fn white_space_is_bounded() {
    let vocabulary = vocabulary();
    let mut matcher = vocabulary.compile(&Format::JsonObject).expect("a grammar").matcher();
    matcher.accept(u32::from(b'{')).expect("a brace");
    for count in 0.. {
        if matcher.validate(&[u32::from(b'\n')]) == Ok(0) {
            assert_eq!(count, 16);
            break;
        }
        matcher.accept(u32::from(b'\n')).expect("a line");
    }
}

#[test]
fn parts_that_are_not_supported_are_named() {
    let vocabulary = vocabulary();
    for (schema, pointer, word) in [
        (json!({"properties": {"a/b": {"not": {"type": "string"}}}}), "/properties/a~1b", "not"),
        (json!({"type": "array", "items": {"type": "array", "uniqueItems": true}}), "/items", "uniqueItems"),
        (json!({"$defs": {"x": {"if": {"type": "null"}}}, "$ref": "#/$defs/x"}), "/$defs/x", "if"),
        (json!({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "(?=a)b"}]}), "/anyOf/1", "look"),
        (json!({"type": "string", "format": "no-such-format"}), "", "format"),
        (json!({"type": "colour"}), "", "colour"),
        (json!(false), "", ""),
    ] {
        match vocabulary.compile(&Format::JsonSchema { schema: schema.clone(), strict: true }) {
            Err(Error::Schema { pointer: found, reason }) => {
                assert_eq!(found, pointer, "{schema}: {reason}");
                assert!(reason.to_lowercase().contains(&word.to_lowercase()), "{schema}: {reason}");
                assert!(!reason.contains('\n'), "{reason}");
            }
            other => panic!("{schema}: {other:?}"),
        }
    }
    // Without strictness they are left out, and named.
    let schema = json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true});
    let grammar = vocabulary.compile(&Format::JsonSchema { schema, strict: false }).expect("a grammar");
    assert!(grammar.ignored().iter().any(|text| text.contains("uniqueItems")), "{:?}", grammar.ignored());
}

#[test]
fn expressions_choices_and_grammars() {
    let vocabulary = vocabulary();
    let mut random = Random(6);
    for expression in
        ["[0-9]{3}-[0-9]{4}", "(red|green) (cat|dog)s?", "a/b\\/c", "[^\"]{1,3}é", "x\ny", "\\d+(\\.\\d+)? (km|m)"]
    {
        let grammar = vocabulary.compile(&Format::Regex(expression.to_owned())).expect("a grammar");
        let whole = regex::Regex::new(&format!("^(?s:{expression})$")).expect("an expression");
        for _ in 0..12 {
            let Some(text) = answer(&mut grammar.matcher(), &vocabulary, &mut random, 60) else { continue };
            let text = String::from_utf8(text).expect("UTF-8");
            assert!(whole.is_match(&text), "{expression}: {text:?}");
        }
    }
    let choices = ["yes", "no", "\"quoted\" é\n", "yes, but"].map(str::to_owned);
    let grammar = vocabulary.compile(&Format::Choice(choices.to_vec())).expect("a grammar");
    for _ in 0..40 {
        let text = answer(&mut grammar.matcher(), &vocabulary, &mut random, 40).expect("an end");
        assert!(choices.iter().any(|choice| choice.as_bytes() == text), "{:?}", String::from_utf8_lossy(&text));
    }
    let lark = "start: item (\",\" item)*\nstarted: \"x\"\nitem: /[a-c]/ | \"(\" start \")\"\n"
        .replace("started: \"x\"\n", "");
    for vocabulary in [vocabulary, self::vocabulary().with_leading_space()] {
        let grammar = vocabulary.compile(&Format::Lark(lark.clone())).expect("a grammar");
        let text = answer(&mut grammar.matcher(), &vocabulary, &mut random, 200).expect("an end");
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(text.trim_start_matches(' ').chars().all(|c| "abc,()".contains(c)), "{text}");
    }
}

#[test]
fn malformed_formats_are_errors() {
    let vocabulary = vocabulary();
    for format in [
        Format::Regex("(".to_owned()),
        Format::Regex("(?<=a)b".to_owned()),
        Format::Choice(Vec::new()),
        Format::Choice(vec![String::new()]),
        Format::Lark("stop: \"x\"".to_owned()),
        Format::Lark("start: missing".to_owned()),
        Format::Lark(String::new()),
    ] {
        assert!(matches!(vocabulary.compile(&format), Err(Error::Format { .. })), "{format:?}");
    }
    let mut deep = json!({"type": "null"});
    for _ in 0..80 {
        deep = json!({"type": "array", "items": deep});
    }
    for format in
        [Format::JsonSchema { schema: deep, strict: true }, Format::Lark(format!("start: \"{}\"", "x".repeat(1 << 20)))]
    {
        assert!(matches!(vocabulary.compile(&format), Err(Error::TooComplex(_))));
    }
    // States are made as they are reached: what looks like a bomb is none.
    let bomb = Format::Regex("((((a{100}){100}){100}){100}){100}".to_owned());
    let mut matcher = vocabulary.compile(&bomb).expect("a grammar").matcher();
    assert_eq!(allowed(&mut matcher, &vocabulary), [u32::from(b'a')]);
    assert!(matches!(Vocabulary::new([Some(b"a")], &[7]), Err(Error::Vocabulary(_))));
    assert!(matches!(Vocabulary::new::<&[u8]>([], &[]), Err(Error::Vocabulary(_))));
}

#[test]
fn a_leading_space_is_allowed_once() {
    let vocabulary = vocabulary().with_leading_space();
    let grammar = vocabulary.compile(&Format::JsonObject).expect("a grammar");
    let space = u32::from(b' ');
    let mut matcher = grammar.matcher();
    assert_eq!(matcher.validate(&[space, u32::from(b'{')]), Ok(2));
    assert_eq!(matcher.validate(&[u32::from(b'{')]), Ok(1));
    assert_eq!(self::vocabulary().compile(&Format::JsonObject).expect("a grammar").matcher().validate(&[space]), Ok(0));
}

#[test]
fn tokens_are_taken_back() {
    let vocabulary = vocabulary();
    let grammar = vocabulary.compile(&Format::Regex("ab*c".to_owned())).expect("a grammar");
    let mut matcher = grammar.matcher();
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    for id in ids("abb") {
        matcher.accept(id).expect("an allowed token");
    }
    let mut other = matcher.clone();
    assert_eq!(matcher.accept(u32::from(b'x')), Err(Error::NotAllowed(u32::from(b'x'))));
    other.rollback(2).expect("taken back");
    assert_eq!(other.validate(&ids("bc")), Ok(2));
    assert!(!other.is_accepting().expect("a state") && !other.is_terminated());
    other.accept(u32::from(b'c')).expect("an allowed token");
    assert!(other.is_accepting().expect("a state"));
    assert_eq!(allowed(&mut other, &vocabulary), [END]);
}
