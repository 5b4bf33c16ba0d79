//! Conversations over the golden checkpoints: the turns' ids and texts, the kept cache, stopping, seeds, limits.

use std::ops::ControlFlow;
use std::rc::Rc;

use mgm::Error;
use mgm::gpu::{Capabilities, Gpu, GpuOptions, Kernel, TestOptions};
use mgm::image::{Image, decode};
use mgm::io::DiskFolder;
use mgm::language::{LanguageModel, Position, prefill_chunk};
use mgm::loader::Loader;
use mgm::memory_plan::MemoryPlan;
use mgm::ops::Sampling;
use mgm::session::LoadOptions;
use mgm::session::{AnswerOptions, Event, FinishReason, Model, StopReason, image_sources};
use mgm::tensor::{Precision, Tensor};
use mgm::text::PromptToken;
use mgm::variants::{Variant, released};
use mgm::vision::Vision;
use mgm::weights::mgm::{MgmCheckpoint, TowerOptions};
use mgm::weights::model_files::ModelFiles;

use crate::common::{Expected, case, open_gpu, open_gpu_with};

fn greedy() -> AnswerOptions {
    AnswerOptions::default().with_max_new_tokens(24)
}

fn images(expected: &Expected, case: &std::path::Path) -> Vec<Image> {
    let read = |file: &String| decode(file, &std::fs::read(case.join(file)).expect("an image")).expect("an image");
    expected.json.images.iter().map(read).collect()
}

async fn open(case: &std::path::Path, expected: &Expected) -> MgmCheckpoint {
    let folder = DiskFolder::new(case.join(&expected.json.checkpoint));
    MgmCheckpoint::open(Rc::new(folder), TowerOptions::default()).await.expect("a golden checkpoint")
}

async fn load(gpu: &Gpu, case: &std::path::Path, expected: &Expected) -> Model {
    let options = LoadOptions::new(Precision::F32);
    Model::load(gpu, &open(case, expected).await, &options).await.expect("a golden model")
}

/// A device that is taken for hardware: with its kernels, and three steps ahead of what is read.
fn open_as_hardware() -> Gpu {
    open_gpu_with(GpuOptions::default().with_test(TestOptions { software_adapter: Some(false), ..Default::default() }))
}

/// The capabilities of a large GPU.
fn large_gpu() -> Capabilities {
    Capabilities {
        max_binding_bytes: (1 << 31) - 4,
        max_buffer_bytes: 1 << 33,
        subgroup_min_size: 32,
        subgroup_max_size: 32,
        ..open_gpu().capabilities().clone()
    }
}

/// A model of 4 GB on a device that is only planned: nothing is allocated, compiled or run, and the capabilities choose
/// the kernels.
#[test]
fn a_planned_device_takes_no_memory() {
    let test = TestOptions { planned: Some(large_gpu()), software_adapter: Some(false), ..Default::default() };
    let gpu = open_gpu_with(GpuOptions::default().with_test(test));
    pollster::block_on(async {
        let config = released("mgm-7b").expect("a released model").language;
        let loader = Loader::random(&gpu, 1, Precision::Q4, None);
        let model = LanguageModel::load(&loader, &config).await.expect("a planned model");
        let weights = MemoryPlan::new(&config, None, Precision::Q4).weights();
        assert!(gpu.memory().allocated.abs_diff(weights) < weights / 100, "{:?}, planned {weights}", gpu.memory());
        let report = model.dry_run(&gpu).expect("a report");
        let kernels = report.kernels();
        let chosen = |name| kernels.iter().any(|(kernel, uses)| kernel.name == name && uses.dispatches > 0);
        assert!(chosen("matvec_rows") && chosen("matmul"), "{kernels:?}");
        assert!(chosen("attention_decode") && chosen("attention_tiled"), "{kernels:?}");
        assert!(!chosen("matmul_subgroup") && gpu.kernels().is_empty() && gpu.dispatch_count() == 0);
    });
}

#[test]
fn turns_give_the_golden_answers_and_prefill_only_what_is_new() {
    // One image and two turns; no image; Mixtral; HD is in goldens.rs.
    for (name, open) in [
        ("vicuna-7b", open_gpu as fn() -> Gpu),
        ("vicuna-7b", open_as_hardware),
        ("no-image", open_gpu),
        ("no-image", open_as_hardware),
        ("mixtral-8x7b", open_gpu),
        ("yi-34b", open_gpu),
    ] {
        let case = case(name);
        let expected = Expected::read(&case);
        pollster::block_on(async {
            let gpu = open();
            let model = load(&gpu, &case, &expected).await;
            let mut chat = model.chat();
            for (index, turn) in expected.json.turns.iter().enumerate() {
                let images = if index == 0 { images(&expected, &case) } else { Vec::new() };
                let mut streamed = String::new();
                let mut on_event = |event: Event<'_>| {
                    if let Event::Text { text } = event {
                        streamed.push_str(text);
                    }
                    ControlFlow::Continue(())
                };
                let answer = chat
                    .ask(&turn.question)
                    .images(&images)
                    .options(&greedy())
                    .on_event(&mut on_event)
                    .await
                    .expect("an answer");
                // A stop id ends an answer of ours; the goldens continue to their length.
                let length = answer.token_ids.len();
                assert_eq!(answer.token_ids, turn.greedy_ids[..length], "{name}, turn {index}");
                assert!(length == turn.greedy_ids.len() || answer.finish_reason == FinishReason::Stop, "{name}");
                assert_eq!(answer.prompt_tokens, turn.n_embeds, "{name}, turn {index}");
                assert_eq!(streamed.trim(), answer.text, "{name}, turn {index}");
                if length == turn.greedy_ids.len() {
                    assert_eq!(answer.text, turn.text, "{name}, turn {index}");
                }
                let first = &expected.json.turns[0];
                // The whole first prompt, up to where the answer is tokenised anew, is still in the cache.
                let kept = if index == 0 { 0 } else { first.n_embeds - 2 };
                assert!(answer.cached_tokens >= kept, "{name}: {} of {kept} kept", answer.cached_tokens);
                assert!(answer.cached_tokens < answer.prompt_tokens);
            }
        });
    }
}

