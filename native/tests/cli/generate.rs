//! `mgm generate` and `mgm chat --image-model` on the golden checkpoints: the expected image from a folder and from a
//! single file; seeds, batches, schedulers, LoRA, image-to-image; images in answers; errors for bad input.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{copy, goldens};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

fn case() -> PathBuf {
    goldens().join("sdxl-base")
}

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

fn generate(model: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.arg("generate").arg(model).args(more).stdin(Stdio::null());
    command.output().expect("the binary runs")
}

fn must(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn pixels(file: &Path) -> Vec<u8> {
    image::open(file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).to_rgb8().into_raw()
}

/// Generates an image in two steps and returns its pixels.
fn generated(model: &Path, more: &[&str]) -> Vec<u8> {
    generated_in(model, "2", more)
}

fn generated_in(model: &Path, steps: &str, more: &[&str]) -> Vec<u8> {
    let folder = folder();
    let out = folder.path().join("x.png");
    let arguments = [&["--prompt", "a gold mine", "--steps", steps, "--out", text(&out)], more].concat();
    must(&generate(model, &arguments));
    pixels(&out)
}

/// The arguments of the golden case.
fn golden_arguments() -> Vec<String> {
    let json = fs::read(case().join("expected.json")).expect("expected.json");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let text = |key: &str| json[key].as_str().expect("a text").to_owned();
    let number = |key: &str| json[key].to_string();
    let latents = case().join("expected.safetensors").display().to_string();
    [
        ("--prompt", text("prompt")),
        // As diffusers spells them.
        ("--negative_prompt", text("negative_prompt")),
        ("--num_inference_steps", number("steps")),
        ("--guidance_scale", number("guidance_scale")),
        ("--width", number("width")),
        ("--height", number("height")),
        ("--latents", latents),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect()
}

/// Peak signal-to-noise ratio of a file relative to the golden image, in decibels.
fn psnr(file: &Path) -> f64 {
    let bytes = fs::read(case().join("expected.safetensors")).expect("expected.safetensors");
    let expected = SafeTensors::deserialize(&bytes).expect("safetensors");
    let expected: Vec<f32> = bytemuck::pod_collect_to_vec(expected.tensor("image").expect("an image").data());
    let found = pixels(file);
    assert_eq!(found.len(), expected.len());
    let square = |(found, expected): (&u8, &f32)| (f64::from(*found) / 255.0 - f64::from(*expected)).powi(2);
    let mean = found.iter().zip(&expected).map(square).sum::<f64>() / found.len() as f64;
    -10.0 * mean.log10()
}

/// Rounding to bytes alone gives 10 log10(12 * 255^2) = 58.9 dB; an error of 2e-3 of the latents' scale gives 45 dB.
const MIN_PSNR: f64 = 50.0;

fn with_out(arguments: &[String], out: &Path) -> Vec<String> {
    [arguments, &["--out".to_owned(), out.display().to_string()]].concat()
}

#[test]
fn the_golden_image_is_generated_and_records_its_settings() {
    let folder = folder();
    let out = folder.path().join("golden.png");
    let arguments = with_out(&golden_arguments(), &out);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--json"]).collect();
    let report: Value = serde_json::from_str(&must(&generate(&case().join("sdxl"), &arguments))).expect("JSON");
    let decibels = psnr(&out);
    println!("{decibels:.1} dB");
    assert!(decibels > MIN_PSNR, "{decibels} dB");
    assert_eq!(report["images"][0]["file"], text(&out));
    assert_eq!(report["images"][0]["settings"]["num_inference_steps"], 6);

    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(&out).expect("an image")));
    let reader = decoder.read_info().expect("a PNG");
    let parameters = &reader.info().uncompressed_latin1_text[0];
    assert_eq!(parameters.keyword, "parameters");
    assert!(parameters.text.starts_with("a photo of a gold mine at dawn, misty hills\nNegative prompt: out of frame"));
    assert!(parameters.text.contains("Steps: 6, Sampler: EulerDiscreteScheduler, CFG scale: 5, Size: 128x128"));
    let json: Value = serde_json::from_str(&reader.info().utf8_text[0].get_text().expect("text")).expect("JSON");
    assert_eq!(json, report["images"][0]["settings"]);
}

/// The expected images are from diffusers with the golden model: schedulers, sizes, prompts, image-to-image, LoRA
/// (`tests/reference/make_sdxl_images.py`). f32 rounding errors of about 1e-5 of the image's scale occasionally change
/// a byte by one.
#[test]
fn seeds_give_the_images_of_diffusers() {
    let folder = folder();
    let expected = mgm_test_support::data("diffusion/images");
    let cases = fs::read(expected.join("cases.json")).expect("cases.json");
    let cases: BTreeMap<String, Vec<String>> = serde_json::from_slice(&cases).expect("JSON");
    let model = fs::canonicalize(case()).expect("the case").join("sdxl");
    for (name, arguments) in cases {
        check_image(&model, &name, &arguments, &folder.path().join("x.png"));
    }
}

/// Compares an image with that of diffusers, whose name is `name`.
fn check_image(model: &Path, name: &str, arguments: &[String], out: &Path) {
    let expected = mgm_test_support::data("diffusion/images");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    // The arguments name files in this folder.
    command.current_dir(&expected).arg("generate").arg(model);
    command.args(arguments).arg("--out").arg(out).stdin(Stdio::null());
    must(&command.output().expect("the binary runs"));
    let (found, expected) = (pixels(out), pixels(&expected.join(format!("{name}.png"))));
    assert_eq!(found.len(), expected.len(), "{name}");
    let differences = || found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
    let (largest, differing) = (differences().max(), differences().filter(|difference| *difference > 0).count());
    println!("{name}: {differing} of {} values differ, by at most {largest:?}", found.len());
    assert!(largest <= Some(1) && differing * 50 < found.len(), "{name}: {differing} differ, by up to {largest:?}");
}

/// The golden model with the nine input channels of an inpainting model.
fn inpainting_model(folder: &Path) -> PathBuf {
    let model = folder.join("inpainting");
    copy(&case().join("sdxl"), &model);
    let config = model.join("unet/config.json");
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, text.replace("\"in_channels\": 4", "\"in_channels\": 9")).expect("a configuration");
    let unet = model.join("unet/diffusion_pytorch_model.safetensors");
    let mut tensors = read(&unet);
    tensors.extend(read(&mgm_test_support::data("diffusion/images").join("inpainting.safetensors")));
    fs::remove_file(&unet).expect("the UNet");
    write(&unet, &tensors);
    model
}

#[test]
fn an_inpainting_model_gives_the_images_of_diffusers() {
    let folder = folder();
    let cases = fs::read(mgm_test_support::data("diffusion/images").join("inpainting.json")).expect("inpainting.json");
    let cases: BTreeMap<String, Vec<String>> = serde_json::from_slice(&cases).expect("JSON");
    let model = inpainting_model(folder.path());
    let out = folder.path().join("x.png");
    for (name, arguments) in &cases {
        check_image(&model, name, arguments, &out);
    }
    let refused = generate(&model, &["--prompt", "x", "--steps", "1", "--out", text(&out)]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && errors.contains("an initial image and a mask"), "{errors}");
}

