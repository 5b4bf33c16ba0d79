//! GGUF files: blocks against the gguf package's values, and small models against transformers on the dequantised
//! weights (tests/reference/make_gguf.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use half::f16;
use mgm::Setting;
use mgm::io::{DiskFile, DiskFolder, MemorySource};
use mgm::language::{LanguageModel, Position, TokenGenerator};
use mgm::loader::Loader;
use mgm::ops::Sampling;
use mgm::session::LoadOptions;
use mgm::session::{AnswerOptions, Model};
use mgm::tensor::{Precision, dequantize};
use mgm::text::conversation::Template;
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::blocks::BlockType;
use mgm::weights::dtype::{Dtype, decode_f32};
use mgm::weights::gguf::{Array, Header, Value};
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::{MgmCheckpoint, TowerOptions};
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::common;

fn data(name: &str) -> PathBuf {
    mgm_test_support::data("gguf").join(name)
}

fn open(path: &Path) -> GgufModel {
    let file = DiskFile::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    pollster::block_on(GgufModel::open(Rc::new(file))).unwrap_or_else(|error| panic!("{error}"))
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(file.tensor(name).expect(name).data())
}

#[test]
fn blocks_stand_for_the_values_that_the_gguf_package_gives() {
    let bytes = std::fs::read(data("expected.safetensors")).expect("expected values");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    for kind in BlockType::ALL {
        let blocks = file.tensor(&format!("{}.blocks", kind.name())).expect("blocks").data();
        let expected = floats(&file, &format!("{}.values", kind.name()));
        let mut values = Vec::new();
        assert!(decode_f32(Dtype::Block(kind), blocks, &mut values));
        // And through the device's format, which must lose nothing.
        let packed = kind.repack(blocks).expect("finite scales");
        let columns = expected.len() / 3;
        let repacked = dequantize(kind.precision(), columns, &packed);
        assert_eq!(values.len(), expected.len(), "{}", kind.name());
        for (index, expected) in expected.iter().enumerate() {
            // Products and sums of numbers that f32 holds exactly, rounded once or twice.
            let error = (values[index] - expected).abs();
            assert!(
                error <= expected.abs().max(1.0) * 2.4e-7,
                "{} at {index}: {} {expected}",
                kind.name(),
                values[index]
            );
            assert_eq!(values[index], repacked[index], "{} at {index}, repacked", kind.name());
        }
    }
}

#[derive(Deserialize)]
struct Expected {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_slice(&std::fs::read(data("expected.json")).expect("expected ids")).expect("JSON")
}

/// f32 arithmetic in another order than torch's; the goldens' bound.
const BOUND: f32 = 2e-4;

#[test]
fn small_models_give_the_logits_and_tokens_of_transformers() {
    let bytes = std::fs::read(data("expected.safetensors")).expect("expected values");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let gpu = common::open_gpu();
    for (name, case) in expected() {
        let model = open(&data(&format!("{name}.gguf")));
        // Keys and values in f32, so that the weights alone are what is rounded.
        let loader = Loader::new(&gpu, model.weights.clone(), Precision::F32, None).keep_quantization();
        pollster::block_on(async {
            let language = LanguageModel::load(&loader, &model.config).await.expect("a model");
            let positions: Vec<_> = case.prompt.iter().map(|id| Position::Text(*id)).collect();
            let mut cache = language.cache();
            let mut recorder = gpu.record();
            let x = language.embed(&mut recorder, &positions, &[]).expect("embeddings");
            let x = language.forward(&mut recorder, &x, &mut cache).expect("a pass");
            let logits = language.logits(&mut recorder, &x).expect("logits").read_back(&mut recorder);
            recorder.submit().expect("a submission");
            let logits: Vec<f32> = logits.values().await.expect("logits");
            let expected = floats(&file, &format!("{name}.logits"));
            let scale = expected.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
            let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max);
            println!("{name}: largest difference of a logit {worst:.1e} of {scale:.2}");
            assert_eq!(logits.len(), expected.len(), "{name}");
            assert!(worst <= BOUND, "{name}: {worst:.1e} of the scale {scale}");

            let end = x.slice_rows(x.rows() - 1..x.rows());
            let room = case.greedy.len();
            let mut generator = TokenGenerator::new(&language, &gpu, &mut cache, end, room, Sampling::GREEDY, || 0.0)
                .expect("a generator");
            let mut ids = Vec::new();
            while let Some(id) = generator.next().await.expect("a token") {
                ids.push(id);
            }
            assert_eq!(ids, case.greedy, "{name}");
        });
    }
}

