"""Random weights that these scripts and the Rust tests (`tests/support`) generate alike, bit for bit.

A golden case stores no weights. It stores `weights.json`: the case's seed and, for each file of the checkpoint, the
name, dtype, shape and distribution of each tensor and the SHA-256 digest of all tensors' bytes. Element i (row-major)
of a tensor is

    key   = the first 8 bytes of SHA-256("{seed}/{name}"), little-endian
    z     = output i of SplitMix64 seeded with key
    x     = (the sum of the four 16-bit parts of z) - 131070       an integer, nearly normal, standard deviation 37837
    value = mean + std * (x / 37837)                               in f64

rounded to f32 and then to the tensor's dtype, to nearest with ties to even. The other fields of a tensor:

    "rows"   [[first, end, factor], ...]: the values of rows first..end are multiplied by factor, in f64
    "stream" replaces the name in the key
    "value"  every element has this value
    "range"  element i is i
    "values" all elements
    "spread" (quantised GGUF types) blocks of random bytes: the outputs z, little-endian. Scale and minimum are those of
             values up to about `spread`, each times 0.5 + floor(z / 2^11) / 2^53 with the next output of the stream
             "{seed}/{name}/scales", rounded to f32 and then to f16

A torch archive (`x.bin`) keeps the `data.pkl` that torch wrote, stored next to it as `x.bin.pkl`; tensor n of the
manifest is its storage n. A GGUF file (`x.gguf`) keeps what the gguf package wrote up to the first tensor's data, stored
as `x.gguf.header`.
"""

import hashlib
import io
import json
import shutil
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

