//! SentencePiece BPE models (`tokenizer.model`): a small reader of the protobuf file, and the encoder.
//!
//! The encoder follows SentencePiece's `bpe_model.cc` and `normalizer.cc` step by step, so that ids are equal for every
//! string. It supports what language models use: BPE with the identity normalizer.
//!
//! Not `prost`: eleven fields of three messages need no generated code, and errors here have the byte offset.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use crate::{Error, Result};

/// The symbol for a space in pieces (U+2581).
pub const SPACE: char = '\u{2581}';

/// The file's name in messages: the same in every checkpoint.
const FILE: &str = "tokenizer.model";
/// Most pieces, to bound allocations for damaged files. The largest released vocabularies have 256 thousand.
const MAX_PIECES: usize = 1 << 22;

/// The kind of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Made by merging.
    Normal,
    /// The unknown piece.
    Unknown,
    /// Never matched in text (`<s>`, `</s>`).
    Control,
    /// Matched in text first, never merged.
    UserDefined,
    /// One byte, for characters that are not in the vocabulary.
    Byte(u8),
    /// Takes part in merging, but is split again at the end.
    Unused,
}

/// One entry of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The text, with U+2581 for spaces.
    pub text: String,
    /// Merge priority: higher merges first.
    pub score: f32,
    /// Its kind.
    pub kind: PieceKind,
}

/// How text is prepared before merging (`normalizer_spec` of the file).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Normalizer {
    /// Add one space before (or, with `space_as_suffix`, after) the text.
    pub add_dummy_prefix: bool,
    /// Drop leading and trailing spaces and all but one of a run.
    pub remove_extra_whitespaces: bool,
    /// Write spaces as U+2581.
    pub escape_whitespaces: bool,
    /// The dummy space goes to the end of the text.
    pub space_as_suffix: bool,
}

/// A BPE model read from `tokenizer.model`.
#[derive(Debug, Clone)]
pub struct Model {
    pieces: Vec<Piece>,
    /// How text is prepared.
    pub normalizer: Normalizer,
    /// Pieces that merging can produce, and user-defined ones.
    mergeable: HashMap<String, u32>,
    /// Unknown, control and byte pieces.
    reserved: HashMap<String, u32>,
    symbols: UserSymbols,
    /// Ids of the 256 bytes, if the model has byte fallback.
    bytes: Option<Box<[u32; 256]>>,
    unknown: u32,
    unknown_surface: String,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Model {
    /// Reads a model.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the byte offset of the fault; [`Error::Unsupported`] for models other than BPE with
    /// the identity normalizer.
    pub fn parse(file: &[u8]) -> Result<Self> {
        Self::from_proto(Proto::parse(file)?)
    }

    /// A BPE model with byte fallback from its vocabulary, in the order of the ids.
    ///
    /// # Errors
    /// [`Error::Malformed`] if pieces are missing or occur twice.
    pub fn from_pieces(pieces: Vec<Piece>, normalizer: Normalizer, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        let byte_fallback = pieces.iter().any(|piece| matches!(piece.kind, PieceKind::Byte(_)));
        let id = |id: Option<u32>| id.map_or(-1, i64::from);
        Self::from_proto(Proto {
            pieces: pieces.into_iter().map(|piece| (piece, 0)).collect(),
            model_type: 2,
            byte_fallback,
            bos: id(bos),
            eos: id(eos),
            normalizer,
            ..Proto::default()
        })
    }

    fn from_proto(proto: Proto) -> Result<Self> {
        match proto.model_type {
            2 => {}
            other => {
                let name = match other {
                    1 => "unigram".to_owned(),
                    3 => "word".to_owned(),
                    4 => "char".to_owned(),
                    n => n.to_string(),
                };
                return Err(Error::Unsupported {
                    what: "SentencePiece model type".to_owned(),
                    found: name,
                    supported: "bpe".to_owned(),
                });
            }
        }
        if proto.charsmap {
            // Released Llama, Yi, Mixtral and Gemma files use the identity.
            return Err(Error::Unsupported {
                what: "SentencePiece normalizer".to_owned(),
                found: proto.normalizer_name,
                supported: "identity (no precompiled_charsmap); provide a tokenizer.json instead".to_owned(),
            });
        }

        let mut mergeable = HashMap::with_capacity(proto.pieces.len());
        let mut reserved = HashMap::new();
        let mut symbols = UserSymbols::default();
        let mut bytes = [None; 256];
        let mut unknown = None;
        for (id, (piece, offset)) in proto.pieces.iter().enumerate() {
            let id = id as u32;
            let map = match piece.kind {
                PieceKind::Normal | PieceKind::Unused => &mut mergeable,
                PieceKind::UserDefined => {
                    symbols.insert(&piece.text);
                    &mut mergeable
                }
                PieceKind::Control => &mut reserved,
                PieceKind::Unknown => {
                    if unknown.replace(id).is_some() {
                        return Err(malformed(*offset, format!("a second unknown piece {:?}", piece.text)));
                    }
                    &mut reserved
                }
                PieceKind::Byte(byte) => {
                    if let Some(slot) = bytes.get_mut(usize::from(byte)) {
                        *slot = Some(id);
                    }
                    &mut reserved
                }
            };
            if map.insert(piece.text.clone(), id).is_some() {
                return Err(malformed(*offset, format!("piece {:?} is defined twice", piece.text)));
            }
        }
        let unknown = unknown.ok_or_else(|| malformed(0, "no piece has the type unknown".to_owned()))?;
        let bytes = if proto.byte_fallback {
            let mut ids = Box::new([0; 256]);
            for (byte, (slot, id)) in ids.iter_mut().zip(bytes).enumerate() {
                *slot = id
                    .ok_or_else(|| malformed(0, format!("byte_fallback is set, but byte 0x{byte:02X} has no piece")))?;
            }
            Some(ids)
        } else {
            None
        };

        let in_range = |id: i64| u32::try_from(id).ok().filter(|&id| (id as usize) < proto.pieces.len());
        Ok(Self {
            bos: in_range(proto.bos),
            eos: in_range(proto.eos),
            normalizer: proto.normalizer,
            unknown_surface: proto.unknown_surface,
            pieces: proto.pieces.into_iter().map(|(piece, _)| piece).collect(),
            mergeable,
            reserved,
            symbols,
            bytes,
            unknown,
        })
    }

    /// The vocabulary, in the order of the ids.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The id of a piece by its text; `None` if there is no such piece.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.reserved.get(piece).or_else(|| self.mergeable.get(piece)).copied()
    }

