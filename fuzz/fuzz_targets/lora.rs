//! An adapter file merged into a few weights of Stable Diffusion XL, which are then read. The text is the file's header
//! and, after a zero byte, PEFT's configuration.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use mgm::io::{Folder, MemoryFolder, MemorySource};
use mgm::weights::sdxl::{Lora, OpenOptions, SdxlCheckpoint};
use pollster::block_on;

const BLOCK: &str = "down_blocks.1.attentions.0.transformer_blocks.0";

/// A safetensors file of zeros in f32.
fn zeros(tensors: &[(String, &[usize])]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        entries.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; end]].concat()
}

/// The weights that `tests/data/diffusion/lora` adapts.
fn model() -> SdxlCheckpoint {
    let unet = [
        (format!("{BLOCK}.attn1.to_q.weight"), &[12, 12][..]),
        (format!("{BLOCK}.attn1.to_out.0.weight"), &[12, 12]),
        (format!("{BLOCK}.attn1.to_out.0.bias"), &[12]),
        (format!("{BLOCK}.attn2.to_k.weight"), &[12, 4]),
        (format!("{BLOCK}.norm1.weight"), &[12]),
        (format!("{BLOCK}.norm1.bias"), &[12]),
        ("mid_block.resnets.0.conv1.weight".to_owned(), &[4, 6, 3, 3]),
        ("mid_block.resnets.0.conv1.bias".to_owned(), &[4]),
    ];
    let text = |width: &'static [usize]| zeros(&[("text_model.encoder.layers.0.self_attn.q_proj.weight".to_owned(), width)]);
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("model_index.json", include_bytes!("../../tests/goldens/sdxl-base/sdxl/model_index.json").to_vec()),
        ("unet/config.json", include_bytes!("../../tests/goldens/sdxl-base/sdxl/unet/config.json").to_vec()),
        ("vae/config.json", include_bytes!("../../tests/goldens/sdxl-base/sdxl/vae/config.json").to_vec()),
        ("text_encoder/config.json", include_bytes!("../../tests/goldens/sdxl-base/sdxl/text_encoder/config.json").to_vec()),
        ("text_encoder_2/config.json", include_bytes!("../../tests/goldens/sdxl-base/sdxl/text_encoder_2/config.json").to_vec()),
        ("tokenizer/vocab.json", Vec::new()),
        ("tokenizer_2/vocab.json", Vec::new()),
        ("unet/diffusion_pytorch_model.safetensors", zeros(&unet)),
        ("vae/diffusion_pytorch_model.safetensors", zeros(&[])),
        ("text_encoder/model.safetensors", text(&[6, 6])),
        ("text_encoder_2/model.safetensors", text(&[8, 8])),
    ];
    let folder: Rc<dyn Folder> = Rc::new(MemoryFolder::new(files));
    block_on(SdxlCheckpoint::open(folder, &OpenOptions::default())).expect("the files above")
}

fuzz_target!(|parts: (&str, &[u8])| {
    let (text, data) = parts;
    let (header, config) = text.split_once('\0').unwrap_or((text, ""));
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    let source = Rc::new(MemorySource::new("lora.safetensors", file));
    let Ok(mut lora) = block_on(Lora::open(source, 0.5)) else { return };
    if !config.is_empty() {
        let Ok(with_config) = lora.with_adapter_config("adapter_config.json", config.as_bytes()) else { return };
        lora = with_config;
    }
    let mut model = model();
    let Ok(report) = model.merge_lora(&lora) else { return };
    let _ = report.notes();
    for weights in [&model.unet.0, &model.text[0].0, &model.text[1].0] {
        for name in weights.names() {
            let rows = weights.shape(name).map_or(0, |shape| shape[0]);
            let _ = block_on(weights.read_rows(name, rows / 3..rows));
            let _ = block_on(weights.read(name));
        }
    }
});
