//! `mgm bench --predict`: predicts how long models take on GPUs that are not in this machine. docs/gpu-model.md
//! explains it.

mod checks;
mod counts;
mod devices;
mod llama;
mod model;
mod work;

use std::collections::BTreeMap;
use std::io::Write;

use mgm::tensor::Precision;
use mgm::variants::Variant;
use serde::Serialize;

use super::{BenchArgs, sdxl, synthetic};
use crate::CliError;
use crate::output::print_json;
use counts::Table;
use devices::{DEVICES, Device, Kernels};
use model::{Limit, Time};
use work::Part;

/// `--predict` without a device: list them.
pub const LIST: &str = "list";
/// All devices in one table.
const ALL: &str = "all";
/// Models where none is named.
const MODELS: [&str; 3] = ["mgm-2b", "mgm-7b", sdxl::NAME];

/// A part of a model on a device.
#[derive(Debug, Serialize)]
struct Row {
    device: &'static str,
    model: String,
    precision: String,
    engine: &'static str,
    part: &'static str,
    dispatches: usize,
    gflop: f64,
    gigabytes: f64,
    milliseconds: f64,
    /// Tokens, images or steps.
    per_s: f64,
    /// Percent of the time by [`Limit`].
    percent: BTreeMap<&'static str, f64>,
    bottleneck: &'static str,
    /// Percent of the time that is based on counts of the kernel itself, not of a similar one.
    counted_percent: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
    /// Measurements and their predictions, where there are any.
    checks: Vec<checks::Check>,
}

/// A device that `--predict` can name.
#[derive(Serialize)]
struct Listed {
    name: &'static str,
    title: &'static str,
}

/// The parts of a model with the kernels of some devices. llama.cpp's depend on the device.
struct Plan {
    kernels: Kernels,
    model: String,
    precision: Precision,
    variant: Option<Variant>,
    parts: Vec<Part>,
}

impl Plan {
    async fn new(kernels: Kernels, model: &str, arguments: &BenchArgs) -> Result<Self, CliError> {
        let gpu = work::open(kernels, arguments.device.options().adapter).await?;
        if model.eq_ignore_ascii_case(sdxl::NAME) {
            let precision = arguments.precision.unwrap_or(Precision::F16);
            let parts = work::sdxl(&gpu, precision, sdxl::image_size(arguments)?).await?;
            return Ok(Self { kernels, model: sdxl::NAME.to_owned(), precision, variant: None, parts });
        }
        let variant = synthetic::released(model)?;
        let precision = arguments.precision.unwrap_or(Precision::Q4);
        let tokens = synthetic::prompt_tokens(&variant, arguments)?;
        let parts = work::chat(&gpu, &variant, precision, tokens).await?;
        Ok(Self { kernels, model: variant.name.to_owned(), precision, variant: Some(variant), parts })
    }

    fn rows(&self, device: &Device, arguments: &BenchArgs) -> Result<Vec<Row>, CliError> {
        let [ours, theirs] = device.tables.map(Table::parse);
        let precision = self.precision.to_string();
        let row = |engine, part: &Part, precision: &str, table: &Table| {
            if arguments.device.profile {
                print_kernels(device, &format!("{engine} {} {}", self.model, part.name), table, part);
            }
            row(device, &self.model, engine, precision, table, part)
        };
        let mut rows: Vec<Row> = self.parts.iter().map(|part| row("mgm", part, &precision, &ours)).collect();
        let comparable = |variant: &&Variant| {
            variant.language.experts.is_none()
                && variant.language.head_dim == 128
                && matches!(self.precision, Precision::Q4 | Precision::Q4_0)
        };
        if let Some(variant) = self.variant.as_ref().filter(comparable) {
            let tokens = synthetic::prompt_tokens(variant, arguments)?;
            let parts = llama::parts(device, &theirs, &variant.language, tokens);
            rows.extend(parts.iter().map(|part| row("llama.cpp", part, "Q4_0", &theirs)));
        }
        Ok(rows)
    }
}

fn row(device: &Device, model: &str, engine: &'static str, precision: &str, table: &Table, part: &Part) -> Row {
    let mut time = Time::default();
    for work in &part.works {
        time += model::time(device, table, work);
    }
    let percent = |us: f64| 100.0 * us / time.total();
    Row {
        device: device.name,
        model: model.to_owned(),
        precision: precision.to_owned(),
        engine,
        part: part.name,
        dispatches: part.works.len(),
        gflop: part.works.iter().map(|work| work.flops).sum::<f64>() / 1e9,
        gigabytes: part.works.iter().map(|work| work.bytes).sum::<f64>() / 1e9,
        milliseconds: time.total() / 1e3,
        per_s: part.units as f64 * 1e6 / time.total(),
        percent: Limit::ALL.iter().map(|limit| (limit.name(), percent(time.by_limit[*limit as usize]))).collect(),
        bottleneck: time.bottleneck().name(),
        counted_percent: percent(time.counted),
    }
}