    /// Makes a piece one that is never matched in text.
    pub fn reserve(&mut self, id: u32) {
        let Some(piece) = self.pieces.get(id as usize) else { return };
        if let Some(id) = self.mergeable.remove(&piece.text) {
            self.symbols.remove(&piece.text);
            self.reserved.insert(piece.text.clone(), id);
        }
    }

    /// The unknown piece.
    pub fn unknown(&self) -> u32 {
        self.unknown
    }

    /// Text of the unknown piece.
    pub fn unknown_surface(&self) -> &str {
        &self.unknown_surface
    }

    /// The BOS piece, if the file has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The EOS piece, if the file has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The ids of `text`, prepared by the model's normalizer, without BOS and EOS.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_normalized(&self.normalize(text, self.normalizer))
    }

    /// As [`Model::encode`], but without the dummy prefix.
    pub fn encode_without_prefix(&self, text: &str) -> Vec<u32> {
        self.encode_normalized(&self.normalize(text, Normalizer { add_dummy_prefix: false, ..self.normalizer }))
    }

    fn normalize(&self, text: &str, rules: Normalizer) -> String {
        let space = if rules.escape_whitespaces { SPACE } else { ' ' };
        let mut rest = text;
        if rules.remove_extra_whitespaces {
            // A space at the start of a user-defined symbol is not dropped.
            while rest.starts_with(' ') && self.symbols.longest(rest).is_none_or(|length| length == 1) {
                rest = &rest[1..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let mut normalized = String::with_capacity(rest.len() + rest.len() / 2);
        if rules.add_dummy_prefix && !rules.space_as_suffix {
            normalized.push(space);
        }
        let mut after_space = rules.remove_extra_whitespaces;
        while let Some(first) = rest.chars().next() {
            let length = self.symbols.longest(rest).unwrap_or(first.len_utf8());
            let (unit, tail) = rest.split_at(length);
            rest = tail;
            let unit = if after_space { unit.trim_start_matches(' ') } else { unit };
            if !unit.is_empty() {
                normalized.extend(unit.chars().map(|c| if c == ' ' { space } else { c }));
                after_space = rules.remove_extra_whitespaces && unit.ends_with(' ');
            }
        }
        if rules.remove_extra_whitespaces {
            normalized.truncate(normalized.trim_end_matches(space).len());
        }
        if rules.add_dummy_prefix && rules.space_as_suffix {
            normalized.push(space);
        }
        normalized
    }

    /// The ids of a normalised text: byte pair merging by score, the leftmost pair first among equals. O(n log n) in
    /// the length of the text.
    pub fn encode_normalized(&self, text: &str) -> Vec<u32> {
        let mut merger = Merger::new(self, text);
        merger.run();
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut unknown_before = false;
        for (piece, id) in merger.into_pieces() {
            let unknown = id == self.unknown;
            match &self.bytes {
                Some(bytes) if unknown => {
                    ids.extend(piece.bytes().filter_map(|byte| bytes.get(usize::from(byte)).copied()));
                }
                // A run of unknown pieces is one unknown token.
                _ if unknown && unknown_before => {}
                _ => ids.push(id),
            }
            unknown_before = unknown;
        }
        ids
    }
}

/// A symbol during merging: `text[start..end]`; empty once it is merged into its neighbor.
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// User-defined symbols are never merged.
    frozen: bool,
}

/// Two neighbors that can be merged. Ordered by score, then leftmost.
struct Pair {
    score: f32,
    left: Reverse<usize>,
    right: usize,
    /// Bytes of the merged piece, to detect pairs that changed after they were queued.
    size: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(self.left.cmp(&other.left))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

struct Merger<'a> {
    model: &'a Model,
    text: &'a str,
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Pair>,
    /// For unused pieces, the length of the left part that they were merged from.
    made_of: HashMap<&'a str, usize>,
}

// Indices in `symbols` and offsets in `text` come only from the code below, never from a file: they are in range.
impl<'a> Merger<'a> {
    fn new(model: &'a Model, text: &'a str) -> Self {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut start = 0;
        while let Some(first) = text[start..].chars().next() {
            let symbol = model.symbols.longest(&text[start..]);
            let end = start + symbol.unwrap_or(first.len_utf8());
            let index = symbols.len();
            symbols.push(Symbol {
                start,
                end,
                previous: index.checked_sub(1),
                next: (end < text.len()).then_some(index + 1),
                frozen: symbol.is_some(),
            });
            start = end;
        }
        let mut merger = Self { model, text, symbols, agenda: BinaryHeap::new(), made_of: HashMap::new() };
        for right in 1..merger.symbols.len() {
            merger.queue(Some(right - 1), Some(right));
        }
        merger
    }

    fn queue(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (a, b) = (&self.symbols[left], &self.symbols[right]);
        if a.frozen || b.frozen {
            return;
        }
        let piece = &self.text[a.start..b.end];
        let Some(&id) = self.model.mergeable.get(piece) else { return };
        let Some(entry) = self.model.pieces.get(id as usize) else { return };
        self.agenda.push(Pair { score: entry.score, left: Reverse(left), right, size: piece.len() });
        if entry.kind == PieceKind::Unused {
            self.made_of.insert(piece, a.end - a.start);
        }
    }

    fn run(&mut self) {
        while let Some(Pair { left: Reverse(left), right, size, .. }) = self.agenda.pop() {
            let (a, b) = (&self.symbols[left], &self.symbols[right]);
            let stale = a.start == a.end || b.start == b.end || (a.end - a.start) + (b.end - b.start) != size;
            if stale {
                continue;
            }
            let (end, next) = (b.end, b.next);
            self.symbols[left].end = end;
            self.symbols[left].next = next;
            self.symbols[right].end = self.symbols[right].start;
            if let Some(next) = next {
                self.symbols[next].previous = Some(left);
            }
            self.queue(self.symbols[left].previous, Some(left));
            self.queue(Some(left), next);
        }
    }

    /// The remaining pieces, with unused ones split.
    fn into_pieces(self) -> Vec<(&'a str, u32)> {
        let mut pieces = Vec::new();
        let mut stack = Vec::new();
        for symbol in self.symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            stack.push(&self.text[symbol.start..symbol.end]);
            while let Some(piece) = stack.pop() {
                let id = self.model.id(piece).unwrap_or(self.model.unknown);
                let unused = self.model.pieces.get(id as usize).is_some_and(|entry| entry.kind == PieceKind::Unused);
                match self.made_of.get(piece) {
                    Some(&length) if unused => {
                        let (left, right) = piece.split_at(length);
                        stack.push(right);
                        stack.push(left);
                    }
                    _ => pieces.push((piece, id)),
                }
            }
        }
        pieces
    }
}

