"""llama.cpp's Vulkan shaders, compiled for the same devices as a comparison: `make isa LLAMA=1`.

The sources come with the crate llama-cpp-sys-2, which cargo downloads; nothing of them is stored here. Debian's glslc compiles them
with the definitions of llama.cpp's vulkan-shaders-gen and the specialisation constants of its ggml-vulkan.cpp.
"""

import os
import re
import subprocess
import tarfile
from pathlib import Path

import chroot

CRATE = "llama-cpp-sys-2"
VERSION = "0.1.161"
FOLDER = "llama.cpp/ggml/src/ggml-vulkan/vulkan-shaders/"

# Invocations of a subgroup, in products and in matrix-vector products, as ggml-vulkan.cpp requires them.
SUBGROUPS = {"amd": (64, 64), "intel": (32, 16), "nvidia": (32, 32), "adreno": (64, 64), "apple": (32, 32)}

F16 = "FLOAT16=1 FLOAT_TYPE=float16_t FLOAT_TYPEV2=f16vec2 FLOAT_TYPEV4=f16vec4 FLOAT_TYPEV8=f16mat2x4"
F32 = "FLOAT_TYPE=float FLOAT_TYPEV2=vec2 FLOAT_TYPEV4=vec4 FLOAT_TYPEV8=mat2x4"
SUMS = "ACC_TYPE=float ACC_TYPEV2=vec2 ACC_TYPE_VEC4=vec4 ACC_TYPEV4=vec4"
RIGHT_8 = "B_TYPE=mat2x4 B_TYPE_SCALAR=float B_TYPEV4=vec4 D_TYPE=float LOAD_VEC_B=8"
RIGHT_4 = "B_TYPE=vec4 B_TYPE_SCALAR=float B_TYPEV4=vec4 D_TYPE=float LOAD_VEC_B=4"
VECTOR = "FLOAT_TYPE=float FLOAT_TYPEV2=vec2 FLOAT_TYPEV4=vec4 B_TYPE=float B_TYPEV2=vec2 B_TYPEV4=vec4 D_TYPE=float USE_SUBGROUP_ADD_NO_SHMEM=1"
FLASH = "Q_TYPE=float D_TYPE=float D_TYPEV4=vec4 DATA_A_IQ4_NL=1 ACC_TYPE=float ACC_TYPEV2=vec2 ACC_TYPEV4=vec4"
MATRICES = "COOPMAT=1 FLOAT_TYPE_MAX=float16_t(65504.0)"
CONVOLUTION = "B_TYPE=float D_TYPE=float USE_COLLECTIVES=1 UNROLL=[[unroll]]"

