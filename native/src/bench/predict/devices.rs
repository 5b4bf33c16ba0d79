//! The GPUs of the model: published figures, and the table of `make isa` with what a compiler makes of the kernels.

/// How a driver reports occupancy, and what else depends on the vendor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Family {
    Gcn,
    Rdna,
    Nvidia,
    /// Lanes of a vector engine: 8 until Xe-HPG, 16 in Xe2.
    Intel(f64),
    Adreno,
    Apple,
}

/// A GPU. A core is a compute unit (AMD), a multiprocessor (NVIDIA), an Xe core or subslice (Intel), a shader processor
/// (Adreno) or a core (Apple).
#[derive(Debug, Clone, Copy)]
pub struct Device {
    pub name: &'static str,
    pub title: &'static str,
    pub family: Family,
    /// Published memory bandwidth.
    pub gigabytes_per_s: f64,
    pub cores: f64,
    /// Multiply-adds in f32 that a core issues in a cycle; each takes the place of one instruction of an invocation.
    pub lanes: f64,
    /// Boost clock.
    pub ghz: f64,
    /// Dense products of f16 matrices with f32 sums, two operations a multiply-add; 0 without matrix units that mgm can
    /// use.
    pub matrix_tflops: f64,
    /// Microseconds from the end of a dispatch to the start of the next one that depends on it.
    pub gap: f64,
    /// The table of mgm's kernels, and that of llama.cpp's; some devices share them (benches/isa/devices.py).
    pub tables: [&'static str; 2],
}

impl Device {
    /// Invocations that fit on a core, from a driver's figure (benches/isa/devices.py, `statistics`).
    pub fn resident_invocations(&self, occupancy: f64, subgroup: f64) -> f64 {
        match self.family {
            // Waves of 64 on each of four SIMDs.
            Family::Gcn => occupancy * 4.0 * subgroup,
            // RADV counts waves of 64 on both SIMDs.
            Family::Rdna => occupancy * 64.0,
            Family::Nvidia => occupancy * 32.0,
            // Eight threads an engine, whatever a kernel needs.
            Family::Intel(engine) => self.lanes / engine * 8.0 * subgroup,
            Family::Adreno => occupancy * subgroup,
            Family::Apple => occupancy,
        }
    }

    /// Cycles between two instructions of a subgroup that depend on each other.
    pub fn issue_latency(&self) -> f64 {
        match self.family {
            // NVIDIA since Volta, and GCN's four passes: known. Assumed for the others.
            Family::Gcn | Family::Nvidia | Family::Intel(_) => 4.0,
            // AMD's documents for RDNA.
            Family::Rdna => 5.0,
            // Not published. The driver's occupancy is assumed to be enough.
            Family::Adreno | Family::Apple => 1.0,
        }
    }

    /// Whether scalar, memory and branch instructions issue at the same time as those of the vector ALU.
    pub fn issues_together(&self) -> bool {
        // Turing's schedulers issue an instruction a cycle, of which every second one can be f32.
        matches!(self.family, Family::Gcn | Family::Rdna) || self.name == "rtx-2080-ti"
    }

    /// The properties by which kernels are chosen.
    pub fn kernels(&self) -> Kernels {
        let subgroup_max_size = if matches!(self.family, Family::Gcn | Family::Rdna) { 64 } else { 32 };
        let subgroup_min_size = if let Family::Intel(lanes) = self.family { lanes as u32 } else { 32 };
        let native_dots = match self.family {
            Family::Nvidia | Family::Rdna => true,
            Family::Intel(_) => self.name != "skylake",
            Family::Adreno => self.name == "adreno-830",
            Family::Gcn | Family::Apple => false,
        };
        // As `Capabilities::packed_f16` is found: AMD's since Vega.
        let packed_f16 = matches!(self.family, Family::Rdna) || self.name == "vega-64";
        let matrices = self.matrix_tflops > 0.0;
        // 16 GB at least.
        let decodes_whole =
            ["h200", "rtx-5090", "rtx-4090", "rx-9070", "rx-7900-xtx", "rx-6800", "arc-a770"].contains(&self.name);
        Kernels { subgroup_min_size, subgroup_max_size, matrices, native_dots, packed_f16, decodes_whole }
    }
}

/// The properties of a device by which kernels are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    pub subgroup_min_size: u32,
    pub subgroup_max_size: u32,
    pub matrices: bool,
    pub native_dots: bool,
    pub packed_f16: bool,
    /// Whether its own memory holds the autoencoder's maps of 1024 x 1024 pixels next to the UNet.
    pub decodes_whole: bool,
}

macro_rules! tables {
    ($name:literal) => {
        [include_str!(concat!("isa/", $name, ".tsv")), include_str!(concat!("isa/llama.", $name, ".tsv"))]
    };
}

// The gap was measured on the H200 (docs/performance.md). Other discrete GPUs are taken for the same, integrated ones
// for twice as slow, Adreno for five times as slow: no measurements are published.
const DISCRETE: f64 = 4.0;
const INTEGRATED: f64 = 8.0;
const PHONE: f64 = 20.0;