/// Prints the kernels that take at least a hundredth of a part's time to standard error.
fn print_kernels(device: &Device, title: &str, table: &Table, part: &Part) {
    let mut kernels: BTreeMap<&str, (usize, Time)> = BTreeMap::new();
    for work in &part.works {
        let (dispatches, time) = kernels.entry(work.kernel.as_deref().unwrap_or("element-wise")).or_default();
        *dispatches += 1;
        *time += model::time(device, table, work);
    }
    let all: f64 = kernels.values().map(|(_, time)| time.total()).sum();
    let mut sorted: Vec<_> = kernels.into_iter().filter(|(_, (_, time))| time.total() > all / 100.0).collect();
    sorted.sort_by(|(_, (_, a)), (_, (_, b))| b.total().total_cmp(&a.total()));
    note!("{title} on {}: {:.2} ms", device.name, all / 1e3);
    for (name, (dispatches, time)) in sorted {
        let (share, limit) = (100.0 * time.total() / all, time.bottleneck().name());
        note!("{share:>5.0} % {:>9.1} us each, {dispatches:>4} x {name} ({limit})", time.total() / dispatches as f64);
    }
}

pub async fn run(name: &str, arguments: &BenchArgs) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    if name == LIST {
        if arguments.json {
            return print_json(&DEVICES.each_ref().map(|device| Listed { name: device.name, title: device.title }));
        }
        for device in &DEVICES {
            writeln!(out, "{:<12} {}", device.name, device.title)?;
        }
        return Ok(());
    }
    let chosen: Vec<&Device> = match name {
        ALL => DEVICES.iter().collect(),
        _ => vec![devices::find(name)?],
    };
    let mut plans: Vec<Plan> = Vec::new();
    let models = arguments.synthetic.as_deref().map_or(MODELS.to_vec(), |model| vec![model]);
    let mut rows = Vec::new();
    for device in &chosen {
        let kernels = device.kernels();
        if plans.iter().all(|plan| plan.kernels != kernels) {
            for model in &models {
                plans.push(Plan::new(kernels, model, arguments).await?);
            }
        }
        for plan in plans.iter().filter(|plan| plan.kernels == kernels) {
            rows.extend(plan.rows(device, arguments)?);
        }
    }
    let measured = chosen.iter().any(|device| device.name == checks::MEASURED_ON);
    let checks = if measured { checks::run(arguments.device.options().adapter).await? } else { Vec::new() };
    if arguments.json {
        return print_json(&Report { rows, checks });
    }
    match name {
        ALL => print_all(&mut out, &chosen, &rows)?,
        _ => print_one(&mut out, chosen[0], &rows)?,
    }
    if !checks.is_empty() {
        writeln!(out, "\n| on an H200 | measured, µs | model, µs | model / measured | bottleneck |")?;
        writeln!(out, "| --- | ---: | ---: | ---: | --- |")?;
        for checks::Check { what, measured_us, predicted_us, limit } in &checks {
            let ratio = predicted_us / measured_us;
            writeln!(out, "| {what} | {measured_us} | {predicted_us:.1} | {ratio:.2} | {limit} |")?;
        }
    }
    Ok(())
}

fn print_one(out: &mut impl Write, device: &Device, rows: &[Row]) -> std::io::Result<()> {
    writeln!(out, "{}: a model, not a measurement (docs/gpu-model.md)", device.title)?;
    let head = ["engine", "model", "part", "dispatches", "GFLOP", "GB", "ms", "per s"];
    let limits = Limit::ALL.map(|limit| format!("{} %", limit.name()));
    writeln!(out, "\n| {} | {} | counted % |", head.join(" | "), limits.join(" | "))?;
    writeln!(out, "| --- | --- | --- {}|", "| ---: ".repeat(head.len() - 3 + limits.len() + 1))?;
    for row in rows {
        let percent = Limit::ALL.map(|limit| format!("{:.0}", row.percent[limit.name()])).join(" | ");
        writeln!(
            out,
            "| {} | {} {} | {} | {} | {:.1} | {:.2} | {:.2} | {:.1} | {percent} | {:.0} |",
            row.engine,
            row.model,
            row.precision,
            row.part,
            row.dispatches,
            row.gflop,
            row.gigabytes,
            row.milliseconds,
            row.per_s,
            row.counted_percent
        )?;
    }
    Ok(())
}

/// A line for each device, and a column for each part of each model.
fn print_all(out: &mut impl Write, devices: &[&Device], rows: &[Row]) -> std::io::Result<()> {
    // The vision towers are the same in all models of a size.
    let shown = |row: &&Row| row.part != "image" || row.model == rows[0].model;
    let of = |device: &Device| rows.iter().filter(|row| row.device == device.name).filter(shown).collect::<Vec<_>>();
    let mut heads = Vec::new();
    for row in of(devices[0]) {
        let unit = if row.part == "token" || row.part == "prefill" { "tokens/s" } else { "ms" };
        let engine = if row.engine == "mgm" { "" } else { " (llama.cpp)" };
        heads.push(format!("{} {}{engine}, {unit}", row.model, row.part));
    }
    writeln!(out, "| device | {} |", heads.join(" | "))?;
    writeln!(out, "| --- {}|", "| ---: ".repeat(heads.len()))?;
    for device in devices {
        let cell = |row: &Row| {
            let value = if row.part == "token" || row.part == "prefill" { row.per_s } else { row.milliseconds };
            let digits = if value < 10.0 { 1 } else { 0 };
            format!("{value:.digits$} {}", &row.bottleneck[..1])
        };
        let cells: Vec<_> = of(device).into_iter().map(cell).collect();
        writeln!(out, "| {} | {} |", device.name, cells.join(" | "))?;
    }
    Ok(())
}
