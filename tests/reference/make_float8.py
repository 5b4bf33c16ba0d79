"""8-bit floats as torch reads them.

    make_float8.py ../data

writes
* `float8.json`: the 256 values of every type, as numbers; null for NaN and the infinities;
* `weights/scaled_float8.safetensors`: tensors with scales for blocks of rows and columns, in the forms of DeepSeek
  (`weight_scale_inv`, 128 x 128), compressed-tensors (`weight_scale`, per row), ComfyUI (`scale_weight`) and MX
  (exponents for 32 columns); `NAME.expected` is the product.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

TYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu}


def scaled():
    generator = torch.Generator().manual_seed(20)
    tensors = {}

    def add(name, weight, scale, shape, block, dtype=torch.float8_e4m3fn, exponents=None):
        """Scales for `block` of a tensor of `shape`; both may have any number of dimensions."""
        values = (torch.randn(shape, generator=generator) * 40).to(dtype)
        counts = [-(-size // side) for size, side in zip(shape, block)]
        if exponents is None:
            scales = torch.rand(counts, generator=generator) / 100
            numbers = scales
        else:
            scales = torch.randint(118, 130, counts, generator=generator, dtype=torch.uint8)
            numbers = scales.view(torch.float8_e8m0fnu).float()
            scales = scales.view(exponents)
        for dimension, (size, side) in enumerate(zip(shape, block)):
            numbers = numbers.repeat_interleave(side, dimension).narrow(dimension, 0, size)
        tensors[f"{name}{weight}"] = values
        tensors[f"{name}{scale}"] = scales
        tensors[f"{name}.expected"] = values.float() * numbers

    # 150 = 128 + 22 columns, 40 = 32 + 8 rows.
    add("deepseek", ".weight", ".weight_scale_inv", (40, 150), (32, 128))
    add("rows", ".weight", ".weight_scale", (6, 10), (1, 10))
    add("columns", ".weight", ".weight_scale", (6, 10), (6, 1))
    add("comfy", ".weight", ".scale_weight", (8, 4, 3, 3), (1, 4, 3, 3), torch.float8_e5m2)
    add("mx", ".weight", ".weight_scale", (3, 96), (1, 32), exponents=torch.float8_e8m0fnu)
    add("mx_bytes", ".weight", ".weight_scale", (3, 70), (1, 32), exponents=torch.uint8)
    add("experts.gate_up_proj", "", "_scale_inv", (60, 20), (12, 4))
    return tensors


def main(folder):
    table = {}
    for name, dtype in TYPES.items():
        values = torch.arange(256, dtype=torch.uint8).view(dtype).float().tolist()
        table[name] = [value if math.isfinite(value) else None for value in values]
    (folder / "float8.json").write_text(json.dumps(table) + "\n")
    save_file(scaled(), folder / "weights/scaled_float8.safetensors")


main(Path(sys.argv[1]))