/// The user-defined symbols, to find the longest at the start of a text.
#[derive(Debug, Clone, Default)]
struct UserSymbols {
    /// By first byte: the lengths, longest first, and the symbols.
    by_first: HashMap<u8, (Vec<usize>, std::collections::HashSet<String>)>,
}

impl UserSymbols {
    fn insert(&mut self, symbol: &str) {
        let Some(&first) = symbol.as_bytes().first() else { return };
        let (lengths, symbols) = self.by_first.entry(first).or_default();
        if let Err(place) = lengths.binary_search_by(|length| symbol.len().cmp(length)) {
            lengths.insert(place, symbol.len());
        }
        symbols.insert(symbol.to_owned());
    }

    fn remove(&mut self, symbol: &str) {
        let entry = symbol.as_bytes().first().and_then(|first| self.by_first.get_mut(first));
        if let Some((_, symbols)) = entry {
            symbols.remove(symbol);
        }
    }

    /// Bytes of the longest symbol at the start of `text`.
    fn longest(&self, text: &str) -> Option<usize> {
        let (lengths, symbols) = self.by_first.get(text.as_bytes().first()?)?;
        lengths.iter().copied().find(|&length| text.get(..length).is_some_and(|start| symbols.contains(start)))
    }
}

/// The fields in use, with protobuf's defaults.
struct Proto {
    /// Pieces with their offsets, for messages.
    pieces: Vec<(Piece, u64)>,
    model_type: u64,
    byte_fallback: bool,
    bos: i64,
    eos: i64,
    unknown_surface: String,
    normalizer_name: String,
    charsmap: bool,
    normalizer: Normalizer,
}

