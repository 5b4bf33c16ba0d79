//! The kernels on a user's own device: whether they are right, and how fast they are.

use js_sys::Function;
use mgm::gpu::{Gpu, GpuOptions};
use mgm::ops::cases::{check, self_check};
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::{tell, to_js, to_json};

#[derive(Serialize)]
struct Checked {
    case: String,
    /// Normalised mean square error; absent where the case failed.
    error: Option<f64>,
    /// How it failed.
    failure: Option<String>,
}

/// Runs every kernel once against its reference; gives a list as JSON. `on_event` is called with `"checked"` and the part done;
/// it returns `false` to stop.
#[wasm_bindgen(js_name = selfCheck)]
pub async fn self_check_js(subgroups: bool, on_event: Function) -> Result<String, JsValue> {
    let gpu = Gpu::open(&GpuOptions { browser_subgroups: subgroups, ..GpuOptions::default() }).await.map_err(to_js)?;
    let cases = self_check();
    let mut results = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let result = check(&gpu, case.as_ref()).await;
        if let Err(lost @ mgm::Error::DeviceLost(_)) = result {
            return Err(to_js(lost));
        }
        results.push(Checked {
            case: case.name(),
            error: result.as_ref().ok().map(|report| report.nmse),
            failure: result.err().map(|error| error.to_string()),
        });
        if !tell(&on_event, "checked", &((index + 1) as f64 / cases.len() as f64).into()) {
            return Err(to_js(mgm::Error::Cancelled));
        }
    }
    to_json(&results)
}

/// Times the kernels with `filter` in their names; gives a list as JSON.
#[wasm_bindgen(js_name = timeKernels)]
pub async fn time_kernels(subgroups: bool, filter: String) -> Result<String, JsValue> {
    let gpu = Gpu::open(&GpuOptions { browser_subgroups: subgroups, ..GpuOptions::default() }).await.map_err(to_js)?;
    let mut rows = Vec::new();
    mgm::roofline::measure(gpu, Some(filter), false, |row| rows.push(row.clone())).await.map_err(to_js)?;
    to_json(&rows)
}
