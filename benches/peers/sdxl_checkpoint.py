"""Stable Diffusion XL at its released size with random weights, in the layout of a single file: f16, 6.9 GB.

    python3 sdxl_checkpoint.py OUT.safetensors

Needs NumPy. A matrix or a kernel has a deviation that keeps the scale of what it is applied to, a norm is one and zero, so
that activations stay finite through the depth of the networks.
"""

import json
import math
import struct
import sys
from pathlib import Path

import numpy as np

CONTEXT = 2048
# Channels and transformer layers of the UNet's levels, channels of the autoencoder's.
UNET = [(320, 0), (640, 2), (1280, 10)]
VAE = [128, 256, 512, 512]
# Values that all tensors are cut from; a prime, so that equal tensors start elsewhere.
POOL = 16_777_213


class Tensors(dict):
    """Shapes by name, in the order of the file."""

    def layer(self, name, *shape):
        self[f"{name}.weight"] = shape
        self[f"{name}.bias"] = shape[:1]

    def resnet(self, name, parts, before, after, time=None):
        norm_1, conv_1, norm_2, conv_2, shortcut = parts
        self.layer(f"{name}.{norm_1}", before)
        self.layer(f"{name}.{conv_1}", after, before, 3, 3)
        if time:
            self.layer(f"{name}.emb_layers.1", after, time)
        self.layer(f"{name}.{norm_2}", after)
        self.layer(f"{name}.{conv_2}", after, after, 3, 3)
        if before != after:
            self.layer(f"{name}.{shortcut}", after, before, 1, 1)

    def transformer(self, name, width, depth):
        for part in ["proj_in", "proj_out"]:
            self.layer(f"{name}.{part}", width, width)
        self.layer(f"{name}.norm", width)
        for number in range(depth):
            block = f"{name}.transformer_blocks.{number}"
            for norm in ["norm1", "norm2", "norm3"]:
                self.layer(f"{block}.{norm}", width)
            for attention, source in [("attn1", width), ("attn2", CONTEXT)]:
                self[f"{block}.{attention}.to_q.weight"] = (width, width)
                self[f"{block}.{attention}.to_k.weight"] = (width, source)
                self[f"{block}.{attention}.to_v.weight"] = (width, source)
                self.layer(f"{block}.{attention}.to_out.0", width, width)
            self.layer(f"{block}.ff.net.0.proj", 8 * width, width)
            self.layer(f"{block}.ff.net.2", width, 4 * width)


def unet(tensors, prefix="model.diffusion_model"):
    parts = ["in_layers.0", "in_layers.2", "out_layers.0", "out_layers.3", "skip_connection"]
    first, last = UNET[0][0], UNET[-1][0]
    time = 4 * first

    def block(name, before, width, depth):
        tensors.resnet(f"{prefix}.{name}.0", parts, before, width, time)
        if depth:
            tensors.transformer(f"{prefix}.{name}.1", width, depth)

    for name, width in [("time_embed", first), ("label_emb.0", 1280 + 6 * 256)]:
        tensors.layer(f"{prefix}.{name}.0", time, width)
        tensors.layer(f"{prefix}.{name}.2", time, time)
    tensors.layer(f"{prefix}.input_blocks.0.0", first, 4, 3, 3)
    # The maps that the way up takes up again.
    skips, before = [first], first
    for level, (width, depth) in enumerate(UNET):
        for _ in range(2):
            block(f"input_blocks.{len(skips)}", before, width, depth)
            before = width
            skips.append(width)
        if level < len(UNET) - 1:
            tensors.layer(f"{prefix}.input_blocks.{len(skips)}.0.op", width, width, 3, 3)
            skips.append(width)
    block("middle_block", last, last, UNET[-1][1])
    tensors.resnet(f"{prefix}.middle_block.2", parts, last, last, time)
    number = 0
    for level, (width, depth) in reversed(list(enumerate(UNET))):
        for layer in range(3):
            block(f"output_blocks.{number}", before + skips.pop(), width, depth)
            before = width
            if layer == 2 and level > 0:
                tensors.layer(f"{prefix}.output_blocks.{number}.{2 if depth else 1}.conv", width, width, 3, 3)
            number += 1
    tensors.layer(f"{prefix}.out.0", first)
    tensors.layer(f"{prefix}.out.2", 4, first, 3, 3)