#[test]
fn tokenizers_and_templates_come_from_the_file() {
    let llama = open(&data("llama.gguf"));
    let tokenizer = Tokenizer::from_gguf(&llama.header).expect("a tokenizer");
    let ids = tokenizer.encode("<|im_start|>the at 42é<|im_end|>").expect("ids");
    // By hand: specials, the merged words, digits one by one, the two bytes of é.
    let id = |token: &str| tokenizer.token_id(token).expect(token);
    assert_eq!(ids, [1, id("t"), id("he"), id("Ġa"), id("t"), id("Ġ"), id("4"), id("2"), id("Ã"), id("©"), 2]);
    assert_eq!(tokenizer.decode(&ids, true), "the at 42é");

    let gpu = common::open_gpu();
    let options = LoadOptions::new(Precision::F16).with_keep_quantization(true);
    for name in ["llama", "mixtral", "gemma"] {
        let file = open(&data(&format!("{name}.gguf")));
        let model = Rc::new(pollster::block_on(Model::load_gguf(&gpu, &file, &options)).expect("a model"));
        let mut chat = model.chat();
        let answer_options = AnswerOptions::default().with_max_new_tokens(6);
        for turn in 0..2 {
            let question = "is the hot water on?";
            let answer = pollster::block_on(chat.ask(question).options(&answer_options)).expect("an answer");
            assert!(!answer.token_ids.is_empty() && answer.token_ids.len() <= 6, "{name}");
            assert!(turn == 0 || answer.cached_tokens > 0, "{name}: the second turn keeps nothing of the first");
        }
        let bos = model.tokenizer().bos().expect("a beginning token");
        let prompt = chat.conversation().prompt().expect("a prompt");
        let ids = model.tokenizer().encode_prompt(&prompt).expect("ids");
        let text = |token: &mgm::text::PromptToken| matches!(token, mgm::text::PromptToken::Text(id) if *id == bos);
        let leading = ids.iter().take_while(|token| text(token)).count();
        assert_eq!(leading, 1, "{name}: a prompt begins with one beginning token");
    }
}

#[test]
fn a_file_without_a_template_needs_one_from_the_caller() {
    let mut file = open(&data("llama.gguf"));
    let mut header = Header::clone(&file.header);
    header.metadata.remove("tokenizer.chat_template").expect("a template");
    file.header = Rc::new(header);
    let gpu = common::open_gpu();
    let options = LoadOptions::new(Precision::F16);
    let error = pollster::block_on(Model::load_gguf(&gpu, &file, &options)).expect_err("no template");
    assert_eq!(error.remedy(), Some(Setting::Template), "{error}");
    let options = options.with_template(Template::Llama3);
    pollster::block_on(Model::load_gguf(&gpu, &file, &options)).expect("a model");
}

/// A merge that makes no token: one shorter than the longest token, and one longer than all.
#[test]
fn merges_that_make_no_token_are_refused() {
    for (long, reason) in [("the", "`ab` out of vocabulary"), ("x", "a merge has 2 bytes, but the longest token has 1")]
    {
        let texts = |texts: &[&str]| Value::Array(Array::Texts(texts.iter().copied().collect()));
        let header = Header {
            file: "bad.gguf".to_owned(),
            metadata: [
                ("tokenizer.ggml.model", Value::Text("gpt2".to_owned())),
                ("tokenizer.ggml.tokens", texts(&["a", "b", long])),
                ("tokenizer.ggml.merges", texts(&["a b"])),
            ]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
            tensors: Vec::new(),
        };
        let error = Tokenizer::from_gguf(&header).expect_err("a merge without a token").to_string();
        assert!(error.contains("bad.gguf") && error.contains(reason), "{error}");
    }
}

#[derive(Deserialize)]
struct Cuts {
    texts: Vec<String>,
    /// For each value of `tokenizer.ggml.pre` ("" where there is none) the ids of every text.
    ids: BTreeMap<String, Vec<Vec<u32>>>,
}