GOLDENS = Path(__file__).parent.parent / "goldens"
MANIFEST = "weights.json"
PICKLE = ".pkl"
HEADER = ".header"
GGUF_ALIGNMENT = 32
# Quantised GGUF types: values and bytes of a block, offset of the f16 scale, the number of levels on either side of zero, and
# the factor of the f16 minimum at byte 2, if there is one.
BLOCKS = {
    "Q4_0": (32, 18, 0, 8, None),
    "Q4_1": (32, 20, 0, 8, -1.0),
    "Q5_0": (32, 22, 0, 16, None),
    "Q5_1": (32, 24, 0, 16, -1.0),
    "Q8_0": (32, 34, 0, 127, None),
    "Q4_K": (256, 144, 0, 8 * 32, 1 / 32),
    "Q5_K": (256, 176, 0, 16 * 32, 1 / 32),
    "Q6_K": (256, 210, 208, 32 * 64, None),
}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def splitmix64(key, count):
    """The first `count` outputs of SplitMix64."""
    z = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def outputs(stream, count):
    return splitmix64(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little"), count)


def normal(stream, count):
    """Nearly normal numbers with mean 0 and standard deviation 1, in f64."""
    parts = outputs(stream, count).view(np.uint16).reshape(count, 4)
    return (parts.sum(axis=1, dtype=np.int64) - 131070).astype(np.float64) / 37837.0


def blocks(stream, dtype, shape, spread):
    """Quantised rows [..., bytes of a row], u8."""
    values, size, scale_at, levels, minimum = BLOCKS[dtype]
    count = int(np.prod(shape)) // values
    made = outputs(stream, -(-count * size // 8)).view(np.uint8)[: count * size].reshape(count, size).copy()
    parts = 1 if minimum is None else 2
    factors = 0.5 + (outputs(f"{stream}/scales", count * parts) >> np.uint64(11)).astype(np.float64) / 2.0**53
    factors = factors.reshape(count, parts)
    half = lambda numbers: numbers.astype(np.float32).astype(np.float16).view(np.uint8).reshape(count, 2)
    made[:, scale_at : scale_at + 2] = half(spread / levels * factors[:, 0])
    if minimum is not None:
        made[:, 2:4] = half(spread * minimum * factors[:, 1])
    return torch.from_numpy(made.reshape(*shape[:-1], -1))


def generate(seed, tensor):
    """The torch tensor that an entry of the manifest describes."""
    shape, stream = tuple(tensor["shape"]), f"{seed}/{tensor.get('stream', tensor['name'])}"
    if "spread" in tensor:
        return blocks(stream, tensor["dtype"], shape, tensor["spread"])
    dtype = DTYPES[tensor["dtype"]]
    count = int(np.prod(shape, dtype=np.int64))
    if tensor.get("range"):
        return torch.arange(count).reshape(shape).to(dtype)
    if "value" in tensor:
        return torch.full(shape, tensor["value"], dtype=torch.float32).to(dtype)
    if "values" in tensor:
        return torch.tensor(tensor["values"], dtype=torch.float32).reshape(shape).to(dtype)
    numbers = normal(stream, count)
    values = tensor.get("mean", 0.0) + tensor["std"] * numbers
    if "rows" in tensor:
        values = values.reshape(shape[0], -1)
        for first, end, factor in tensor["rows"]:
            values[first:end] *= factor
    return torch.from_numpy(values.reshape(shape).astype(np.float32)).to(dtype)


def data(tensor):
    """A torch tensor's bytes, little-endian."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest(tensors):
    return hashlib.sha256(b"".join(map(data, tensors))).hexdigest()


# --- the manifest ---


def entry(name, shape, std, mean=0.0, dtype="F32", **more):
    """One tensor of the manifest. Five significant digits are enough and JSON readers agree on them."""
    numbers = {"std": float(f"{std:.5g}")} | ({"mean": mean} if mean else {})
    return {"name": name, "dtype": dtype, "shape": list(shape), **numbers, **more}


def with_digests(manifest):
    for file in manifest["files"]:
        file["sha256"] = digest([generate(manifest["seed"], tensor) for tensor in file["tensors"]])
    return manifest


# Data that nobody edits: the tracked files have a limit.
COMPACT = (",", ":")


def write_manifest(folder, manifest):
    """JSON with one line for each tensor."""

    def file(entry):
        head = {key: value for key, value in entry.items() if key != "tensors"}
        lines = ",\n".join(f"{json.dumps(tensor, separators=COMPACT)}" for tensor in entry["tensors"])
        return f'  {json.dumps(head)[:-1]}, "tensors": [\n{lines}\n  ]}}'

    files = ",\n".join(map(file, manifest["files"]))
    text = f'{{\n "seed": {json.dumps(manifest["seed"])},\n "files": [\n{files}\n ]\n}}\n'
    assert json.loads(text) == manifest
    (folder / MANIFEST).write_text(text)


def read_manifest(folder):
    return json.loads((folder / MANIFEST).read_text())


# --- files ---


def torch_pickle(path, state, tensors):
    """Stores the `data.pkl` that torch writes for `state`, whose storages must be those of `tensors` in order."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    archive = zipfile.ZipFile(buffer)
    root = archive.namelist()[0].split("/")[0]
    for index, tensor in enumerate(tensors):
        assert archive.read(f"{root}/data/{index}") == data(tensor), f"storage {index} of {path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + PICKLE).write_bytes(archive.read(f"{root}/data.pkl"))


def write_torch(path, pickle, tensors):
    """A torch archive of a stored `data.pkl` and generated storages."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        records = {"data.pkl": pickle.read_bytes(), ".format_version": b"1", "byteorder": b"little"}
        records |= {f"data/{index}": data(tensor) for index, tensor in enumerate(tensors)} | {"version": b"3\n"}
        for name, record in records.items():
            archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}"), record)


def gguf_bytes(header, tensors):
    """A GGUF file of a header and its tensors, each at a multiple of 32 bytes."""
    padded = (data(tensor) + bytes(-tensor.nbytes % GGUF_ALIGNMENT) for tensor in tensors)
    return header + b"".join(padded)


def build(stored, out, manifest=None):
    """Copies a case's stored files and generates its weights. Without `manifest` the stored one counts, digests too."""
    checked = manifest is None
    manifest = manifest or read_manifest(stored)
    ignored = shutil.ignore_patterns(MANIFEST, f"*{PICKLE}", f"*{HEADER}")
    shutil.copytree(stored, out, ignore=ignored, dirs_exist_ok=True)
    for file in manifest["files"]:
        path = out / file["path"]
        tensors = [generate(manifest["seed"], tensor) for tensor in file["tensors"]]
        if checked and digest(tensors) != file["sha256"]:
            raise RuntimeError(f"{path}: the digest is not the manifest's")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".bin":
            write_torch(path, stored / (file["path"] + PICKLE), tensors)
        elif path.suffix == ".gguf":
            path.write_bytes(gguf_bytes((stored / (file["path"] + HEADER)).read_bytes(), tensors))
        else:
            named = {tensor["name"]: value for tensor, value in zip(file["tensors"], tensors)}
            save_file(named, path, metadata={"format": "pt"})


@contextmanager
def built(case, manifest=None):
    """A temporary folder of a whole case: its name in `tests/goldens`, or a folder."""
    stored = case if isinstance(case, Path) else GOLDENS / case
    if manifest is None and not (stored / MANIFEST).exists():
        yield stored
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / stored.name
        build(stored, out, manifest)
        yield out