def vae(tensors, prefix="first_stage_model"):
    parts = ["norm1", "conv1", "norm2", "conv2", "nin_shortcut"]
    tensors.layer(f"{prefix}.quant_conv", 8, 8, 1, 1)
    tensors.layer(f"{prefix}.post_quant_conv", 4, 4, 1, 1)
    for side, way, sampler, blocks, widths, ends in [
        ("encoder", "down", "downsample", 2, list(enumerate(VAE)), (3, 8)),
        ("decoder", "up", "upsample", 3, list(enumerate(VAE))[::-1], (4, 3)),
    ]:
        name = f"{prefix}.{side}"
        before = VAE[0] if side == "encoder" else VAE[-1]
        tensors.layer(f"{name}.conv_in", before, ends[0], 3, 3)
        for step, (level, width) in enumerate(widths):
            for block in range(blocks):
                tensors.resnet(f"{name}.{way}.{level}.block.{block}", parts, before, width)
                before = width
            if step < len(widths) - 1:
                tensors.layer(f"{name}.{way}.{level}.{sampler}.conv", width, width, 3, 3)
        middle = VAE[-1]
        for block in ["block_1", "block_2"]:
            tensors.resnet(f"{name}.mid.{block}", parts, middle, middle)
        tensors.layer(f"{name}.mid.attn_1.norm", middle)
        for part in ["q", "k", "v", "proj_out"]:
            tensors.layer(f"{name}.mid.attn_1.{part}", middle, middle, 1, 1)
        tensors.layer(f"{name}.norm_out", before)
        tensors.layer(f"{name}.conv_out", ends[1], before, 3, 3)


def text_encoders(tensors):
    name, width = "conditioner.embedders.0.transformer.text_model", 768
    tensors[f"{name}.embeddings.token_embedding.weight"] = (49408, width)
    tensors[f"{name}.embeddings.position_embedding.weight"] = (77, width)
    for layer in range(12):
        block = f"{name}.encoder.layers.{layer}"
        for norm in ["layer_norm1", "layer_norm2"]:
            tensors.layer(f"{block}.{norm}", width)
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"]:
            tensors.layer(f"{block}.self_attn.{part}", width, width)
        tensors.layer(f"{block}.mlp.fc1", 4 * width, width)
        tensors.layer(f"{block}.mlp.fc2", width, 4 * width)
    tensors.layer(f"{name}.final_layer_norm", width)

    name, width = "conditioner.embedders.1.model", 1280
    tensors[f"{name}.token_embedding.weight"] = (49408, width)
    tensors[f"{name}.positional_embedding"] = (77, width)
    for layer in range(32):
        block = f"{name}.transformer.resblocks.{layer}"
        for norm in ["ln_1", "ln_2"]:
            tensors.layer(f"{block}.{norm}", width)
        tensors[f"{block}.attn.in_proj_weight"] = (3 * width, width)
        tensors[f"{block}.attn.in_proj_bias"] = (3 * width,)
        tensors.layer(f"{block}.attn.out_proj", width, width)
        tensors.layer(f"{block}.mlp.c_fc", 4 * width, width)
        tensors.layer(f"{block}.mlp.c_proj", width, 4 * width)
    tensors.layer(f"{name}.ln_final", width)
    tensors[f"{name}.text_projection"] = (width, width)


def released():
    tensors = Tensors()
    unet(tensors)
    vae(tensors)
    text_encoders(tensors)
    return tensors


def values(name, shape, pool, start):
    count = math.prod(shape)
    if len(shape) == 1:
        return np.full(count, 0 if name.endswith("bias") else 1, np.float16)
    deviation = 0.02 if "embedding" in name else 1 / math.sqrt(math.prod(shape[1:]))
    # Cut from the pool's values, over and over where it ends.
    parts = [pool[start : start + count]]
    while (left := count - sum(map(len, parts))) > 0:
        parts.append(pool[:left])
    return np.concatenate([(part * np.float32(deviation)).astype(np.float16) for part in parts])


def write(path):
    tensors = released()
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pool = np.random.default_rng(1).standard_normal(POOL, np.float32)
    # Whole only under its own name.
    part = Path(f"{path}.part")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            start = header[name]["data_offsets"][0] // 2 % POOL
            values(name, shape, pool, start).tofile(file)
    part.rename(path)
    return len(tensors), end


if __name__ == "__main__":
    count, size = write(sys.argv[1])
    print(f"{count} tensors, {size / 1e9:.2f} GB")
