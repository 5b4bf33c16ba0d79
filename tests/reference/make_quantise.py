"""Makes tests/data/ops/quantise.safetensors: rows of f32 and their blocks as the gguf package quantises them.

    python make_quantise.py OUT

For each case NAME: NAME.f32 [rows, columns] (columns a multiple of 32); NAME.q8_0 u8 [rows, columns / 32 * 34], blocks
of an f16 scale and 32 signed bytes; NAME.q4_1 u8 [rows, columns / 32 * 20], blocks of an f16 scale, an f16 minimum and
16 bytes (value j in the low half of byte j, value j + 16 in the high half); and what the blocks stand for,
NAME.q8_0.f32 and NAME.q4_1.f32. All bytes are little-endian.
"""

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, dequantize, quantize
from safetensors.numpy import save_file


def cases(rng):
    yield "normal", rng.standard_normal((24, 256)) * 0.1
    yield "long_tails", rng.standard_t(2, (16, 128))
    yield "scales", rng.standard_normal((33, 96)) * np.logspace(-7, 4, 33)[:, None]
    yield "offset", rng.standard_normal((8, 64)) * 0.01 + np.linspace(-3, 3, 8)[:, None]
    yield "positive", rng.uniform(0, 1, (5, 64))
    yield "negative", rng.uniform(-1, 0, (5, 64))
    yield "uneven_groups", rng.standard_normal((9, 160)) * np.repeat(np.array([1e-4, 1, 0, 100, 3e-3]), 32)

    special = np.zeros((16, 32))
    special[1] = 0.37  # constant
    special[2] = -5.5
    special[3, 17] = 1.0  # one value in a group of zeros
    special[4, 0] = -1.0
    special[5] = np.arange(32) - 15.5  # ties
    special[6] = np.arange(32) / 2
    special[7] = np.linspace(-127, 127, 32)  # scale exactly 1
    special[8] = np.resize([1.0, -1.0], 32)
    special[9] = np.resize([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.0], 32)  # halves at scale 1
    special[10] = 1e-9 * np.arange(32)  # scale below the smallest f16
    special[11] = 1e-6 * np.arange(32)  # subnormal f16 scale
    special[12] = 6e4 * np.linspace(-1, 1, 32)  # the largest that f16 scales and minima still hold
    special[13] = np.resize([7.0, 8.0, 22.0], 32)
    special[14] = -0.0
    special[15] = np.resize([0.0, 15.0, 0.5, 1.5, 2.5, 14.5], 32)  # halves at Q4_1 scale 1
    yield "special", special
    # bf16 and f16 weights land on ties far more often than random f32 does.
    yield "rounded", np.round(rng.standard_normal((16, 128)) * 64) / 64


def main(out):
    tensors = {}
    for name, rows in cases(np.random.default_rng(7)):
        rows = rows.astype(np.float32)
        tensors[f"{name}.f32"] = rows
        for kind, label in [(GGMLQuantizationType.Q8_0, "q8_0"), (GGMLQuantizationType.Q4_1, "q4_1")]:
            blocks = quantize(rows, kind)
            tensors[f"{name}.{label}"] = blocks
            tensors[f"{name}.{label}.f32"] = dequantize(blocks, kind)
    assert all(np.isfinite(t).all() for t in tensors.values() if t.dtype == np.float32)
    save_file(tensors, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
