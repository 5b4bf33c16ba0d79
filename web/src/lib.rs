//! The wasm module of the npm package `mgm-webgpu`. Its worker (`ts/worker.ts`) is the only caller.
//!
//! Requests and reports cross the boundary as JSON; pixels and files cross as JavaScript objects. Errors are `Error`
//! objects with a `code` ([`mgm::Error::code`]).

#![cfg(target_arch = "wasm32")]

mod blob_source;
mod chat_model;
mod check;
mod conversion;
mod device;
mod digest;
mod image_model;
mod pixels;
mod remote_source;

use std::ops::ControlFlow;

use js_sys::Function;
use wasm_bindgen::prelude::*;

/// Sends panics, which are bugs, to the console with their location. The glue code calls this once, first.
#[wasm_bindgen(start)]
pub fn start() {
    console_error_panic_hook::set_once();
}

/// Converts an error of the core to a JavaScript `Error` with a `code`.
fn to_js(error: mgm::Error) -> JsValue {
    let object = js_sys::Error::new(&error.to_string());
    // Setting a property of a fresh object cannot fail.
    let _ = js_sys::Reflect::set(&object, &"code".into(), &error.code().into());
    object.into()
}

/// The error for a request that the worker built wrongly.
fn bad_request(error: serde_json::Error) -> JsValue {
    to_js(mgm::Error::InvalidArgument(format!("invalid request: {error}")))
}

/// Calls `on_event(name, value)`. Breaks if the callback returned `false` or threw.
fn emit(on_event: &Function, name: &str, value: &JsValue) -> ControlFlow<()> {
    match on_event.call2(&JsValue::NULL, &name.into(), value) {
        Ok(answer) if answer != JsValue::FALSE => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<String, JsValue> {
    serde_json::to_string(value).map_err(bad_request)
}
