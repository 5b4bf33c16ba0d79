//! The browser front of mgm: what the worker of the npm package calls. Everything here runs in a dedicated worker.
//!
//! Values cross as JSON texts, pixels and files as they are. Errors are `Error` objects with a `code` ([`mgm::Error::code`]).

#![cfg(target_arch = "wasm32")]

mod check;
mod device;
mod digest;
mod engine;
mod painter;
mod pixels;
mod source;

use js_sys::Function;
use wasm_bindgen::prelude::*;

/// Makes panics, which are bugs, readable in the console. Called once, before anything else.
#[wasm_bindgen(start)]
pub fn start() {
    console_error_panic_hook::set_once();
}

/// An error of the core as JavaScript sees it.
fn to_js(error: mgm::Error) -> JsValue {
    let object = js_sys::Error::new(&error.to_string());
    // Setting a property of a fresh object cannot fail.
    let _ = js_sys::Reflect::set(&object, &"code".into(), &error.code().into());
    object.into()
}

/// A request that the package itself got wrong.
fn bad_request(error: serde_json::Error) -> JsValue {
    to_js(mgm::Error::InvalidArgument(format!("the request is not understood: {error}")))
}

/// Calls back with a name and a value; `false`, or an exception, means to stop.
fn tell(callback: &Function, name: &str, value: &JsValue) -> bool {
    callback.call2(&JsValue::NULL, &name.into(), value).is_ok_and(|answer| answer != JsValue::FALSE)
}

fn to_json(value: &impl serde::Serialize) -> Result<String, JsValue> {
    serde_json::to_string(value).map_err(bad_request)
}
