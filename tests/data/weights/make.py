#!/usr/bin/env python3
"""Makes the torch files in this folder and prints what tests/readers/weights.rs should find in them. Needs torch and numpy."""
import collections
import pathlib
import pickle
import zipfile

import torch

here = pathlib.Path(__file__).parent
torch.manual_seed(0)

base = torch.arange(24, dtype=torch.float32) / 7
tensors = {
    "f32": base.reshape(2, 3, 4),
    "f16": (base - 1).half(),
    "bf16": (base * 100).bfloat16().reshape(6, 4),
    "f64": base.double() * 1e-3,
    "i64": torch.arange(3),
    "scalar": torch.tensor(1.25),
    "empty": torch.zeros(0, 5),
    "rows": base.reshape(6, 4)[2:4],  # shares its storage with f32, at an offset
    "parameter": torch.nn.Parameter(torch.tensor([1.0, -2.0])),
    "depthwise": base[:18].reshape(2, 1, 3, 3).to(memory_format=torch.channels_last),
    "epoch": 7,  # no tensor
}
torch.save(tensors, here / "types.bin")
# A module's state dict is an OrderedDict with attributes; trainers put it under a key.
module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
torch.save({"epoch": 3, "name": "x", "state_dict": module.state_dict()}, here / "nested.bin")
torch.save({"w": base.reshape(6, 4).t()}, here / "transposed.bin")
torch.save({"w": base}, here / "legacy.bin", _use_new_zipfile_serialization=False)

big = here / "big_endian.bin"
torch.serialization.set_default_load_endianness(None)
with zipfile.ZipFile(big, "w") as archive:  # what torch writes on a big-endian machine
    with zipfile.ZipFile(here / "types.bin") as little:
        names = little.namelist()
        for name in names:
            data = little.read(name)
            if name.endswith("/byteorder"):
                data = b"big"
            elif name.endswith("/data/0"):  # the storage of f32, and of rows
                data = base.numpy().astype(">f4").tobytes()
            archive.writestr(zipfile.ZipInfo(name), data)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("echo executed",)


torch.save({"w": base, "e": Evil()}, here / "malicious.bin")
with zipfile.ZipFile(here / "bomb.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    archive.writestr("bomb/data.pkl", pickle.dumps(collections.OrderedDict(), protocol=2))
    archive.writestr("bomb/data/0", bytes(10_000_000))

for name, value in {**tensors, **module.state_dict()}.items():
    if isinstance(value, torch.Tensor):
        print(name, list(value.shape), value.dtype, value.detach().double().sum().item(), value.flatten().tolist()[:8])