#[test]
fn a_lost_device_is_an_error_and_the_answer_goes_on_with_another() {
    let case = case("vicuna-7b");
    let expected = Expected::read(&case);
    let turn = &expected.json.turns[0];
    let images = images(&expected, &case);
    pollster::block_on(async {
        let gpu = open_gpu();
        let model = load(&gpu, &case, &expected).await;
        let mut chat = model.chat();
        let mut begun = Vec::new();
        let mut on_event = |event: Event<'_>| {
            if let Event::Token { id } = event {
                begun.push(id);
                if begun.len() == 3 {
                    gpu.destroy();
                }
            }
            ControlFlow::Continue(())
        };
        let lost = chat.ask(&turn.question).images(&images).options(&greedy()).on_event(&mut on_event).await;
        assert!(matches!(lost, Err(Error::DeviceLost(_))), "{lost:?}");
        let again = chat.ask(&turn.question).images(&images).options(&greedy()).await;
        assert!(matches!(again, Err(Error::DeviceLost(_))), "{again:?}");

        let model = load(&open_gpu(), &case, &expected).await;
        let options = greedy().with_resume_from(vec![begun]);
        let answer = model.chat().ask(&turn.question).images(&images).options(&options).await.expect("an answer");
        assert_eq!(answer.token_ids, turn.greedy_ids);
    });
}

/// Steps submitted after the last accepted token leave nothing in the conversation: the next answer is the same as on a
/// device that submits one step ahead, with other kernels.
#[test]
fn steps_ahead_of_a_stop_are_forgotten() {
    let case = case("vicuna-7b");
    let expected = Expected::read(&case);
    let images = images(&expected, &case);
    let conversation = |gpu: Gpu| {
        pollster::block_on(async {
            let model = load(&gpu, &case, &expected).await;
            let mut chat = model.chat();
            let mut said = Vec::new();
            for (turn, stop_after) in [4, 1, 24, 2, 24].into_iter().enumerate() {
                let mut tokens = 0;
                let mut on_event = |event: Event<'_>| {
                    tokens += usize::from(matches!(event, Event::Token { .. }));
                    if tokens < stop_after { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                };
                let question = &expected.json.turns[turn % 2].question;
                let shown = if turn == 0 { &images[..] } else { &[] };
                let answer = chat
                    .ask(question)
                    .images(shown)
                    .options(&greedy())
                    .on_event(&mut on_event)
                    .await
                    .expect("an answer");
                assert!(answer.token_ids.len() <= stop_after, "{:?}", answer.token_ids);
                assert!(turn == 0 || answer.cached_tokens > 0, "turn {turn} keeps nothing of the one before");
                // How much of an answer is still in the cache depends on how far ahead the device was.
                said.push((answer.token_ids, answer.prompt_tokens, answer.finish_reason));
            }
            said
        })
    };
    let (ahead, one_by_one) = (conversation(open_as_hardware()), conversation(open_gpu()));
    assert_eq!(ahead, one_by_one);
    assert_eq!(ahead[0].0, expected.json.turns[0].greedy_ids[..4]);
}

/// Runs a test with the model of a golden case.
fn with_model(name: &str, test: impl AsyncFnOnce(Model, Expected)) {
    let case = case(name);
    let expected = Expected::read(&case);
    pollster::block_on(async {
        let model = load(&open_gpu(), &case, &expected).await;
        test(model, expected).await;
    });
}

const SAMPLING: Sampling = Sampling::GREEDY.with_temperature(1.0).with_top_k(50).with_top_p(0.95);

fn sampled(seed: u64) -> AnswerOptions {
    AnswerOptions::default().with_sampling(SAMPLING).with_seed(seed).with_max_new_tokens(16)
}

#[test]
fn a_stopped_answer_stays_in_the_conversation() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let mut chat = model.chat();
        let mut pieces = 0;
        let mut stop_early = |event: Event<'_>| {
            pieces += usize::from(matches!(event, Event::Text { .. }));
            if pieces < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let stopped = chat.ask(question).options(&greedy()).on_event(&mut stop_early).await.expect("a short answer");
        assert_eq!(stopped.finish_reason, FinishReason::Cancelled);
        assert!(stopped.token_ids.len() < 24 && !stopped.token_ids.is_empty());
        assert_eq!(chat.conversation().turns[0].answer.as_deref(), Some(stopped.text.as_str()));
        chat.ask("And then?").options(&greedy()).await.expect("a second answer");
    });
}

#[test]
fn after_a_reset_the_first_answer_is_the_golden_one() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let mut chat = model.chat();
        chat.ask("And then?").options(&greedy()).await.expect("another answer");
        chat.reset();
        let answer = chat.ask(question).options(&greedy()).await.expect("an answer");
        assert_eq!(answer.token_ids, expected.json.turns[0].greedy_ids[..answer.token_ids.len()]);
    });
}

#[test]
fn the_seed_determines_a_sampled_answer() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let mut ids = Vec::new();
        for seed in [1, 1, 2] {
            let answer = model.chat().ask(question).options(&sampled(seed)).await.expect("an answer");
            ids.push(answer.token_ids);
        }
        assert_eq!(ids[0], ids[1]);
        assert_ne!(ids[0], ids[2]);
    });
}

