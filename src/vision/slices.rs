//! The encoding of an image in slices, between which the caller submits other work.
//!
//! A recording may use the temporary buffers of whatever was recorded before it, so recordings must be submitted in the
//! order in which they were recorded. The encoding therefore pauses only where all that it recorded is submitted.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::Vision;
use crate::gpu::{Gpu, Recorder};
use crate::image::Views;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The stages of an encoding. After each the host waits for the device, so that progress is accurate and a cancellation
/// takes effect. In slices, long stages have further pauses.
pub(super) struct Stages<'a> {
    done: usize,
    all: usize,
    on_stage: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    slice: Option<&'a Slice>,
}

/// What the encoding and its caller tell each other.
#[derive(Debug, Default)]
struct Slice {
    /// Operations after which the slice ends.
    flops: Cell<f64>,
    /// Operations of the last slice.
    computed: Cell<f64>,
    is_paused: Cell<bool>,
    done: Cell<usize>,
}

impl<'a> Stages<'a> {
    pub(super) fn new(all: usize, on_stage: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>) -> Self {
        Self { done: 0, all, on_stage, slice: None }
    }

    /// Ends a stage: submits what was recorded and waits for it.
    pub(super) async fn end(&mut self, recorder: &mut Recorder) -> Result<()> {
        let flops = recorder.unfinished_flops();
        recorder.finish().await?;
        self.done += 1;
        if (self.on_stage)(self.done, self.all).is_break() {
            return Err(Error::Cancelled);
        }
        if let Some(slice) = self.slice {
            slice.done.set(self.done);
            slice.computed.set(flops);
            if self.done < self.all {
                slice.pause(recorder).await?;
            }
        }
        Ok(())
    }

    /// Within a stage: ends a slice that is long enough.
    pub(super) async fn part(&mut self, recorder: &mut Recorder) -> Result<()> {
        let flops = recorder.unfinished_flops();
        match self.slice.filter(|slice| flops >= slice.flops.get()) {
            Some(slice) => {
                recorder.finish().await?;
                slice.computed.set(flops);
                slice.pause(recorder).await
            }
            None => Ok(()),
        }
    }
}

impl Slice {
    async fn pause(&self, recorder: &mut Recorder) -> Result<()> {
        debug_assert!(recorder.is_empty(), "an encoding pauses with commands that are not submitted");
        // A new recording, since buffers that are dropped meanwhile stay allocated as long as this one.
        let next = recorder.gpu().record();
        std::mem::replace(recorder, next).submit()?;
        self.is_paused.set(true);
        poll_fn(|_| if self.is_paused.get() { Poll::Pending } else { Poll::Ready(()) }).await;
        Ok(())
    }
}

/// An image that is encoded in slices. Dropping it between two of them stops it.
pub struct SlicedEncoding<'a> {
    encoding: Pin<Box<dyn Future<Output = Result<Tensor>> + 'a>>,
    slice: Rc<Slice>,
}

impl fmt::Debug for SlicedEncoding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlicedEncoding").field("slice", &self.slice).finish_non_exhaustive()
    }
}

impl Vision {
    /// The stages of an image's encoding.
    pub fn stages(&self) -> usize {
        let convnext = self.high.as_ref().map_or(0, |high| high.convnext.stages().len());
        convnext + self.tiles() + 1
    }

    /// Encodes an image's views as [`Self::encode_and_wait`] does, a slice at a time.
    pub fn encode_in_slices<'a>(&'a self, gpu: &Gpu, views: Arc<Views>) -> SlicedEncoding<'a> {
        let slice = Rc::new(Slice::default());
        let (gpu, shared) = (gpu.clone(), slice.clone());
        let encoding = Box::pin(async move {
            let mut recorder = gpu.record();
            let mut on_stage = |_, _| ControlFlow::Continue(());
            let mut stages = Stages { slice: Some(&shared), ..Stages::new(self.stages(), &mut on_stage) };
            let tokens = self.encode(&mut recorder, &views, None, &mut stages).await?.tokens;
            recorder.submit()?;
            Ok(tokens)
        });
        SlicedEncoding { encoding, slice }
    }
}

impl SlicedEncoding<'_> {
    /// Computes the next slice: to the end of a stage, or about `flops` operations. Returns the visual tokens
    /// [tokens, hidden] after the last one, after which it must not be called.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`] for views of other sizes. It must not be called afterwards.
    pub async fn slice(&mut self, flops: f64) -> Result<Option<Tensor>> {
        let Self { encoding, slice } = self;
        slice.flops.set(flops);
        slice.is_paused.set(false);
        poll_fn(|context| match encoding.as_mut().poll(context) {
            Poll::Ready(encoded) => Poll::Ready(encoded.map(Some)),
            Poll::Pending if slice.is_paused.get() => Poll::Ready(Ok(None)),
            // It waits for the device.
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Operations of the last slice.
    pub fn flops(&self) -> f64 {
        self.slice.computed.get()
    }

    /// Stages that are computed.
    pub fn done(&self) -> usize {
        self.slice.done.get()
    }
}
