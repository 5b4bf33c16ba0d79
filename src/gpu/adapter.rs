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

/// The adapter that `choice` means.
pub(super) async fn choose(instance: &wgpu::Instance, choice: &AdapterChoice) -> Result<(usize, wgpu::Adapter)> {
    let mut adapters = find(instance).await?;
    let names: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
    let index = match choice {
        AdapterChoice::Best => Some(0),
        AdapterChoice::Index(index) => (*index < adapters.len()).then_some(*index),
        AdapterChoice::Name(part) => {
            let part = part.to_lowercase();
            names.iter().position(|name| name.to_lowercase().contains(&part))
        }
    };
    match index {
        Some(index) => Ok((index, adapters.swap_remove(index))),
        None => {
            let wanted = match choice {
                AdapterChoice::Index(index) => format!("number {index}"),
                AdapterChoice::Name(name) => format!("named {name:?}"),
                AdapterChoice::Best => "of any kind".to_owned(),
            };
            let list: Vec<_> = names.iter().enumerate().map(|(index, name)| format!("{index}: {name}")).collect();
            Err(Error::NoAdapter(format!("no adapter {wanted} was found; available: {}", list.join(", "))))
        }
    }
}
