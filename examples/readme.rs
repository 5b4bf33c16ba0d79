//! The function in README.md.
use mgm::{Gpu, Image, Model};
// For any executor, such as `pollster::block_on(describe("pocket/examples/shark.png"))`.
async fn describe(file: &str) -> mgm::Result<String> {
    let gpu = Gpu::open(&Default::default()).await?;
    let model = Model::from_path(&gpu, "models/pocket").await?;
    let answer = model.chat().ask("Describe the image.").image(Image::open(file)?).await?;
    Ok(answer.text)
}

fn main() -> mgm::Result<()> {
    println!("{}", pollster::block_on(describe("pocket/examples/shark.png"))?);
    Ok(())
}