# Name: source, definitions, whether glslc optimises.
BASES = {
    "mm_f32_fp32": ("mul_mm", f"{F32} {SUMS} {RIGHT_4} DATA_A_F32=1 LOAD_VEC_A=4", True),
    "mm_f16_fp32": ("mul_mm", f"{F32} {SUMS} {RIGHT_4} DATA_A_F16=1 LOAD_VEC_A=4", True),
    "mm_f16_fp16": ("mul_mm", f"{F16} {SUMS} {RIGHT_8} DATA_A_F16=1 LOAD_VEC_A=8", True),
    "mm_quant_fp32": ("mul_mm", f"{F32} {SUMS} {RIGHT_4} MULMAT_QUANT=1", True),
    "mm_quant_fp16": ("mul_mm", f"{F16} {SUMS} {RIGHT_8} MULMAT_QUANT=1", True),
    "mm_f16_matrices": ("mul_mm", f"{F16} {SUMS} {RIGHT_8} COOPMAT=1 DATA_A_F16=1 LOAD_VEC_A=8", False),
    "mm_quant_matrices": ("mul_mm", f"{F16} {SUMS} {RIGHT_8} COOPMAT=1 MULMAT_QUANT=1", False),
    "mmq_q4_0": ("mul_mmq", f"{F16} {SUMS} DATA_A_Q4_0=1 D_TYPE=float", True),
    "mmq_q8_0": ("mul_mmq", f"{F16} {SUMS} DATA_A_Q8_0=1 D_TYPE=float", True),
    **{f"mv_{kind}": ("mul_mat_vec", f"{VECTOR} DATA_A_{kind.upper()}=1", True) for kind in ("f32", "f16", "q4_0", "q4_1", "q5_0", "q8_0")},
    **{f"mv_{kind}": (f"mul_mat_vec_{kind}", f"{VECTOR} DATA_A_{kind.upper()}=1", True) for kind in ("q4_k", "q6_k")},
    "fa_fp32": ("flash_attn", f"{FLASH} FLOAT_TYPE=float FLOAT_TYPEV2=vec2 FLOAT_TYPEV4=vec4", True),
    "fa_fp16": ("flash_attn", f"{FLASH} FLOAT16=1 FLOAT_TYPE=float16_t FLOAT_TYPEV2=f16vec2 FLOAT_TYPEV4=f16vec4 FLOAT_TYPE_MAX=float16_t(65504.0)", True),
    "fa_matrices": ("flash_attn_cm1", f"{FLASH} {F16} {MATRICES}", False),
    "conv_f32": ("conv2d_mm", f"{CONVOLUTION} A_TYPE=float", True),
    "conv_f16": ("conv2d_mm", f"{CONVOLUTION} A_TYPE=float16_t", True),
    "depthwise": ("conv2d_dw", "FLOAT_TYPE=float FLOAT_TYPEV2=vec2 A_TYPE=float B_TYPE=float D_TYPE=float CWHN=1", True),
}  # fmt: skip


def pipelines(subgroup, vector, staging=False):
    """Name -> base, subgroup size, specialisation constants."""
    large, medium = (128, 128, 128), (128, 64, 64)
    found = {}
    for kind in ("f32_fp32", "f16_fp32", "f16_fp16"):
        found[f"mm_{kind}_l"] = (f"mm_{kind}", subgroup, (*large, 16, 2 * subgroup, 64, 2, 4, 4, 1, subgroup, 1))
        found[f"mm_{kind}_m"] = (f"mm_{kind}", subgroup, (*medium, 16, subgroup, 32, 2, 4, 2, 1, subgroup, 1))
    for precision in ("fp32", "fp16"):
        # ggml's numbers of the formats.
        for kind, number in (("q4_0", 2), ("q8_0", 8), ("q4_k", 12)):
            base = f"mm_quant_{precision}"
            found[f"mm_{kind}_{precision}_l"] = (base, subgroup, (*large, 32, 2 * subgroup, 64, 2, 4, 4, 1, subgroup, 1, number))
            found[f"mm_{kind}_{precision}_m"] = (base, subgroup, (*medium, 32, subgroup, 32, 2, 4, 2, 1, subgroup, 1, number))
    for kind in ("q4_0", "q8_0"):
        found[f"mmq_{kind}_l"] = (f"mmq_{kind}", subgroup, (*large, 32, 2 * subgroup, 64, 2, 4, 4, 1, subgroup))
        found[f"mmq_{kind}_m"] = (f"mmq_{kind}", subgroup, (*medium, 32, subgroup, 32, 2, 2, 2, 1, subgroup))
    tile = (256, 128, 128)
    found["mm_f16_matrices_l"] = ("mm_f16_matrices", subgroup, (*tile, 16, subgroup, 64, 2, 16, 16, 16, subgroup, 1))
    found["mm_q4_0_matrices_l"] = ("mm_quant_matrices", subgroup, (*tile, 32, subgroup, 64, 2, 16, 16, 16, subgroup, 1, 2))
    for head in (64, 128):
        for precision in ("fp32", "fp16"):
            base, tail = f"fa_{precision}", (0, 0, 0, 1, 1, 2, 2)
            found[f"fa_{precision}_d{head}_decode"] = (base, subgroup, (128, 1, 64, head, head, 0, 8, 1, subgroup, *tail))
            workgroup = 128 if (subgroup, head) == (64, 64) else 4 * subgroup
            rows, split = (8, 1) if head == 64 else (16, 4)
            found[f"fa_{precision}_d{head}_prefill"] = (base, subgroup, (workgroup, rows, 32, head, head, 0, 8, split, subgroup, *tail))
        # 16 rows by 64 keys, a subgroup for each 16 keys. NVIDIA stages keys and values in workgroup memory.
        staged = int(staging)
        found[f"fa_matrices_d{head}_prefill"] = ("fa_matrices", subgroup, (4 * subgroup, 16, 64, head, head, 0, 16, 4, subgroup, staged, 0, 0, 1, 1, 2, 2))
    for kind in ("f32", "f16"):
        found[f"conv_{kind}"] = (f"conv_{kind}", subgroup, (256, 128, 16, 128, 8, 0, 4, 1, 1, 1, 1, 1, 1, 3, 3, 1, 0))
    for kind, rows in (("f32", 1), ("f16", 2), ("q4_0", 2), ("q4_1", 2), ("q5_0", 2), ("q8_0", 1), ("q4_k", 2), ("q6_k", 2)):
        found[f"mv_{kind}"] = (f"mv_{kind}", vector, (vector, rows, 1))
    found["depthwise"] = ("depthwise", None, ())
    return found


