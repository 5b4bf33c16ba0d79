//! Text: tokenizers, conversation templates, stop rules, incremental detokenisation.

pub mod chat_template;
pub mod clip;
pub mod conversation;
mod decode;
pub mod gguf;
mod merges;
pub mod sentencepiece;
pub mod stop;
pub mod stream;
pub mod tokenizer;
mod tokenizer_config;

pub use conversation::{Conversation, Prompt, Template, Turn};
pub use stop::StopIds;
pub use stream::TextStream;
pub use tokenizer::{PromptToken, Tokenizer};