#[test]
fn an_answer_resumes_after_the_tokens_of_another_device() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let whole = model.chat().ask(question).options(&sampled(2)).await.expect("an answer").token_ids;
        for begun in [1, 7, 15] {
            let begun = whole[..begun.min(whole.len() - 1)].to_vec();
            let known = begun.len();
            let mut tokens = 0;
            let count = |event: Event<'_>| {
                tokens += usize::from(matches!(event, Event::Token { .. }));
                ControlFlow::Continue(())
            };
            let options = sampled(2).with_resume_from(vec![begun]);
            let answer = model.chat().ask(question).options(&options).on_event(count).await.expect("the rest");
            assert_eq!(answer.token_ids, whole);
            assert_eq!(tokens, whole.len() - known);
        }
    });
}

/// The text of an answer by its tokens, without what a stop string cuts off.
fn cut(text: &str, stop: &str) -> String {
    text.find(stop).map_or(text, |start| &text[..start]).trim().to_owned()
}

#[test]
fn an_answer_ends_before_a_stop_string_and_at_stop_tokens() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let whole = model.chat().ask(question).options(&greedy()).await.expect("an answer");
        // Every place of the text, so that strings begin and end inside tokens; of characters, not bytes.
        let starts: Vec<usize> = whole.text.char_indices().map(|(at, _)| at).skip(2).step_by(9).take(4).collect();
        for start in starts {
            let stop: String = whole.text[start..].chars().take(6).collect();
            let mut streamed = String::new();
            let mut chat = model.chat();
            let asked = chat.ask(question).options(&greedy()).stop(["no such text", &stop]);
            let answer = asked.on_text(|text| streamed.push_str(text)).await.expect("an answer");
            assert_eq!(answer.text, cut(&whole.text, &stop), "{stop:?}");
            assert_eq!(streamed.trim(), answer.text);
            assert_eq!(answer.finish_reason, FinishReason::Stop);
            assert_eq!(answer.stop_reason, Some(StopReason::String(stop)));
            assert!(whole.token_ids.starts_with(&answer.token_ids));
            assert_eq!(chat.conversation().turns[0].answer.as_deref(), Some(answer.text.as_str()));
        }
        let id = whole.token_ids[5];
        let at = whole.token_ids.iter().position(|other| *other == id).expect("it is there") + 1;
        let options = greedy().with_stop_token_ids(vec![id]);
        let answer = model.chat().ask(question).options(&options).await.expect("an answer");
        assert_eq!(answer.token_ids, whole.token_ids[..at]);
        assert_eq!(answer.stop_reason, Some(StopReason::Token(id)));
        let answer = model.chat().ask(question).options(&options.with_min_tokens(10)).await.expect("an answer");
        assert!(answer.token_ids.len() > 10 && !answer.token_ids[..10].contains(&id), "{:?}", answer.token_ids);
    });
}

/// Neutral values run no further kernel; the answers are those of the golden case.
#[test]
fn controls_without_effect_run_no_kernels() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let golden = &expected.json.turns[0].greedy_ids;
        let sampling = Sampling::GREEDY.with_min_p(0.0).with_repetition_penalty(1.0);
        let options = greedy().with_sampling(sampling).with_min_tokens(0).with_n(1);
        let answer = model.chat().ask(question).options(&options).await.expect("an answer");
        assert_eq!(answer.token_ids, golden[..answer.token_ids.len()]);
        model.chat().ask(question).options(&sampled(1)).await.expect("an answer");
        let controls = |kernel: &Kernel| {
            kernel.name.starts_with("adjust")
                || kernel.name.starts_with("logprobs")
                || kernel.sources.iter().any(|source| source.name.ends_with("sample_rows.wgsl"))
        };
        assert!(!model.gpu().kernels().iter().any(controls));
        let answer = model.chat().ask(question).options(&greedy().with_ignore_eos(true)).await.expect("an answer");
        assert_eq!(answer.token_ids.len(), 24);
        assert!(!model.gpu().kernels().iter().any(controls));
        let forbidden = greedy().with_logit_bias(vec![(golden[0], -100.0)]);
        let answer = model.chat().ask(question).options(&forbidden).await.expect("an answer");
        assert!(!answer.token_ids.contains(&golden[0]));
        let forced = greedy().with_logit_bias(vec![(golden[3], 100.0)]).with_max_new_tokens(3);
        let answer = model.chat().ask(question).options(&forced).await.expect("an answer");
        assert_eq!(answer.token_ids, [golden[3]; 3]);
        assert!(model.gpu().kernels().iter().any(controls));
    });
}

