//! Checkpoints on disk: files made by torch (`tests/data/weights/make.py`), and the golden cases.
// Numbers stand as Python printed them.
#![allow(clippy::excessive_precision)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::rc::Rc;

use mgm::Error;
use mgm::io::DiskFolder;
use mgm::tensor::Activation;
use mgm::weights::checkpoint::Checkpoint;
use mgm::weights::config::Architecture;
use mgm::weights::dtype::Dtype;
use mgm::weights::mgm::{MgmCheckpoint, TowerOptions};
use mgm::weights::view::Weights;
use pollster::block_on;

fn torch_file(name: &str) -> mgm::Result<Checkpoint> {
    let folder = DiskFolder::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/weights"));
    block_on(Checkpoint::open(&folder, &[name]))
}

#[test]
fn torch_files_hold_what_torch_put_there() {
    let file = torch_file("types.bin").unwrap();
    let names: Vec<&str> = file.names().collect();
    assert_eq!(names, ["bf16", "depthwise", "empty", "f16", "f32", "f64", "i64", "parameter", "rows", "scalar"]);
    let check = |name: &str, dtype: Dtype, shape: &[usize], sum: f64| {
        let info = file.info(name).unwrap();
        assert_eq!((info.dtype, info.shape.as_slice()), (dtype, shape), "{name}");
        let values = block_on(file.read(name)).unwrap();
        let found: f64 = values.iter().map(|value| f64::from(*value)).sum();
        assert!((found - sum).abs() <= 1e-7 * sum.abs(), "{name}: {found}, not {sum}");
        values
    };
    check("f32", Dtype::F32, &[2, 3, 4], 39.42857153713703);
    check("f16", Dtype::F16, &[24], 15.427734375);
    check("bf16", Dtype::Bf16, &[6, 4], 3944.4375);
    check("f64", Dtype::F64, &[24], 0.03942857153713704);
    check("empty", Dtype::F32, &[0, 5], 0.0);
    check("depthwise", Dtype::F32, &[2, 1, 3, 3], 21.857142999768257);
    assert_eq!(check("scalar", Dtype::F32, &[], 1.25), [1.25]);
    assert_eq!(check("parameter", Dtype::F32, &[2], -1.0), [1.0, -2.0]);
    let rows = check("rows", Dtype::F32, &[2, 4], 13.142857074737549);
    assert_eq!(rows[..2], [1.142_857_2, 1.285_714_3]);
    assert_eq!(block_on(file.read_rows("rows", 1..2)).unwrap(), rows[4..]);
    assert_eq!(block_on(file.read_rows("scalar", 0..1)).unwrap(), [1.25]);
    assert!(block_on(file.read_rows("empty", 0..0)).unwrap().is_empty());
    assert!(matches!(block_on(file.read_rows("rows", 1..3)), Err(Error::InvalidArgument(_))));
    assert!(matches!(block_on(file.read("i64")), Err(Error::WrongDtype { found, .. }) if found == "I64"));
    assert!(matches!(block_on(file.read("nothing")), Err(Error::MissingTensor { name, .. }) if name == "nothing"));
}

#[test]
fn torch_files_may_be_nested_or_big_endian() {
    let nested = torch_file("nested.bin").unwrap();
    assert_eq!(nested.names().collect::<Vec<_>>(), ["0.bias", "0.weight", "1.bias", "1.weight"]);
    assert_eq!(block_on(nested.read("0.bias")).unwrap(), [-0.011_439_145, 0.457_774_94]);
    let (big, little) = (torch_file("big_endian.bin").unwrap(), torch_file("types.bin").unwrap());
    for name in ["f32", "rows"] {
        assert_eq!(block_on(big.read(name)).unwrap(), block_on(little.read(name)).unwrap());
    }
}

#[test]
fn torch_files_that_cannot_be_used_say_why() {
    let cases = [
        ("legacy.bin", "torch's old file format"),
        ("transposed.bin", "call .contiguous() before saving"),
        ("malicious.bin", "wants to call posix.system"),
        ("bomb.bin", "entry bomb/data.pkl is compressed"),
        ("absent.bin", "no weights here"),
    ];
    for (name, reason) in cases {
        let error = torch_file(name).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(reason), "{error:?} lacks {reason:?}");
    }
}

/// What Python reads in a golden case: number of values, their sum, the sum of their absolutes, the first and the last.
type Figures = (usize, f64, f64, f32, f32);

fn check(weights: &Weights, name: &str, (count, sum, absolute, first, last): Figures) {
    let values = block_on(weights.read(name)).unwrap();
    let wide = || values.iter().map(|value| f64::from(*value));
    assert_eq!((values.len(), values.first(), values.last()), (count, Some(&first), Some(&last)), "{name}");
    let (found_sum, found_absolute) = (wide().sum::<f64>(), wide().map(f64::abs).sum::<f64>());
    assert!((found_sum - sum).abs() < 1e-9 * absolute, "{name}: {found_sum}");
    assert!((found_absolute - absolute).abs() < 1e-9 * absolute, "{name}: {found_absolute}");
}

fn golden(case: &str) -> MgmCheckpoint {
    let root = std::env::var_os("MGM_GOLDENS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens"), PathBuf::from);
    let folder = Rc::new(DiskFolder::new(root.join(case)));
    block_on(MgmCheckpoint::open(folder, TowerOptions::default())).unwrap()
}

