//! Finding an adapter.

use std::str::FromStr;

use super::capabilities::Capabilities;
use crate::{Error, Result};

/// Which adapter to use.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum AdapterChoice {
    /// The best one: discrete before integrated before virtual before software.
    #[default]
    Best,
    /// The adapter with this index in [`list_adapters`].
    Index(usize),
    /// The first adapter whose name contains this text, in any case.
    Name(String),
}

impl FromStr for AdapterChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.parse() {
            Ok(index) => Self::Index(index),
            Err(_) => Self::Name(text.to_owned()),
        })
    }
}

/// An adapter, as `mgm info` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSummary {
    /// Its index in the list, for [`AdapterChoice::Index`].
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// Vulkan, Metal, Dx12 or BrowserWebGpu.
    pub backend: String,
    /// Discrete, integrated, virtual or software.
    pub kind: &'static str,
    /// The driver and its version, where known.
    pub driver: String,
    /// What it offers.
    pub capabilities: Capabilities,
    /// A file name for what is cached for this adapter and driver: letters, digits, `-` and `_`.
    pub cache_name: String,
}

impl AdapterSummary {
    pub(super) fn new(index: usize, adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        Self {
            index,
            kind: kind(info.device_type),
            backend: format!("{:?}", info.backend),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            capabilities: Capabilities::new(adapter.features(), &adapter.limits(), adapter),
            cache_name: cache_name(&info),
            name: info.name,
        }
    }

    /// Whether it is a software adapter, which runs on the CPU.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }
}

fn cache_name(info: &wgpu::AdapterInfo) -> String {
    let text = format!(
        "{:?}_{:x}_{:x}_{}_{}_{}",
        info.backend, info.vendor, info.device, info.name, info.driver, info.driver_info
    );
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn kind(device_type: wgpu::DeviceType) -> &'static str {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

/// Best first.
fn rank(device_type: wgpu::DeviceType) -> u32 {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

pub(super) fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // Validation layers only on request (WGPU_VALIDATION): they are slow and not on users' machines.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    descriptor.memory_budget_thresholds =
        wgpu::MemoryBudgetThresholds { for_resource_creation: Some(98), for_device_loss: None };
    wgpu::Instance::new(descriptor)
}

/// All adapters, best first: at least one.
///
/// # Errors
/// [`Error::NoAdapter`] if there is none.
pub async fn list_adapters() -> Result<Vec<AdapterSummary>> {
    let adapters = find(&instance()).await?;
    Ok(adapters.iter().enumerate().map(|(index, adapter)| AdapterSummary::new(index, adapter)).collect())
}

/// All adapters, best first; an error that says what to install where there is none.
async fn find(instance: &wgpu::Instance) -> Result<Vec<wgpu::Adapter>> {
    let mut adapters = enumerate(instance).await;
    if adapters.is_empty() {
        return Err(Error::NoAdapter(
            "no GPU adapter was found. Install your GPU's Vulkan driver; for a software adapter on Debian or Ubuntu: \
             apt-get install mesa-vulkan-drivers"
                .to_owned(),
        ));
    }
    adapters.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    Ok(adapters)
}

#[cfg(not(target_arch = "wasm32"))]
async fn enumerate(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    instance.enumerate_adapters(wgpu::Backends::PRIMARY).await
}

#[cfg(target_arch = "wasm32")]
async fn enumerate(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    // A page cannot list adapters; it can request the fast one.
    let options =
        wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() };
    instance.request_adapter(&options).await.into_iter().collect()
}

/// The adapters that `choice` means, with their indices: all of them for the best one, in case the first cannot be
/// opened.
pub(super) async fn choose(instance: &wgpu::Instance, choice: &AdapterChoice) -> Result<Vec<(usize, wgpu::Adapter)>> {
    let adapters = find(instance).await?;
    let names: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
    let indices = places(choice, &names)?;
    Ok(adapters.into_iter().enumerate().filter(|(index, _)| indices.contains(index)).collect())
}

/// The indices of the adapters that `choice` means, in the list of their names.
fn places(choice: &AdapterChoice, names: &[String]) -> Result<std::ops::Range<usize>> {
    let named = |part: &str| {
        let part = part.to_lowercase();
        names.iter().position(|name| name.to_lowercase().contains(&part))
    };
    let (index, wanted) = match choice {
        AdapterChoice::Best => return Ok(0..names.len()),
        AdapterChoice::Index(index) if *index < names.len() => (Some(*index), String::new()),
        // "RTX 4090" has a number in its name.
        AdapterChoice::Index(index) => {
            (named(&index.to_string()), format!("number {index}, or with {index} in its name,"))
        }
        AdapterChoice::Name(name) => (named(name), format!("named {name:?}")),
    };
    index.map(|index| index..index + 1).ok_or_else(|| {
        let list: Vec<_> = names.iter().enumerate().map(|(index, name)| format!("{index}: {name}")).collect();
        Error::NoAdapter(format!("no adapter {wanted} was found; available: {}", list.join(", ")))
    })
}

/// The first candidate that opens, and the errors of those before it.
///
/// # Errors
/// The first candidate's error if none opens.
pub(super) async fn first_that_opens<C, T>(
    candidates: Vec<C>,
    open: impl AsyncFn(C) -> Result<T>,
) -> Result<(T, Vec<Error>)> {
    let mut errors = Vec::new();
    for candidate in candidates {
        match open(candidate).await {
            Ok(opened) => return Ok((opened, errors)),
            Err(error) => errors.push(error),
        }
    }
    Err(errors.into_iter().next().unwrap_or_else(|| Error::NoAdapter("no adapter was found".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_no_adapter_has_is_a_name() {
        let names = ["NVIDIA GeForce RTX 4090", "AMD Radeon 780M", "llvmpipe (LLVM 15)"].map(str::to_owned);
        let find = |text: &str| {
            let Ok(choice) = text.parse();
            places(&choice, &names)
        };
        assert_eq!(places(&AdapterChoice::Best, &names), Ok(0..3));
        for (text, index) in [("0", 0), ("2", 2), ("4090", 0), ("780", 1), ("780m", 1), ("15", 2), ("radeon", 1)] {
            assert_eq!(find(text), Ok(index..index + 1), "{text}");
        }
        for text in ["3", "5090", "arc"] {
            let error = find(text).expect_err(text).to_string();
            assert!(error.contains(text) && error.contains("0: NVIDIA GeForce RTX 4090"), "{error}");
        }
    }

    #[test]
    fn the_next_adapter_opens_if_the_first_does_not() {
        let open = async |n: i32| if n >= 10 { Ok(n) } else { Err(Error::NoAdapter(format!("{n} is broken"))) };
        let first = |candidates: &[i32]| pollster::block_on(first_that_opens(candidates.to_vec(), open));
        let broken = |n: i32| Error::NoAdapter(format!("{n} is broken"));
        assert_eq!(first(&[10, 11]), Ok((10, Vec::new())));
        assert_eq!(first(&[1, 2, 12, 13]), Ok((12, vec![broken(1), broken(2)])));
        assert_eq!(first(&[1, 2]), Err(broken(1)));
        assert!(first(&[]).is_err());
    }
}
