//! Blobs as byte sources of the core. The browser stores blobs on disk and reads them in slices.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use js_sys::{ArrayBuffer, Promise, Uint8Array};
use mgm::io::{ByteSource, LocalFuture, MemoryFolder};
use mgm::{Error, Result};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::Blob;

/// Bytes per read. Each read of a blob goes through another process and takes milliseconds, however short it is.
const WINDOW: u64 = 2 << 20;
/// Cached windows. Loading interleaves reads at up to four places (gate and up projections, their values and scales),
/// each with one window of read-ahead.
const CACHED_WINDOWS: usize = 8;

/// The most recently used windows of a folder's blobs, in JavaScript's memory. The key is (blob number, window number).
#[derive(Default)]
struct WindowCache(RefCell<VecDeque<((usize, u64), Promise)>>);

struct BlobSource {
    name: String,
    number: usize,
    blob: Blob,
    windows: Rc<WindowCache>,
}

impl WindowCache {
    /// Returns a window, from the cache or by starting a read.
    fn window(&self, source: &BlobSource, index: u64) -> Result<Promise, JsValue> {
        let key = (source.number, index);
        let mut cached = self.0.borrow_mut();
        let found = cached.iter().position(|(found, _)| *found == key).and_then(|at| cached.remove(at));
        let promise = match found {
            Some((_, promise)) => promise,
            None => {
                let start = (index * WINDOW) as f64;
                let end = ((index + 1) * WINDOW).min(source.len()) as f64;
                let promise = source.blob.slice_with_f64_and_f64(start, end)?.array_buffer();
                // Attach a handler now: a failed read-ahead must not surface as an unhandled rejection.
                drop(JsFuture::from(promise.clone()));
                promise
            }
        };
        cached.push_back((key, promise.clone()));
        while cached.len() > CACHED_WINDOWS {
            cached.pop_front();
        }
        Ok(promise)
    }
}

impl ByteSource for BlobSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.blob.size() as u64
    }

    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            let fail = |reason: String| Error::Io { file: self.name.clone(), kind: std::io::ErrorKind::Other, reason };
            let thrown = |error: JsValue| fail(format!("read at byte {offset} failed: {}", describe(&error)));
            let wanted = buffer.len();
            let mut at = offset;
            let mut left = buffer;
            while !left.is_empty() {
                let index = at / WINDOW;
                let window = self.windows.window(self, index).map_err(thrown)?;
                if (index + 1) * WINDOW < self.len() {
                    let _ahead = self.windows.window(self, index + 1).map_err(thrown)?;
                }
                let bytes = JsFuture::from(window).await.map_err(|error| {
                    // A retry must read again.
                    self.windows.0.borrow_mut().clear();
                    thrown(error)
                })?;
                let bytes: ArrayBuffer = bytes.unchecked_into();
                let skipped = (at % WINDOW) as u32;
                let bytes = Uint8Array::new(&bytes);
                let count = (bytes.length().saturating_sub(skipped) as usize).min(left.len());
                if count == 0 {
                    return Err(fail(format!(
                        "the file has only {} of {wanted} bytes at byte {offset}",
                        wanted - left.len()
                    )));
                }
                let (part, rest) = left.split_at_mut(count);
                bytes.subarray(skipped, skipped + count as u32).copy_to(part);
                at += count as u64;
                left = rest;
            }
            Ok(())
        })
    }
}

/// The message of a thrown value.
pub fn describe(error: &JsValue) -> String {
    match error.dyn_ref::<js_sys::Error>() {
        Some(error) => error.message().into(),
        None => format!("{error:?}"),
    }
}

/// A folder of the files in a `Map` from paths to blobs.
pub fn folder(files: &js_sys::Map) -> MemoryFolder {
    let windows = Rc::new(WindowCache::default());
    let mut sources: Vec<(String, Rc<dyn ByteSource>)> = Vec::new();
    files.for_each(&mut |blob, path| {
        if let (Some(name), Ok(blob)) = (path.as_string(), blob.dyn_into::<Blob>()) {
            let source = BlobSource { name: name.clone(), number: sources.len(), blob, windows: windows.clone() };
            sources.push((name, Rc::new(source)));
        }
    });
    MemoryFolder::from_sources(sources)
}

/// The paths in a `Map` from paths to blobs.
pub fn paths(files: &js_sys::Map) -> Vec<String> {
    files.keys().into_iter().filter_map(|name| name.ok()?.as_string()).collect()
}

/// The folder of the shallowest file with one of these names: users often drop a folder inside a folder. At equal
/// depth, earlier entries of `file_names` win.
pub fn shallowest<'a>(paths: &'a [String], file_names: &[&str]) -> &'a str {
    let order = |path: &str| file_names.iter().position(|name| path.rsplit('/').next() == Some(name));
    let found = paths.iter().filter_map(|path| Some((path.matches('/').count(), order(path)?, path)));
    found.min().and_then(|(_, _, path)| path.rsplit_once('/')).map_or("", |(folder, _)| folder)
}