/// Penalties by a device against the same in f64 on the host, a step at a time, and log-probabilities against the f64
/// log-softmax of the logits of a whole pass: within 2e-4, since the steps of the answer sum in another order. The
/// kernel's own error is in tests/kernels/ops.rs.
#[test]
fn penalties_and_log_probabilities_are_those_of_the_logits() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let mut conversation = model.chat().conversation().clone();
        conversation.ask(question, 0);
        let prompt = model.tokenizer().encode_prompt(&conversation.prompt().expect("a prompt")).expect("ids");
        let prompt: Vec<u32> = prompt
            .into_iter()
            .map(|token| match token {
                PromptToken::Text(id) => id,
                PromptToken::Image => panic!("no image"),
            })
            .collect();
        let sampling =
            Sampling::GREEDY.with_repetition_penalty(1.3).with_presence_penalty(0.4).with_frequency_penalty(0.7);
        let options = greedy().with_sampling(sampling).with_top_logprobs(Some(4)).with_max_new_tokens(8);
        let mut events = Vec::new();
        let mut on_event = |event: Event<'_>| {
            if let Event::Logprobs { logprobs } = event {
                events.push(logprobs.clone());
            }
            ControlFlow::Continue(())
        };
        let answer = model.chat().ask(question).options(&options).on_event(&mut on_event).await.expect("an answer");
        assert_eq!(events, answer.logprobs);
        assert_eq!(answer.logprobs.len(), answer.token_ids.len());
        assert_ne!(answer.token_ids, expected.json.turns[0].greedy_ids[..answer.token_ids.len()], "no effect");
        for (step, (id, logprobs)) in answer.token_ids.iter().zip(&answer.logprobs).enumerate() {
            let generated = &answer.token_ids[..step];
            let positions: Vec<Position> = prompt.iter().chain(generated).map(|id| Position::Text(*id)).collect();
            let (language, mut cache) = (model.language(), model.language().cache());
            let mut recorder = model.gpu().record();
            let x = language.embed(&mut recorder, &positions, &[]).expect("embeddings");
            let x = language.forward(&mut recorder, &x, &mut cache).expect("a pass");
            let logits = language.last_logits(&mut recorder, &x).expect("logits").read_back(&mut recorder);
            recorder.submit().expect("a submission");
            let logits: Vec<f64> = logits.values::<f32>().await.expect("logits").into_iter().map(f64::from).collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = largest + logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln();
            for token in logprobs.top.iter().chain([&logprobs.chosen]) {
                let error = f64::from(token.logprob) - (logits[token.id as usize] - log_sum);
                assert!(error.abs() < 2e-4, "step {step}, {token:?}: off by {error:e}");
            }
            assert!(logprobs.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
            assert!(logprobs.top[0].logprob >= logprobs.chosen.logprob && logprobs.chosen.id == *id);
            let adjusted = |token: usize| {
                let count = generated.iter().filter(|id| **id as usize == token).count() as f64;
                let seen = count > 0.0 || prompt.contains(&(token as u32));
                let logit = match (seen, logits[token] > 0.0) {
                    (true, true) => logits[token] / 1.3,
                    (true, false) => logits[token] * 1.3,
                    _ => logits[token],
                };
                logit - 0.7 * count - if count > 0.0 { 0.4 } else { 0.0 }
            };
            let best = (0..logits.len()).map(adjusted).fold(f64::NEG_INFINITY, f64::max);
            assert!(adjusted(*id as usize) > best - 1e-3, "step {step}: {id} is not the best");
        }
        // The bytes of all tokens are the text, if they are characters.
        let bytes = answer.token_ids.iter().filter_map(|id| model.tokenizer().token_bytes(*id));
        let bytes: Vec<u8> = bytes.flat_map(|bytes| bytes.into_owned()).collect();
        if let Ok(text) = String::from_utf8(bytes) {
            assert_eq!(text.trim(), answer.text);
        }
    });
}

#[test]
fn several_answers_have_their_own_draws_and_resume() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let one = model.chat().ask(question).options(&sampled(2)).await.expect("an answer");
        let mut chat = model.chat();
        let mut begun: Vec<Vec<u32>> = vec![Vec::new()];
        let mut on_event = |event: Event<'_>| {
            match event {
                Event::Choice { index } => {
                    assert_eq!(index, begun.len());
                    begun.push(Vec::new());
                }
                Event::Token { id } => begun.last_mut().expect("an answer").push(id),
                _ => {}
            }
            ControlFlow::Continue(())
        };
        let options = sampled(2).with_n(3);
        let all = chat.ask(question).options(&options).on_event(&mut on_event).await.expect("answers");
        assert_eq!((&all.token_ids, &all.text), (&one.token_ids, &one.text));
        let ids: Vec<&Vec<u32>> = all.alternatives.iter().map(|choice| &choice.token_ids).collect();
        assert_eq!(ids, begun[1..].iter().collect::<Vec<_>>());
        assert!(ids.len() == 2 && *ids[0] != all.token_ids && ids[0] != ids[1]);
        assert_eq!(chat.conversation().turns[0].answer.as_deref(), Some(all.text.as_str()));
        // Greedy answers are all the same: the prompt's end is that of the first.
        let same = model.chat().ask(question).options(&greedy().with_n(2)).await.expect("answers");
        assert_eq!(same.alternatives[0].token_ids, same.token_ids);
        // The device was lost in the second answer.
        begun.truncate(2);
        begun[1].truncate(3);
        let mut tokens = 0;
        let count = |event: Event<'_>| {
            tokens += usize::from(matches!(event, Event::Token { .. }));
            ControlFlow::Continue(())
        };
        let options = options.with_resume_from(begun);
        let resumed = model.chat().ask(question).options(&options).on_event(count).await.expect("the rest");
        assert_eq!((resumed.token_ids, resumed.text), (all.token_ids, all.text));
        for (resumed, whole) in resumed.alternatives.iter().zip(&all.alternatives) {
            assert_eq!((&resumed.token_ids, &resumed.text), (&whole.token_ids, &whole.text));
        }
        let rest: usize = all.alternatives.iter().map(|choice| choice.token_ids.len()).sum();
        assert_eq!(tokens, rest - 3);
    });
}

#[test]
fn options_out_of_range_are_named() {
    with_model("no-image", async |model, _| {
        let base = AnswerOptions::default;
        let sampling = |sampling: Sampling| base().with_sampling(sampling);
        for (options, name) in [
            (sampling(Sampling::GREEDY.with_repetition_penalty(0.0)), "repetition_penalty"),
            (sampling(Sampling::GREEDY.with_min_p(2.0)), "min_p"),
            (sampling(Sampling::GREEDY.with_top_p(f32::NAN)), "top_p"),
            (sampling(Sampling::GREEDY.with_temperature(-1.0)), "temperature"),
            (sampling(Sampling::GREEDY.with_presence_penalty(2.5)), "presence_penalty"),
            (sampling(Sampling::GREEDY.with_frequency_penalty(f32::NAN)), "frequency_penalty"),
            (base().with_logit_bias(vec![(1 << 30, 1.0)]), "logit_bias"),
            (base().with_logit_bias(vec![(1, 101.0)]), "logit bias"),
            (base().with_top_logprobs(Some(21)), "top_logprobs"),
            (base().with_n(0), "n is 0"),
            (base().with_stop(vec![String::new()]), "stop string"),
            (base().with_stop_token_ids(vec![u32::MAX]), "stop_token_ids"),
            (base().with_min_tokens(513), "min_tokens"),
        ] {
            let error = model.chat().ask("Hello").options(&options).await.expect_err(name);
            assert!(matches!(&error, Error::InvalidArgument(reason) if reason.contains(name)), "{name}: {error}");
        }
    });
}

