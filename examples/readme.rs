//! The program in README.md.
use mgm::{Gpu, Image, Model};

fn main() -> mgm::Result<()> {
    pollster::block_on(async {
        let gpu = Gpu::open(&Default::default()).await?;
        let model = Model::from_path(&gpu, "models/pocket").await?;
        let image = Image::open("pocket/examples/shark.png")?;
        println!("{}", model.chat().ask("Describe the image.").image(image).await?);
        Ok(())
    })
}