/// Ids of llama.cpp (tests/reference/make_bpe.mjs) with merges that go across words, so that every cut shows.
#[test]
fn byte_level_bpe_cuts_texts_as_llama_cpp_does() {
    let cuts: Cuts = serde_json::from_slice(&std::fs::read(data("bpe.json")).expect("ids")).expect("JSON");
    let file = std::fs::read(data("bpe.gguf")).expect("a file");
    let mut header = pollster::block_on(Header::read(&MemorySource::new("bpe.gguf", file))).expect("a header");
    header.metadata.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(false));
    assert_eq!(cuts.ids.len(), 23);
    for (name, ids) in &cuts.ids {
        match name.as_str() {
            "" => header.metadata.remove("tokenizer.ggml.pre"),
            name => header.metadata.insert("tokenizer.ggml.pre".to_owned(), Value::Text(name.to_owned())),
        };
        let tokenizer = Tokenizer::from_gguf(&header).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (text, expected) in cuts.texts.iter().zip(ids) {
            assert_eq!(&tokenizer.encode(text).expect("ids"), expected, "{name}: {text:?}");
            assert_eq!(&tokenizer.decode(expected, true), text, "{name}");
        }
    }
}

/// What files of the wild do, with the ids and texts that llama.cpp's rules give, worked out by hand.
#[test]
fn converters_habits_are_understood() {
    const PIECES: [(&str, i64); 12] = [
        ("<unk>", 3), // should be "unknown": 2
        ("<s>", 3),
        ("</s>", 3),
        ("<start_of_turn>", 4), // should be "control": 3
        ("\n\n", 4),
        ("▁", 1),
        ("h", 1),
        ("i", 1),
        ("hi", 1),
        ("▁hi", 1),
        ("x", 1),
        ("[tool]", 3),
    ];
    let header = |more: &[(&str, Value)]| Header {
        file: "wild.gguf".to_owned(),
        metadata: [
            ("tokenizer.ggml.model", Value::Text("llama".to_owned())),
            ("tokenizer.ggml.tokens", Value::Array(Array::Texts(PIECES.into_iter().map(|(text, _)| text).collect()))),
            ("tokenizer.ggml.scores", Value::Array(Array::Floats((0..12).map(|index| index as f32 - 12.0).collect()))),
            ("tokenizer.ggml.token_type", Value::Array(Array::Integers(PIECES.map(|(_, kind)| kind).to_vec()))),
        ]
        .iter()
        .chain(more)
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect(),
        tensors: Vec::new(),
    };
    // No ids: bos 1, eos 2, unknown 0 are meant. An end after every text would end every prompt.
    let wild = header(&[("tokenizer.ggml.add_eos_token", Value::Bool(true))]);
    let tokenizer = Tokenizer::from_gguf(&wild).expect("a tokenizer");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    // A turn marker is a control token, and after every token of these kinds the prefix's space comes again.
    let ids = tokenizer.encode("<start_of_turn>hi\n\nhi[tool]x").expect("ids");
    assert_eq!(ids, [1, 3, 9, 4, 9, 11, 5, 10]);
    // User-defined tokens print as they are, with no spaces around; control tokens do not print.
    assert_eq!(tokenizer.decode(&[3, 9, 4, 8, 11], true), "hi\n\nhi");
    assert!(tokenizer.is_special(3) && tokenizer.is_special(11) && !tokenizer.is_special(4));

    let out_of_range = header(&[("tokenizer.ggml.bos_token_id", Value::Integer(4_000_000))]);
    assert_eq!(Tokenizer::from_gguf(&out_of_range).expect("a tokenizer").bos(), None);
}