#[test]
fn a_restored_conversation_continues_where_it_ended() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let mut first = model.chat();
        first.ask(question).options(&greedy()).await.expect("an answer");
        let turns = first.conversation().turns.clone();
        let expected_second = first.ask("And then?").options(&greedy()).await.expect("a second answer");
        let mut second = model.chat();
        second.restore(None, turns.clone(), &[], &mut |_| ControlFlow::Continue(())).await.expect("the same turns");
        let answer = second.ask("And then?").options(&greedy()).await.expect("a second answer");
        assert_eq!((answer.token_ids, answer.cached_tokens), (expected_second.token_ids, 0));
        // The same again finds the prompt in the cache.
        second.restore(None, turns.clone(), &[], &mut |_| ControlFlow::Continue(())).await.expect("the same turns");
        let again = second.ask("And then?").options(&greedy()).await.expect("the same answer");
        assert_eq!((again.text, again.cached_tokens), (answer.text, answer.prompt_tokens - 1));
        let error =
            second
                .restore(None, turns, &[&Image::new(1, 1, vec![0; 3]).expect("a pixel")], &mut |_| {
                    ControlFlow::Continue(())
                })
                .await;
        assert!(matches!(error, Err(Error::InvalidArgument(_))));
    });
}

#[test]
fn a_question_beyond_the_context_is_refused_and_changes_nothing() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let mut chat = model.chat();
        chat.ask(question).options(&greedy()).await.expect("an answer");
        let turns = chat.conversation().turns.clone();
        let long = "word ".repeat(5000);
        let error = chat.ask(&long).options(&greedy()).await.expect_err("too long");
        assert!(matches!(error, Error::PromptTooLong { .. }), "{error}");
        assert_eq!(chat.conversation().turns, turns);
    });
}

#[test]
fn the_oldest_turns_are_dropped_to_fit_a_question() {
    with_model("no-image", async |model, expected| {
        let question = &expected.json.turns[0].question;
        let mut chat = model.chat();
        chat.ask(question).options(&greedy()).await.expect("an answer");
        let long = "word ".repeat(5000);
        let error = chat.ask(&long).options(&greedy()).await.expect_err("too long");
        let Error::PromptTooLong { limit, .. } = error else { panic!("{error}") };
        let mut dropped = 0;
        let mut count = |event: Event<'_>| {
            if let Event::DroppedTurns { count: turns } = event {
                dropped += turns;
            }
            ControlFlow::Continue(())
        };
        let tokens = |text: &str| model.tokenizer().encode(text).expect("tokens").len();
        let mut long = "word ".repeat(limit / tokens("word"));
        while tokens(&long) > limit - 150 {
            long.truncate(long.len() - 5);
        }
        chat.ask(&long).options(&greedy()).on_event(&mut count).await.expect("an answer");
        let second = chat.ask(&long).options(&greedy()).on_event(&mut count).await.expect("an answer");
        assert!(dropped > 0 && second.prompt_tokens <= limit, "{dropped} dropped");
    });
}

#[test]
fn memory_is_as_planned_and_a_limit_holds() {
    let case = case("vicuna-7b");
    let expected = Expected::read(&case);
    pollster::block_on(async {
        for precision in Precision::CHOICES {
            let gpu = open_gpu();
            let checkpoint = open(&case, &expected).await;
            let planned =
                MemoryPlan::for_checkpoint(&checkpoint, &LoadOptions::new(precision)).expect("a plan").weights();
            let options = LoadOptions::new(precision);
            Model::load(&gpu, &checkpoint, &options).await.expect("a model");
            let peak = gpu.memory().peak;
            // Buffers are whole 256s of bytes; there are about 300.
            assert!(peak >= planned && peak < planned + 300 * 256, "{precision}: {peak} used, {planned} planned");
        }
        let limit = Some(1 << 20);
        let gpu = open_gpu_with(GpuOptions::default().with_memory_limit(limit));
        let options = LoadOptions::new(Precision::F32);
        let error = Model::load(&gpu, &open(&case, &expected).await, &options).await.expect_err("too large");
        assert!(matches!(error, Error::OutOfMemory { available: 1_048_576, .. }), "{error}");
    });
}

#[test]
fn without_room_for_a_question_the_conversation_stays_as_it_was() {
    let case = case("no-image");
    let expected = Expected::read(&case);
    let question = expected.json.turns[0].question.clone();
    let long = "word ".repeat(400);
    pollster::block_on(async {
        let gpu = open_gpu();
        let model = load(&gpu, &case, &expected).await;
        let mut chat = model.chat();
        chat.ask(&question).options(&greedy()).await.expect("an answer");
        let second = chat.ask("And then?").options(&greedy()).await.expect("a second answer");

        // As much memory as that took is too little for keys and values of a long question.
        let limit = Some(gpu.memory().peak);
        let gpu = open_gpu_with(GpuOptions::default().with_memory_limit(limit));
        let model = load(&gpu, &case, &expected).await;
        let mut chat = model.chat();
        chat.ask(&question).options(&greedy()).await.expect("an answer");
        let error = chat.ask(&long).options(&greedy()).await.expect_err("no room");
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        let after = chat.ask("And then?").options(&greedy()).await.expect("a second answer");
        assert_eq!(after.token_ids, second.token_ids);
        assert!(after.cached_tokens > 0, "the first turn is still in the cache");
    });
}

