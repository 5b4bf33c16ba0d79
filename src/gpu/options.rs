//! How to open a device.

use super::adapter::AdapterChoice;
use super::capabilities::Capabilities;
use crate::error::{Error, Result};

/// How to open a device. The default is the best adapter with everything it offers.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct GpuOptions {
    /// Which adapter.
    pub adapter: AdapterChoice,
    /// The most device memory to allocate, in bytes. `None`: as much as the driver gives.
    pub memory_limit: Option<u64>,
    /// Time every dispatch, each in a pass of its own, which is slower.
    pub profile: bool,
    /// The browser's devices have subgroups, which wgpu's web backend neither requests nor reports
    /// (<https://github.com/gfx-rs/wgpu/issues/10146>).
    pub browser_subgroups: bool,
    /// The browser's devices have dot products of 8-bit integers in hardware, which wgpu's web backend does not report.
    pub browser_native_dots: bool,
    /// Never use kernels that round activations to 8 bits
    /// ([`check_native_dots`](crate::tuning::check_native_dots)).
    pub no_int8: bool,
    /// What only tests set.
    #[doc(hidden)]
    pub test: TestOptions,
}

/// Options of tests.
#[doc(hidden)]
#[derive(Debug, Clone, Default)]
pub struct TestOptions {
    /// What is not requested, whatever the adapter offers.
    pub withheld: Withheld,
    /// Act as if a storage binding held at most this many bytes, so that matrices have several shards.
    pub max_binding_bytes: Option<u64>,
    /// Place every tensor between guard zones ([`super::Gpu::check_guards`]), and recycle no buffer.
    pub guard_zones: bool,
    /// Treat the device as a software adapter (`true`) or as a GPU (`false`), whatever it is.
    pub software_adapter: Option<bool>,
    /// Open the device without checks of buffer accesses, where that is possible, or with them, whatever its driver.
    pub unchecked: Option<bool>,
    /// Treat the device as one with dot products of 8-bit integers in hardware (`true`) or without.
    pub native_dots: Option<bool>,
    /// Lose the device after this submission.
    pub lost_after: Option<u64>,
    /// Plan for a device of these capabilities, whatever the adapter offers: every recording is a dry run, and buffers
    /// take no memory, so that whole models can be planned at their real sizes.
    pub planned: Option<Capabilities>,
}

/// Features and limits that a device is opened without.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Withheld {
    /// 16-bit floats in shaders.
    pub shader_f16: bool,
    /// Subgroup operations.
    pub subgroups: bool,
    /// Cooperative matrices.
    pub cooperative_matrices: bool,
    /// Timestamps.
    pub timestamps: bool,
    /// Limits beyond WebGPU's defaults.
    pub limits: bool,
    /// The driver's checks of buffer accesses, where a device can be opened without.
    pub bounds_checks: bool,
}

impl Withheld {
    /// As the smallest device would offer: WebGPU's default limits and no features.
    pub const ALL: Self = Self {
        shader_f16: true,
        subgroups: true,
        cooperative_matrices: true,
        timestamps: true,
        limits: true,
        bounds_checks: false,
    };

    /// What either withholds.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            shader_f16: self.shader_f16 || other.shader_f16,
            subgroups: self.subgroups || other.subgroups,
            cooperative_matrices: self.cooperative_matrices || other.cooperative_matrices,
            timestamps: self.timestamps || other.timestamps,
            limits: self.limits || other.limits,
            bounds_checks: self.bounds_checks || other.bounds_checks,
        }
    }

    /// The features that remain.
    pub(super) fn features(self, offered: wgpu::Features) -> wgpu::Features {
        let pairs = [
            (self.shader_f16, wgpu::Features::SHADER_F16),
            (self.subgroups, wgpu::Features::SUBGROUP),
            (self.cooperative_matrices, wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
            (self.timestamps, wgpu::Features::TIMESTAMP_QUERY),
        ];
        pairs.into_iter().filter(|(withheld, _)| *withheld).fold(offered, |rest, (_, feature)| rest - feature)
    }
}

/// Names separated by commas: `shader-f16`, `subgroups`, `cooperative-matrices`, `timestamps`, `limits`,
/// `bounds-checks`.
impl std::str::FromStr for Withheld {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut withheld = Self::default();
        for name in text.split(',').filter(|name| !name.is_empty()) {
            *match name {
                "shader-f16" => &mut withheld.shader_f16,
                "subgroups" => &mut withheld.subgroups,
                "cooperative-matrices" => &mut withheld.cooperative_matrices,
                "timestamps" => &mut withheld.timestamps,
                "limits" => &mut withheld.limits,
                "bounds-checks" => &mut withheld.bounds_checks,
                _ => {
                    return Err(Error::InvalidArgument(format!(
                        "cannot withhold {name:?}, expected shader-f16, subgroups, cooperative-matrices, timestamps, \
                         limits or bounds-checks"
                    )));
                }
            } = true;
        }
        Ok(withheld)
    }
}

impl GpuOptions {
    /// A GPU of these capabilities that is only planned: every recording is a dry run, and buffers take no memory. Any
    /// adapter is enough, also a software adapter.
    pub fn planned(capabilities: Capabilities) -> Self {
        let test = TestOptions { planned: Some(capabilities), software_adapter: Some(false), ..TestOptions::default() };
        Self { test, ..Self::default() }
    }

    /// The same on this adapter.
    #[must_use]
    pub fn with_adapter(mut self, adapter: AdapterChoice) -> Self {
        self.adapter = adapter;
        self
    }

    /// The same with a limit on device memory, in bytes.
    #[must_use]
    pub fn with_memory_limit(mut self, limit: Option<u64>) -> Self {
        self.memory_limit = limit;
        self
    }

    /// The same with every dispatch timed, or not.
    #[must_use]
    pub fn with_profile(mut self, profile: bool) -> Self {
        self.profile = profile;
        self
    }

    /// The same in a browser whose devices have subgroups, or not.
    #[must_use]
    pub fn with_browser_subgroups(mut self, subgroups: bool) -> Self {
        self.browser_subgroups = subgroups;
        self
    }

    /// The same in a browser whose devices have dot products of 8-bit integers in hardware, or not.
    #[must_use]
    pub fn with_browser_native_dots(mut self, native_dots: bool) -> Self {
        self.browser_native_dots = native_dots;
        self
    }

    /// The same with kernels that round activations to 8 bits allowed, or not.
    #[must_use]
    pub fn with_int8(mut self, int8: bool) -> Self {
        self.no_int8 = !int8;
        self
    }

    /// The same with options of tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_test(mut self, test: TestOptions) -> Self {
        self.test = test;
        self
    }
}
