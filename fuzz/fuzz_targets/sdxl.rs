//! Stable Diffusion XL's settings: configurations, schedules, single files. The first byte chooses the reader.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use mgm::diffusion::scheduler::Schedule;
use mgm::io::MemorySource;
use mgm::weights::sdxl::config::{SchedulerConfig, TextEncoderConfig, UnetConfig, VaeConfig};
use mgm::weights::sdxl::{OpenOptions, SdxlCheckpoint};

fuzz_target!(|bytes: &[u8]| {
    let Some((reader, bytes)) = bytes.split_first() else { return };
    let source = || Rc::new(MemorySource::new("fuzz.safetensors", bytes));
    match reader {
        0 => {
            let _ = UnetConfig::parse("config.json", bytes);
            let _ = VaeConfig::parse("config.json", bytes);
            let _ = TextEncoderConfig::parse("config.json", bytes);
        }
        1 => {
            let Ok(config) = SchedulerConfig::parse("scheduler_config.json", bytes, None) else { return };
            for steps in [1, 7, 50] {
                let _ = Schedule::new(&config, steps);
                let _ = Schedule::for_image(&config, steps, 0.5);
            }
        }
        _ => drop(pollster::block_on(SdxlCheckpoint::open_file(source(), &OpenOptions::default()))),
    }
});