impl Default for Proto {
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            model_type: 1,
            byte_fallback: false,
            bos: 1,
            eos: 2,
            unknown_surface: " \u{2047} ".to_owned(),
            normalizer_name: String::new(),
            charsmap: false,
            normalizer: Normalizer {
                add_dummy_prefix: true,
                remove_extra_whitespaces: true,
                escape_whitespaces: true,
                space_as_suffix: false,
            },
        }
    }
}

impl Proto {
    fn parse(file: &[u8]) -> Result<Self> {
        let mut proto = Self::default();
        let mut message = Message { bytes: file, offset: 0 };
        while let Some(field) = message.field()? {
            match field.number {
                1 => {
                    let piece = read_piece(field.message()?, field.offset)?;
                    if proto.pieces.len() >= MAX_PIECES {
                        return Err(malformed(field.offset, format!("more than {MAX_PIECES} pieces")));
                    }
                    proto.pieces.push((piece, field.offset));
                }
                2 => proto.read_trainer(field.message()?)?,
                3 => proto.read_normalizer(field.message()?)?,
                _ => {}
            }
        }
        for (piece, offset) in &proto.pieces {
            if matches!(piece.kind, PieceKind::Byte(_)) && !proto.byte_fallback {
                return Err(malformed(*offset, format!("byte piece {:?} without byte_fallback", piece.text)));
            }
        }
        Ok(proto)
    }

