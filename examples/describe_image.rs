//! A question about an image: `cargo run --release --example describe_image -- pocket/examples/zebras.png`

use std::ops::ControlFlow;

use mgm::{Event, Gpu, Image, Model};

fn main() -> mgm::Result<()> {
    pollster::block_on(async {
        let path = std::env::args().nth(1).unwrap_or_else(|| "pocket/examples/zebras.png".to_owned());
        let image = Image::open(path)?;
        let gpu = Gpu::open(&Default::default()).await?;
        let model = Model::from_path(&gpu, "models/pocket").await?;
        let mut chat = model.chat();
        let progress = |event: Event<'_>| {
            if let Event::EncodingImage { done, total } = event {
                eprintln!("encoding: {done} of {total}");
            }
            ControlFlow::Continue(())
        };
        let answer = chat.ask("Describe the image.").image(image).on_event(progress).await?;
        println!("{answer}");
        // The image and the first turn stay in the cache: only the new question is prefilled.
        let answer = chat.ask("What does the text say?").await?;
        println!("{answer} ({} of {} prompt tokens were cached)", answer.cached_tokens, answer.prompt_tokens);
        Ok(())
    })
}