/// Every allocation of a load and an answer with an image fails once, and all after it, as on a device that is full.
#[test]
fn out_of_memory_at_any_allocation_is_an_error_and_leaves_nothing_behind() {
    let case = case("vicuna-7b");
    let expected = Expected::read(&case);
    let turn = &expected.json.turns[0];
    pollster::block_on(async {
        let gpu = open_gpu();
        let checkpoint = open(&case, &expected).await;
        let images = images(&expected, &case);
        let run = async || {
            let model = Model::load(&gpu, &checkpoint, &LoadOptions::new(Precision::F32)).await?;
            let mut chat = model.chat();
            let first = chat.ask(&turn.question).images(&images).options(&greedy()).await;
            // Whatever happened to the first question, the model answers the next one as soon as there is memory.
            gpu.set_full_after(None);
            let again = model.chat().ask(&turn.question).images(&images).options(&greedy()).await?;
            Ok::<_, Error>((first.map(|answer| answer.token_ids), again.token_ids))
        };
        let start = gpu.created_buffers();
        let (first, again) = run().await.expect("an answer");
        let first = first.expect("an answer");
        assert_eq!(first, again);
        let allocations = gpu.created_buffers() - start;
        gpu.trim();
        let baseline = gpu.memory().allocated;
        let (mut refused_loads, mut refused_answers) = (0, 0);
        // A prime step visits all kinds of buffers: weights come in groups.
        for after in (0..allocations).step_by(13) {
            gpu.set_full_after(Some(after));
            match run().await {
                Ok((Ok(ids), again)) => assert!(ids == first && again == first, "{after}"),
                Ok((Err(Error::OutOfMemory { .. }), again)) => {
                    refused_answers += 1;
                    assert_eq!(again, first, "{after}");
                }
                Err(Error::OutOfMemory { .. }) => refused_loads += 1,
                Ok((Err(error), _)) | Err(error) => panic!("allocation {after}: {error}"),
            }
            gpu.set_full_after(None);
            gpu.trim();
            assert!(gpu.memory().allocated <= baseline, "allocation {after}: {:?}, {baseline} before", gpu.memory());
        }
        assert!(refused_loads > 0 && refused_answers > 0, "{refused_loads} loads, {refused_answers} answers");
    });
}

/// Bind groups hold their buffers: those of a conversation that is over must go, or its memory stays.
#[test]
fn conversations_that_are_over_leave_nothing_behind() {
    let case = case("no-image");
    let expected = Expected::read(&case);
    pollster::block_on(async {
        let gpu = open_gpu();
        let model = load(&gpu, &case, &expected).await;
        let mut counts = Vec::new();
        for _ in 0..4 {
            model.chat().ask("Who are you?").options(&greedy()).await.expect("an answer");
            counts.push((gpu.bind_group_count(), gpu.memory().allocated));
        }
        assert!(counts[3] <= counts[1], "bind groups and bytes after each conversation: {counts:?}");
    });
}

/// At most nine dispatches a layer, and a handful around them: a dispatch costs tens of microseconds.
#[test]
fn a_token_takes_few_dispatches() {
    for name in ["gemma-2b", "llama3-8b", "vicuna-7b"] {
        let case = case(name);
        let expected = Expected::read(&case);
        pollster::block_on(async {
            let gpu = open_gpu();
            let checkpoint = open(&case, &expected).await;
            let layers = checkpoint.config.language.num_layers as u64;
            let options = LoadOptions::new(Precision::Q4);
            let model = Model::load(&gpu, &checkpoint, &options).await.expect("a model");
            // Long enough that attention splits its keys. The same prompt with a short and a long answer: the
            // difference is tokens alone.
            let question = "word ".repeat(300);
            let mut runs = Vec::new();
            for max_new_tokens in [2, 12] {
                let before = gpu.dispatch_count();
                let options = greedy().with_max_new_tokens(max_new_tokens);
                let answer = model.chat().ask(&question).options(&options).await.expect("an answer");
                runs.push((answer.token_ids.len() as u64, gpu.dispatch_count() - before));
            }
            let tokens = runs[1].0 - runs[0].0;
            assert!(tokens > 0, "{name}: the answer ended at once");
            let per_token = (runs[1].1 - runs[0].1) / tokens;
            println!("{name}: {per_token} dispatches a token, {layers} layers");
            // Five a layer, and above 256 keys a sixth that merges parts of attention; embedding, head, choice. The
            // products of software adapters without subgroups of eight do not take the two norms along.
            let norms_apart = gpu.adapter().is_software() && gpu.capabilities().subgroup_size() != Some(8);
            let a_layer = if norms_apart { 8 } else { 6 };
            assert!(per_token <= a_layer * layers + 4, "{name}: {per_token} dispatches a token, {layers} layers");
        });
    }
}

/// Once a conversation is under way, a token makes no buffer, no pipeline and no bind group.
#[test]
fn tokens_make_nothing_on_the_device() {
    let case = case("llama3-8b");
    let expected = Expected::read(&case);
    pollster::block_on(async {
        let gpu = open_gpu();
        let model = load(&gpu, &case, &expected).await;
        let options = greedy().with_max_new_tokens(120);
        let mut made = Vec::new();
        let mut on_event = |event: Event<'_>| {
            if let Event::Token { .. } = event {
                made.push(gpu.objects_made());
            }
            ControlFlow::Continue(())
        };
        model.chat().ask("word ").options(&options).on_event(&mut on_event).await.expect("an answer");
        assert!(made.len() > 60, "the answer ended after {} tokens", made.len());
        // The first tokens of a conversation make what the others use.
        let counts: Vec<u64> = made.windows(2).map(|pair| pair[1] - pair[0]).collect();
        println!("objects made a token: {counts:?}");
        assert!(counts[8..].iter().all(|count| *count == 0), "{counts:?}");
    });
}

