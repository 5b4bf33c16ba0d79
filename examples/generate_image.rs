//! Text to image: `cargo run --release --example generate_image -- "a blue dog" target/blue-dog.png`

use std::ops::ControlFlow;

use mgm::{DiffusionEvent, DiffusionPipeline, Gpu};

fn main() -> mgm::Result<()> {
    pollster::block_on(async {
        let mut arguments = std::env::args().skip(1);
        let prompt = arguments.next().unwrap_or_else(|| "a blue dog".to_owned());
        let out = arguments.next().unwrap_or_else(|| "target/blue-dog.png".to_owned());
        let gpu = Gpu::open(&Default::default()).await?;
        let mut pipeline = DiffusionPipeline::from_path(&gpu, "models/pocket-sdxl").await?;
        let progress = |event: DiffusionEvent<'_>| {
            if let DiffusionEvent::Step { done, total } = event {
                eprintln!("step {done} of {total}");
            }
            ControlFlow::Continue(())
        };
        let image = pipeline.generate(prompt).num_inference_steps(10).seed(7).on_event(progress).await?;
        image.save(&out)?;
        println!("{out}: {} x {} pixels", image.image.width(), image.image.height());
        Ok(())
    })
}