fn check_golden(case: &str, parameters: [u64; 5], figures: [Figures; 5]) -> MgmCheckpoint {
    let checkpoint = golden(case);
    let vision = checkpoint.vision.as_ref().unwrap();
    check(&checkpoint.language.pp("model"), "embed_tokens.weight", figures[0]);
    check(&checkpoint.language.pp("model").pp("layers").pp(2), "mlp.down_proj.weight", figures[1]);
    check(&vision.clip.pp("vision_model.embeddings"), "position_embedding.weight", figures[2]);
    check(&vision.convnext.pp("stages").pp(2), "blocks.1.mlp.fc1.weight", figures[3]);
    check(&vision.mining.pp("val"), "1.weight", figures[4]);
    assert_eq!(checkpoint.language.count("model.layers"), checkpoint.config.language.num_layers);
    assert_eq!(vision.convnext.count("stages.2.blocks"), 3);
    assert_eq!((vision.clip_config.num_heads, vision.clip_config.grid()), (4, 24));
    for (part, parameters) in checkpoint.report().into_iter().zip(parameters) {
        assert_eq!((part.missing, part.unexpected, part.wrong_shape), (vec![], vec![], vec![]), "{}", part.name);
        assert_eq!((part.parameters, part.bytes), (parameters, 4 * parameters), "{}", part.name);
    }
    checkpoint
}

#[test]
fn the_gemma_golden_opens() {
    let checkpoint = check_golden(
        "gemma-2b/MGM-2B",
        [292_416, 208_768, 102_380, 21_840, 15_552],
        [
            (61344, -52.755387612420975, 5891.092161272591, -0.14507779479026794, -0.16965557634830475),
            (15360, -9.368933261464917, 1154.6431076546269, 0.12863026559352875, 0.11613405495882034),
            (36928, -76.86262202719809, 29379.207433884352, -0.5100342631340027, 0.5227404832839966),
            (6400, -26.977820564272406, 966.2705502222161, -0.009055785834789276, 0.045648906379938126),
            (8448, -12.645521134993032, 873.4205886479722, 0.01653347536921501, 0.09174533188343048),
        ],
    );
    let language = &checkpoint.config.language;
    assert_eq!((language.architecture, language.activation), (Architecture::Gemma, Activation::GeluErf));
    assert_eq!((language.num_heads, language.num_kv_heads, language.head_dim), (4, 1, 32));
    assert!(language.tie_word_embeddings);
}

#[test]
fn the_llama_3_golden_opens() {
    let checkpoint = check_golden(
        "llama3-8b/MGM-8B",
        [348_000, 208_768, 102_380, 21_840, 15_552],
        [
            (67680, -466.29784049584464, 54066.47844160398, -1.4168235063552856, 0.5684995651245117),
            (15360, -13.470094068409253, 1165.5129574930975, 0.025269513949751854, 0.1588185429573059),
            (36928, 263.64305286395575, 29518.870232308902, -0.05137748271226883, -0.21327313780784607),
            (6400, -21.770705010102574, 955.6864838178162, 0.11295073479413986, 0.2366349995136261),
            (8448, 0.36344581346475024, 899.4968660373952, 0.06140875071287155, 0.20001721382141113),
        ],
    );
    assert_eq!(checkpoint.config.language.architecture, Architecture::Llama);
    assert_eq!(checkpoint.config.language.rope_theta, 500_000.0);
}

#[test]
fn the_vicuna_golden_opens() {
    check_golden(
        "vicuna-7b/MGM-7B",
        [364_704, 208_768, 102_380, 21_840, 15_552],
        [
            (57600, -739.5992960683288, 45980.14919747544, 1.2665318250656128, 1.7445181608200073),
            (15360, 17.861636946269755, 1154.8478555239353, -0.04383011907339096, 0.030423603951931),
            (36928, -37.92729393116065, 29387.248056037137, 1.4989327192306519, 1.5936846733093262),
            (6400, 11.434217498877842, 971.6429170141419, -0.07238242030143738, 0.1681256890296936),
            (8448, -4.395295124052041, 879.1101308346675, 0.17713825404644012, 0.2090003937482834),
        ],
    );
}

#[test]
fn the_vicuna_hd_golden_opens() {
    let checkpoint = check_golden(
        "vicuna-7b-hd/MGM-7B-HD",
        [364_704, 208_768, 102_380, 21_840, 15_552],
        [
            (57600, -144.18725743513096, 45735.1778152982, -0.6528781652450562, -0.39345088601112366),
            (15360, 7.754735902214861, 1173.390895504274, -0.14123931527137756, 0.03586769104003906),
            (36928, 462.2809090256287, 29491.15584017273, -0.13393892347812653, -0.2675229609012604),
            (6400, 23.726482947346085, 965.9671750977614, -0.25029316544532776, -0.41684430837631226),
            (8448, 7.01332985302588, 881.6590938761933, 0.04755261167883873, -0.04513965919613838),
        ],
    );
    let vision = &checkpoint.vision.unwrap().config;
    assert_eq!((vision.high_image_size, vision.grid, vision.global), (1536, 2, true));
}

#[test]
fn a_tower_folder_that_is_named_wins() {
    let root = std::env::var_os("MGM_GOLDENS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens"), PathBuf::from);
    let folder = |path: &str| Rc::new(DiskFolder::new(root.join(path)));
    let clip: Rc<dyn mgm::io::Folder> = folder("llama3-8b/OpenAI/clip-vit-large-patch14-336");
    let towers = TowerOptions { clip: Some(clip), convnext: None };
    let checkpoint = block_on(MgmCheckpoint::open(folder("gemma-2b/MGM-2B"), towers)).unwrap();
    // The figures of Llama-3's tower.
    check(
        &checkpoint.vision.unwrap().clip.pp("vision_model.embeddings"),
        "position_embedding.weight",
        (36928, 263.64305286395575, 29518.870232308902, -0.05137748271226883, -0.21327313780784607),
    );
}
