//! Tokenizers, conversation templates, stop rules, incremental detokenisation.

#[doc(hidden)]
pub mod chat_template;
#[doc(hidden)]
pub mod clip;
pub mod conversation;
mod decode;
#[doc(hidden)]
pub mod gguf;
mod merges;
mod prompt;
pub mod prompt_weights;
#[doc(hidden)]
pub mod sentencepiece;
#[doc(hidden)]
pub mod stop;
#[doc(hidden)]
pub mod stop_strings;
#[doc(hidden)]
pub mod stream;
pub mod tokenizer;
mod tokenizer_config;

pub use conversation::{Conversation, PromptFormat, Template, Turn};
pub use prompt::{IMAGE_PLACEHOLDER, Prompt};
pub use stop::StopIds;
pub use stream::TextStream;
pub use tokenizer::{PromptToken, Tokenizer};
