//! The pickle inside a torch file, read without executing anything.
//!
//! A pickle is a program for a small stack machine. This machine has the opcodes that a state dict needs and calls only
//! the functions with which torch and Python rebuild tensors and ordered dictionaries. It refuses anything else by
//! name. Values live in an arena and refer to each other by index, so that cycles and deep nesting are cheap. Each
//! opcode creates at most one value, so that memory is bounded by the length of the pickle; copies out of the arena,
//! which a memo could multiply, are counted.
//!
//! Not `serde-pickle`: it has no persistent ids, with which torch refers to storages, and no functions.
//!
//! Opcodes: Python's `pickletools`. What torch writes: `torch/serialization.py`, `torch/_utils.py`.

use std::collections::HashMap;

use super::dtype::Dtype;

/// Largest pickle that is read. Real checkpoints take about 100 bytes per tensor.
pub const MAX_LENGTH: u64 = 8 << 20;

/// Most values on the stack.
const MAX_STACK: usize = 1 << 20;

/// Most dimensions of a tensor (torch's own limit).
const MAX_RANK: usize = 64;

/// Most values or letters copied while reading: 16 times what the longest pickle can contain without its memo.
const MAX_COPIED: usize = 16 << 20;

/// A tensor of the pickle: a view of a storage.
#[derive(Debug, Clone, PartialEq)]
pub struct PickledTensor {
    /// Its key in the state dict.
    pub name: String,
    /// Element type of the storage.
    pub dtype: Dtype,
    /// The storage's name in the archive.
    pub storage: String,
    /// The storage's length in elements.
    pub storage_length: u64,
    /// Offset of the first element in the storage, in elements.
    pub offset: u64,
    /// Sizes of the dimensions.
    pub shape: Vec<u64>,
    /// Strides of the dimensions, in elements.
    pub stride: Vec<u64>,
}

/// The tensors of a pickled state dict, in its order. Other values are skipped. The state dict may be nested under the
/// key `state_dict`, as training scripts save it.
///
/// # Errors
/// The offset of the faulty opcode, and the reason.
pub fn read_state_dict(bytes: &[u8]) -> Result<Vec<PickledTensor>, (u64, String)> {
    let mut machine = Machine { bytes, ..Machine::default() };
    let root = loop {
        let at = machine.position;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => break root,
            Err(reason) => return Err((at as u64, reason)),
        }
    };
    machine.state_dict(root).map_err(|reason| (0, reason))
}

/// A value: small ones inline, others as an index into the machine's arena.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Bytes,
    /// Start and end in the pickle, checked to be UTF-8.
    Text(usize, usize),
    List(usize),
    /// Index among the lists too: a tuple is a list that nothing appends to.
    Tuple(usize),
    Dict(usize),
    Function(Function),
    StorageClass(Dtype),
    Storage(usize),
    Tensor(usize),
}

/// The functions that may be called.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
}

#[derive(Debug, Clone)]
struct Storage {
    dtype: Dtype,
    key: String,
    length: u64,
}

