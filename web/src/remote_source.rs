//! Files on a server as byte sources of the core. `ts/remote-file.ts` requests their bytes.

use std::rc::Rc;

use js_sys::Uint8Array;
use mgm::io::{ByteSource, LocalFuture, MemoryFolder};
use mgm::{Error, Result};
use wasm_bindgen::prelude::*;

use crate::blob_source::describe;

#[wasm_bindgen]
extern "C" {
    /// `RemoteFile` of the package.
    #[derive(Clone)]
    type RemoteFile;

    #[wasm_bindgen(method, getter)]
    fn size(this: &RemoteFile) -> f64;

    #[wasm_bindgen(method, catch)]
    async fn read(this: &RemoteFile, offset: f64, length: f64) -> Result<JsValue, JsValue>;
}

struct RemoteSource {
    name: String,
    file: RemoteFile,
}

impl ByteSource for RemoteSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.file.size() as u64
    }

    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            let fail = |reason: String| Error::Io { file: self.name.clone(), kind: std::io::ErrorKind::Other, reason };
            let bytes = self.file.read(offset as f64, buffer.len() as f64).await;
            let bytes: Uint8Array = bytes.map_err(|error| fail(describe(&error)))?.unchecked_into();
            if bytes.length() as usize != buffer.len() {
                return Err(fail(format!("{} of {} bytes at byte {offset}", bytes.length(), buffer.len())));
            }
            bytes.copy_to(buffer);
            Ok(())
        })
    }
}

/// A folder of the files in a `Map` from paths to `RemoteFile`s.
pub fn folder(files: &js_sys::Map) -> MemoryFolder {
    let mut sources: Vec<(String, Rc<dyn ByteSource>)> = Vec::new();
    files.for_each(&mut |file, path| {
        if let Some(name) = path.as_string() {
            sources.push((name.clone(), Rc::new(RemoteSource { name, file: file.unchecked_into() })));
        }
    });
    MemoryFolder::from_sources(sources)
}