def sources(folder):
    """Downloads the crate and unpacks its shaders."""
    if folder.exists():
        return
    project = folder.with_name("crate")
    (project / "src").mkdir(parents=True, exist_ok=True)
    (project / "src/lib.rs").write_text("")
    (project / "Cargo.toml").write_text(
        f'[package]\nname = "fetch"\nversion = "0.0.0"\n[dependencies]\n{CRATE} = "={VERSION}"\n[workspace]\n'
    )
    print(f"downloading the crate {CRATE} {VERSION}")
    subprocess.run(["cargo", "fetch", "--quiet", "--manifest-path", str(project / "Cargo.toml")], check=True)
    home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    archive = next((home / "registry/cache").glob(f"*/{CRATE}-{VERSION}.crate"))
    part = folder.with_name("part")
    part.mkdir(exist_ok=True)
    with tarfile.open(archive) as files:
        for member in files:
            inside = member.name.partition("/")[2]
            name = inside[len(FOLDER) :]
            if inside.startswith(FOLDER) and member.isfile() and re.fullmatch(r"[\w./-]+", name):
                target = part / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(files.extractfile(member).read())
    part.rename(folder)


def modules(root, out, vendors, pattern):
    """Compiles the shaders for vendors; returns vendor -> modules."""
    work = root / "isa" / "llama"
    work.mkdir(exist_ok=True)
    sources(work / "shaders")
    built = work / VERSION
    if not built.exists():
        part = work / "base"
        part.mkdir(exist_ok=True)
        for name, (source, definitions, optimise) in BASES.items():
            command = ["glslc", "-fshader-stage=compute", "--target-env=vulkan1.2", f"/isa/llama/shaders/{source}.comp"]
            command += ["-o", f"/isa/llama/base/{name}.spv", *(["-O"] if optimise else []), *(f"-D{word}" for word in definitions.split())]
            done = subprocess.run(chroot.enter(root, command), stderr=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"glslc refuses {name}: {done.stderr.splitlines()[0]}")
        part.rename(built)
    found = {}
    for vendor in vendors:
        folder = out / vendor
        folder.mkdir(parents=True)
        for name, (base, subgroup, constants) in pipelines(*SUBGROUPS[vendor], vendor == "nvidia").items():
            # The large tile takes these compilers minutes, or more registers than there are.
            too_large = name.endswith("_l") and vendor not in ("amd", "nvidia")
            module = built / f"{base}.spv"
            if too_large or not module.exists() or not re.search(pattern, name):
                continue
            (folder / f"{name}.spv").write_bytes(module.read_bytes())
            (folder / f"{name}.spec").write_text("".join(f"{index} u {value}\n" for index, value in enumerate(constants)))
            # On Intel it requires a size for matrix-vector products only; elsewhere the compiler chooses 8 to 32.
            if subgroup and (vendor != "intel" or name.startswith("mv_")):
                (folder / f"{name}.subgroup").write_text(str(subgroup))
        found[vendor] = sorted(folder.glob("*.spv"))
    return found
