#!/usr/bin/env python3
"""Checks the size of what git tracks, and that no random weights are stored. Needs Python 3.9, git and nothing else.

    scripts/check-size.py

* All tracked files together stay below LIMIT bytes.
* No file in tests/ is a checkpoint: random weights are generated from a manifest when a test runs (tests/reference/README.md).
  Files in a format of weights are small, have no tensors (a GGUF vocabulary), or are named here with what they hold.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 48_000_000
# Formats that hold weights. Of these a file in tests/ has at most SMALL bytes, unless its path matches a pattern of VALUES.
WEIGHTS = re.compile(r"\.(safetensors|gguf|bin|pt|pth|ckpt|npy|npz|onnx)$")
SMALL = 16_384
# What a correct program computes, and its inputs.
VALUES = {
    r"tests/goldens/[\w-]+/expected\.safetensors": "expected values of a golden case",
    r"tests/data/gguf/expected\.safetensors": "dequantised blocks, and logits by transformers",
    r"tests/data/vision/low_resolution\.safetensors": "visual tokens",
    r"tests/data/family/gguf/[\w-]+/[\w-]+\.gguf": "small models in the types that their logits were computed with",
    r"tests/data/family/gguf/[\w-]+/expected\.safetensors": "logits by llama.cpp",
    r"tests/data/ops/quantise\.safetensors": "rows, and their blocks by the gguf package",
    r"tests/data/diffusion/random\.safetensors": "torch.randn for some seeds",
    r"tests/data/diffusion/schedulers\.safetensors": "steps of diffusers' schedulers",
    r"tests/data/diffusion/lora/expected\.safetensors": "weights that peft and LyCORIS merge",
    r"tests/data/weights/scaled_float8\.safetensors": "8-bit floats with scales, and their values by torch",
    r"tests/data/image/(bilinear|corrected|decode|preprocess|resize)\.safetensors": "pixels by Pillow, torch and the CLIP processor",
}


def tracked():
    """Path -> bytes of every tracked file, as git will store it: the index, not the work tree."""
    listed = subprocess.run(["git", "ls-files", "--stage", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    entries = [entry.split("\t", 1) for entry in listed.decode().split("\0") if entry]
    objects = "\n".join(head.split()[1] for head, _ in entries)
    command = ["git", "cat-file", "--batch-check=%(objectsize)"]
    sizes = subprocess.run(command, cwd=ROOT, check=True, input=objects.encode(), stdout=subprocess.PIPE).stdout
    return dict(zip((path for _, path in entries), map(int, sizes.split())))


def tensors_in_gguf(path):
    """The number of tensors in a GGUF file's header."""
    with open(ROOT / path, "rb") as file:
        return int.from_bytes(file.read(16)[8:], "little")


def is_checkpoint(path, size):
    if not path.startswith("tests/") or not WEIGHTS.search(path):
        return False
    if any(re.fullmatch(pattern, path) for pattern in VALUES):
        return False
    return tensors_in_gguf(path) > 0 if path.endswith(".gguf") else size > SMALL


def main():
    files = tracked()
    total = sum(files.values())
    errors = [
        f"{path}: {size} bytes of weights: generate them from a manifest (tests/reference/README.md), "
        "or say in scripts/check-size.py what they are"
        for path, size in sorted(files.items())
        if is_checkpoint(path, size)
    ]
    errors += [f"{pattern}: no such file" for pattern in VALUES if not any(re.fullmatch(pattern, path) for path in files)]
    if total >= LIMIT:
        largest = sorted(files.items(), key=lambda file: -file[1])[:10]
        errors += [f"the tracked files have {total} bytes, the limit is {LIMIT}; the largest:"]
        errors += [f"  {size} {path}" for path, size in largest]
    print("\n".join(errors) or f"{len(files)} tracked files, {total} bytes of at most {LIMIT}")
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main())