#[test]
fn bad_files_are_refused_with_what_is_wrong() {
    let good = std::fs::read(data("gemma.gguf")).expect("a file");
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let find = |text: &str| good.windows(text.len()).position(|window| window == text.as_bytes()).expect(text);
    let kind_of_gate = {
        let name = "blk.0.ffn_gate.weight";
        // Name, dimensions (u32), two sizes (u64), then the type.
        find(name) + name.len() + 4 + 16
    };
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("not a GGUF file", patched(0, b"GGML"), "first four bytes"),
        ("version 1", patched(4, &1u32.to_le_bytes()), "version 1"),
        ("absurd tensor count", patched(8, &u64::MAX.to_le_bytes()), "more than a header can contain"),
        ("absurd pair count", patched(16, &(1u64 << 40).to_le_bytes()), "more than a header can contain"),
        ("absurd text length", patched(24, &(u64::MAX / 2).to_le_bytes()), "more than a header can contain"),
        ("header cut off", good[..500].to_vec(), "truncated"),
        ("data cut off", good[..good.len() - 40_000].to_vec(), "truncated"),
        ("unknown type", patched(kind_of_gate, &10u32.to_le_bytes()), "Q2_K"),
        ("unknown architecture", patched(find("gemma"), b"gemmo"), "gemmo"),
    ];
    for (what, bytes, reason) in cases {
        let source = Rc::new(MemorySource::new("bad.gguf", bytes));
        let error = pollster::block_on(GgufModel::open(source)).expect_err(what).to_string();
        assert!(error.contains(reason), "{what}: {error:?} lacks {reason:?}");
    }
    // A scale that is not finite is found while loading, whatever holds it.
    for kind in BlockType::ALL {
        let at = if kind == BlockType::Q6K { 208 } else { 0 };
        for scale in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
            let mut block = vec![1; kind.block_bytes()];
            block[at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
            assert!(kind.repack(&block).is_ok(), "{}", kind.name());
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            let (group, found) = kind.repack(&block).expect_err(kind.name());
            assert!(group == 0 && !found.is_finite(), "{}: {scale} gives {found} in group {group}", kind.name());
        }
    }
    let gpu = common::open_gpu();
    let model = open(&data("gemma.gguf"));
    let info = model.header.tensors.iter().find(|tensor| tensor.name == "blk.1.ffn_down.weight").expect("a tensor");
    let bytes = patched(info.offset as usize, &[0x00, 0x7e]);
    let source = Rc::new(MemorySource::new("nan.gguf", bytes));
    let model = pollster::block_on(GgufModel::open(source)).expect("a header without fault");
    let loader = Loader::new(&gpu, model.weights.clone(), Precision::F16, None).keep_quantization();
    let error = pollster::block_on(LanguageModel::load(&loader, &model.config)).expect_err("NaN").to_string();
    assert!(error.contains("blk.1.ffn_down.weight") && error.contains("NaN"), "{error}");
}

#[test]
fn sizes_out_of_range_and_files_without_tensors_are_refused() {
    let error = |heads: i64| {
        let metadata = [
            ("general.architecture", Value::Text("llama".to_owned())),
            ("llama.embedding_length", Value::Integer(64)),
            ("llama.attention.head_count", Value::Integer(heads.into())),
        ];
        let source = Rc::new(MemorySource::new("vocabulary.gguf", write_gguf(&metadata, &[])));
        pollster::block_on(GgufModel::open(source)).expect_err("no model").to_string()
    };
    let found = error(4);
    assert!(found.contains("vocabulary.gguf") && found.contains("no tensors"), "{found}");
    let found = error(5000);
    assert!(found.contains("llama.attention.head_count is 5000, expected 1 to 1024"), "{found}");
}

/// A GGUF file of f32 tensors, rows first.
fn write_gguf(metadata: &[(&str, Value)], tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        match value {
            Value::Integer(value) => {
                out.extend(4u32.to_le_bytes());
                out.extend((*value as u32).to_le_bytes());
            }
            Value::Float(value) => {
                out.extend(6u32.to_le_bytes());
                out.extend((*value as f32).to_le_bytes());
            }
            Value::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
            other => panic!("{other:?} is not needed here"),
        }
    }
    let mut offset = 0u64;
    for (name, shape, values) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| out.extend((*size as u64).to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (values.len() as u64 * 4).next_multiple_of(32);
    }
    for (.., values) in tensors {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(bytemuck::cast_slice::<f32, u8>(values));
    }
    out
}