/// The pipelines of the released 7B model, from an image to an answer: few enough to compile while the weights load.
#[test]
fn a_released_model_needs_few_pipelines() {
    for cooperative_sizes in [vec![], vec![16]] {
        let capabilities = Capabilities { cooperative_sizes, ..large_gpu() };
        let test = TestOptions { planned: Some(capabilities), software_adapter: Some(false), ..Default::default() };
        let gpu = open_gpu_with(GpuOptions::default().with_test(test));
        pollster::block_on(async {
            let Variant { language, vision, .. } = released("mgm-7b").expect("a released model");
            let loader = Loader::random(&gpu, 1, Precision::F16, None);
            let (config, clip, convnext) = (vision.config, &vision.clip, &vision.convnext);
            let towers = Vision::random(&loader, config, clip, convnext, language.hidden_size).await.expect("towers");
            let language = LanguageModel::load(&loader.at(Precision::Q4), &language).await.expect("a planned model");
            let mut kernels = towers.dry_run(&gpu).await.expect("a report").kernels();
            kernels.extend(language.dry_run(&gpu).expect("a report").kernels());
            println!("{} pipelines", kernels.len());
            assert!(kernels.len() <= 60, "{} pipelines", kernels.len());
        });
    }
}

/// A small last chunk would leave most of a GPU idle.
#[test]
fn chunks_of_a_prompt_have_about_the_same_size() {
    let gpu = open_as_hardware();
    for positions in [1, 63, 64, 640, 768, 769, 1000, 2913, 4096] {
        let chunk = prefill_chunk(&gpu, positions);
        let last = positions - (positions - 1) / chunk * chunk;
        assert!(chunk <= 768 && chunk.is_multiple_of(64), "{positions} positions in chunks of {chunk}");
        let chunks = positions.div_ceil(chunk);
        assert_eq!(chunks, positions.div_ceil(768), "{positions} positions in chunks of {chunk}");
        assert!(
            chunks == 1 || last + 64 * chunks > chunk,
            "{positions} positions in chunks of {chunk}, the last of {last}"
        );
    }
}

/// What a host compiles while a model loads is all that an answer about an image needs.
#[test]
fn the_kernels_of_a_model_are_known_before_it_is_loaded() {
    let case = case("llama3-8b");
    let expected = Expected::read(&case);
    pollster::block_on(async {
        for gpu in [open_gpu(), open_as_hardware()] {
            let files = ModelFiles::Mgm(Box::new(open(&case, &expected).await));
            let options = LoadOptions::new(Precision::Q4);
            let kernels = Model::kernels(&gpu, &files, &options).await.expect("kernels");
            let allocated = gpu.memory().allocated;
            assert!(allocated < 1 << 20, "planning took {allocated} bytes");
            let before = gpu.kernels().len();
            kernels.into_iter().for_each(|kernel| gpu.prepare(kernel));
            let prepared = gpu.kernels();
            assert!(prepared.len() > before + 10, "{before} and {} pipelines", prepared.len());
            let model = Model::open(&gpu, &files, &options).await.expect("a model");
            let products = Model::products(&gpu, &files, &options).await.expect("products");
            assert_eq!(products, mgm::ops::products(&model.dry_run().expect("a report")));
            assert!(products.values().all(|uses| *uses > 0) && products.keys().any(|shape| shape.m == 1));
            let mut chat = model.chat();
            let sampled = AnswerOptions::default().with_sampling(Sampling::GREEDY.with_temperature(0.7));
            for options in [greedy(), sampled.with_max_new_tokens(24)] {
                let image = images(&expected, &case).remove(0);
                chat.ask("What is this?").image(image).options(&options).await.expect("an answer");
            }
            let describe = |kernel: &Kernel| format!("{} {:?} {:?}", kernel.label, kernel.consts, kernel.overrides);
            let missed: Vec<_> =
                gpu.kernels().iter().filter(|kernel| !prepared.contains(kernel)).map(describe).collect();
            assert!(missed.is_empty(), "{missed:#?}");
        }
    });
}

/// A decoding step is recorded once in 64 and replayed in between. Both compute the same values, also where attention
/// begins to split its keys and where the cache grows.
#[test]
fn replayed_steps_compute_what_recorded_ones_do() {
    const STEPS: usize = 330;
    for name in ["llama3-8b", "mixtral-8x7b"] {
        let case = case(name);
        let expected = Expected::read(&case);
        pollster::block_on(async {
            for gpu in [open_gpu(), open_as_hardware()] {
                let model = load(&gpu, &case, &expected).await;
                let language = model.language();
                let ids: Vec<u32> = (0..STEPS as u32).map(|step| step * 7919 % 200).collect();
                let mut recorder = gpu.record();
                let ids = Tensor::upload(&mut recorder, &[STEPS], &ids, "tokens").expect("tokens");
                let (mut replayed, mut recorded) = (language.cache(), language.cache());
                let mut replays = 0;
                for step in 0..STEPS {
                    replays += usize::from(replayed.has_recorded_step());
                    let x = language.decode_step(&mut recorder, &ids, step, &mut replayed).expect("a step");
                    let found = x.read_back(&mut recorder);
                    let x = language.embed_sampled(&mut recorder, &ids, step, 1).expect("an embedding");
                    let x = language.forward(&mut recorder, &x, &mut recorded).expect("a step");
                    let wanted = x.read_back(&mut recorder);
                    recorder.finish().await.expect("a submission");
                    let found: Vec<u32> = found.values().await.expect("values");
                    let wanted: Vec<u32> = wanted.values().await.expect("values");
                    assert_eq!(found, wanted, "{name}: step {step}");
                }
                assert!(replays > STEPS - 10, "{name}: {replays} of {STEPS} steps follow a recorded one");
            }
        });
    }
}

