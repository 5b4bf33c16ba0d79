//! Checkpoints on disk: files made by torch (`tests/data/weights/make.py`), and the golden cases.
// Numbers stand as Python printed them.
#![allow(clippy::excessive_precision)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
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
    let folder = Rc::new(DiskFolder::new(mgm_test_support::goldens().join(case)));
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
            (61344, 38.14039880942437, 6074.390487547091, 0.011293121613562107, -0.12960386276245117),
            (15360, -43.24049720808034, 5889.273331582113, -0.13004013895988464, 0.9326584935188293),
            (36928, 111.85482874389527, 14968.301873510103, 0.11293178796768188, -0.028768137097358704),
            (6400, -7.565750399453464, 974.4439320031724, 0.0460246242582798, -0.0760674998164177),
            (8448, 9.989836189181915, 879.7126765487783, -0.13723689317703247, -0.07365285605192184),
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
            (67680, 427.28203096724246, 55049.97241492872, 0.5004889369010925, -0.9484895467758179),
            (15360, 2.3381748695765054, 1183.5445347747764, -0.17444659769535065, -0.04184151068329811),
            (36928, 107.40556578342421, 14916.89805111324, 0.6256970763206482, -0.4832703471183777),
            (6400, -24.38423101180706, 989.6521719347238, -0.08588622510433197, -0.19784370064735413),
            (8448, -9.79426013637567, 887.9987900194392, 0.01981329172849655, 0.09364558011293411),
        ],
    );
    assert_eq!(checkpoint.config.language.architecture, Architecture::Llama);
    assert_eq!(checkpoint.config.language.rope.theta, 500_000.0);
}

#[test]
fn the_vicuna_golden_opens() {
    check_golden(
        "vicuna-7b/MGM-7B",
        [364_704, 208_768, 102_380, 21_840, 15_552],
        [
            (57600, 109.46257168960074, 46381.607446772185, 0.13262151181697845, 0.03634009137749672),
            (15360, -11.143388161491657, 1167.5467738952043, -0.08248955011367798, -0.03834886476397514),
            (36928, -117.94069803494767, 14982.577290691876, 0.006329783238470554, 0.6790179014205933),
            (6400, 23.063571991622666, 978.1973713006355, -0.17932453751564026, 0.14403630793094635),
            (8448, 1.5545151597893891, 890.6383301164265, -0.10279999673366547, -0.03192831575870514),
        ],
    );
}

#[test]
fn the_vicuna_hd_golden_opens() {
    let checkpoint = check_golden(
        "vicuna-7b-hd/MGM-7B-HD",
        [364_704, 208_768, 102_380, 21_840, 15_552],
        [
            (57600, 129.4408162624768, 46561.087667889966, -0.8471866250038147, -0.6799693703651428),
            (15360, -6.772939095070797, 1175.2772515591432, 0.056233301758766174, -0.16725321114063263),
            (36928, 58.66788854039714, 14951.006158967895, -0.5851679444313049, -0.6283928155899048),
            (6400, -7.649931734857091, 968.2672701386691, 0.15457212924957275, 0.06344056874513626),
            (8448, -3.370982123817157, 897.918772197505, -0.06789382547140121, -0.13897943496704102),
        ],
    );
    let vision = &checkpoint.vision.unwrap().config;
    assert_eq!((vision.high_image_size, vision.grid, vision.global), (1536, 2, true));
}

#[test]
fn a_tower_folder_that_is_named_wins() {
    let folder = |path: &str| Rc::new(DiskFolder::new(mgm_test_support::goldens().join(path)));
    let clip: Rc<dyn mgm::io::Folder> = folder("llama3-8b/OpenAI/clip-vit-large-patch14-336");
    let towers = TowerOptions::default().with_clip(clip);
    let checkpoint = block_on(MgmCheckpoint::open(folder("gemma-2b/MGM-2B"), towers)).unwrap();
    // The figures of Llama-3's tower.
    check(
        &checkpoint.vision.unwrap().clip.pp("vision_model.embeddings"),
        "position_embedding.weight",
        (36928, 107.40556578342421, 14916.89805111324, 0.6256970763206482, -0.4832703471183777),
    );
}
