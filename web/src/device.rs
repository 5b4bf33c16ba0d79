//! The GPU that a language model and a model that paints share.

use mgm::gpu::{Gpu, GpuOptions};
use mgm::ops::{Tuning, set_tuning};
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use crate::{bad_request, to_js, to_json};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeviceRequest {
    /// The most GPU memory to use, in bytes.
    gpu_memory: Option<u64>,
    /// Whether devices have subgroups.
    subgroups: bool,
    /// What [`crate::engine::Engine::tune`] gave on an earlier visit.
    tuning: Option<String>,
}

#[derive(Serialize)]
struct Info<'a> {
    /// The browser's name for the adapter.
    adapter: &'a str,
    /// Whether the CPU plays it.
    software: bool,
}

/// A device.
#[wasm_bindgen]
pub struct Device {
    pub(crate) gpu: Gpu,
}

#[wasm_bindgen]
impl Device {
    /// Opens the best adapter's device.
    pub async fn open(request: String) -> Result<Device, JsValue> {
        let request: DeviceRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let options = GpuOptions {
            memory_limit: request.gpu_memory,
            browser_subgroups: request.subgroups,
            ..GpuOptions::default()
        };
        let gpu = Gpu::open(&options).await.map_err(to_js)?;
        // What an earlier version wrote is of no use any more.
        if let Some(tuning) = request.tuning.and_then(|text| serde_json::from_str::<Tuning>(&text).ok()) {
            set_tuning(&gpu, tuning);
        }
        Ok(Self { gpu })
    }

    /// What is known of it, as JSON.
    pub fn info(&self) -> Result<String, JsValue> {
        let adapter = self.gpu.adapter();
        to_json(&Info { adapter: &adapter.name, software: adapter.is_software() })
    }

    /// Bytes in use.
    pub fn bytes(&self) -> f64 {
        self.gpu.memory().allocated as f64
    }

    /// Gives the memory of what was freed back.
    pub fn trim(&self) {
        self.gpu.trim();
    }

    /// Bytes that may be used, where there is a limit.
    pub fn limit(&self) -> Option<f64> {
        self.gpu.memory().limit.map(|limit| limit as f64)
    }
}
