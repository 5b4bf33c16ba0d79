//! Files of a page as the core's sources: blobs, which the browser keeps on disk and reads in slices.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use js_sys::{ArrayBuffer, Promise, Uint8Array};
use mgm::io::{ByteSource, LocalFuture, MemoryFolder};
use mgm::{Error, Result};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::Blob;

/// Bytes that are read at a time. Every read of a blob goes through another process, which takes milliseconds however few
/// bytes are asked for.
const WINDOW: u64 = 2 << 20;
/// Windows that are kept: a matrix is read at up to four places in turn (gate and up, their values and scales), and behind each the
/// next window is on its way.
const KEPT: usize = 8;

/// The windows of a folder's blobs that were read last, in JavaScript's memory: the number of the blob, and of the window in it.
#[derive(Default)]
struct Windows(RefCell<VecDeque<((usize, u64), Promise)>>);

struct BlobSource {
    name: String,
    number: usize,
    blob: Blob,
    windows: Rc<Windows>,
}

impl Windows {
    /// A window, which is asked for if it is not there yet.
    fn window(&self, source: &BlobSource, index: u64) -> Result<Promise, JsValue> {
        let key = (source.number, index);
        let mut kept = self.0.borrow_mut();
        let found = kept.iter().position(|(found, _)| *found == key).and_then(|at| kept.remove(at));
        let promise = match found {
            Some((_, promise)) => promise,
            None => {
                let start = (index * WINDOW) as f64;
                let end = ((index + 1) * WINDOW).min(source.len()) as f64;
                let promise = source.blob.slice_with_f64_and_f64(start, end)?.array_buffer();
                // One that fails before anybody waits for it is not to be reported as an error of the page.
                drop(JsFuture::from(promise.clone()));
                promise
            }
        };
        kept.push_back((key, promise.clone()));
        while kept.len() > KEPT {
            kept.pop_front();
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
            let thrown = |error: JsValue| fail(format!("reading {offset}: {}", describe(&error)));
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
                    // Another attempt is to ask again.
                    self.windows.0.borrow_mut().clear();
                    thrown(error)
                })?;
                let bytes: ArrayBuffer = bytes.unchecked_into();
                let skipped = (at % WINDOW) as u32;
                let bytes = Uint8Array::new(&bytes);
                let count = (bytes.length().saturating_sub(skipped) as usize).min(left.len());
                if count == 0 {
                    return Err(fail(format!("only {} of {wanted} bytes at {offset}", wanted - left.len())));
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

/// What was thrown, in words.
pub fn describe(error: &JsValue) -> String {
    match error.dyn_ref::<js_sys::Error>() {
        Some(error) => error.message().into(),
        None => format!("{error:?}"),
    }
}

/// A `Map` of paths to blobs as a folder.
pub fn folder(files: &js_sys::Map) -> MemoryFolder {
    let windows = Rc::new(Windows::default());
    let mut sources: Vec<(String, Rc<dyn ByteSource>)> = Vec::new();
    files.for_each(&mut |blob, path| {
        if let (Some(name), Ok(blob)) = (path.as_string(), blob.dyn_into::<Blob>()) {
            let source = BlobSource { name: name.clone(), number: sources.len(), blob, windows: windows.clone() };
            sources.push((name, Rc::new(source)));
        }
    });
    MemoryFolder::from_sources(sources)
}

/// The paths of a `Map` of paths to blobs.
pub fn names(files: &js_sys::Map) -> Vec<String> {
    files.keys().into_iter().filter_map(|name| name.ok()?.as_string()).collect()
}

/// The folder of the file called one of `marks` that lies least deep, for what a person drops is often a folder in a folder. An
/// earlier mark counts before a later one.
pub fn shallowest<'a>(names: &'a [String], marks: &[&str]) -> &'a str {
    let order = |name: &str| marks.iter().position(|mark| name.rsplit('/').next() == Some(mark));
    let marked = names.iter().filter_map(|name| Some((name.matches('/').count(), order(name)?, name)));
    marked.min().and_then(|(_, _, name)| name.rsplit_once('/')).map_or("", |(folder, _)| folder)
}
