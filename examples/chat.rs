//! A conversation in the terminal: `cargo run --release --example chat`, then one question per line.

use std::io::{BufRead, Write};

use mgm::{Gpu, Model};

fn main() -> mgm::Result<()> {
    pollster::block_on(async {
        let path = std::env::args().nth(1).unwrap_or_else(|| "models/pocket".to_owned());
        let gpu = Gpu::open(&Default::default()).await?;
        let mut chat = Model::from_path(&gpu, path).await?.chat();
        for question in std::io::stdin().lock().lines().map_while(Result::ok) {
            let stream = |text: &str| {
                print!("{text}");
                let _ = std::io::stdout().flush();
            };
            let answer = chat.ask(question).max_new_tokens(128).on_text(stream).await?;
            println!("\n[{} tokens, {:.0} tokens/s]", answer.token_ids.len(), answer.decode_tokens_per_s());
        }
        Ok(())
    })
}