/// A golden checkpoint whose language model comes from a GGUF file of the same weights answers as the checkpoint
/// itself.
#[test]
fn a_gguf_file_is_the_language_half_of_a_checkpoint() {
    let case = mgm_test_support::goldens().join("vicuna-7b");
    let expected = common::Expected::read(&case);
    let folder = case.join("MGM-7B");
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.join(name)).expect(name)).expect("JSON")
    };
    let config = json("config.json");
    let number = |key: &str| config[key].as_f64().unwrap_or_else(|| panic!("config.json has no number {key}"));
    let integer = |key: &str| Value::Integer(number(key) as i128);
    let metadata = [
        ("general.architecture", Value::Text("llama".to_owned())),
        ("llama.block_count", integer("num_hidden_layers")),
        ("llama.context_length", integer("max_position_embeddings")),
        ("llama.embedding_length", integer("hidden_size")),
        ("llama.feed_forward_length", integer("intermediate_size")),
        ("llama.attention.head_count", integer("num_attention_heads")),
        ("llama.attention.head_count_kv", integer("num_key_value_heads")),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(number("rms_norm_eps"))),
        ("llama.rope.freq_base", Value::Float(number("rope_theta"))),
    ];
    let heads = number("num_attention_heads") as usize;
    let mut tensors = Vec::new();
    let mut shards: Vec<_> = json("model.safetensors.index.json")["weight_map"]
        .as_object()
        .expect("a map")
        .values()
        .map(|shard| shard.as_str().expect("a name").to_owned())
        .collect();
    shards.sort();
    shards.dedup();
    for shard in shards {
        let bytes = std::fs::read(folder.join(shard)).expect("a shard");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        for (name, tensor) in file.tensors() {
            let Some(renamed) = name_in_gguf(&name) else { continue };
            let (shape, mut values) = (tensor.shape().to_vec(), floats(&file, &name));
            if renamed.contains("attn_q") || renamed.contains("attn_k") {
                values = in_pairs(&values, heads, shape[1]);
            }
            tensors.push((renamed, shape, values));
        }
    }
    let file = write_gguf(&metadata, &tensors);
    let gpu = common::open_gpu();
    pollster::block_on(async {
        let source = Rc::new(MemorySource::new("language.gguf", file));
        let language = GgufModel::open(source).await.expect("a GGUF file");
        let opened = MgmCheckpoint::open(Rc::new(DiskFolder::new(folder.clone())), TowerOptions::default()).await;
        let mut checkpoint = opened.expect("a golden checkpoint");
        checkpoint.replace_language(&language).expect("the same sizes");
        let options = LoadOptions::new(Precision::F32).with_keep_quantization(true);
        let model = Model::load(&gpu, &checkpoint, &options).await.expect("a model");
        let mut chat = model.chat();
        let image = std::fs::read(case.join(&expected.json.images[0])).expect("an image");
        let images = [mgm::image::decode("image", &image).expect("an image")];
        let options = AnswerOptions::default().with_max_new_tokens(24);
        for (index, turn) in expected.json.turns.iter().enumerate() {
            let shown = if index == 0 { &images[..] } else { &[] };
            let answer = chat.ask(&turn.question).images(shown).options(&options).await.expect("an answer");
            assert_eq!(answer.token_ids, turn.greedy_ids[..answer.token_ids.len()], "turn {index}");
            assert!(answer.token_ids.len() > 3, "turn {index}");
        }

        // One of other sizes is refused, with both.
        let other = open(&data("llama.gguf"));
        let error = checkpoint.replace_language(&other).expect_err("other sizes").to_string();
        assert!(error.contains("width 256") && error.contains("width 96"), "{error}");
    });
}

fn name_in_gguf(name: &str) -> Option<String> {
    let top = [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];
    if let Some((_, renamed)) = top.iter().find(|(own, _)| name.strip_suffix(".weight") == Some(own)) {
        return Some(format!("{renamed}.weight"));
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let parts = [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let (_, renamed) = parts.iter().find(|(own, _)| part.strip_suffix(".weight") == Some(own))?;
    Some(format!("blk.{layer}.{renamed}.weight"))
}

/// Rows of queries and keys as llama.cpp's converter orders them: those that turn together next to each other.
fn in_pairs(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let head = values.len() / columns / heads;
    let row = |index: usize| {
        let (which, place) = (index / head, index % head);
        &values[(which * head + place % 2 * (head / 2) + place / 2) * columns..][..columns]
    };
    (0..heads * head).flat_map(row).copied().collect()
}
