//! A real model: SmolLM2-135M-Instruct.Q4_1.gguf against llama.cpp's CPU build in f32 (tests/reference/llama_cpp.mjs on
//! the file that dequantise_gguf.py makes). `make smollm2` fetches the file and runs this.

use std::rc::Rc;

#[cfg(feature = "engine")]
use mgm::engine::digest::CachedPosition;
use mgm::gpu::Gpu;
use mgm::io::DiskFile;
use mgm::language::Position;
use mgm::session::{AnswerOptions, LoadOptions, Model};
use mgm::tensor::Precision;
use mgm::text::PromptToken;
use mgm::text::conversation::{Conversation, PromptFormat};
use mgm::weights::gguf_model::GgufModel;
use serde::Deserialize;

use crate::common;

#[derive(Deserialize)]
struct Case {
    prompt: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    /// Ids and log-probabilities of the likeliest tokens after the prompt.
    likeliest: Vec<(u32, f64)>,
}

/// Keys and values are f16 here and in llama.cpp, but rounded from values that differ in their last bits: about 2^-11
/// of a logit of 20.
const BOUND: f64 = 0.02;

/// The model in the file that `MGM_GGUF` names.
async fn load(gpu: &Gpu) -> Model {
    let path = std::env::var("MGM_GGUF").expect("MGM_GGUF names SmolLM2-135M-Instruct.Q4_1.gguf");
    let file = DiskFile::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let file = GgufModel::open(Rc::new(file)).await.expect("a GGUF file");
    let options = LoadOptions::new(Precision::F16).with_keep_quantization(true);
    Model::load_gguf(gpu, &file, &options).await.expect("a model")
}

#[test]
#[ignore = "needs the model's file: run `make smollm2`"]
fn smollm2_says_what_llama_cpp_says() {
    let cases: Vec<Case> = serde_json::from_slice(include_bytes!("../data/gguf/smollm2.json")).expect("cases");
    let gpu = common::open_gpu();
    pollster::block_on(async {
        let model = load(&gpu).await;
        assert!(matches!(model.prompt_format(), PromptFormat::Jinja(_)));
        let mut worst: f64 = 0.0;
        for case in cases {
            let mut chat = model.chat();
            let options = AnswerOptions::default().with_max_new_tokens(case.greedy.len());
            let answer = chat.ask(&case.prompt).options(&options).await.expect("an answer");
            // The conversation's prompt, by the template in the file, is llama.cpp's, id for id.
            let mut asked = Conversation::new(model.prompt_format().clone());
            asked.ask(&case.prompt, 0);
            let prompt = model.tokenizer().encode_prompt(&asked.prompt().expect("a prompt")).expect("ids");
            let ids: Vec<PromptToken> = case.ids.iter().map(|id| PromptToken::Text(*id)).collect();
            assert_eq!(prompt, ids, "{}", case.prompt);
            assert_eq!(answer.prompt_tokens, case.ids.len(), "{}", case.prompt);
            assert_eq!(answer.token_ids, case.greedy, "{}", case.prompt);

            let language = model.language();
            let mut cache = language.cache();
            let mut recorder = gpu.record();
            let positions: Vec<_> = case.ids.iter().map(|id| Position::Text(*id)).collect();
            let x = language.embed(&mut recorder, &positions, &[]).expect("embeddings");
            let x = language.forward(&mut recorder, &x, &mut cache).expect("a pass");
            let end = x.slice_rows(x.rows() - 1..x.rows());
            let logits = language.logits(&mut recorder, &end).expect("logits").read_back(&mut recorder);
            recorder.submit().expect("a submission");
            let logits: Vec<f32> = logits.values().await.expect("logits");
            let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
            let total = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum::<f64>().ln() + largest;
            for (id, expected) in case.likeliest {
                worst = worst.max((f64::from(logits[id as usize]) - total - expected).abs());
            }
        }
        println!("largest difference of a log-probability to llama.cpp's: {worst:.4}");
        assert!(worst <= BOUND, "a log-probability differs by {worst}");
    });
}

/// 16 questions that join and leave a batch at random: the rule of near ties, and in deterministic mode every bit.
#[cfg(feature = "engine")]
#[test]
#[ignore = "takes minutes, and needs the model's file: run `make smollm2-batches`"]
fn answers_are_the_same_in_any_batch() {
    use crate::engine::{check_deterministic, check_near_ties, jobs, with_controls};
    let cases: Vec<Case> = serde_json::from_slice(include_bytes!("../data/gguf/smollm2.json")).expect("cases");
    let gpu = common::open_gpu();
    pollster::block_on(async {
        let model = load(&gpu).await;
        let language = model.language();
        let mut jobs = jobs(16, language.config().vocab_size);
        for (index, job) in jobs.iter_mut().enumerate() {
            // Real prompts, each with another part of its answer.
            let case = &cases[index % cases.len()];
            job.prompt =
                case.ids.iter().chain(case.greedy.iter().take(index)).map(|id| CachedPosition::Text(*id)).collect();
            job.options.max_new_tokens = 4 + index;
        }
        check_near_ties(&gpu, language, &jobs, 2).await;
        check_deterministic(&gpu, language, &with_controls(jobs), 2).await;
    });
}