/// Tensors of a file by name: shape and bytes (f32).
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn read(file: &Path) -> Tensors {
    let bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    file.iter().map(|(name, tensor)| (name.to_owned(), (tensor.shape().to_vec(), tensor.data().to_vec()))).collect()
}

fn write(file: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor"))
    });
    serialize_to_file(views, None, file).expect("a file");
}

/// The golden model as a single file in the original layout; the names are from diffusers' converters.
fn single_file() -> Tensors {
    let names = fs::read(tests().join("data/diffusion/names.json")).expect("names.json");
    let names: BTreeMap<String, Vec<[String; 2]>> = serde_json::from_slice(&names).expect("JSON");
    let model = case().join("sdxl");
    let mut single = Tensors::new();
    for (part, file, prefix) in [
        ("golden_unet", "unet/diffusion_pytorch_model.safetensors", "model.diffusion_model."),
        ("golden_vae", "vae/diffusion_pytorch_model.safetensors", "first_stage_model."),
    ] {
        let mut tensors = read(&model.join(file));
        for [original, diffusers] in &names[part] {
            let (mut shape, bytes) = tensors.remove(diffusers).unwrap_or_else(|| panic!("{diffusers}"));
            if original.contains("attn_1") && shape.len() == 2 {
                shape.extend([1, 1]);
            }
            single.insert(format!("{prefix}{original}"), (shape, bytes));
        }
        assert!(tensors.is_empty(), "{:?}", tensors.keys());
    }
    for (name, tensor) in read(&model.join("text_encoder/model.safetensors")) {
        single.insert(format!("conditioner.embedders.0.transformer.{name}"), tensor);
    }
    let clip = read(&model.join("text_encoder_2/model.safetensors"));
    let mut put = |name: &str, tensor: (Vec<usize>, Vec<u8>)| {
        single.insert(format!("conditioner.embedders.1.model.{name}"), tensor);
    };
    put("positional_embedding", clip["text_model.embeddings.position_embedding.weight"].clone());
    put("token_embedding.weight", clip["text_model.embeddings.token_embedding.weight"].clone());
    put("logit_scale", (vec![], 1f32.to_le_bytes().to_vec()));
    let (shape, bytes) = &clip["text_projection.weight"];
    let (rows, columns) = (shape[0], shape[1]);
    let element = |row: usize, column: usize| bytes[4 * (row * columns + column)..][..4].to_vec();
    let transposed = (0..columns).flat_map(|column| (0..rows).flat_map(move |row| element(row, column))).collect();
    put("text_projection", (vec![columns, rows], transposed));
    for kind in ["weight", "bias"] {
        put(&format!("ln_final.{kind}"), clip[&format!("text_model.final_layer_norm.{kind}")].clone());
        for layer in 0..4 {
            let from = |module: &str| clip[&format!("text_model.encoder.layers.{layer}.{module}.{kind}")].clone();
            let to = format!("transformer.resblocks.{layer}");
            for (original, module) in [
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ] {
                put(&format!("{to}.{original}.{kind}"), from(module));
            }
            let joined: Vec<_> = ["q", "k", "v"].iter().map(|part| from(&format!("self_attn.{part}_proj"))).collect();
            let mut shape = joined[0].0.clone();
            shape[0] *= 3;
            put(&format!("{to}.attn.in_proj_{kind}"), (shape, joined.into_iter().flat_map(|part| part.1).collect()));
        }
    }
    single
}

#[test]
fn a_single_file_gives_the_same_image() {
    let folder = folder();
    let (file, out) = (folder.path().join("model.safetensors"), folder.path().join("single.png"));
    write(&file, &single_file());
    // This small model's heads don't have 64 channels, so its configurations are needed besides its vocabulary.
    let model = case().join("sdxl");
    let arguments = with_out(&golden_arguments(), &out);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--tokenizer", text(&model)]).collect();
    must(&generate(&file, &arguments));
    assert!(psnr(&out) > MIN_PSNR, "{} dB", psnr(&out));

    let alone = generate(&file, &["--prompt", "x", "--out", text(&out)]);
    let errors = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert!(alone.status.code() == Some(2) && errors.contains("--tokenizer"), "{errors}");
}

/// A file with only averaged weights of the UNet, whose names the original code writes without dots.
#[test]
fn averaged_weights_alone_are_used() {
    let folder = folder();
    let (file, out) = (folder.path().join("ema.safetensors"), folder.path().join("x.png"));
    let averaged = |(name, tensor): (String, (Vec<usize>, Vec<u8>))| match name.strip_prefix("model.") {
        Some(rest) => (format!("model_ema.{}", rest.replace('.', "")), tensor),
        None => (name, tensor),
    };
    let mut tensors: Tensors = single_file().into_iter().map(averaged).collect();
    tensors.insert("model_ema.num_updates".to_owned(), (vec![], vec![0; 4]));
    assert!(tensors.contains_key("model_ema.diffusion_modelinput_blocks00weight"));
    write(&file, &tensors);
    let model = case().join("sdxl");
    let arguments = with_out(&golden_arguments(), &out);
    must(&generate(&file, &single_arguments(&arguments, &model)));
    assert!(psnr(&out) > MIN_PSNR, "{} dB", psnr(&out));
}

/// Arguments with the golden model's configurations and vocabulary, which its single files need.
fn single_arguments<'a>(arguments: &'a [String], model: &'a Path) -> Vec<&'a str> {
    arguments.iter().map(String::as_str).chain(["--tokenizer", text(model)]).collect()
}

/// Writes tensors with an element type of one byte for some names, an empty one for others, and metadata.
fn write_as(file: &Path, tensors: &Tensors, narrow: &dyn Fn(&str) -> Option<Dtype>, metadata: &[(&str, &str)]) {
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let dtype = narrow(name).unwrap_or(Dtype::F32);
        (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).expect("a tensor"))
    });
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    serialize_to_file(views, Some(metadata), file).expect("a file");
}