const fn device(
    name: &'static str,
    title: &'static str,
    family: Family,
    rates: [f64; 6],
    tables: [&'static str; 2],
) -> Device {
    let [gigabytes_per_s, cores, lanes, ghz, matrix_tflops, gap] = rates;
    Device { name, title, family, gigabytes_per_s, cores, lanes, ghz, matrix_tflops, gap, tables }
}

/// From the vendors' data sheets: NVIDIA's architecture white papers, AMD's product pages, Intel ARK, Apple's press
/// releases. Adreno: clock and memory from Qualcomm, lanes from the rates that reviewers report.
///
/// GB/s, cores, lanes, GHz, TFLOP/s of matrix units, gap.
#[rustfmt::skip]
pub const DEVICES: [Device; 20] = [
    // 62 % of 989 TFLOP/s: what matrix instructions of one subgroup reach on Hopper, by others' measurements.
    // Mesa has no Hopper, so the counts are Ada's.
    device("h200", "NVIDIA H200 (counts: Ada)", Family::Nvidia, [4800.0, 132.0, 128.0, 1.98, 613.0, DISCRETE], tables!("ga102")),
    device("rtx-5090", "NVIDIA RTX 5090 (Blackwell)", Family::Nvidia, [1792.0, 170.0, 128.0, 2.407, 209.5, DISCRETE], tables!("gb202")),
    device("rtx-4090", "NVIDIA RTX 4090 (Ada)", Family::Nvidia, [1008.0, 128.0, 128.0, 2.52, 165.2, DISCRETE], tables!("ga102")),
    device("rtx-3080", "NVIDIA RTX 3080 (Ampere)", Family::Nvidia, [760.0, 68.0, 128.0, 1.71, 59.5, DISCRETE], tables!("ga102")),
    device("rtx-2080-ti", "NVIDIA RTX 2080 Ti (Turing)", Family::Nvidia, [616.0, 68.0, 64.0, 1.545, 53.8, DISCRETE], tables!("tu102")),
    device("rx-9070", "AMD RX 9070 (RDNA 4)", Family::Rdna, [640.0, 56.0, 64.0, 2.52, 144.5, DISCRETE], tables!("navi48")),
    device("rx-7900-xtx", "AMD RX 7900 XTX (RDNA 3)", Family::Rdna, [960.0, 96.0, 64.0, 2.5, 122.8, DISCRETE], tables!("navi31")),
    device("rx-6800", "AMD RX 6800 (RDNA 2)", Family::Rdna, [512.0, 60.0, 64.0, 2.105, 0.0, DISCRETE], tables!("navi21")),
    device("vega-64", "AMD Vega 64 (GCN 5)", Family::Gcn, [484.0, 64.0, 64.0, 1.546, 0.0, DISCRETE], tables!("vega10")),
    device("rx-480", "AMD RX 480 (GCN 4)", Family::Gcn, [256.0, 36.0, 64.0, 1.266, 0.0, DISCRETE], tables!("polaris10")),
    // Intel's matrix units have no square matrices, which wgpu needs.
    device("arc-b580", "Intel Arc B580 (Xe2)", Family::Intel(16.0), [456.0, 20.0, 128.0, 2.67, 0.0, DISCRETE], tables!("lnl")),
    device("arc-a770", "Intel Arc A770 (Xe-HPG)", Family::Intel(8.0), [560.0, 32.0, 128.0, 2.1, 0.0, DISCRETE], tables!("dg2")),
    device("lunar-lake", "Intel Arc 140V, Lunar Lake (Xe2)", Family::Intel(16.0), [136.5, 8.0, 128.0, 2.05, 0.0, INTEGRATED], tables!("lnl")),
    device("tiger-lake", "Intel Iris Xe, Tiger Lake (Xe-LP)", Family::Intel(8.0), [68.3, 6.0, 128.0, 1.35, 0.0, INTEGRATED], tables!("tgl")),
    device("skylake", "Intel HD 530, Skylake (Gen 9)", Family::Intel(8.0), [34.1, 3.0, 64.0, 1.15, 0.0, INTEGRATED], tables!("skl")),
    // Mesa's driver has no cooperative matrices; Metal's have 8 rows.
    device("m2", "Apple M2 (Honeykrisp)", Family::Apple, [100.0, 10.0, 128.0, 1.398, 0.0, INTEGRATED], tables!("g13g")),
    device("m1", "Apple M1 (Honeykrisp)", Family::Apple, [68.3, 8.0, 128.0, 1.278, 0.0, INTEGRATED], tables!("g13g")),
    device("adreno-830", "Qualcomm Adreno 830", Family::Adreno, [76.8, 6.0, 256.0, 1.1, 0.0, PHONE], tables!("a830")),
    device("adreno-740", "Qualcomm Adreno 740", Family::Adreno, [67.2, 6.0, 256.0, 0.68, 0.0, PHONE], tables!("a740")),
    device("adreno-660", "Qualcomm Adreno 660", Family::Adreno, [51.2, 4.0, 256.0, 0.84, 0.0, PHONE], tables!("a660")),
];

/// The device of this name.
pub fn find(name: &str) -> mgm::Result<&'static Device> {
    let lower = name.to_lowercase();
    let device = DEVICES.iter().find(|device| device.name == lower);
    device.ok_or_else(|| {
        let names: Vec<_> = DEVICES.iter().map(|device| device.name).collect();
        mgm::Error::Unsupported {
            what: "device".to_owned(),
            found: name.to_owned(),
            supported: format!("{}, all", names.join(", ")),
        }
    })
}
