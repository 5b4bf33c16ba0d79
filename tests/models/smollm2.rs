//! A real model: SmolLM2-135M-Instruct.Q4_1.gguf against llama.cpp's CPU build in f32 (tests/reference/llama_cpp.mjs on
//! the file that dequantise_gguf.py makes). `make smollm2` fetches the file and runs this.

use std::rc::Rc;

#[cfg(feature = "engine")]
use mgm::engine::digest::CachedPosition;
use mgm::gpu::Gpu;
use mgm::io::DiskFile;
use mgm::language::{LanguageModel, Position};
use mgm::ops::KvPrecision;
use mgm::session::LoadOptions;
use mgm::session::{AnswerOptions, Model};
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

fn options() -> LoadOptions {
    LoadOptions::new(Precision::F16).with_keep_quantization(true)
}

/// The model in the file that `MGM_GGUF` names.
async fn load(gpu: &Gpu, options: LoadOptions) -> Model {
    let path = std::env::var("MGM_GGUF").expect("MGM_GGUF names SmolLM2-135M-Instruct.Q4_1.gguf");
    let file = DiskFile::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let file = GgufModel::open(Rc::new(file)).await.expect("a GGUF file");
    Model::load_gguf(gpu, &file, &options).await.expect("a model")
}

#[test]
#[ignore = "needs the model's file: run `make smollm2`"]
fn smollm2_says_what_llama_cpp_says() {
    let cases: Vec<Case> = serde_json::from_slice(include_bytes!("../data/gguf/smollm2.json")).expect("cases");
    let gpu = common::open_gpu();
    pollster::block_on(async {
        let model = load(&gpu, options()).await;
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
#[ignore = "needs the model's file: run `make smollm2`"]
fn smollm2_answers_the_same_in_any_batch() {
    use crate::engine::{check_deterministic, check_near_ties, jobs, with_controls};
    let cases: Vec<Case> = serde_json::from_slice(include_bytes!("../data/gguf/smollm2.json")).expect("cases");
    let gpu = common::open_gpu();
    pollster::block_on(async {
        let model = load(&gpu, options()).await;
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

/// Positions of the text whose perplexity is compared.
const POSITIONS: usize = 640;

/// Log-probabilities [positions, vocabulary] of the token after each position, with attention over a cache.
async fn log_probabilities(gpu: &Gpu, language: &LanguageModel, ids: &[u32]) -> Vec<Vec<f32>> {
    const CHUNK: usize = 128;
    let mut cache = language.cache();
    let mut rows = Vec::new();
    for chunk in ids.chunks(CHUNK) {
        let mut recorder = gpu.record();
        let positions: Vec<_> = chunk.iter().map(|id| Position::Text(*id)).collect();
        let x = language.embed(&mut recorder, &positions, &[]).expect("embeddings");
        let x = language.forward(&mut recorder, &x, &mut cache).expect("a pass");
        let logits = language.logits(&mut recorder, &x).expect("logits").read_back(&mut recorder);
        recorder.submit().expect("a submission");
        let logits: Vec<f32> = logits.values().await.expect("logits");
        rows.extend(logits.chunks_exact(logits.len() / chunk.len()).map(|row| {
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|logit| f64::from(*logit - largest).exp()).sum();
            let total = largest + sum.ln() as f32;
            row.iter().map(|logit| logit - total).collect()
        }));
    }
    rows
}

/// What keys and values of 8 bits cost: the figures are in docs/performance.md.
#[test]
#[ignore = "needs the model's file: run `make smollm2`"]
fn keys_and_values_of_8_bits_hardly_change_smollm2() {
    let gpu = common::open_gpu();
    pollster::block_on(async {
        let mut results = Vec::new();
        let mut ids = Vec::new();
        for precision in [KvPrecision::F16, KvPrecision::Q8] {
            let model = load(&gpu, options().with_kv_precision(precision)).await;
            // Prose that is in the repository; the bounds hold for any.
            ids = model.tokenizer().encode(include_str!("../../ARCHITECTURE.md")).expect("ids");
            ids.truncate(POSITIONS);
            results.push(log_probabilities(&gpu, model.language(), &ids).await);
        }
        let perplexity = |rows: &[Vec<f32>]| {
            let next = rows.iter().zip(&ids[1..]);
            let sum: f64 = next.map(|(row, id)| -f64::from(row[*id as usize])).sum();
            (sum / (ids.len() - 1) as f64).exp()
        };
        let [half, eight] = [&results[0], &results[1]];
        let (mut squares, mut energy, mut divergence, mut same) = (0.0, 0.0, 0.0, 0);
        for (a, b) in half.iter().zip(eight) {
            let mean = a.iter().map(|x| f64::from(*x)).sum::<f64>() / a.len() as f64;
            for (a, b) in a.iter().zip(b) {
                squares += f64::from(a - b).powi(2);
                energy += (f64::from(*a) - mean).powi(2);
                divergence += f64::from(*a).exp() * f64::from(a - b);
            }
            let best =
                |row: &[f32]| row.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map(|best| best.0);
            same += usize::from(best(a) == best(b));
        }
        let [before, after] = [perplexity(half), perplexity(eight)];
        let nmse = squares / energy;
        let (divergence, same) = (divergence / half.len() as f64, same as f64 / half.len() as f64);
        println!(
            "perplexity {before:.4} with keys and values in f16, {after:.4} in 8 bits; log-probabilities: nmse {nmse:.1e}, \
             divergence {divergence:.1e}; the likeliest token is the same at {:.1} % of {} positions",
            100.0 * same,
            half.len()
        );
        assert!((after / before - 1.0).abs() < 0.01 && nmse < 1e-3 && divergence < 0.01 && same > 0.95);
    });
}