/// A single file declares velocity prediction and zero terminal SNR by marker tensors or in its metadata; the images
/// are those of diffusers with such a scheduler. Averaged weights and other extra tensors are ignored.
#[test]
fn single_files_declare_their_training() {
    let folder = folder();
    let (file, out) = (folder.path().join("model.safetensors"), folder.path().join("x.png"));
    let model = fs::canonicalize(case()).expect("the case").join("sdxl");
    let cases = fs::read(mgm_test_support::data("diffusion/images").join("cases.json")).expect("cases.json");
    let cases: BTreeMap<String, Vec<String>> = serde_json::from_slice(&cases).expect("JSON");
    let check = |name: &str| {
        let mut arguments = Vec::new();
        let mut rest = cases[name].iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--prediction-type" | "--scheduler" => drop(rest.next()),
                _ => arguments.push(argument.clone()),
            }
        }
        arguments.extend(["--tokenizer".to_owned(), text(&model).to_owned()]);
        check_image(&file, name, &arguments, &out);
    };
    let empty = || (vec![0], Vec::new());
    let mut tensors = single_file();
    tensors.insert("model_ema.decay".to_owned(), (vec![], 1f32.to_le_bytes().to_vec()));
    tensors.insert("model_ema.diffusion_modelout2weight".to_owned(), (vec![1], vec![0; 4]));
    tensors.insert("alphas_cumprod".to_owned(), (vec![2], vec![0; 8]));
    tensors.insert("cond_stage_model.transformer.x".to_owned(), (vec![1], vec![0; 4]));
    let plain = tensors.clone();
    tensors.insert("v_pred".to_owned(), empty());
    write(&file, &tensors);
    check("velocity");
    tensors.insert("ztsnr".to_owned(), empty());
    write(&file, &tensors);
    check("zero-snr-euler");
    write_as(&file, &plain, &|_| None, &[("modelspec.prediction_type", "v"), ("ss_zero_terminal_snr", "True")]);
    check("zero-snr-euler");
    write_as(&file, &plain, &|_| None, &[("modelspec.prediction_type", "epsilon")]);
    check_image(
        &file,
        "trailing",
        &[&cases["trailing"][..], &["--tokenizer".to_owned(), text(&model).to_owned()]].concat(),
        &out,
    );
}

/// The values of 8-bit floats are exact: the file with their f32 values gives the same image.
#[test]
fn eight_bit_floats_give_the_image_of_their_values() {
    let folder = folder();
    let table = fs::read(tests().join("data/float8.json")).expect("float8.json");
    let table: BTreeMap<String, Vec<Option<f32>>> = serde_json::from_slice(&table).expect("JSON");
    let model = case().join("sdxl");
    for (dtype, name) in [(Dtype::F8_E4M3, "F8_E4M3"), (Dtype::F8_E5M2, "F8_E5M2")] {
        // The codes of the positive values ascend.
        let nearest = |value: f32| {
            let after = table[name][..128].partition_point(|code| code.is_some_and(|code| code < value.abs()));
            let candidates = [after.saturating_sub(1), after.min(127)];
            let distance = |code: &usize| table[name][*code].map_or(f32::INFINITY, |code| (code - value.abs()).abs());
            let code = candidates.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
            u8::try_from(code).expect("a byte") | if value < 0.0 { 0x80 } else { 0 }
        };
        let is_narrow = |name: &str| name.starts_with("model.diffusion_model.") && name.ends_with("weight");
        let (mut narrow, mut wide) = (single_file(), single_file());
        for (tensor, (_, bytes)) in narrow.iter_mut().filter(|(name, _)| is_narrow(name)) {
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
            *bytes = values.into_iter().map(nearest).collect();
            let widened =
                bytes.iter().flat_map(|code| table[name][usize::from(*code)].expect("a number").to_le_bytes());
            wide.get_mut(tensor).expect("the tensor").1 = widened.collect();
        }
        let files = [folder.path().join("narrow.safetensors"), folder.path().join("wide.safetensors")];
        write_as(&files[0], &narrow, &|name| is_narrow(name).then_some(dtype), &[]);
        write(&files[1], &wide);
        let [narrow, wide] =
            files.map(|file| generated(&file, &["--tokenizer", text(&model), "--seed", "7", "--precision", "f32"]));
        assert!(narrow == wide, "{name}");
    }
}

#[test]
fn an_autoencoder_can_be_added_or_replaced() {
    let folder = folder();
    let place = |name: &str| folder.path().join(name);
    let model = case().join("sdxl");
    let mut single = single_file();
    let prefix = "first_stage_model.";
    let original: Tensors = single
        .iter()
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, tensor)| (name.replace(prefix, ""), tensor.clone()))
        .collect();
    single.retain(|name, _| !name.starts_with(prefix));
    let (file, alone) = (place("model.safetensors"), place("vae.safetensors"));
    write(&file, &single);
    write(&alone, &original);
    let diffusers = model.join("vae/diffusion_pytorch_model.safetensors");
    let out = place("x.png");
    let arguments = with_out(&golden_arguments(), &out);
    // Components without an autoencoder.
    let components = place("components");
    copy(&model, &components);
    fs::remove_dir_all(components.join("vae")).expect("the VAE");
    let lacking = generate(&file, &single_arguments(&arguments, &components));
    let errors = String::from_utf8_lossy(&lacking.stderr).into_owned();
    assert!(lacking.status.code() == Some(2) && errors.contains("no autoencoder"), "{errors}");
    assert!(errors.contains("--vae FILE"), "{errors}");
    for vae in [&alone, &diffusers, &model.join("vae"), &model] {
        let arguments = [&single_arguments(&arguments, &components)[..], &["--vae", text(vae)]].concat();
        must(&generate(&file, &arguments));
        assert!(psnr(&out) > MIN_PSNR, "{}: {} dB", vae.display(), psnr(&out));
    }
    // The folder of components has one too.
    must(&generate(&file, &single_arguments(&arguments, &model)));
    assert!(psnr(&out) > MIN_PSNR, "{} dB", psnr(&out));
    // A folder without one, and one in place of another: with its output bias at 1, every pixel is white.
    let mut white: Tensors = read(&diffusers);
    white.get_mut("decoder.conv_out.bias").expect("the bias").1 =
        [100f32; 3].iter().flat_map(|value| value.to_le_bytes()).collect();
    write(&alone, &white);
    for model in [&components, &model] {
        assert!(generated(model, &["--vae", text(&alone)]).iter().all(|value| *value == 255));
    }
    let refused = generate(&model, &["--prompt", "x", "--vae", text(&file), "--out", text(&out)]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && errors.contains("not an autoencoder"), "{errors}");
}

