#!/usr/bin/env python3
"""Writes the fuzz targets' first inputs to fuzz/corpus, from the files that the tests read. Needs Python 3.9 and nothing else.

    python3 fuzz/seeds.py

cargo-fuzz reads the folder of a target's name. Run again, the script writes the same files; what the fuzzer found stays.
"""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"
# Of larger files a fuzzer tries too few changes a second.
LARGEST = 128 << 10


def files(*patterns):
    """The contents of the tracked files of data that match."""
    for folder in ("tests/data", "tests/goldens", "models"):
        for pattern in patterns:
            for path in sorted((ROOT / folder).rglob(pattern)):
                if path.stat().st_size <= LARGEST:
                    yield path.read_bytes()


def pickles_in_archives():
    for path in sorted((ROOT / "tests/data/weights").glob("*.bin")):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


def header_and_data(file):
    """A safetensors file as the target's header and data."""
    return text_and_bytes(file[8:], int.from_bytes(file[:8], "little"))


def text_and_bytes(rest, length):
    """An input of a target that takes `(&str, &[u8])`: a text of `length` bytes, the other bytes, and that length.

    The `arbitrary` crate takes the length from the last 1, 2 or 4 bytes, of which it reads those that the number of bytes
    before them needs, the highest first.
    """
    stored = next(size for size in (1, 2, 4) if len(rest) < 256**size)
    read = (len(rest).bit_length() + 7) // 8
    return rest + length.to_bytes(read, "big").ljust(stored, b"\0")


def manifests():
    """The manifests of bundles without data, and a bundle of each small safetensors file."""
    for manifest in files("bundle.json"):
        yield text_and_bytes(manifest, len(manifest))
    for shard in files("*.safetensors"):
        entry = {"file": "1.safetensors", "bytes": len(shard), "sha256": "0" * 64, "part": "language"}
        manifest = {"format": "mgm-bundle", "version": 1, "name": "", "precision": "f16", "shards": [entry]}
        text = json.dumps(manifest).encode()
        yield text_and_bytes(text + shard, len(text))


def tokenizers():
    """The tokenizers in JSON, each with its settings."""
    for folder in (path.parent for path in sorted((ROOT / "tests/goldens").rglob("tokenizer.json"))):
        config = (folder / "tokenizer_config.json").read_bytes()
        yield text_and_bytes(config + (folder / "tokenizer.json").read_bytes(), len(config))


def images():
    """Small images of all formats."""
    yield from files(*(f"*.{ending}" for ending in ("png", "jpg", "webp", "gif", "bmp", "tif", "tiff")))


def chat_templates():
    """Templates, each with a message."""
    content = "Hello <s>".encode()
    for template in files("*.jinja"):
        yield text_and_bytes(content + template, len(content))


def gguf_of_zeros():
    """The stored headers of generated GGUF files, and their data as zeros."""
    return (header + bytes(LARGEST - len(header)) for header in files("*.gguf.header"))


def gguf_pairs(file):
    """The key/value pairs of a GGUF file: key, type and value. Arrays have the type of their elements in front."""
    at = 24

    def value(kind):
        nonlocal at
        if kind == 8:
            length = value(10)
            at += length
            return file[at - length : at]
        if kind == 9:
            element, count = value(4), value(10)
            return element, [value(element) for _ in range(count)]
        (found,) = struct.unpack_from("<" + GGUF_TYPES[kind], file, at)
        at += struct.calcsize(GGUF_TYPES[kind])
        return found

    for _ in range(struct.unpack_from("<Q", file, 16)[0]):
        key, kind = value(8), value(4)
        yield key.decode(), kind, value(kind)


GGUF_TYPES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def gguf_value(kind, value):
    """A value's bytes in a GGUF file."""
    if kind == 8:
        return struct.pack("<Q", len(value)) + value
    if kind == 9:
        element, values = value
        return struct.pack("<IQ", element, len(values)) + b"".join(gguf_value(element, each) for each in values)
    return struct.pack("<" + GGUF_TYPES[kind], value)


def gguf_tokenizers():
    """Headers that hold a tokenizer only, each with a text; those of byte-level BPE under every pre-tokenizer's name.

    Only the first tokens, and the merges of them, so that a fuzzer tries hundreds of inputs a second.
    """
    content = "Hello the 42 \u00e9 <s>".encode()
    names = ("default", "gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken")
    most = 320
    for file in files("*.gguf", "*.gguf.header"):
        pairs = {key: (kind, value) for key, kind, value in gguf_pairs(file) if key.startswith("tokenizer.")}
        for key in ("tokens", "scores", "token_type"):
            if kept := pairs.get("tokenizer.ggml." + key):
                pairs["tokenizer.ggml." + key] = (9, (kept[1][0], kept[1][1][:most]))
        tokens = set(pairs["tokenizer.ggml.tokens"][1][1])
        if merges := pairs.get("tokenizer.ggml.merges"):
            known = [merge for merge in merges[1][1] if {*merge.split(b" "), merge.replace(b" ", b"")} <= tokens]
            pairs["tokenizer.ggml.merges"] = (9, (8, known))
        pre = "tokenizer.ggml.pre"
        for name in names if pre in pairs else (None,):
            if name:
                pairs[pre] = (8, name.encode())
            header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs))
            for key, (kind, value) in pairs.items():
                header += gguf_value(8, key.encode()) + struct.pack("<I", kind) + gguf_value(kind, value)
            # Data begins at a multiple of 32 bytes.
            header += bytes(-len(header) % 32)
            yield text_and_bytes(content + header, len(content))


def loras():
    """Adapter files: the header, a zero byte and PEFT's configuration as text, and the data."""
    config = json.dumps({"r": 2, "lora_alpha": 3, "alpha_pattern": {"to_q": 5, "(a|b).*": 1}, "use_rslora": True}).encode()
    for path in sorted((ROOT / "tests/data/diffusion/lora").glob("*.safetensors")):
        if path.name not in ("base.safetensors", "expected.safetensors"):
            file = path.read_bytes()
            header = file[8 : 8 + int.from_bytes(file[:8], "little")]
            text = header + b"\0" + config
            yield text_and_bytes(text + file[8 + len(header) :], len(text))


def first_byte(byte, seeds):
    return (bytes([byte]) + seed for seed in seeds)


SEEDS = {
    "bundle": manifests,
    "chat_template": chat_templates,
    "config": lambda: files("config.json", "generation_config.json"),
    "gguf": lambda: [*files("*.gguf"), *gguf_of_zeros()],
    "gguf_tokenizer": gguf_tokenizers,
    "image": images,
    "index": lambda: files("*.index.json"),
    "json": lambda: files("*.json"),
    "lora": loras,
    "pickle": lambda: [*files("*.pkl"), *pickles_in_archives()],
    "safetensors": lambda: map(header_and_data, files("*.safetensors")),
    "sdxl": lambda: [
        *first_byte(0, files("unet/config.json", "vae/config.json", "text_encoder*/config.json")),
        *first_byte(1, files("scheduler_config.json")),
    ],
    "sentencepiece": lambda: files("*.model"),
    "tokenizer": tokenizers,
    "torch_bin": lambda: files("*.bin"),
}

for target, seeds in SEEDS.items():
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    names = set()
    for seed in seeds():
        name = hashlib.sha1(seed).hexdigest()
        (folder / name).write_bytes(seed)
        names.add(name)
    print(f"{target}: {len(names)} inputs")
targets = {path.stem for path in (ROOT / "fuzz" / "fuzz_targets").glob("*.rs")}
assert targets == SEEDS.keys(), f"targets without inputs, or the other way round: {targets ^ SEEDS.keys()}"