#[derive(Debug, Clone)]
struct Tensor {
    storage: usize,
    offset: u64,
    shape: Vec<u64>,
    stride: Vec<u64>,
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    stack: Vec<Value>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<Tensor>,
    /// Copied so far, see [`MAX_COPIED`].
    copied: usize,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// Runs one opcode; returns the value at a STOP.
    fn step(&mut self) -> Step<Option<Value>> {
        let [opcode] = self.array()?;
        match opcode {
            // PROTO, FRAME
            0x80 => match self.array()? {
                [2..=5] => {}
                [protocol] => return Err(format!("pickle protocol {protocol}, supported: 2 to 5")),
            },
            0x95 => self.take(8).map(drop)?,
            // MARK, POP, POP_MARK, DUP
            b'(' => {
                self.marks.push(self.stack.len());
                self.check_stack()?;
            }
            b'0' => self.pop().map(drop)?,
            b'1' => self.pop_mark().map(drop)?,
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            // NONE, NEWTRUE, NEWFALSE, numbers
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool)?,
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            b'K' => {
                let [value] = self.array()?;
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            0x8a => {
                let value = self.long()?;
                self.push(value)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Float)?;
            }
            // SHORT_BINUNICODE, BINUNICODE; SHORT_BINSTRING, BINSTRING (Python 2); SHORT_BINBYTES, BINBYTES
            0x8c | b'U' => {
                let [length] = self.array()?;
                self.text(length.into())?;
            }
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.array()?);
                self.text(length as usize)?;
            }
            b'C' => {
                let [length] = self.array()?;
                self.take(length.into())?;
                self.push(Value::Bytes)?;
            }
            b'B' => {
                let length = u32::from_le_bytes(self.array()?);
                self.take(length as usize)?;
                self.push(Value::Bytes)?;
            }
            // EMPTY_TUPLE, TUPLE1 to TUPLE3, TUPLE
            b')' => self.tuple(Vec::new())?,
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(count).filter(|start| *start >= self.floor());
                let items = self.stack.split_off(start.ok_or("the stack is empty")?);
                self.tuple(items)?;
            }
            b't' => {
                let items = self.pop_mark()?;
                self.tuple(items)?;
            }
            // EMPTY_LIST, APPEND, APPENDS
            b']' => {
                self.lists.push(Vec::new());
                self.push(Value::List(self.lists.len() - 1))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            // EMPTY_DICT, SETITEM, SETITEMS
            b'}' => {
                self.dicts.push(Vec::new());
                self.push(Value::Dict(self.dicts.len() - 1))?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(items)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let [slot] = self.array()?;
                self.remember(slot.into())?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.array()?);
                self.remember(slot)?;
            }
            0x94 => {
                let slot = u32::try_from(self.memo.len()).map_err(|_| "the memo is full")?;
                self.remember(slot)?;
            }
            b'h' => {
                let [slot] = self.array()?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.array()?);
                self.recall(slot)?;
            }
            // GLOBAL, STACK_GLOBAL, REDUCE, BUILD, BINPERSID
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.as_text(module), self.as_text(name)) else {
                    return Err("a global is named by something other than text".to_owned());
                };
                self.global(module, name)?;
            }
            b'R' => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                let value = self.call(function, arguments)?;
                self.push(value)?;
            }
            b'b' => {
                // Attributes of an ordered dictionary (torch stores version numbers there) are ignored.
                self.pop()?;
                if !matches!(self.top()?, Value::Dict(_)) {
                    return Err("refused: this pickle sets the state of an object other than a dict".to_owned());
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id).ok_or("a persistent id does not describe a torch storage")?;
                self.spend(storage.key.len())?;
                self.storages.push(storage);
                self.push(Value::Storage(self.storages.len() - 1))?;
            }
            // STOP
            b'.' => return self.pop().map(Some),
            other => {
                return Err(format!(
                    "refused: pickle opcode {other:#04x} ({:?}) has no place in a state dict; save it again as safetensors",
                    char::from(other)
                ));
            }
        }
        Ok(None)
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let end = self.position.checked_add(length).filter(|end| *end <= self.bytes.len());
        let taken = end.and_then(|end| self.bytes.get(self.position..end)).ok_or("the pickle ends too early")?;
        self.position += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "the pickle ends too early".to_owned())
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let length = rest.iter().take(1024).position(|byte| *byte == b'\n').ok_or("a name has no end")?;
        let line = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| "a name is not UTF-8".to_owned())
    }

    fn long(&mut self) -> Step<Value> {
        let [length] = self.array()?;
        let bytes = self.take(length.into())?;
        let mut value = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { [0xff; 8] } else { [0; 8] };
        value.get_mut(..bytes.len()).ok_or("an integer of more than 64 bits")?.copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(value)))
    }

    fn text(&mut self, length: usize) -> Step<()> {
        let start = self.position;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")?;
        self.push(Value::Text(start, self.position))
    }

    fn as_text(&self, value: Value) -> Option<&'a str> {
        let Value::Text(start, end) = value else { return None };
        std::str::from_utf8(self.bytes.get(start..end)?).ok()
    }

    fn check_stack(&self) -> Step<()> {
        if self.stack.len() > MAX_STACK || self.marks.len() > MAX_STACK {
            return Err(format!("the stack grows beyond {MAX_STACK} values"));
        }
        Ok(())
    }

    fn push(&mut self, value: Value) -> Step<()> {
        self.stack.push(value);
        self.check_stack()
    }

    /// Values below the last mark cannot be popped one by one.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Value> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn top(&self) -> Step<Value> {
        self.stack
            .get(self.floor()..)
            .and_then(|top| top.last())
            .copied()
            .ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len()).ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, items: Vec<Value>) -> Step<()> {
        self.lists.push(items);
        self.push(Value::Tuple(self.lists.len() - 1))
    }

    fn append(&mut self, items: Vec<Value>) -> Step<()> {
        let Value::List(list) = self.top()? else {
            return Err("items are appended to something other than a list".to_owned());
        };
        self.lists.get_mut(list).ok_or("no such list")?.extend(items);
        Ok(())
    }

    fn set(&mut self, items: Vec<Value>) -> Step<()> {
        let Value::Dict(dict) = self.top()? else {
            return Err("items are set in something other than a dict".to_owned());
        };
        let dict = self.dicts.get_mut(dict).ok_or("no such dict")?;
        let pairs = items.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err("a dict gets a key without a value".to_owned());
        }
        dict.extend(pairs.filter_map(|pair| if let [key, value] = pair { Some((*key, *value)) } else { None }));
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Step<()> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Step<()> {
        let value = *self.memo.get(&slot).ok_or_else(|| format!("nothing was put in slot {slot} of the memo"))?;
        self.push(value)
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        let value = match (module, name) {
            ("collections", "OrderedDict") => Value::Function(Function::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Value::Function(Function::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Value::Function(Function::RebuildParameter),
            ("torch", class) if Dtype::from_torch_storage(class).is_some() => {
                Value::StorageClass(Dtype::from_torch_storage(class).ok_or("no such storage")?)
            }
            _ => {
                return Err(format!(
                    "refused: this pickle wants to call {module}.{name}, and a state dict needs only tensors and \
                     dictionaries; save it again as safetensors if you trust it"
                ));
            }
        };
        self.push(value)
    }

    /// Counts what is copied, so that a memo cannot make much out of little.
    fn spend(&mut self, amount: usize) -> Step<()> {
        self.copied = self.copied.saturating_add(amount);
        if self.copied > MAX_COPIED {
            return Err(REPETITIVE.to_owned());
        }
        Ok(())
    }

    fn items(&self, value: Value) -> Option<&[Value]> {
        let (Value::Tuple(list) | Value::List(list)) = value else { return None };
        self.lists.get(list).map(Vec::as_slice)
    }

    fn call(&mut self, function: Value, arguments: Value) -> Step<Value> {
        let Value::Function(function) = function else {
            return Err("refused: this pickle wants to call something that is not a function".to_owned());
        };
        let arguments = self.items(arguments).ok_or("a function is called without a tuple of arguments")?;
        match (function, arguments) {
            (Function::OrderedDict, []) => self.dict(Vec::new()),
            (Function::OrderedDict, [pairs]) => {
                let pairs = self.items(*pairs).ok_or("an OrderedDict is made of something other than a list")?;
                let count = pairs.len();
                let pair = |pair: &Value| match self.items(*pair) {
                    Some([key, value]) => Ok((*key, *value)),
                    _ => Err("an OrderedDict is made of something other than pairs"),
                };
                let pairs = pairs.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
                self.spend(count)?;
                self.dict(pairs)
            }
            (Function::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(*tensor),
            (Function::RebuildTensor, [Value::Storage(storage), Value::Int(offset), shape, stride, ..]) => {
                let (storage, offset) = (*storage, u64::try_from(*offset).ok());
                match (offset, self.sizes(*shape), self.sizes(*stride)) {
                    (Some(offset), Some(shape), Some(stride)) if shape.len() == stride.len() => {
                        self.spend(shape.len() + stride.len())?;
                        self.tensors.push(Tensor { storage, offset, shape, stride });
                        Ok(Value::Tensor(self.tensors.len() - 1))
                    }
                    _ => Err("a tensor has an impossible offset, shape or stride".to_owned()),
                }
            }
            _ => Err(format!("{function:?} is called with arguments that make no sense")),
        }
    }

    fn dict(&mut self, pairs: Vec<(Value, Value)>) -> Step<Value> {
        self.dicts.push(pairs);
        Ok(Value::Dict(self.dicts.len() - 1))
    }

    fn sizes(&self, value: Value) -> Option<Vec<u64>> {
        let size = |item: &Value| if let Value::Int(size) = item { u64::try_from(*size).ok() } else { None };
        self.items(value).filter(|items| items.len() <= MAX_RANK)?.iter().map(size).collect()
    }

    /// The storage that a persistent id `("storage", class, key, device, length)` stands for.
    fn storage(&self, id: Value) -> Option<Storage> {
        let [kind, Value::StorageClass(dtype), key, _device, Value::Int(length), ..] = self.items(id)? else {
            return None;
        };
        (self.as_text(*kind)? == "storage").then_some(())?;
        Some(Storage { dtype: *dtype, key: self.as_text(*key)?.to_owned(), length: u64::try_from(*length).ok()? })
    }

    fn state_dict(&mut self, root: Value) -> Step<Vec<PickledTensor>> {
        let dict = |value| if let Value::Dict(dict) = value { self.dicts.get(dict) } else { None };
        let root = dict(root).ok_or("the pickle holds something other than a dict of tensors")?;
        let nested = root.iter().rev().find(|(key, _)| self.as_text(*key) == Some("state_dict"));
        let root = nested.and_then(|(_, value)| dict(*value)).unwrap_or(root);
        let mut tensors = Vec::new();
        let mut copied = self.copied;
        for (key, value) in root {
            let (Value::Tensor(tensor), Some(name)) = (*value, self.as_text(*key)) else { continue };
            let tensor = self.tensors.get(tensor).ok_or("no such tensor")?;
            let storage = self.storages.get(tensor.storage).ok_or("no such storage")?;
            copied = copied.saturating_add(name.len() + storage.key.len() + 2 * tensor.shape.len());
            if copied > MAX_COPIED {
                return Err(REPETITIVE.to_owned());
            }
            tensors.push(PickledTensor {
                name: name.to_owned(),
                dtype: storage.dtype,
                storage: storage.key.clone(),
                storage_length: storage.length,
                offset: tensor.offset,
                shape: tensor.shape.clone(),
                stride: tensor.stride.clone(),
            });
        }
        Ok(tensors)
    }
}

const REPETITIVE: &str = "the pickle repeats itself beyond reason";

#[cfg(test)]
mod tests {
    use super::*;

    /// What torch writes for `{"w": a float32 tensor of shape [2, 3]}`, with the value of `w` to be given.
    fn state_dict(value: &[u8]) -> Vec<u8> {
        [b"\x80\x02}X\x01\0\0\0w".as_slice(), value, b"s."].concat()
    }

    const STORAGE: &[u8] = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";
    const REBUILD: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n(";
    const REST: &[u8] = b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtR";

    fn tensor() -> Vec<u8> {
        [REBUILD, STORAGE, REST].concat()
    }

    #[test]
    fn a_state_dict_is_read_nested_or_not() {
        let expected = PickledTensor {
            name: "w".into(),
            dtype: Dtype::F32,
            storage: "0".into(),
            storage_length: 6,
            offset: 0,
            shape: vec![2, 3],
            stride: vec![3, 1],
        };
        let plain = state_dict(&tensor());
        assert_eq!(read_state_dict(&plain).unwrap(), std::slice::from_ref(&expected));
        let nested = [b"\x80\x02}X\x0a\0\0\0state_dict".as_slice(), &plain[2..plain.len() - 1], b"s."].concat();
        assert_eq!(read_state_dict(&nested).unwrap(), std::slice::from_ref(&expected));
        let parameter = [b"ctorch._utils\n_rebuild_parameter\n".as_slice(), &tensor(), b"\x89)\x87R"].concat();
        assert_eq!(read_state_dict(&state_dict(&parameter)).unwrap(), [expected]);
        assert_eq!(read_state_dict(&state_dict(b"K\x05")).unwrap(), []);
    }

    #[test]
    fn anything_that_would_run_is_refused_by_name() {
        let cases = [
            (b"cos\nsystem\nX\x04\0\0\0echo\x85R.".as_slice(), "wants to call os.system"),
            (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.", "wants to call posix.system"),
            (b"\x80\x02cbuiltins\neval\n.", "wants to call builtins.eval"),
            (b"\x80\x02ctorch\nload\n.", "wants to call torch.load"),
            (b"\x80\x02ctorch\nEvilStorage\n.", "wants to call torch.EvilStorage"),
            (b"(S'id'\nios\nsystem\n.", "opcode 0x53"),
            (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode 0x81"),
            (b"\x80\x02(ios\nsystem\n.", "opcode 0x69"),
            (b"\x80\x02K\x01)R.", "not a function"),
            (b"\x80\x02K\x01}b.", "sets the state"),
        ];
        for (bytes, reason) in cases {
            let (_, message) = read_state_dict(bytes).unwrap_err();
            assert!(message.contains("refused") && message.contains(reason), "{message:?} lacks {reason:?}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let cases = [
            (b"".as_slice(), "ends too early"),
            (b".", "stack is empty"),
            (b"\x80\x09", "protocol 9"),
            (b"\x80\x02K\x01.", "something other than a dict"),
            (b"}t", "no mark"),
            (b"}(0", "stack is empty"),
            (b"}(K\x01u.", "without a value"),
            (b"h\x07", "slot 7"),
            (b"X\xff\xff\xff\xffabc", "ends too early"),
            (b"X\x01\0\0\0\xff", "not UTF-8"),
            (b"\x8a\x09\0\0\0\0\0\0\0\0\x01", "more than 64 bits"),
            (b"ctorch", "no end"),
            (b"K\x01Q", "persistent id"),
            (b"K\x01K\x02a", "other than a list"),
            (b"K\x01K\x02K\x03s", "other than a dict"),
        ];
        for (bytes, reason) in cases {
            let (_, message) = read_state_dict(bytes).unwrap_err();
            assert!(message.contains(reason), "{message:?} lacks {reason:?}");
        }
        let negative = [REBUILD, STORAGE, b"J\xff\xff\xff\xff)))tR"].concat();
        assert!(read_state_dict(&state_dict(&negative)).unwrap_err().1.contains("impossible"));
        let rank = [REBUILD, STORAGE, b"K\0K\x02\x85)tR"].concat();
        assert!(read_state_dict(&state_dict(&rank)).unwrap_err().1.contains("impossible"));
    }

    #[test]
    fn cycles_depth_and_repetition_are_harmless() {
        // A dict that holds itself; a million tuples one in another; a memo slot far away.
        assert_eq!(read_state_dict(b"\x80\x02}q\0X\x01\0\0\0wh\0s.").unwrap(), []);
        let deep = [b"}X\x01\0\0\0w)".as_slice(), &vec![0x85; 1_000_000], b"s."].concat();
        assert_eq!(read_state_dict(&deep).unwrap(), []);
        assert_eq!(read_state_dict(b"}r\xff\xff\xff\xff.").unwrap(), []);
        let stack = vec![b'N'; 2_000_000];
        assert!(read_state_dict(&stack).unwrap_err().1.contains("stack grows"));
        let marks = vec![b'('; 2_000_000];
        assert!(read_state_dict(&marks).unwrap_err().1.contains("stack grows"));
        // One list of a thousand pairs, made into a dict a hundred thousand times.
        let pairs = [b"](".as_slice(), &b"NN\x86".repeat(1000), b"e\x85q\0"].concat();
        let many = [pairs, b"ccollections\nOrderedDict\nq\x010".to_vec(), b"h\x01h\0R0".repeat(100_000)].concat();
        assert!(read_state_dict(&many).unwrap_err().1.contains("beyond reason"));
        // One tensor under one long name, a million times over.
        let name = [b"X\0\0\x10\0".as_slice(), &vec![b'n'; 1 << 20], b"q\x020"].concat();
        let many =
            [name, tensor(), b"q\x030".to_vec(), b"}".to_vec(), b"h\x02h\x03s".repeat(1000), b".".to_vec()].concat();
        assert!(read_state_dict(&many).unwrap_err().1.contains("beyond reason"));
    }
}
