//! Configurations as Python writes and reads them. The expected values are those of Python's `json.loads`.

use std::rc::Rc;

use mgm::io::{Folder, MemoryFolder};
use mgm::json;
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::bundle::Manifest;
use mgm::weights::config::{ClipConfig, GenerationConfig, MgmConfig};
use mgm::weights::index::parse_index;
use mgm::weights::sdxl::config::{SchedulerConfig, TextEncoderConfig, UnetConfig, VaeConfig};
use pollster::block_on;
use serde_json::{Value, json};

fn read(text: &str) -> Value {
    json::from_slice(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn numbers_are_pythons() {
    // Text, and repr(float(json.loads(text))).
    for (text, expected) in [
        ("-Infinity", f64::NEG_INFINITY),
        ("Infinity", f64::INFINITY),
        ("1e400", f64::INFINITY),
        ("-1E+999", f64::NEG_INFINITY),
        ("1000000000000000019884624838656", 1e30),
        ("-123456789012345678901234567890", -1.2345678901234568e29),
        ("1e-400", 0.0),
        ("-0", 0.0),
        ("5e-324", 5e-324),
        ("18446744073709551616", 18446744073709551616.0),
    ] {
        assert_eq!(json::number(&read(text)), Some(expected), "{text}");
        assert_eq!(json::number(&read(&format!("{{\"a\": [{text}, 1]}}"))["a"][0]), Some(expected), "{text}");
    }
    assert!(json::number(&read("NaN")).is_some_and(f64::is_nan));
    assert_eq!(json::number(&read("\"nan\"")), None);
}

#[test]
fn keys_texts_and_encodings_are_pythons() {
    for (text, expected) in [
        (r#"{"a": 1, "b": {"c": 1, "c": [2]}, "a": "last"}"#, json!({"a": "last", "b": {"c": [2]}})),
        // Names and digits in a text, next to a value that has to be replaced.
        (r#"["NaN \" Infinity, -1e999 \\", NaN]"#, json!(["NaN \" Infinity, -1e999 \\", "NaN"])),
        (r#"["\ud83d\ude00", "é", "a\ud83d", "\ude00\u0041"]"#, json!(["😀", "é", "a\u{fffd}", "\u{fffd}A"])),
        ("\u{feff}{\"a\": 1}", json!({"a": 1})),
        (" [ ] ", json!([])),
    ] {
        assert_eq!(read(text), expected, "{text}");
    }
    // UTF-16, as PowerShell writes it.
    let text = "{\"name\": \"größe 😀\", \"x\": -Infinity}";
    for order in [u16::to_le_bytes, u16::to_be_bytes] {
        let bytes: Vec<u8> = "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(order).collect();
        let expected = json!({"name": "größe 😀", "x": "-Infinity"});
        assert_eq!(json::from_slice::<Value>(&bytes).expect("JSON"), expected);
    }
}

#[test]
fn what_python_refuses_is_refused_with_its_line() {
    for (text, place) in [
        ("", "line 1"),
        ("{\n\"a\": 1,\n}", "line 3"),
        ("{\"a\": NaN,\n\"b\": nan}", "line 2"),
        ("[-NaN]", "line 1"),
        ("[+1]", "line 1"),
        ("[01]", "line 1"),
        ("[1.]", "line 1"),
        ("[Infinity1]", "line 1"),
        ("[1] [2]", "line 1"),
        ("{'a': 1}", "line 1"),
        ("[\"a", "line 1"),
        ("[\"\\", "line 1"),
        ("[\"\\u12", "line 1"),
        ("[\"\\ud800\\", "line 1"),
        ("// note\n{}", "line 1"),
    ] {
        let error = json::from_slice::<Value>(text.as_bytes()).expect_err(text).to_string();
        assert!(error.contains(place), "{text:?}: {error}");
    }
    for bytes in [&b"\xff\xfe"[..], b"\xfe\xff\0", b"\xef\xbb\xbf", b"\xef\xbb", b"[\"\xff\"]"] {
        assert!(json::from_slice::<Value>(bytes).is_err(), "{bytes:?}");
    }
}

/// Keys that no reader uses, as Python writes them.
const UNUSED: &str = r#""unused_a": NaN, "unused_b": [Infinity, {"x": -Infinity}], "unused_b": 1,
    "unused_c": 1000000000000000019884624838656, "unused_d": 1e999, "unused_e": "\ud800", "unused_f": null"#;

/// The same object with [`UNUSED`] keys, and with a key repeated whose last value counts.
fn as_python_writes_it(object: &str) -> Vec<u8> {
    let rest = object.trim().strip_prefix('{').expect("an object");
    let (key, _) = rest.split_once(':').expect("a key");
    format!("\u{feff}{{{key}: [NaN], {UNUSED}, {rest}").into_bytes()
}

/// Asserts that `parse` reads a file as Python writes it as it reads the plain one.
fn same<T: std::fmt::Debug + PartialEq>(file: &str, object: &str, parse: impl Fn(&[u8]) -> mgm::Result<T>) {
    let plain = parse(object.as_bytes()).unwrap_or_else(|error| panic!("{file}: {error}"));
    let found = parse(&as_python_writes_it(object)).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(found, plain, "{file}");
}

const LANGUAGE: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 100, "tokenizer_model_max_length": 1000000000000000019884624838656}"#;

const UNET: &str = r#"{"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16, "attention_head_dim": [2, 4], "block_out_channels": [32, 64],
    "cross_attention_dim": 80, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "norm_num_groups": 32,
    "projection_class_embeddings_input_dim": 136, "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}"#;

const VAE: &str = r#"{"_class_name": "AutoencoderKL", "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"], "sample_size": 64,
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
    "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3, "</s>": 4}, "merges": [["a", "b"]]}}"#;

#[test]
fn every_file_of_a_model_may_be_pythons() {
    same("config.json", LANGUAGE, |bytes| MgmConfig::parse("config.json", bytes));
    same("config.json of CLIP", r#"{"hidden_size": 64, "num_attention_heads": 4}"#, |bytes| {
        ClipConfig::parse("config.json", bytes)
    });
    same("generation_config.json", r#"{"top_p": 0.9, "eos_token_id": [1, 107]}"#, |bytes| {
        GenerationConfig::parse("generation_config.json", bytes)
    });
    same("scheduler_config.json", r#"{"beta_start": 0.00085, "timestep_spacing": "leading"}"#, |bytes| {
        SchedulerConfig::parse("scheduler_config.json", bytes, None)
    });
    same("unet/config.json", UNET, |bytes| UnetConfig::parse("config.json", bytes));
    same("vae/config.json", VAE, |bytes| VaeConfig::parse("config.json", bytes));
    same("text_encoder/config.json", r#"{"hidden_size": 32, "num_attention_heads": 2}"#, |bytes| {
        TextEncoderConfig::parse("config.json", bytes)
    });
    same("index", r#"{"weight_map": {"a": "x.bin", "b": "y.bin", "a": "y.bin"}}"#, |bytes| {
        parse_index("model.safetensors.index.json", bytes)
    });
    let manifest = r#"{"format": "mgm-bundle", "version": 1, "name": "x", "precision": "q4", "shards": [],
        "configs": {"config.json": {"a": 1}}}"#;
    same("bundle.json", manifest, |bytes| Manifest::parse("bundle.json", bytes));
    // A tokenizer with its four files, and text through it.
    let tokenizer_config = r#"{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "bos_token": "<s>",
        "eos_token": {"content": "</s>"}, "model_max_length": 1000000000000000019884624838656}"#;
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
        let contents = [
            ("tokenizer.json", TOKENIZER),
            ("tokenizer_config.json", tokenizer_config),
            ("special_tokens_map.json", r#"{"unk_token": "<unk>"}"#),
            ("added_tokens.json", r#"{"<x>": 5}"#),
            ("config.json", r#"{"model_type": "llama"}"#),
        ];
        same(file, contents.iter().find(|(name, _)| *name == file).expect("a file").1, |bytes| {
            // A map of tokens has no unused keys.
            let bytes = if file == "added_tokens.json" { b"\xef\xbb\xbf{\"<x>\": 9, \"<x>\": 5}" } else { bytes };
            let files = contents
                .map(|(name, text)| (name, if name == file { bytes.to_vec() } else { text.as_bytes().to_vec() }));
            let tokenizer = block_on(Tokenizer::load(&MemoryFolder::new(files)))?;
            Ok((tokenizer.encode("abba<x>")?, tokenizer.bos(), tokenizer.eos()))
        });
    }
}

#[test]
fn unused_settings_of_any_type_do_not_stop_a_load() {
    let euler = SchedulerConfig::parse("s.json", br#"{"beta_start": 0.001}"#, None).expect("a scheduler");
    // The settings of other scheduler classes.
    let others = br#"{"beta_start": 0.001, "lambda_min_clipped": -Infinity, "solver_order": 3, "algorithm_type": NaN,
        "thresholding": "yes", "use_lu_lambdas": true, "clip_sample_range": Infinity, "timestep_scaling": {},
        "original_inference_steps": 1000000000000000019884624838656, "set_alpha_to_one": []}"#;
    assert_eq!(SchedulerConfig::parse("s.json", others, None).expect("a scheduler"), euler);
    // The class that has them uses or refuses them.
    let dpm = "dpm++-2m".parse().expect("a scheduler");
    let infinite = br#"{"lambda_min_clipped": -Infinity}"#;
    let settings = SchedulerConfig::parse("s.json", infinite, Some(&dpm)).expect("a scheduler").dpm;
    assert_eq!(settings.lambda_min_clipped, f64::NEG_INFINITY);
    for (text, reason) in [
        (r#"{"lambda_min_clipped": "low"}"#, "lambda_min_clipped is \"low\", expected a number"),
        (r#"{"lambda_min_clipped": NaN}"#, "lambda_min_clipped is NaN"),
        (r#"{"solver_order": 3}"#, "solver_order is 3"),
        (r#"{"beta_end": Infinity}"#, "beta_end is inf, expected a finite number"),
        (r#"{"use_lu_lambdas": true}"#, "use_lu_lambdas"),
    ] {
        let error = SchedulerConfig::parse("s.json", text.as_bytes(), Some(&dpm)).expect_err(text).to_string();
        assert!(error.contains(reason), "{error}");
    }
    // Values that cannot be read, of settings with a default that do not change what is computed.
    let language = |more: &str| {
        let text = LANGUAGE.replace("{\"model_type\": \"llama\"", &format!("{{\"model_type\": \"gemma\"{more}"));
        MgmConfig::parse("config.json", text.as_bytes())
    };
    let plain = language("").expect("a configuration");
    for more in [
        r#", "architectures": NaN"#,
        r#", "architectures": 3"#,
        r#", "sliding_window": NaN"#,
        r#", "sliding_window": Infinity"#,
        r#", "max_position_embeddings": 8192.0"#,
    ] {
        assert_eq!(language(more).expect(more), plain, "{more}");
    }
    for more in [r#", "sliding_window": 64"#, r#", "rms_norm_eps": NaN"#, r#", "max_position_embeddings": 8192.5"#] {
        assert!(language(more).is_err(), "{more}");
    }
    let unet = |more: &str| UnetConfig::parse("config.json", UNET.replacen('{', more, 1).as_bytes()).expect(more);
    let vae = |more: &str| VaeConfig::parse("config.json", VAE.replace("\"sample_size\": 64", more).as_bytes());
    for size in ["NaN", "[128, 128]", "\"large\""] {
        let size = format!("\"sample_size\": {size}");
        assert_eq!(unet(&format!("{{{size},")), unet("{"), "{size}");
        assert_eq!(vae(&size).expect("a VAE"), vae("\"sample_size\": 1024").expect("a VAE"), "{size}");
    }
    let steps = |text: &str| SchedulerConfig::parse("s.json", text.as_bytes(), None);
    assert_eq!(steps(r#"{"num_train_timesteps": 500.0}"#).expect("steps").num_train_timesteps, 500);
    assert!(steps(r#"{"num_train_timesteps": 500.5}"#).is_err());
    for text in ["", "\n"] {
        let found = GenerationConfig::parse("generation_config.json", text.as_bytes());
        assert_eq!(found.expect("a configuration"), GenerationConfig::default(), "{text:?}");
    }
    for top_p in ["NaN", "Infinity"] {
        let text = format!(r#"{{"top_p": {top_p}}}"#);
        assert!(GenerationConfig::parse("generation_config.json", text.as_bytes()).is_err(), "{text}");
    }
    let flags = |flags: &str| {
        let config = format!(r#"{{"tokenizer_class": "LlamaTokenizer"{flags}}}"#);
        let files = [("tokenizer.json", TOKENIZER), ("tokenizer_config.json", &config)];
        let folder = MemoryFolder::new(files.map(|(name, text)| (name, text.as_bytes())));
        block_on(Tokenizer::load(&folder)).map(|tokenizer| tokenizer.encode("abba").expect("text"))
    };
    let plain = flags("").expect("a tokenizer");
    for text in ["NaN", "\"true\"", "\"True\"", "null"] {
        let flags = flags(&format!(r#", "legacy": {text}, "clean_up_tokenization_spaces": {text}"#));
        assert_eq!(flags.unwrap_or_else(|error| panic!("{text}: {error}")), plain);
    }
    let error = flags(r#", "legacy": "false""#).expect_err("a text that Python takes for true").to_string();
    assert!(error.contains("\"false\", expected true or false"), "{error}");
    // A tokenizer's padding and truncation are the caller's.
    let load = |text: String| {
        let folder: Rc<dyn Folder> = Rc::new(MemoryFolder::new([("tokenizer.json", text.into_bytes())]));
        let tokenizer = block_on(Tokenizer::load(&*folder)).expect("a tokenizer");
        tokenizer.encode("abba").expect("text")
    };
    let odd = TOKENIZER.replace(r#""truncation": null, "padding": null"#, r#""truncation": NaN, "padding": "left""#);
    assert_eq!(load(odd), [2, 1, 0]);
    assert_eq!(load(TOKENIZER.to_owned()), [2, 1, 0]);
}
