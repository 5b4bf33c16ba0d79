//! The names of kernels in the tables of `make isa` (KERNELS.md, "Machine code").

use std::collections::BTreeMap;

use crate::gpu::Kernel;

/// Steps of a matmul's epilogue: they run once, after the loops.
const EPILOGUE: [&str; 6] = ["HAS_BIAS", "HAS_GAMMA", "HAS_RESIDUAL", "GATED", "ACCUMULATE", "ACTIVATION"];

/// A short name that says what distinguishes a kernel's loops: entry point, parts, constants. Kernels that differ only
/// in the steps of their epilogue share it. The tables of `make isa` have these names.
pub fn kernel_name(kernel: &Kernel) -> String {
    // Parts that every kernel of a family has, or that another word stands for.
    const USUAL: [&str; 27] = [
        "epilogue",
        "activation",
        "rows_direct",
        "rows_im2col",
        "lhs_vec4",
        "fused_norm",
        "tiles_64",
        "stage_f32",
        "reduce_workgroup",
        "attention_common",
        "attention_contiguous",
        "combine_contiguous",
        "cache_f32",
        "chunks_vec4",
        "scales_quantized",
        "runs_f32",
        "weights_quantized",
        "blocks_quantized",
        "bytes_quantized",
        "bytes_q8",
        "store_cache_f32",
        "channels_vec4",
        "mining_map",
        "logits",
        "reduce",
        "sample_one",
        "rope_positions",
    ];
    const SWITCHES: [&str; 7] = ["CAUSAL", "CENTRED", "HELD", "NEIGHBOURS", "NORM", "SPLIT", "UNIT_OFFSET"];
    let mut words = vec![kernel.name.to_owned()];
    let mut format = None;
    for source in &kernel.sources[..kernel.sources.len() - 1] {
        let stem = source.name.rsplit('/').next().unwrap_or(source.name).trim_end_matches(".wgsl");
        if USUAL.contains(&stem) || stem == kernel.name {
            continue;
        }
        match stem.split_once('_') {
            // Readers after those of the same weights.
            Some(("run", _) | ("row", "floats")) => continue,
            Some(("weights" | "blocks" | "row", stored)) => {
                format = Some(stored.to_owned());
                continue;
            }
            _ => {}
        }
        words.push(match stem {
            "lhs_im2col" => "conv".to_owned(),
            "lhs_scalar" | "channels_scalar" => "scalar".to_owned(),
            "rows_routed" => "routed".to_owned(),
            "rope_epilogue" => "rope".to_owned(),
            "rope_places" => "placed".to_owned(),
            "attention_paged" | "combine_paged" => "paged".to_owned(),
            "store_cache_f16" => "kv16".to_owned(),
            "cache_f16" | "chunks_f16" | "chunks_f16_keys" | "runs_f16" => "kv16".to_owned(),
            "stage_f16" => "half".to_owned(),
            "sample_rows" => "rows".to_owned(),
            _ => match stem.split_once('_') {
                Some(("cooperative", size)) => format!("m{size}"),
                _ => stem.to_owned(),
            },
        });
    }
    let constants: BTreeMap<_, _> = kernel.consts.iter().chain(&kernel.overrides).copied().collect();
    if let Some(bits) = constants.get("BITS") {
        let scales = match (constants.get("SPAN"), constants.get("SCALE_WORDS")) {
            (Some(8), _) => "k",
            (_, Some(0)) => "_0",
            _ => "",
        };
        format = Some(format!("q{bits}{scales}"));
    }
    if let Some(format) = format {
        words.insert(1, format);
    }
    for (key, value) in kernel.consts.iter().chain(&kernel.overrides).copied() {
        let word = match (key, value) {
            ("HEAD4", head4) => format!("d{}", 4 * head4),
            ("ROWS", rows) => format!("r{rows}"),
            ("BLOCKS", blocks) => format!("b{blocks}"),
            ("TILE", tile) => format!("t{tile}"),
            ("STEP", step) => format!("s{step}"),
            ("INPUT_ROWS", rows) => format!("r{rows}"),
            ("LANES", lanes) => format!("l{lanes}"),
            ("OWNED", owned) => format!("o{owned}"),
            ("WORKGROUP", workgroup) => format!("w{workgroup}"),
            ("COLUMNS", 8) if ["matmul", "matmul_packed"].contains(&kernel.name) => "c8".to_owned(),
            // 4 in other products; in attention it follows from HEAD4.
            ("BITS" | "SPAN" | "SCALE_WORDS" | "SCALE_HALVES" | "COLUMNS" | "PARAMS", _) | (_, 0) => continue,
            // SUB_M is half of TILE.
            ("SUB_M", _) => continue,
            ("ROW_PARTS", parts) => format!("p{parts}"),
            ("COLUMN_PARTS", 1) | ("ROW_MATRICES", 1) => continue,
            ("COLUMN_PARTS", parts) => format!("c{parts}"),
            ("ROW_MATRICES", matrices) => format!("r{matrices}"),
            ("KEYS", keys) => format!("k{keys}"),
            ("SUB_N", rows) => format!("n{rows}"),
            (key, _) if EPILOGUE.contains(&key) => continue,
            (key, 1) if SWITCHES.contains(&key) => key.to_lowercase(),
            (key, value) => format!("{}{value}", key.to_lowercase()),
        };
        words.push(word.replace('_', ""));
    }
    words.join(".")
}
