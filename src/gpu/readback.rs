//! Reading buffers back.

use std::sync::{Arc, OnceLock};

use bytemuck::Pod;

use super::device::Gpu;
use crate::{Error, Result};

/// Bytes on their way from the device.
#[derive(Debug)]
pub struct Readback {
    pub(super) gpu: Gpu,
    pub(super) staging: wgpu::Buffer,
    pub(super) bytes: u64,
    pub(super) submitted: Submitted,
}

/// The number of a submission, once there is one.
pub(super) type Submitted = Arc<OnceLock<wgpu::SubmissionIndex>>;

impl Readback {
    /// The bytes, once the device has got there. It does not wait for later submissions.
    ///
    /// # Errors
    /// [Device errors](super).
    pub async fn bytes(self) -> Result<Vec<u8>> {
        let bytes = read_staging(&self.gpu, &self.staging, self.bytes, self.submitted.get()).await?;
        self.gpu.keep_staging(self.staging);
        Ok(bytes)
    }

    /// The same as numbers.
    ///
    /// # Errors
    /// [Device errors](super).
    pub async fn values<T: Pod>(self) -> Result<Vec<T>> {
        Ok(bytemuck::pod_collect_to_vec(&self.bytes().await?))
    }
}

#[cfg_attr(target_arch = "wasm32", allow(unused_variables))]
pub(super) async fn read_staging(
    gpu: &Gpu,
    staging: &wgpu::Buffer,
    bytes: u64,
    submitted: Option<&wgpu::SubmissionIndex>,
) -> Result<Vec<u8>> {
    gpu.check()?;
    let (sender, receiver) = futures_channel::oneshot::channel();
    staging.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| drop(sender.send(result)));
    #[cfg(not(target_arch = "wasm32"))]
    gpu.wait(submitted)?;
    // The device's own report comes first: it distinguishes a lost device from a failed copy.
    let failed = |reason: String| {
        gpu.check().err().unwrap_or_else(|| Error::Gpu(format!("a buffer could not be read back: {reason}")))
    };
    match receiver.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed("its mapping was abandoned".to_owned())),
    }
    gpu.check()?;
    let bytes = staging.slice(..bytes).get_mapped_range().map_err(|error| failed(error.to_string()))?.to_vec();
    staging.unmap();
    Ok(bytes)
}
