//! The program `mgm` from outside. `cargo test --test cli chat::` runs the tests of one file.

mod bad_input;
mod bench;
mod chat;
mod chat_form;
mod cli_reference;
mod common;
mod docs;
mod eval;
mod faults;
mod generate;
mod hub;
mod hub_cache;
mod pack;
mod pocket;
mod pull;
mod serve;
mod serve_embeddings;
mod serve_images;
mod serve_recovery;
mod serve_responses;
