//! How the tokens of answers are chosen, and where answers end.

use clap::Args;
use mgm::ops::{MAX_TOP_LOGPROBS, Sampling};
use mgm::session::{AnswerOptions, MAX_CHOICES};

use crate::args::parse_number;

#[derive(Debug, Args)]
pub struct DecodingArgs {
    /// Sampling temperature; 0 is greedy
    #[arg(long, default_value_t = Sampling::REFERENCE.temperature, value_parser = parse_temperature)]
    temperature: f32,
    /// Sample only from the smallest set of most likely tokens whose probabilities sum to at least this [default: the
    /// model's, else 1]
    #[arg(long, value_parser = parse_probability)]
    top_p: Option<f32>,
    /// Sample only from the N most likely tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = Sampling::REFERENCE.top_k)]
    top_k: u32,
    /// Sample only from tokens with at least this share of the most likely token's probability; 0 for all
    #[arg(long, value_name = "X", default_value_t = Sampling::REFERENCE.min_p, value_parser = parse_min_p)]
    min_p: f32,
    /// Make tokens of the prompt and the answer less likely: positive logits are divided by this, others multiplied
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_repetition)]
    repetition_penalty: f32,
    /// Subtract this from the logits of tokens that the answer has
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = parse_penalty)]
    presence_penalty: f32,
    /// Subtract this from the logits of tokens for each time that the answer has them
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = parse_penalty)]
    frequency_penalty: f32,
    /// Add this to the logit of a token, -100 to 100; -100 forbids the token. Repeat for several
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Random seed for sampling [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Number of answers to each prompt; the conversation continues with the first
    #[arg(short = 'n', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_CHOICES as i64))]
    choices: u32,
    /// Maximum number of tokens in an answer
    #[arg(
        long,
        visible_aliases = ["max-tokens", "max-completion-tokens"],
        value_name = "N",
        default_value_t = AnswerOptions::default().max_new_tokens as u32,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_new_tokens: u32,
    /// Tokens before an answer may end by a stop token or a stop string
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_tokens: u32,
    /// End an answer before this text; repeat for several
    #[arg(long, value_name = "TEXT", value_parser = parse_stop)]
    stop: Vec<String>,
    /// End an answer at this token too; repeat for several
    #[arg(long, value_name = "ID")]
    stop_token_id: Vec<u32>,
    /// The model's stop tokens do not end an answer
    #[arg(long)]
    ignore_eos: bool,
    /// Report the log-probability of each token, and of the N likeliest tokens in its place
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u32).range(..=MAX_TOP_LOGPROBS as i64))]
    logprobs: Option<u32>,
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    parse_number(text, |value| (0.0..=100.0).contains(value), "a temperature from 0 to 100")
}

fn parse_probability(text: &str) -> Result<f32, String> {
    parse_number(text, |value| *value > 0.0 && *value <= 1.0, "a probability above 0, up to 1")
}

fn parse_min_p(text: &str) -> Result<f32, String> {
    parse_number(text, |value| (0.0..=1.0).contains(value), "a probability from 0 to 1")
}

fn parse_repetition(text: &str) -> Result<f32, String> {
    parse_number(text, |value| *value > 0.0 && *value <= 2.0, "a number above 0, up to 2")
}

fn parse_penalty(text: &str) -> Result<f32, String> {
    parse_number(text, |value| (-2.0..=2.0).contains(value), "a number from -2 to 2")
}

fn parse_stop(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("expected a text that is not empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let expected = "expected a token's id and a number from -100 to 100, such as 42=-1.5";
    let (id, bias) = text.split_once('=').ok_or(expected)?;
    let id = id.trim().parse().map_err(|_| expected)?;
    Ok((id, parse_number(bias.trim(), |bias| (-100.0..=100.0).contains(bias), &expected["expected ".len()..])?))
}

impl DecodingArgs {
    /// The options of an answer. `top_p`: the model's default.
    pub fn options(&self, seed: u64, top_p: Option<f32>) -> AnswerOptions {
        let sampling = Sampling::default()
            .with_temperature(self.temperature)
            .with_top_k(self.top_k)
            .with_top_p(self.top_p.or(top_p).unwrap_or(1.0))
            .with_min_p(self.min_p)
            .with_repetition_penalty(self.repetition_penalty)
            .with_presence_penalty(self.presence_penalty)
            .with_frequency_penalty(self.frequency_penalty);
        AnswerOptions::default()
            .with_sampling(sampling)
            .with_seed(seed)
            .with_n(self.choices as usize)
            .with_max_new_tokens(self.max_new_tokens as usize)
            .with_min_tokens(self.min_tokens as usize)
            .with_stop(self.stop.clone())
            .with_stop_token_ids(self.stop_token_id.clone())
            .with_ignore_eos(self.ignore_eos)
            .with_logit_bias(self.logit_bias.clone())
            .with_top_logprobs(self.logprobs.map(|top| top as usize))
    }
}