/// Expected values by tests/reference/make_low_resolution.py: every 29th token, and the first greedy ids.
#[test]
fn without_the_high_resolution_branch_the_projector_takes_the_low_resolution_tower_alone() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vision");
    let bytes = std::fs::read(data.join("low_resolution.safetensors")).expect("the tokens");
    let tokens = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let turns: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data.join("low_resolution.json")).expect("the turns")).expect("JSON");
    for name in ["vicuna-7b", "vicuna-7b-hd", "gemma-2b"] {
        let case = case(name);
        let expected = Expected::read(&case);
        pollster::block_on(async {
            let gpu = open_gpu();
            let checkpoint = open(&case, &expected).await;
            let full = LoadOptions::new(Precision::F32);
            let low = full.clone().with_high_resolution(false);
            let weights = |options| MemoryPlan::for_checkpoint(&checkpoint, options).expect("a plan").weights();
            assert!(weights(&low) < weights(&full));
            let model = Model::load(&gpu, &checkpoint, &low).await.expect("a golden model");

            let images = images(&expected, &case);
            let vision = model.vision().expect("a vision side");
            let views = vision.preprocess().views(&images[0]).expect("views");
            let mut recorder = gpu.record();
            let encoded = vision
                .encode_and_wait(&mut recorder, &views, None, &mut |_, _| ControlFlow::Continue(()))
                .await
                .expect("tokens");
            let read = encoded.tokens.read_back(&mut recorder);
            recorder.submit().expect("a submission");
            let found: Vec<f32> = read.values().await.expect("values");
            let wanted: Vec<f32> = bytemuck::pod_collect_to_vec(tokens.tensor(name).expect("the case").data());
            let width = encoded.tokens.columns();
            let found: Vec<f32> = found.chunks_exact(width).step_by(29).flatten().copied().collect();
            assert_eq!(found.len(), wanted.len());
            let largest = wanted.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let error = found.iter().zip(&wanted).fold(0.0f32, |error, (a, b)| error.max((a - b).abs()));
            // As in goldens.rs.
            assert!(error <= 2e-4 * largest, "{name}: {error} of {largest}");

            let options = greedy().with_max_new_tokens(8);
            let question = &expected.json.turns[0].question;
            let answer = model.chat().ask(question).images(&images).options(&options).await.expect("an answer");
            let ids: Vec<u32> = serde_json::from_value(turns[name]["greedy_ids"].clone()).expect("ids");
            assert_eq!(answer.token_ids, ids[..answer.token_ids.len()], "{name}");
            assert_ne!(ids, expected.json.turns[0].greedy_ids[..ids.len()], "{name}: it would have gone unnoticed");
            let error = model
                .attention_map(&images[0], &mut |_, _| ControlFlow::Continue(()))
                .await
                .expect_err("nothing is mined")
                .to_string();
            assert!(error.contains("high-resolution"), "{error}");
        });
    }
}

/// The golden turns, each with the turns before as its history, answered together with shorter and longer questions.
#[test]
fn questions_answered_together_get_the_golden_answers() {
    for name in ["vicuna-7b", "gemma-2b", "mixtral-8x7b", "no-image"] {
        let case = case(name);
        let expected = Expected::read(&case);
        pollster::block_on(async {
            let gpu = open_gpu();
            let model = load(&gpu, &case, &expected).await;
            let mut chat = model.chat();
            let images = images(&expected, &case);
            let (mut requests, mut wanted) = (Vec::new(), Vec::new());
            let turns = &expected.json.turns;
            for index in 0..turns.len() {
                let before = turns[..index].iter().enumerate().map(|(index, turn)| {
                    let images = if index == 0 { images.len() } else { 0 };
                    mgm::text::Turn::new(&turn.question, images).with_answer(&turn.text)
                });
                let (of_history, of_question) =
                    if index == 0 { (&[][..], &images[..]) } else { (&images[..], &[][..]) };
                chat.restore(None, before.collect(), &image_sources(of_history), &mut |_| ControlFlow::Continue(()))
                    .await
                    .expect("a conversation");
                let request = chat.ask(&turns[index].question).images(of_question).max_new_tokens(24).prepare().await;
                requests.push(request.expect("a request"));
                assert_eq!(chat.conversation().turns.len(), index);
                wanted.push((turns[index].greedy_ids.clone(), turns[index].n_embeds));
            }
            // Of another length, with an image and without: what they get is what they get alone.
            let others = [("What would you say is to be seen at its left side?", &images[..]), ("Hm?", &[][..])];
            for (question, images) in others {
                chat.restore(None, Vec::new(), &[], &mut |_| ControlFlow::Continue(())).await.expect("a conversation");
                requests.push(chat.ask(question).images(images).max_new_tokens(24).prepare().await.expect("a request"));
                let alone = model.chat().ask(question).images(images).options(&greedy()).await.expect("an answer");
                wanted.push((alone.token_ids, alone.prompt_tokens));
            }
            let answers = model.answer_batch(&requests, 24, &mut || ControlFlow::Continue(())).await.expect("answers");
            assert_eq!(answers.len(), wanted.len());
            for (index, (answer, (ids, positions))) in answers.iter().zip(&wanted).enumerate() {
                assert_eq!(answer.prompt_tokens, *positions, "{name}, question {index}");
                let length = answer.token_ids.len();
                assert_eq!(answer.token_ids, ids[..length], "{name}, question {index}");
                assert!(length == ids.len() || answer.finish_reason == FinishReason::Stop, "{name}, question {index}");
                assert!(!answer.text.is_empty(), "{name}, question {index}");
            }
            // One question, and the same one twice, are batches too; a stop is heard.
            for some in [&requests[..1], &[requests[0].clone(), requests[0].clone()]] {
                let few = model.answer_batch(some, 3, &mut || ControlFlow::Continue(())).await.expect("answers");
                assert!(few.iter().all(|answer| answer.token_ids[..] == wanted[0].0[..3]), "{name}");
            }
            let stopped = model.answer_batch(&requests, 24, &mut || ControlFlow::Break(())).await;
            assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
            assert!(matches!(
                model.answer_batch(&[], 24, &mut || ControlFlow::Continue(())).await,
                Err(Error::InvalidArgument(_))
            ));
        });
    }
}
