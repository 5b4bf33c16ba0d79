//! `mgm bench --roofline`: every kernel relative to the adapter's peak bandwidth and arithmetic throughput.

use std::io::Write;

use mgm::roofline::{self, Limits, Row};
use serde::Serialize;

use super::BenchArgs;
use crate::output::print_json;
use crate::{CliError, device_cache};

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    limits: Limits,
    rows: Vec<Measured>,
}

#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    row: Row,
    /// The shortest time that the adapter's limits allow.
    floor_ms: f64,
    /// `floor_ms` / measured time.
    fraction_of_floor: f64,
}

pub async fn run(arguments: &BenchArgs) -> Result<(), CliError> {
    let gpu = device_cache::open(&arguments.device.options()).await?;
    let mut out = std::io::stdout().lock();
    let limits = roofline::limits(&gpu).await?;
    if !arguments.json {
        writeln!(
            out,
            "{}: reads {:.2} GB/s, multiply-adds {:.2} GFLOP/s",
            limits.adapter, limits.read_gigabytes_per_s, limits.fma_gflop_per_s
        )?;
        writeln!(out, "{:<44} {:>10} {:>10} {:>9} {:>9}", "kernel", "ms", "GFLOP/s", "GB/s", "of floor")?;
    }
    let (mut rows, mut output) = (Vec::new(), Ok(()));
    roofline::measure(gpu, arguments.only.clone(), arguments.tune, |row| {
        let (floor_ms, fraction_of_floor) = (limits.floor(row), limits.part(row));
        if !arguments.json && output.is_ok() {
            let (flops, bytes) = (row.gflop_per_s(), row.gigabytes_per_s());
            let (name, time, percent) = (&row.kernel, row.milliseconds, 100.0 * fraction_of_floor);
            output = writeln!(out, "{name:<44} {time:>10.3} {flops:>10.2} {bytes:>9.2} {percent:>8.0}%");
        }
        rows.push(Measured { row: row.clone(), floor_ms, fraction_of_floor });
    })
    .await?;
    output?;
    if arguments.json {
        print_json(&Report { limits, rows })?;
    }
    Ok(())
}