    fn read_trainer(&mut self, mut message: Message<'_>) -> Result<()> {
        while let Some(field) = message.field()? {
            match field.number {
                3 => self.model_type = field.integer()?,
                24 => self.normalizer.space_as_suffix = field.integer()? != 0,
                35 => self.byte_fallback = field.integer()? != 0,
                // Negative numbers are stored as their 64-bit two's complement.
                41 => self.bos = field.integer()? as i64,
                42 => self.eos = field.integer()? as i64,
                44 => self.unknown_surface = field.string()?.to_owned(),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, mut message: Message<'_>) -> Result<()> {
        while let Some(field) = message.field()? {
            match field.number {
                1 => self.normalizer_name = field.string()?.to_owned(),
                2 => self.charsmap = !field.message()?.bytes.is_empty(),
                3 => self.normalizer.add_dummy_prefix = field.integer()? != 0,
                4 => self.normalizer.remove_extra_whitespaces = field.integer()? != 0,
                5 => self.normalizer.escape_whitespaces = field.integer()? != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

fn read_piece(mut message: Message<'_>, offset: u64) -> Result<Piece> {
    let (mut text, mut score, mut kind) = (String::new(), 0.0, 1);
    while let Some(field) = message.field()? {
        match field.number {
            1 => text = field.string()?.to_owned(),
            // Adding zero changes -0.0 to 0.0: scores are compared by `total_cmp`.
            2 => score = field.float()? + 0.0,
            3 => kind = field.integer()?,
            _ => {}
        }
    }
    if text.is_empty() {
        return Err(malformed(offset, "a piece without text".to_owned()));
    }
    let kind = match kind {
        1 => PieceKind::Normal,
        2 => PieceKind::Unknown,
        3 => PieceKind::Control,
        4 => PieceKind::UserDefined,
        5 => PieceKind::Unused,
        6 => PieceKind::Byte(
            byte_of(&text).ok_or_else(|| malformed(offset, format!("{text:?} is not a byte piece such as <0x0A>")))?,
        ),
        other => return Err(malformed(offset, format!("piece {text:?} has type {other}, expected 1 to 6"))),
    };
    Ok(Piece { text, score, kind })
}

/// The byte of a piece such as `<0x0A>`.
fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper_hex = digits.len() == 2 && digits.bytes().all(|c| c.is_ascii_digit() || (b'A'..=b'F').contains(&c));
    if upper_hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn malformed(offset: u64, reason: String) -> Error {
    Error::Malformed { file: FILE.to_owned(), offset, reason }
}

/// A protobuf message being read.
struct Message<'a> {
    bytes: &'a [u8],
    /// Offset of `bytes` in the file.
    offset: u64,
}

enum Value<'a> {
    Integer(u64),
    Float(f32),
    Double,
    Bytes(&'a [u8]),
}

struct Field<'a> {
    number: u64,
    value: Value<'a>,
    /// Offset of the value in the file.
    offset: u64,
}

impl<'a> Message<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.bytes.split_at_checked(length) else {
            let left = self.bytes.len();
            return Err(malformed(
                self.offset,
                format!("{length} bytes expected, {left} remain: the file is truncated"),
            ));
        };
        self.bytes = rest;
        self.offset += length as u64;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let start = self.offset;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let &[byte] = self.take(1)? else { break };
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed(start, "a number of more than ten bytes: this is not a SentencePiece model".to_owned()))
    }

    fn field(&mut self) -> Result<Option<Field<'a>>> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let start = self.offset;
        let key = self.varint()?;
        let (number, wire) = (key >> 3, key & 7);
        if number == 0 {
            return Err(malformed(start, "field number 0: this is not a SentencePiece model".to_owned()));
        }
        let mut offset = self.offset;
        let value = match wire {
            0 => Value::Integer(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Double
            }
            2 => {
                let length = self.varint()?;
                offset = self.offset;
                // A length beyond the address space is beyond the file too: `take` fails.
                Value::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => match self.take(4)? {
                &[a, b, c, d] => Value::Float(f32::from_le_bytes([a, b, c, d])),
                _ => return Err(malformed(start, "a float needs four bytes".to_owned())),
            },
            other => {
                return Err(malformed(start, format!("wire type {other}: this is not a SentencePiece model")));
            }
        };
        Ok(Some(Field { number, value, offset }))
    }
}

impl<'a> Field<'a> {
    fn wrong(&self, expected: &str) -> Error {
        let found = match self.value {
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Double => "a double",
            Value::Bytes(_) => "bytes",
        };
        malformed(self.offset, format!("field {} holds {found}, expected {expected}", self.number))
    }

    fn integer(&self) -> Result<u64> {
        match self.value {
            Value::Integer(value) => Ok(value),
            _ => Err(self.wrong("an integer")),
        }
    }

    fn float(&self) -> Result<f32> {
        match self.value {
            Value::Float(value) if value.is_nan() => Err(malformed(self.offset, "the score is NaN".to_owned())),
            Value::Float(value) => Ok(value),
            _ => Err(self.wrong("a float")),
        }
    }

    fn message(&self) -> Result<Message<'a>> {
        match self.value {
            Value::Bytes(bytes) => Ok(Message { bytes, offset: self.offset }),
            _ => Err(self.wrong("bytes")),
        }
    }

    fn string(&self) -> Result<&'a str> {
        std::str::from_utf8(self.message()?.bytes).map_err(|error| {
            malformed(self.offset + error.valid_up_to() as u64, format!("field {} is not UTF-8", self.number))
        })
    }
}
