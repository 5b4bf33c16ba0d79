//! Kernels on the user's device: the self-check, and timings for the benchmarks.

use js_sys::Function;
use mgm::gpu::{Gpu, GpuOptions};
use mgm::ops::cases::{check, self_check};
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::{emit, to_js, to_json};

#[derive(Serialize)]
struct CheckedCase {
    case: String,
    /// Normalised mean square error; `None` if the case failed.
    error: Option<f64>,
    /// Why the case failed.
    failure: Option<String>,
}

/// Runs every kernel once, compares it with its reference and returns a JSON list of cases. Calls
/// `on_event("checked", fraction)` after each case; `false` stops.
#[wasm_bindgen(js_name = selfCheck)]
pub async fn self_check_js(subgroups: bool, on_event: Function) -> Result<String, JsValue> {
    let gpu = Gpu::open(&GpuOptions::default().with_browser_subgroups(subgroups)).await.map_err(to_js)?;
    let cases = self_check();
    let mut results = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let result = check(&gpu, case.as_ref()).await;
        if let Err(lost @ mgm::Error::DeviceLost(_)) = result {
            return Err(to_js(lost));
        }
        results.push(CheckedCase {
            case: case.name(),
            error: result.as_ref().ok().map(|report| report.nmse),
            failure: result.err().map(|error| error.to_string()),
        });
        if emit(&on_event, "checked", &((index + 1) as f64 / cases.len() as f64).into()).is_break() {
            return Err(to_js(mgm::Error::Cancelled));
        }
    }
    to_json(&results)
}

/// Times the kernels whose names contain `filter` and returns a JSON list of rows. Only the benchmarks
/// (`benches/race.mjs`) call this.
#[wasm_bindgen(js_name = timeKernels)]
pub async fn time_kernels(subgroups: bool, filter: String) -> Result<String, JsValue> {
    let gpu = Gpu::open(&GpuOptions::default().with_browser_subgroups(subgroups)).await.map_err(to_js)?;
    let mut rows = Vec::new();
    mgm::roofline::measure(gpu, Some(filter), false, |row| rows.push(row.clone())).await.map_err(to_js)?;
    to_json(&rows)
}
