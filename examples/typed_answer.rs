//! An image as a value of a Rust type: `cargo run --release --example typed_answer -- pocket/examples/zebras.png`
//!
//! The type's JSON schema comes from schemars. Each field's description is a question about the image, and the answer
//! can only be JSON that the field's schema describes.

use mgm::language::Constraint;
use mgm::{Chat, Gpu, Image, Model};
use mgm_grammar::{Format, Matcher, Vocabulary};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What the program wants to know.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
struct Scene {
    /// What colour is the background?
    background: Colour,
    /// How many zebras are there?
    #[schemars(range(min = 0, max = 9))]
    zebras: u8,
    /// What colour is the star?
    star: Colour,
    /// What does the text say?
    #[schemars(length(min = 1, max = 12))]
    text: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
    Pink,
    Brown,
    Black,
    White,
}

/// A grammar as the constraint of an answer.
#[derive(Debug, Clone)]
struct Rule(Matcher);

impl Constraint for Rule {
    fn fill_mask(&mut self, mask: &mut [u32]) -> mgm::Result<()> {
        self.0.fill_mask(mask).map_err(|error| mgm::Error::InvalidArgument(error.to_string()))
    }

    fn accept(&mut self, id: u32) -> mgm::Result<()> {
        self.0.accept(id).map_err(|error| mgm::Error::InvalidArgument(error.to_string()))
    }

    fn is_terminated(&self) -> bool {
        self.0.is_terminated()
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// Asks about the fields of a type, one after the other. The image stays in the cache.
async fn read<T: JsonSchema + for<'de> Deserialize<'de>>(chat: &mut Chat, image: &Image) -> Result<T> {
    let (tokenizer, stop_ids) = (chat.model().tokenizer(), chat.model().stop_ids());
    let vocab = chat.model().language().config().vocab_size as u32;
    let bytes = (0..vocab).map(|id| tokenizer.token_bytes(id));
    // Pocket's tokenizer is SentencePiece's: a text's first token may begin with a space.
    let vocabulary = Vocabulary::new(bytes, stop_ids.ids())?.with_leading_space();
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let properties = schema.get("properties").and_then(Value::as_object).ok_or("the type has no fields")?;
    let mut fields = Map::new();
    let mut images = Some(image);
    for (name, schema) in properties {
        let question = schema["description"].as_str().ok_or("a field has no description")?;
        let format = Format::JsonSchema { schema: schema.clone(), strict: false };
        let rule = Rule(vocabulary.compile(&format)?.matcher());
        let answer = chat.ask(question).images(images.take()).max_new_tokens(32).constraint(rule).await?;
        eprintln!("{question} {answer}");
        fields.insert(name.clone(), serde_json::from_str(&answer.text)?);
    }
    Ok(serde_json::from_value(json!(fields))?)
}

fn main() -> Result<()> {
    pollster::block_on(async {
        let path = std::env::args().nth(1).unwrap_or_else(|| "pocket/examples/zebras.png".to_owned());
        let image = Image::open(path)?;
        let gpu = Gpu::open(&Default::default()).await?;
        let model = Model::from_path(&gpu, "models/pocket").await?;
        let scene: Scene = read(&mut model.chat(), &image).await?;
        println!("{scene:#?}");
        Ok(())
    })
}