/// Files of other models, and of parts, are refused with their kind before a device is opened.
#[test]
fn other_models_are_named() {
    let folder = folder();
    let file = folder.path().join("other.safetensors");
    let out = folder.path().join("x.png");
    let model = case().join("sdxl");
    let one = || (vec![1], vec![0; 4]);
    let refused = |path: &Path, more: &[&str]| {
        let output = generate(path, &[&["--prompt", "x", "--adapter", "none", "--out", text(&out)], more].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && !out.exists(), "{errors}");
        errors
    };
    for (names, kind) in [
        (
            vec!["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.model.ln_final.weight"],
            "refiner",
        ),
        (
            vec!["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.x"],
            "Stable Diffusion 1 or 2",
        ),
        (vec!["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (vec!["double_blocks.0.img_attn.norm.key_norm.scale"], "FLUX"),
        (vec!["decoder.conv_in.weight"], "only an autoencoder"),
    ] {
        write(&file, &names.iter().map(|name| ((*name).to_owned(), one())).collect());
        let errors = refused(&file, &["--tokenizer", text(&model)]);
        assert!(errors.contains(kind), "{errors} lacks {kind:?}");
    }
    // Without text encoders, and with them in the folder of components.
    let mut single = single_file();
    single.retain(|name, _| !name.starts_with("conditioner."));
    write(&file, &single);
    let tokenizers = folder.path().join("tokenizers");
    copy(&model, &tokenizers);
    fs::remove_dir_all(tokenizers.join("text_encoder")).expect("the text encoder");
    let errors = refused(&file, &["--tokenizer", text(&tokenizers)]);
    assert!(errors.contains("no first text encoder") && errors.contains("--tokenizer DIR"), "{errors}");
    let arguments = with_out(&golden_arguments(), &out);
    must(&generate(&file, &single_arguments(&arguments, &model)));
    assert!(psnr(&out) > MIN_PSNR, "{} dB", psnr(&out));
    fs::remove_file(&out).expect("the image");
    // Folders.
    let changed = folder.path().join("changed");
    copy(&model, &changed);
    let index = fs::read_to_string(changed.join("model_index.json")).expect("an index");
    for (from, to, kind) in [
        ("\"CLIPTextModel\"", "\"T5EncoderModel\"", "T5EncoderModel"),
        ("\"CLIPTextModel\"", "null", "refiner"),
        ("\"force_zeros", "\"requires_aesthetics_score\": true, \"force_zeros", "refiner"),
    ] {
        assert!(index.contains(from), "{from}");
        fs::write(changed.join("model_index.json"), index.replacen(from, to, 1)).expect("an index");
        let errors = refused(&changed, &[]);
        assert!(errors.contains(kind), "{errors} lacks {kind:?}");
    }
}

/// An image that cannot be written is noticed before it is generated, and an older one stays.
#[test]
fn images_are_written_whole_or_not_at_all() {
    let folder = folder();
    let model = case().join("sdxl");
    let directory = folder.path().join("x.png");
    fs::create_dir(&directory).expect("a folder");
    let mut places = vec![directory];
    if cfg!(target_os = "linux") {
        places.push(PathBuf::from("/proc/x.png"));
    }
    for place in places {
        let refused = generate(&model, &["--prompt", "x", "--adapter", "none", "--out", text(&place)]);
        let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && errors.contains("x.png"), "{errors}");
        assert!(!errors.contains("adapter"), "{errors}");
    }
    let out = folder.path().join("old.png");
    fs::write(&out, "an older image").expect("a file");
    let failed = generate(&model, &["--prompt", "x", "--scheduler", "lcm", "--steps", "60", "--out", text(&out)]);
    assert_eq!(failed.status.code(), Some(2));
    assert_eq!(fs::read_to_string(&out).expect("a file"), "an older image");
    must(&generate(&model, &["--prompt", "x", "--steps", "1", "--size", "64x64", "--out", text(&out)]));
    assert_eq!(pixels(&out).len(), 64 * 64 * 3);
    let names: Vec<_> =
        fs::read_dir(folder.path()).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// A camera's image gets about as many pixels as the model's images; a size of other proportions crops its middle.
#[test]
fn large_initial_images_are_scaled() {
    let folder = folder();
    let (init, out) = (folder.path().join("photo.png"), folder.path().join("x.png"));
    // A red middle between blue sides.
    image::RgbImage::from_fn(1200, 300, |x, _| {
        if (500..700).contains(&x) { image::Rgb([255, 0, 0]) } else { image::Rgb([0, 0, 255]) }
    })
    .save(&init)
    .expect("an image");
    let model = case().join("sdxl");
    let size = |more: &[&str]| {
        let arguments =
            [&["--prompt", "x", "--steps", "2", "--seed", "7", "--init-image", text(&init), "--out", text(&out)], more]
                .concat();
        must(&generate(&model, &arguments));
        image::image_dimensions(&out).expect("an image")
    };
    // 128 x 128 pixels in proportions of 4 to 1.
    assert_eq!(size(&[]), (256, 64));
    let wide = pixels(&out);
    assert_eq!(size(&["--mask", text(&init)]), (256, 64));
    assert_ne!(wide, pixels(&out));
    assert_eq!(size(&["--size", "64x128"]), (64, 128));
    let cropped = pixels(&out);
    image::RgbImage::from_pixel(64, 128, image::Rgb([255, 0, 0])).save(&init).expect("an image");
    assert_eq!(size(&[]), (64, 128));
    assert_eq!(cropped, pixels(&out), "the middle, which is red, is left");
}

/// Names as other systems and people change them.
#[cfg(unix)]
#[test]
fn names_in_other_cases_and_with_backslashes_are_found() {
    let folder = folder();
    let model = folder.path().join("models/sdxl");
    fs::create_dir_all(folder.path().join("models")).expect("a folder");
    copy(&case().join("sdxl"), &model);
    let inspected = |path: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.current_dir(folder.path()).args(["inspect", path]).stdin(Stdio::null());
        must(&command.output().expect("the binary runs")).replace(path, "")
    };
    let expected = inspected("models/sdxl");
    for (from, to) in [
        ("model_index.json", "Model_Index.JSON"),
        ("unet/config.json", "unet/Config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "unet/Diffusion_PyTorch_Model.SafeTensors"),
        ("unet", "UNet"),
        ("tokenizer/vocab.json", "tokenizer/VOCAB.JSON"),
    ] {
        fs::rename(model.join(from), model.join(to)).unwrap_or_else(|error| panic!("{from}: {error}"));
    }
    assert_eq!(inspected("models/sdxl").to_lowercase(), expected.to_lowercase());
    for path in [r"models\sdxl", r"models\sdxl\", r".\models/sdxl"] {
        inspected(path);
    }
    // A copy of a repository in the Hugging Face cache, without references and blobs; and of one with two snapshots.
    let repository = folder.path().join("models--someone--sdxl");
    fs::create_dir_all(repository.join("snapshots")).expect("a folder");
    fs::rename(&model, repository.join("snapshots/0123")).expect("a snapshot");
    inspected("models--someone--sdxl");
    fs::create_dir(repository.join("snapshots/4567")).expect("a folder");
    let failed = generate(&repository, &["--prompt", "x"]);
    let errors = String::from_utf8_lossy(&failed.stderr);
    let reason = "refs/main is missing: it would say which of 2 snapshots is meant: pass the folder of one, such as";
    assert!(errors.contains(reason) && errors.contains("snapshots/0123"), "{errors}");
}

#[test]
fn variants_shards_and_old_names_give_the_same_image() {
    let folder = folder();
    let model = folder.path().join("sdxl");
    copy(&case().join("sdxl"), &model);
    // The VAE with old names of its attention, the UNet in two shards of a variant's index, and only a variant of a
    // text encoder.
    let vae = model.join("vae/diffusion_pytorch_model.safetensors");
    let renamed: Tensors = read(&vae)
        .into_iter()
        .map(|(name, (mut shape, bytes))| {
            let old = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
            let mut new = name.clone();
            for (now, then) in old {
                new = new.replace(&format!(".attentions.0.{now}."), &format!(".attentions.0.{then}."));
            }
            if new != name && shape.len() == 2 {
                shape.extend([1, 1]);
            }
            (new, (shape, bytes))
        })
        .collect();
    write(&vae, &renamed);
    let unet = model.join("unet/diffusion_pytorch_model.safetensors");
    let mut first = read(&unet);
    let second = first.split_off("mid_block");
    let shards = [
        "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
    ];
    let mut map = serde_json::Map::new();
    for (file, tensors) in shards.iter().zip([&first, &second]) {
        write(&model.join("unet").join(file), tensors);
        map.extend(tensors.keys().map(|name| (name.clone(), Value::from(*file))));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(model.join("unet/diffusion_pytorch_model.safetensors.index.fp16.json"), index.to_string())
        .expect("an index");
    fs::remove_file(&unet).expect("the plain file");
    let encoder = model.join("text_encoder");
    fs::rename(encoder.join("model.safetensors"), encoder.join("model.fp16.safetensors")).expect("a new name");
    let encoder = model.join("text_encoder_2");
    fs::rename(encoder.join("model.safetensors"), encoder.join("model.non_ema.safetensors")).expect("a new name");

    let out = folder.path().join("x.png");
    let arguments = with_out(&golden_arguments(), &out);
    must(&generate(&model, &arguments.iter().map(String::as_str).collect::<Vec<_>>()));
    assert!(psnr(&out) > MIN_PSNR, "{} dB", psnr(&out));
}

#[test]
fn seeds_repeat_and_batches_use_consecutive_seeds() {
    let model = case().join("sdxl");
    let folder = folder();
    let out = folder.path().join("b.png");
    let output = generate(
        &model,
        &["--prompt", "a gold mine", "--steps", "2", "--seed", "7", "--batch", "2", "--out", text(&out)],
    );
    let files: Vec<String> = must(&output).lines().map(str::to_owned).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(files[0].ends_with("b-1.png") && files[1].ends_with("b-2.png"), "{files:?}");
    for (file, seed) in files.iter().zip(["7", "8"]) {
        assert_eq!(pixels(Path::new(file)), generated(&model, &["--seed", seed]), "seed {seed}");
    }
    assert_ne!(generated(&model, &["--seed", "7"]), generated(&model, &["--seed", "7", "--noise", "f16"]));
    // A memory limit that keeps only one part on the device gives the same image.
    assert_eq!(generated(&model, &["--seed", "7"]), generated(&model, &["--seed", "7", "--gpu-memory", "24M"]));
}

#[test]
fn schedulers_guidance_scales_and_sizes() {
    let model = case().join("sdxl");
    let mut seen = Vec::new();
    // Three steps: a schedule of two has the same first and last sigma with and without Karras's spacing.
    for scheduler in [
        "euler",
        "euler-karras",
        "euler-trailing",
        "euler-a",
        "ddim",
        "dpm++-2m",
        "dpm++-2m-sde-karras",
        "lcm",
        "turbo",
    ] {
        let image = generated_in(&model, "3", &["--seed", "7", "--scheduler", scheduler]);
        assert!(!seen.contains(&image), "{scheduler} gives the image of another scheduler");
        seen.push(image);
    }
    // The model's own scheduler is euler.
    assert_eq!(generated_in(&model, "3", &["--seed", "7"]), seen[0]);
    let plain = generated(&model, &["--seed", "7", "--guidance-scale", "1"]);
    assert_eq!(plain, generated(&model, &["--seed", "7", "--guidance-scale", "1", "--negative-prompt", "anything"]));
    assert_ne!(generated(&model, &["--seed", "7"]), generated(&model, &["--seed", "7", "--negative-prompt", ""]));
    assert_eq!(generated(&model, &["--seed", "7", "--size", "72x104"]).len(), 72 * 104 * 3);
}

#[test]
fn image_to_image_depends_on_the_strength() {
    let model = case().join("sdxl");
    let init = goldens().join("vicuna-7b/image0.png");
    let over = |strength: &str| {
        generated(&model, &["--seed", "7", "--init-image", text(&init), "--strength", strength, "--size", "64x64"])
    };
    let distance = |a: &[u8], b: &[u8]| -> u64 { a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum() };
    let (half, whole) = (over("0.5"), over("1"));
    assert_eq!(half, over("0.5"));
    assert!(distance(&half, &whole) > 0);
}

#[test]
fn configurations_are_read_as_python_writes_them_and_before_a_gpu_is_opened() {
    let folder = folder();
    let model = folder.path().join("sdxl");
    copy(&case().join("sdxl"), &model);
    let expected = generated(&model, &["--seed", "7", "--scheduler", "euler"]);
    // Settings of other schedulers and programs, with values that strict JSON lacks.
    let unused = "\"lambda_min_clipped\": -Infinity, \"x\": [NaN, Infinity], \"y\": 1000000000000000019884624838656,";
    let files = ["scheduler/scheduler_config.json", "unet/config.json", "vae/config.json", "model_index.json"];
    for file in files.iter().chain(&["text_encoder/config.json", "text_encoder_2/config.json"]) {
        let text = fs::read_to_string(model.join(file)).expect("a configuration");
        fs::write(model.join(file), text.replacen('{', &format!("\u{feff}{{{unused} "), 1)).expect("a configuration");
    }
    assert_eq!(generated(&model, &["--seed", "7", "--scheduler", "euler"]), expected);
    // Errors in files come before those of the device.
    for (file, text, reason) in [
        ("scheduler/scheduler_config.json", "{\"beta_start\": NaN}", "beta_start"),
        ("tokenizer_2/tokenizer_config.json", "{", "tokenizer_2/tokenizer_config.json"),
    ] {
        let before = fs::read(model.join(file)).unwrap_or_else(|_| b"{}".to_vec());
        fs::write(model.join(file), text).expect("a configuration");
        let output = generate(&model, &["--prompt", "x", "--adapter", "Voodoo 3"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && errors.contains(reason), "{errors}");
        fs::write(model.join(file), before).expect("a configuration");
    }
}

#[test]
fn a_lora_is_scaled() {
    let model = case().join("sdxl");
    let folder = folder();
    let file = folder.path().join("style.safetensors");
    let values = |count: usize| -> Vec<u8> {
        (0..count).flat_map(|index| ((index % 7) as f32 / 3.0 - 1.0).to_le_bytes()).collect()
    };
    let module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0";
    let encoder = "lora_te2_text_model_encoder_layers_1_mlp_fc1";
    write(
        &file,
        &Tensors::from([
            (format!("{module}.lora_down.weight"), (vec![4, 64], values(256))),
            (format!("{module}.lora_up.weight"), (vec![64, 4], values(256))),
            (format!("{module}.alpha"), (vec![], 2f32.to_le_bytes().to_vec())),
            (format!("{encoder}.lora_down.weight"), (vec![2, 48], values(96))),
            (format!("{encoder}.lora_up.weight"), (vec![96, 2], values(192))),
        ]),
    );
    let with = |scale: &str| generated(&model, &["--seed", "7", "--lora", &format!("{}{scale}", text(&file))]);
    let without = generated(&model, &["--seed", "7"]);
    assert_eq!(with(":0"), without);
    assert_ne!(with(""), without);
    assert_eq!(with(""), with(":1.0"));
    assert_ne!(with(""), with(":0.5"));
}

/// What a LoRA file contains besides is noted once, and the rest is used. A folder of PEFT's has its alpha in a
/// configuration.
#[test]
fn a_loras_unknown_contents_are_noted_once() {
    let model = case().join("sdxl");
    let folder = folder();
    let module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0";
    let values = |count: usize| -> Vec<u8> {
        (0..count).flat_map(|index| ((index % 7) as f32 / 3.0 - 1.0).to_le_bytes()).collect()
    };
    let matrices = |prefix: &str| {
        [
            (format!("{prefix}{module}.lora_A.weight"), (vec![4, 64], values(256))),
            (format!("{prefix}{module}.lora_B.weight"), (vec![64, 4], values(256))),
        ]
    };
    let known = folder.path().join("known.safetensors");
    write(&known, &Tensors::from(matrices("unet.")));
    let mixed = folder.path().join("mixed.safetensors");
    let mut tensors = Tensors::from(matrices("unet."));
    tensors.insert("lora_unet_nothing.lora_up.weight".to_owned(), (vec![1], values(1)));
    tensors.insert("bundle_emb.cat.clip_l".to_owned(), (vec![1], values(1)));
    write(&mixed, &tensors);
    let peft = folder.path().join("peft");
    fs::create_dir(&peft).expect("a folder");
    write(&peft.join("adapter_model.safetensors"), &Tensors::from(matrices("base_model.model.")));
    fs::write(peft.join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 2}"#).expect("a file");

    let with =
        |file: &Path, scale: &str| generated(&model, &["--seed", "7", "--lora", &format!("{}{scale}", text(file))]);
    assert_eq!(with(&mixed, ""), with(&known, ""));
    assert_eq!(with(&peft, ""), with(&known, ":0.5"));
    assert_eq!(with(&peft.join("adapter_model.safetensors"), ""), with(&known, ":0.5"));

    let out = folder.path().join("x.png");
    let output = generate(&model, &["--prompt", "x", "--steps", "1", "--out", text(&out), "--lora", text(&mixed)]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    must(&output);
    for note in [
        "mixed.safetensors bundles embeddings, which are not used: cat",
        "mixed.safetensors: 1 of 2 modules are not in the model and not used: lora_unet_nothing",
    ] {
        assert_eq!(errors.matches(note).count(), 1, "{errors} lacks {note:?}");
    }
}

/// A language model that answers every question with `<h> a gold mine</h>`: its layers add nothing, so the next token
/// depends on the last one only, and its head maps each token of the answer to the next.
fn scripted_model(folder: &Path) -> PathBuf {
    copy(&goldens().join("vicuna-7b"), folder);
    let model = folder.join("MGM-7B");
    // `:` of "ASSISTANT:", `<h>`, the words, `</h>` in byte tokens (so that no token repeats), the end.
    let chain = [586usize, 595, 533, 596, 262, 472, 513, 535, 287, 267, 525, 63, 50, 107, 65, 2];
    let files: Vec<PathBuf> = fs::read_dir(&model)
        .expect("the checkpoint")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    let mut shards: Vec<Tensors> = files.iter().map(|file| read(file)).collect();
    let values = |name: &str| -> Vec<f32> {
        let (_, bytes) = shards.iter().find_map(|shard| shard.get(name)).unwrap_or_else(|| panic!("{name}"));
        bytemuck::pod_collect_to_vec(bytes)
    };
    let (embeddings, norm) = (values("model.embed_tokens.weight"), values("model.norm.weight"));
    let width = norm.len();
    let mut head = vec![0f32; embeddings.len()];
    for pair in chain.windows(2) {
        let embedding = &embeddings[pair[0] * width..(pair[0] + 1) * width];
        let scale = (embedding.iter().map(|x| x * x).sum::<f32>() / width as f32 + 1e-5).sqrt().recip();
        let state: Vec<f32> = embedding.iter().zip(&norm).map(|(x, gain)| x * scale * gain).collect();
        let square: f32 = state.iter().map(|x| x * x).sum();
        for (weight, x) in head[pair[1] * width..][..width].iter_mut().zip(&state) {
            *weight = 30.0 * x / square;
        }
    }
    for shard in &mut shards {
        for (name, (_, bytes)) in shard.iter_mut() {
            if name == "lm_head.weight" {
                *bytes = bytemuck::cast_slice(&head).to_vec();
            } else if name.ends_with("self_attn.o_proj.weight") || name.ends_with("mlp.down_proj.weight") {
                bytes.fill(0);
            }
        }
    }
    for (file, shard) in files.iter().zip(&shards) {
        write(file, shard);
    }
    model
}

#[test]
fn an_answer_includes_an_image() {
    let folder = folder();
    let model = scripted_model(folder.path());
    let image = folder.path().join("answer.png");
    let sdxl = case().join("sdxl");
    let ask = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.arg("chat").arg(&model).args(["--precision", "f32", "--temperature", "0", "--json", "--seed", "3"]);
        command.arg("--image").arg(goldens().join("vicuna-7b/image0.png"));
        command.args(["--image-model", text(&sdxl), "--steps", "2", "--out", text(&image)]);
        let output = command.args(more).stdin(Stdio::null()).output().expect("the binary runs");
        serde_json::from_str::<Value>(&must(&output)).expect("JSON")["turns"].clone()
    };
    let turns = ask(&["--draw", "--prompt", "What is this made of?", "--prompt", "And this?"]);
    for (turn, name) in [(&turns[0], "answer.png"), (&turns[1], "answer-2.png")] {
        assert_eq!(turn["text"], "<h> a gold mine</h>");
        let file = turn["image"]["file"].as_str().expect("a file");
        assert!(file.ends_with(name), "{file}");
        assert_eq!(pixels(Path::new(file)).len(), 128 * 128 * 3);
        let settings = &turn["image"]["settings"];
        assert_eq!(settings["prompt"], "a gold mine");
        assert!(settings["negative_prompt"].as_str().is_some_and(|text| text.starts_with("out of frame, lowres")));
    }
    // ` <GEN>` makes the prompt longer. `mgm generate` gives the same image for this prompt.
    let shorter = ask(&["--prompt", "What is this made of?"]);
    assert!(shorter[0]["prompt_tokens"].as_u64() < turns[0]["prompt_tokens"].as_u64());
    let negative = turns[0]["image"]["settings"]["negative_prompt"].as_str().expect("a text");
    let alone = generated(&sdxl, &["--seed", "3", "--negative-prompt", negative]);
    assert_eq!(pixels(&image), alone);
    // With little memory only one model is on the device at a time; the conversation is restored for the second
    // question.
    let swapped = ask(&["--draw", "--gpu-memory", "28M", "--prompt", "What is this made of?", "--prompt", "And this?"]);
    for index in [0, 1] {
        assert_eq!(swapped[index]["token_ids"], turns[index]["token_ids"]);
        assert_eq!(swapped[index]["prompt_tokens"], turns[index]["prompt_tokens"]);
    }
    assert_eq!(pixels(&image), alone);
}

#[test]
fn a_failed_image_keeps_the_answer_and_models_make_room() {
    let folder = folder();
    let model = scripted_model(folder.path());
    let sdxl = case().join("sdxl");
    let image = folder.path().join("answer.png");
    let ask = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.arg("chat").arg(&model).args(["--precision", "f32", "--temperature", "0", "--json", "--draw"]);
        command.args(["--image-model", text(&sdxl), "--out", text(&image)]);
        command.args(more).stdin(Stdio::null()).output().expect("the binary runs")
    };
    // More steps than an LCM scheduler has, which is detected when generation starts.
    let failed = ask(&["--scheduler", "lcm", "--steps", "60", "--prompt", "What is this made of?"]);
    assert_eq!(failed.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&failed.stdout).expect("JSON");
    assert_eq!(report["turns"][0]["text"], "<h> a gold mine</h>");
    assert!(report["turns"][0]["image_error"].as_str().is_some_and(|error| error.contains("60 steps")), "{report}");
    // Encoding an image needs memory while the image model is on the device.
    let input = goldens().join("vicuna-7b/image0.png");
    for memory in ["24M", "28M"] {
        let tight = ask(&["--gpu-memory", memory, "--steps", "1", "--image", text(&input), "--prompt", "And this?"]);
        let report: Value = serde_json::from_str(&must(&tight)).expect("JSON");
        assert_eq!(report["turns"][0]["image"]["settings"]["prompt"], "a gold mine");
    }
}

/// Orientation 6: viewers rotate the stored pixels by 90 degrees clockwise.
#[test]
fn an_initial_image_is_rotated_by_its_exif_orientation() {
    let folder = folder();
    let oriented = tests().join("data/image/formats/orientation6.png");
    let (stored, upright) = (folder.path().join("stored.png"), folder.path().join("upright.png"));
    let image = image::open(&oriented).expect("an image").to_rgb8();
    image.save(&stored).expect("a file");
    image::imageops::rotate90(&image).save(&upright).expect("a file");
    let from = |init: &Path| {
        let more = ["--seed", "7", "--strength", "0.5", "--size", "64x64", "--init-image", text(init)];
        generated(&case().join("sdxl"), &more)
    };
    assert_eq!(from(&oriented), from(&upright));
    assert_ne!(from(&oriented), from(&stored));
}

#[test]
fn latents_of_another_shape_are_refused() {
    let folder = folder();
    let out = folder.path().join("x.png");
    let file = folder.path().join("latents.safetensors");
    for (shape, size, more) in [
        (vec![1, 4, 16, 16], "64x256", None),
        (vec![1, 8, 16, 8], "128x128", None),
        (vec![1, 16, 8, 8], "128x128", None),
        (vec![1, 4, 16, 16], "128x128", Some("2")),
    ] {
        write(&file, &Tensors::from([("latents".to_owned(), (shape.clone(), vec![0; 4 * 1024]))]));
        let mut arguments =
            vec!["--prompt", "x", "--steps", "1", "--latents", text(&file), "--size", size, "--out", text(&out)];
        arguments.extend(more.iter().flat_map(|batch| ["--batch", batch]));
        let refused = generate(&case().join("sdxl"), &arguments);
        assert_eq!(
            refused.status.code(),
            Some(2),
            "{shape:?} for {size}: {}",
            String::from_utf8_lossy(&refused.stderr)
        );
    }
}

#[test]
fn bad_input_is_a_one_line_error() {
    let model = case().join("sdxl");
    let folder = folder();
    let place = |name: &str| folder.path().join(name);
    let damaged = |name: &str, damage: &dyn Fn(&Path)| {
        let copied = place(name);
        copy(&model, &copied);
        damage(&copied);
        copied
    };
    let edited = |name: &str, file: &'static str, from: &'static str, to: &'static str| {
        damaged(name, &|copied| {
            let file = copied.join(file);
            let text = fs::read_to_string(&file).expect("a text");
            assert!(text.contains(from), "{from}");
            fs::write(&file, text.replacen(from, to, 1)).expect("a text");
        })
    };
    let no_unet = damaged("no-unet", &|copied| fs::remove_dir_all(copied.join("unet")).expect("the UNet"));
    let no_weights = damaged("no-weights", &|copied| {
        fs::remove_file(copied.join("vae/diffusion_pytorch_model.safetensors")).expect("the VAE");
    });
    let no_words = damaged("no-words", &|copied| fs::remove_file(copied.join("tokenizer/vocab.json")).expect("a list"));
    let lacking = damaged("lacking", &|copied| {
        let file = copied.join("unet/diffusion_pytorch_model.safetensors");
        let mut tensors = read(&file);
        tensors.remove("mid_block.resnets.0.conv1.weight");
        write(&file, &tensors);
    });
    let cut = damaged("cut", &|copied| {
        let file = copied.join("unet/diffusion_pytorch_model.safetensors");
        let bytes = fs::read(&file).expect("the UNet");
        fs::write(&file, &bytes[..bytes.len() / 2]).expect("half of it");
    });
    let no_text_weights = damaged("no-text-weights", &|copied| {
        fs::remove_file(copied.join("text_encoder/model.safetensors")).expect("the weights");
    });
    let index = model.join("model_index.json");
    let unknown =
        edited("unknown", "scheduler/scheduler_config.json", "EulerDiscreteScheduler", "HeunDiscreteScheduler");
    let wide = edited("wide", "unet/config.json", "\"cross_attention_dim\": 80", "\"cross_attention_dim\": 84");
    let other = edited("other", "model_index.json", "StableDiffusionXLPipeline", "StableDiffusionPipeline");
    let lora = place("lora.safetensors");
    write(&lora, &Tensors::from([("lora_unet_nothing.lora_up.weight".to_owned(), (vec![1], vec![0; 4]))]));
    let small = place("small.safetensors");
    write(&small, &Tensors::from([("x".to_owned(), (vec![1, 4, 3, 3], vec![0; 144]))]));
    let two = place("two.safetensors");
    write(&two, &Tensors::from(["x", "y"].map(|name| (name.to_owned(), (vec![1], vec![0; 4])))));
    let image = place("x.png");
    let around = case();

    let rows: Vec<(&Path, Vec<&str>, &str)> = vec![
        (&model, vec!["--size", "100x100"], "multiples of 8"),
        (&model, vec!["--size", "0x64"], "multiples of 8"),
        (&model, vec!["--width", "64"], "--height"),
        (&model, vec!["--width", "100", "--height", "64"], "multiples of 8"),
        (&model, vec!["--width", "64", "--height", "64", "--size", "64x64"], "cannot be used with"),
        (&model, vec!["--size", "64"], "1024x768"),
        (&model, vec!["--size", "16384x64"], "8192"),
        (&model, vec!["--steps", "0"], "1 to 1000"),
        (&model, vec!["--guidance-scale", "-1"], "guidance"),
        (&model, vec!["--guidance-scale", "NaN"], "guidance"),
        (&model, vec!["--batch", "0"], "batch"),
        (&model, vec!["--scheduler", "best"], "\"best\" is not supported"),
        (&model, vec!["--scheduler", "ddim-karras"], "Karras"),
        (&model, vec!["--scheduler", "lcm", "--steps", "60"], "original_inference_steps"),
        (&model, vec!["--init-image", "nowhere.png", "--strength", "0.5"], "nowhere.png is missing: check the path"),
        (&model, vec!["--init-image", "nowhere.png", "--strength", "1.5"], "strength"),
        (&model, vec!["--init-image", "nowhere.png", "--strength", "0"], "strength"),
        (&model, vec!["--strength", "0.5"], "--init-image"),
        (&model, vec!["--mask", "x.png"], "--init-image"),
        (&model, vec!["--prediction-type", "flow"], "epsilon, v_prediction, sample"),
        (&model, vec!["--prompt-weights", "yes"], "auto"),
        (&model, vec!["--vae", "nowhere"], "nowhere"),
        (&model, vec!["--latents", "nowhere"], "nowhere"),
        (&model, vec!["--latents", text(&small), "--size", "128x128"], "expected 1024"),
        (&model, vec!["--latents", text(&two)], "none of them called latents"),
        (&model, vec!["--lora", text(&lora)], "lora_unet_nothing"),
        (&model, vec!["--lora", "nowhere:2"], "nowhere"),
        (&model, vec!["--gpu-memory", "1M"], "not enough GPU memory for the UNet"),
        (&model, vec!["--precision", "f12"], "f12"),
        (&model, vec!["--precision", "q4"], "expected f32, f16 or q8"),
        (&model, vec!["--out", "x.jpg"], ".png"),
        (&model, vec!["--out", "no/such/folder/x.png"], "no folder"),
        (Path::new("nowhere"), vec![], "model_index.json"),
        (&around, vec![], "model_index.json is missing"),
        (&index, vec![], "of a model in several files pass the folder"),
        (&no_text_weights, vec![], "text_encoder/model.safetensors is missing: no weights here"),
        (&no_unet, vec![], "unet/config.json is missing"),
        (&no_weights, vec![], "no weights here"),
        (&no_words, vec![], "tokenizer/vocab.json is missing"),
        (&lacking, vec![], "mid_block.resnets.0.conv1.weight is missing"),
        (&cut, vec![], "truncated"),
        (&unknown, vec![], "HeunDiscreteScheduler"),
        (&wide, vec![], "has shape [32, 80], expected [32, 84]"),
        (&other, vec![], "StableDiffusionPipeline"),
        (&two, vec![], "model.diffusion_model"),
    ];
    for (model, arguments, message) in rows {
        let mut all = vec!["--prompt", "x"];
        if !arguments.contains(&"--steps") {
            all.extend(["--steps", "1"]);
        }
        if !arguments.contains(&"--out") {
            all.extend(["--out", text(&image)]);
        }
        all.extend(&arguments);
        let output = generate(model, &all);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{} {arguments:?}: {errors}", model.display());
        assert!(errors.contains(message), "{} {arguments:?}: {errors} lacks {message:?}", model.display());
        assert!(!errors.contains("panicked") && output.stdout.is_empty(), "{errors}");
        let count = errors
            .lines()
            // Mesa prints errors too.
            .filter(|line| line.contains("error:") && !line.contains("XDG_RUNTIME_DIR"))
            .count();
        assert_eq!(count, 1, "{errors}");
        assert!(!image.exists(), "{arguments:?} wrote an image");
    }
}

#[test]
fn chat_names_the_commands_for_an_image_model() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pocket-sdxl");
    for model in [case().join("sdxl"), bundle] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.arg("chat").arg(&model).args(["--prompt", "x"]);
        let output = command.output().expect("the binary runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        for part in ["image model (Stable Diffusion XL), expected a chat model", "mgm generate", "--image-model"] {
            assert!(errors.contains(part), "{errors} lacks {part:?}");
        }
    }
}

