//! Tokenizers, conversation templates, stop rules, incremental detokenisation.

pub mod chat_template;
pub mod clip;
pub mod conversation;
mod decode;
pub mod gguf;
mod merges;
mod prompt;
pub mod sentencepiece;
pub mod stop;
pub mod stream;
pub mod tokenizer;
mod tokenizer_config;

pub use conversation::{Conversation, PromptFormat, Template, Turn};
pub use prompt::{IMAGE_PLACEHOLDER, Prompt};
pub use stop::StopIds;
pub use stream::TextStream;
pub use tokenizer::{PromptToken, Tokenizer};
