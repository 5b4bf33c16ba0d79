//! Where bytes come from. The host implements these two traits: files natively, range requests in a browser.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::Result;

/// A boxed future that need not be `Send`: browsers have none that are.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Bytes that can be read at any offset.
pub trait ByteSource {
    /// The name to show in messages.
    fn name(&self) -> &str;
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buffer` from `offset`. Fails if the source ends before the buffer does.
    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, Result<()>>;
}

/// A folder of files.
pub trait Folder {
    /// The name to show in messages.
    fn name(&self) -> &str;
    /// Opens a file by its path relative to this folder (`/` between parts); `None` if there is no such file.
    fn open<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<Rc<dyn ByteSource>>>>;
    /// The folder at a relative path (`..` allowed), whether or not it exists.
    fn child(&self, name: &str) -> Rc<dyn Folder>;
}
