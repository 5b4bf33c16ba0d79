//! The GPU device that the chat model and the image model share.

use mgm::gpu::{Gpu, GpuOptions};
use mgm::ops::{Tuning, set_tuning};
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use crate::{bad_request, to_js, to_json};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeviceRequest {
    /// Upper limit of GPU memory, in bytes.
    gpu_memory: Option<u64>,
    /// Whether the worker requests the feature `subgroups` for new devices.
    subgroups: bool,
    /// Whether the GPU has 8-bit dot products in hardware.
    #[serde(default)]
    native_dots: bool,
    /// Whether kernels may round activations to 8 bits. Default: yes.
    int8: Option<bool>,
    /// The result of [`crate::chat_model::ChatModel::tune`] on an earlier visit.
    tuning: Option<String>,
}

#[derive(Serialize)]
struct Info<'a> {
    /// The adapter's name as the browser reports it; often empty.
    adapter: &'a str,
    /// Whether it is a software (CPU) adapter.
    software: bool,
}

/// A GPU device.
#[wasm_bindgen]
pub struct Device {
    pub(crate) gpu: Gpu,
}

#[wasm_bindgen]
impl Device {
    /// Opens a device on the best adapter.
    pub async fn open(request: String) -> Result<Device, JsValue> {
        let request: DeviceRequest = serde_json::from_str(&request).map_err(bad_request)?;
        let options = GpuOptions::default()
            .with_memory_limit(request.gpu_memory)
            .with_browser_subgroups(request.subgroups)
            .with_browser_native_dots(request.native_dots)
            .with_int8(request.int8.unwrap_or(true));
        let gpu = Gpu::open(&options).await.map_err(to_js)?;
        // Ignore a tuning that another version wrote.
        if let Some(tuning) = request.tuning.and_then(|text| serde_json::from_str::<Tuning>(&text).ok()) {
            set_tuning(&gpu, tuning);
        }
        Ok(Self { gpu })
    }

    /// Adapter name and kind, as JSON.
    pub fn info(&self) -> Result<String, JsValue> {
        let adapter = self.gpu.adapter();
        to_json(&Info { adapter: &adapter.name, software: adapter.is_software() })
    }

    /// Allocated bytes.
    pub fn bytes(&self) -> f64 {
        self.gpu.memory().allocated as f64
    }

    /// Releases pooled buffers.
    pub fn trim(&self) {
        self.gpu.trim();
    }

    /// The limit of allocated bytes, if one is set.
    pub fn limit(&self) -> Option<f64> {
        self.gpu.memory().limit.map(|limit| limit as f64)
    }
}
