//! Times of the kernels at shapes of the released models, beside what the adapter can do at best:
//! `cargo bench --bench kernels [-- FILTER]`, the same as `mgm bench --roofline`. `MGM_ADAPTER` chooses the adapter.

use mgm::gpu::{Gpu, GpuOptions};

fn main() -> mgm::Result<()> {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let adapter = std::env::var("MGM_ADAPTER").ok().and_then(|choice| choice.parse().ok()).unwrap_or_default();
    let gpu = pollster::block_on(Gpu::open(&GpuOptions { adapter, ..Default::default() }))?;
    pollster::block_on(mgm::roofline::measure(gpu, filter, |line| println!("{line}"))).map(|_| ())
}
