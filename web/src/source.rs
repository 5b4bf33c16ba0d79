//! Files of a page as the core's sources: blobs, which the browser keeps on disk and reads in slices.

use std::rc::Rc;

use js_sys::{ArrayBuffer, Uint8Array};
use mgm::weights::source::{ByteSource, LocalFuture, MemoryFolder};
use mgm::{Error, Result};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::Blob;

struct BlobSource {
    name: String,
    blob: Blob,
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
            let fail = |reason: String| Error::Io { file: self.name.clone(), reason };
            let thrown = |error: JsValue| fail(format!("reading {offset}: {}", describe(&error)));
            let end = offset + buffer.len() as u64;
            let slice = self.blob.slice_with_f64_and_f64(offset as f64, end as f64).map_err(thrown)?;
            let bytes: ArrayBuffer = JsFuture::from(slice.array_buffer()).await.map_err(thrown)?.unchecked_into();
            let bytes = Uint8Array::new(&bytes);
            if bytes.length() as usize != buffer.len() {
                return Err(fail(format!("only {} of {} bytes at {offset}", bytes.length(), buffer.len())));
            }
            bytes.copy_to(buffer);
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
    let mut sources = Vec::new();
    files.for_each(&mut |blob, path| {
        if let (Some(path), Ok(blob)) = (path.as_string(), blob.dyn_into::<Blob>()) {
            sources.push((path.clone(), Rc::new(BlobSource { name: path, blob }) as Rc<dyn ByteSource>));
        }
    });
    MemoryFolder::of_sources(sources)
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
