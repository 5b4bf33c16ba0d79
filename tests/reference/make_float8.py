"""The 256 values of torch's 8-bit floats, as numbers; null for NaN and the infinities.

    make_float8.py ../data/float8.json
"""

import json
import math
import sys
from pathlib import Path

import torch

TYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


def main(file):
    table = {}
    for name, dtype in TYPES.items():
        values = torch.arange(256, dtype=torch.uint8).view(dtype).float().tolist()
        table[name] = [value if math.isfinite(value) else None for value in values]
    file.write_text(json.dumps(table) + "\n")


main(Path(sys.argv[1]))
