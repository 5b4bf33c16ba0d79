//! The npm package's defaults and limits are those of the crate.

use std::path::Path;

use mgm::diffusion::limits;
use mgm::{AnswerOptions, Sampling};

/// The number under `name` in an object of web/ts/defaults.ts.
fn number(source: &str, object: &str, name: &str) -> f64 {
    let (_, rest) = source.split_once(&format!("export const {object} = {{")).expect("the object");
    let (fields, _) = rest.split_once('}').expect("its end");
    let field = fields.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}: "))).expect("the field");
    field.trim_end_matches(',').parse().expect("a number")
}

#[test]
fn the_npm_package_has_the_defaults_and_limits_of_the_crate() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/ts/defaults.ts");
    let source = std::fs::read_to_string(file).expect("defaults.ts");
    // The shortest decimal of an f32, as users write it.
    let decimal = |value: f32| value.to_string().parse::<f64>().expect("a number");
    for (object, name, expected) in [
        ("defaults", "temperature", decimal(Sampling::REFERENCE.temperature)),
        ("defaults", "topK", f64::from(Sampling::REFERENCE.top_k)),
        ("defaults", "maxNewTokens", AnswerOptions::default().max_new_tokens as f64),
        ("defaults", "numInferenceSteps", limits::DEFAULT_NUM_INFERENCE_STEPS as f64),
        ("defaults", "guidanceScale", decimal(limits::DEFAULT_GUIDANCE_SCALE)),
        ("defaults", "strength", decimal(limits::DEFAULT_STRENGTH)),
        ("limits", "numInferenceSteps", limits::MAX_NUM_INFERENCE_STEPS as f64),
        ("limits", "guidanceScale", decimal(*limits::GUIDANCE_SCALE.end())),
        ("limits", "side", limits::MAX_SIDE as f64),
    ] {
        assert_eq!(number(&source, object, name), expected, "{object}.{name}");
    }
}
