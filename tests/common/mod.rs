//! What several test files need.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mgm::gpu::{Gpu, GpuOptions, Withheld};
use mgm::language::{ImageId, Position};
use mgm::tensor::Tensor;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

/// The device that tests run on: `MGM_ADAPTER` by index or name, else the best. Fails, with what to install, where
/// there is none.
pub fn open_gpu() -> Gpu {
    open_gpu_with(GpuOptions::default())
}

/// The same with other options, and without the features and limits that `MGM_WITHOUT` lists ([`Withheld`]).
pub fn open_gpu_with(mut options: GpuOptions) -> Gpu {
    if let Ok(choice) = std::env::var("MGM_ADAPTER") {
        options.adapter = choice.parse().expect("any text is a choice");
    }
    if let Ok(names) = std::env::var("MGM_WITHOUT") {
        let withheld: Withheld = names.parse().unwrap_or_else(|error| panic!("MGM_WITHOUT: {error}"));
        options.test.withheld = options.test.withheld.or(withheld);
    }
    pollster::block_on(Gpu::open(&options)).unwrap_or_else(|error| panic!("{error}"))
}

/// The folder of the golden cases: `MGM_GOLDENS`, or this project's with their generated weights.
pub fn goldens() -> PathBuf {
    std::env::var_os("MGM_GOLDENS").map_or_else(|| mgm_test_support::goldens().to_owned(), PathBuf::from)
}

/// The folders of all golden cases, in order of their names.
pub fn all_cases() -> Vec<PathBuf> {
    let root = goldens();
    let entries = std::fs::read_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let mut cases: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("expected.json").is_file())
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no golden cases in {}", root.display());
    cases
}

/// The folder of the golden case `name`, which has a language model.
pub fn case(name: &str) -> PathBuf {
    let case = all_cases().into_iter().find(|case| case.ends_with(name));
    let case = case.unwrap_or_else(|| panic!("no golden case {name}"));
    assert!(!is_image_generation(&case), "{name} has no language model");
    case
}

/// Whether a case generates images (Stable Diffusion XL) and has no language model.
pub fn is_image_generation(case: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct Kind {
        model: Option<String>,
    }
    let text = std::fs::read_to_string(case.join("expected.json")).expect("expected.json");
    let kind: Kind = serde_json::from_str(&text).expect("expected.json is a JSON object");
    kind.model.as_deref() == Some("sdxl")
}

/// `expected.json`.
#[derive(Debug, serde::Deserialize)]
pub struct ExpectedJson {
    pub case: String,
    pub family: String,
    pub checkpoint: String,
    pub images: Vec<String>,
    pub turns: Vec<ExpectedTurn>,
}

#[derive(Debug, serde::Deserialize)]
pub struct ExpectedTurn {
    pub question: String,
    pub prompt: String,
    pub input_ids: Vec<i64>,
    pub n_embeds: usize,
    pub greedy_ids: Vec<u32>,
    pub text: String,
}

/// A tensor of `expected.safetensors`.
pub struct ExpectedTensor {
    pub values: Vec<f32>,
    /// How far `values` may be from what the reference computed, as a part of the largest magnitude.
    pub rounding: f32,
    /// The last dimension.
    pub columns: usize,
}

/// A case's expectations.
pub struct Expected {
    pub json: ExpectedJson,
    tensors: HashMap<String, ExpectedTensor>,
}

impl Expected {
    pub fn read(case: &Path) -> Self {
        let json = std::fs::read_to_string(case.join("expected.json")).expect("expected.json");
        let bytes = std::fs::read(case.join("expected.safetensors")).expect("expected.safetensors");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file.names().into_iter().map(|name| (name.to_owned(), read_tensor(&file, name))).collect();
        Self { json: serde_json::from_str(&json).expect("the format of expected.json"), tensors }
    }

    pub fn tensor(&self, name: &str) -> &ExpectedTensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{name} is not in expected.safetensors"))
    }

    /// The tensor, if it is stored.
    pub fn find(&self, name: &str) -> Option<&ExpectedTensor> {
        self.tensors.get(name)
    }

    /// A tensor's values.
    pub fn values(&self, name: &str) -> &[f32] {
        &self.tensor(name).values
    }
}

/// A tensor in f32, or in 16 bits: value = i16 * scale / 32767, where `NAME_scale` is the largest magnitude.
fn read_tensor(file: &SafeTensors<'_>, name: &str) -> ExpectedTensor {
    let tensor = file.tensor(name).expect("a listed tensor");
    let columns = tensor.shape().last().copied().unwrap_or(1);
    if tensor.dtype() != Dtype::I16 {
        return ExpectedTensor { values: bytemuck::pod_collect_to_vec(tensor.data()), rounding: 0.0, columns };
    }
    let scale = file.tensor(&format!("{name}_scale")).expect("the scale of a tensor in 16 bits");
    let scale = f64::from(bytemuck::pod_read_unaligned::<f32>(scale.data()));
    let largest = f64::from(i16::MAX);
    let integers: Vec<i16> = bytemuck::pod_collect_to_vec(tensor.data());
    let values = integers.into_iter().map(|value| (f64::from(value) * scale / largest) as f32).collect();
    ExpectedTensor { values, rounding: (0.5 / largest) as f32, columns }
}

/// Prompt ids as positions; -200 stands for an image.
pub fn positions(ids: &[i64], images: &[(ImageId, Tensor)]) -> Vec<Position> {
    let mut next = 0;
    let mut positions = Vec::new();
    for id in ids {
        if *id < 0 {
            let rows = images[next].1.rows() as u32;
            positions.extend((0..rows).map(|row| Position::Visual { image: ImageId(next as u32), row }));
            next += 1;
        } else {
            positions.push(Position::Text(*id as u32));
        }
    }
    positions
}