#[test]
fn a_packed_model_generates_the_same_image() {
    let folder = folder();
    let model = case().join("sdxl");
    let pack = |precision: &str| {
        let out = folder.path().join(precision);
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.arg("pack").arg(&model).args(["--precision", precision, "--shard-size", "1M", "--out"]).arg(&out);
        must(&command.output().expect("the binary runs"));
        let image = folder.path().join(format!("{precision}.png"));
        let arguments = with_out(&golden_arguments(), &image);
        must(&generate(&out, &arguments.iter().map(String::as_str).collect::<Vec<_>>()));
        psnr(&image)
    };
    let [single, half, quantized] = ["f32", "f16", "q8"].map(pack);
    println!("{single:.1} dB, {half:.1} dB, {quantized:.1} dB");
    assert!(single > MIN_PSNR, "{single} dB");
    // Rounding errors of 2^-11 and 2^-8 in the weights give errors of about that fraction of the image's scale.
    assert!(half > 45.0 && quantized > 30.0, "{half} dB, {quantized} dB");
}

#[test]
fn inspect_lists_the_parts() {
    let output = Command::new(env!("CARGO_BIN_EXE_mgm")).arg("inspect").arg(case().join("sdxl")).output();
    let printed = must(&output.expect("the binary runs"));
    for part in ["Stable Diffusion XL", "UNet", "VAE", "first text encoder", "EulerDiscreteScheduler", "all weights"] {
        assert!(printed.contains(part), "{printed}");
    }
    // A scheduler that is not supported does not hide the rest.
    let folder = folder();
    copy(&case().join("sdxl"), folder.path());
    let file = folder.path().join("scheduler/scheduler_config.json");
    let config = fs::read_to_string(&file).expect("a configuration");
    fs::write(&file, config.replace("EulerDiscreteScheduler", "HeunDiscreteScheduler")).expect("a configuration");
    let output = Command::new(env!("CARGO_BIN_EXE_mgm")).arg("inspect").arg(folder.path()).output();
    let printed = must(&output.expect("the binary runs"));
    for part in ["HeunDiscreteScheduler", "--scheduler NAME", "UNet", "all weights"] {
        assert!(printed.contains(part), "{printed}");
    }
}
