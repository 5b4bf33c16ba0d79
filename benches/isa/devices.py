"""The GPUs that kernels are compiled for: Mesa drivers on no-op kernel interfaces (drm-shim)."""

import collections

Device = collections.namedtuple("Device", "title vendor shim driver environment")


def amd(name, title):
    return Device(title, "amd", "amdgpu", "radeon", {"AMDGPU_GPU_ID": name})


def intel(name, title):
    return Device(title, "intel", "intel", "intel", {"INTEL_STUB_GPU_PLATFORM": name})


def nvidia(chipset, title):
    return Device(title, "nvidia", "nouveau", "nouveau", {"NOUVEAU_CHIPSET": chipset})


def adreno(gpu, title):
    return Device(title, "adreno", "freedreno", "freedreno", {"FD_GPU_ID": gpu})


def apple(gpu, title):
    # The driver prints machine code, but does not report it.
    return Device(title, "apple", "asahi", "asahi", {"ASAHI_GPU": gpu, "AGX_MESA_DEBUG": "shaders"})


DEVICES = {
    "navi21": amd("navi21", "AMD RX 6800 (RDNA 2)"),
    "navi31": amd("navi31", "AMD RX 7900 XTX (RDNA 3)"),
    "navi48": amd("navi48", "AMD RX 9070 (RDNA 4)"),
    "vega10": amd("vega10", "AMD Vega 64 (GCN 5)"),
    "polaris10": amd("polaris10", "AMD RX 480 (GCN 4)"),
    "skl": intel("skl", "Intel Skylake (Gen 9)"),
    "tgl": intel("tgl", "Intel Tiger Lake (Xe-LP)"),
    "dg2": intel("dg2", "Intel Arc A770 (Xe-HPG)"),
    "lnl": intel("lnl", "Intel Lunar Lake (Xe2)"),
    "bmg": intel("bmg", "Intel Arc B580 (Xe2)"),
    "tu102": nvidia("162", "NVIDIA RTX 2080 Ti (Turing)"),
    "ga102": nvidia("172", "NVIDIA RTX 3080 (Ampere)"),
    "ad102": nvidia("192", "NVIDIA RTX 4090 (Ada)"),
    "gb202": nvidia("1b2", "NVIDIA RTX 5090 (Blackwell)"),
    "a660": adreno("660", "Qualcomm Adreno 660"),
    "a740": adreno("740", "Qualcomm Adreno 740"),
    "a830": adreno("830", "Qualcomm Adreno 830"),
    "g13g": apple("g13g", "Apple M1 (Honeykrisp)"),
    "g14g": apple("g14g", "Apple M2 (Honeykrisp)"),
}

# Devices for which the compiler makes the same code as for another one, whose table they share.
SAME_CODE = {"ad102": "ga102", "bmg": "lnl", "g14g": "g13g"}

# Each compiler's generations, for a check of every specialisation.
CHECKED = ("polaris10", "vega10", "navi21", "navi31", "navi48", "skl", "dg2", "lnl", "tu102", "ga102", "a660", "a740", "g13g")

# What to watch while a kernel is written: one of each compiler, the most common chips.
QUICK = ("navi21", "dg2", "tu102", "a740")


def statistics(vendor, found):
    """Registers, occupancy, spills, scratch bytes and static cycles from a driver's statistics; None where it reports none.

    Registers: AMD VGPRs, NVIDIA GPRs, Intel live registers (of 128 or 256), Adreno full vec4 registers, Apple 16-bit registers.
    Occupancy: waves a SIMD (AMD), warps an SM (NVIDIA), SIMD width (Intel), waves a core (Adreno), threads (Apple).
    """

    def number(*names):
        values = [float(found[name]) for name in names if name in found]
        return int(sum(values)) if values else None

    if vendor == "amd":
        keys = (["VGPRs"], ["Subgroups per SIMD"], ["Spilled VGPRs", "Spilled SGPRs"], ["Scratch size"], ["Inverse Throughput"])
    elif vendor == "intel":
        keys = (["Max live registers"], ["subgroup"], ["Spills"], ["Scratch Memory Size"], ["Cycles"])
    elif vendor == "nvidia":
        keys = (["Number of GPRs"], ["Max warps/SM"], ["Spills to memory"], ["SLM size"], ["Static cycle count"])
    elif vendor == "adreno":
        keys = (["Registers used"], ["Max Waves Per Core"], ["STP Count", "LDP Count"], [], [])
    else:
        keys = (["GPRs"], ["Threads"], ["Spills"], ["Scratch"], ["ALU"])
    return [number(*names) for names in keys]


def instructions(found):
    for name in ("Instructions", "Instruction count", "Instruction Count"):
        if name in found:
            return int(float(found[name]))
    return None
