"""The names of Stable Diffusion XL's tensors in the original code and in diffusers, by diffusers' own converters.

    make_sdxl_names.py ../data/diffusion/names.json

The original names are listed as the original code numbers its blocks; that diffusers' converter turns them into exactly
the tensors of a diffusers model shows that the list is right. The UNet has the released form with fewer transformer
layers; `golden_unet` and `golden_vae` have the form of the golden case. A LoRA's modules are converted by diffusers'
loader of Kohya's files.
"""

import json
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

DEPTHS = [0, 2, 3]
GOLDEN_DEPTHS = [0, 1, 2]
# By layers of a level, which tells the two apart.
WIDTHS = {1: [32, 32, 64], 2: [64, 128, 256]}
VAE_WIDTHS = {1: [32, 32, 32, 64], 2: [32, 64, 128, 128]}
RESNET = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]


def unet_names(depths, layers):
    """Modules with weight and bias, and those with a weight alone, in the original's numbering."""
    both, weight = [], []

    def resnet(block, shortcut):
        both.extend(f"{block}.{part}" for part in RESNET + (["skip_connection"] if shortcut else []))

    def transformer(block, depth):
        both.extend(f"{block}.{part}" for part in ["norm", "proj_in", "proj_out"])
        for layer in range(depth):
            name = f"{block}.transformer_blocks.{layer}"
            both.extend(f"{name}.{part}" for part in ["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"])
            both.extend(f"{name}.{part}.to_out.0" for part in ["attn1", "attn2"])
            weight.extend(f"{name}.{part}.{q}" for part in ["attn1", "attn2"] for q in ["to_q", "to_k", "to_v"])

    both += ["time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "input_blocks.0.0", "out.0", "out.2"]
    block = 1
    for level, depth in enumerate(depths):
        for layer in range(layers):
            shortcut = layer == 0 and level > 0 and WIDTHS[layers][level] != WIDTHS[layers][level - 1]
            resnet(f"input_blocks.{block}.0", shortcut)
            if depth:
                transformer(f"input_blocks.{block}.1", depth)
            block += 1
        if level < 2:
            both.append(f"input_blocks.{block}.0.op")
            block += 1
    resnet("middle_block.0", False)
    transformer("middle_block.1", depths[-1])
    resnet("middle_block.2", False)
    block = 0
    for level, depth in reversed(list(enumerate(depths))):
        for layer in range(layers + 1):
            resnet(f"output_blocks.{block}.0", True)
            if depth:
                transformer(f"output_blocks.{block}.1", depth)
            if layer == layers and level > 0:
                both.append(f"output_blocks.{block}.{2 if depth else 1}.conv")
            block += 1
    return [f"{name}.{kind}" for name in both for kind in ["weight", "bias"]] + [f"{name}.weight" for name in weight]


def vae_names(layers):
    both = ["quant_conv", "post_quant_conv"]
    for side in ["encoder", "decoder"]:
        both += [f"{side}.{part}" for part in ["conv_in", "conv_out", "norm_out"]]
        both += [f"{side}.mid.attn_1.{part}" for part in ["norm", "q", "k", "v", "proj_out"]]
        parts = ["norm1", "conv1", "norm2", "conv2"]
        both += [f"{side}.mid.block_{block}.{part}" for block in [1, 2] for part in parts]
        way = "down" if side == "encoder" else "up"
        widths = VAE_WIDTHS[layers] if side == "encoder" else VAE_WIDTHS[layers][::-1]
        for step, width in enumerate(widths):
            level = step if side == "encoder" else 3 - step
            before = widths[max(step - 1, 0)]
            for block in range(layers if side == "encoder" else layers + 1):
                extra = ["nin_shortcut"] if block == 0 and before != width else []
                both += [f"{side}.{way}.{level}.block.{block}.{part}" for part in parts + extra]
            if step < 3:
                both.append(f"{side}.{way}.{level}.{'downsample' if side == 'encoder' else 'upsample'}.conv")
    return [f"{name}.{kind}" for name in both for kind in ["weight", "bias"]]


def numbered(names, prefix=""):
    return {prefix + name: torch.full((1,), float(number)) for number, name in enumerate(names)}


def pairs(names, converted):
    back = {int(value.flatten()[0]): name for name, value in converted.items()}
    assert len(back) == len(converted) == len(names), (len(back), len(converted), len(names))
    return [[name, back[number]] for number, name in enumerate(names)]


def unet(depths, layers):
    with torch.device("meta"):
        model = UNet2DConditionModel(
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            block_out_channels=WIDTHS[layers],
            layers_per_block=layers,
            transformer_layers_per_block=[1, *depths[1:]],
            attention_head_dim=[1, 2, 4],
            cross_attention_dim=32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        )
    names = unet_names(depths, layers)
    config = {**model.config, "class_embed_type": None}
    converted = convert_ldm_unet_checkpoint(numbered(names, "model.diffusion_model."), config)
    assert set(converted) == set(model.state_dict()), set(converted) ^ set(model.state_dict())
    return pairs(names, converted), model


def vae(layers):
    with torch.device("meta"):
        model = AutoencoderKL(
            block_out_channels=VAE_WIDTHS[layers],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=layers,
        )
    names = vae_names(layers)
    checkpoint = numbered(names, "first_stage_model.")
    checkpoint = {name: value.reshape(1, 1, 1, 1) if "attn_1" in name else value for name, value in checkpoint.items()}
    converted = convert_ldm_vae_checkpoint(checkpoint, model.config)
    assert set(converted) == set(model.state_dict()), set(converted) ^ set(model.state_dict())
    return pairs(names, converted)


def lora(unet_model):
    """Kohya's module names, in both spellings of the UNet, and of the text encoders."""
    made = []
    for name in unet_names(DEPTHS, 2):
        if ".transformer_blocks." in name and name.endswith(".weight") and "norm" not in name:
            made.append("lora_unet_" + name.removesuffix(".weight").replace(".", "_"))
    text = CLIPTextConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=9, projection_dim=8
    )
    for prefix, kind in [("lora_te1_", CLIPTextModel), ("lora_te2_", CLIPTextModelWithProjection)]:
        for name, module in kind(text).named_modules():
            if isinstance(module, torch.nn.Linear) and name != "text_projection":
                made.append(prefix + name.replace(".", "_"))
    state = {}
    for number, module in enumerate(made):
        state[f"{module}.lora_down.weight"] = torch.full((2, 1), float(number))
        state[f"{module}.lora_up.weight"] = torch.full((1, 2), float(number))
        state[f"{module}.alpha"] = torch.tensor(2.0)
    state = _maybe_map_sgm_blocks_to_diffusers(state, unet_model.config)
    converted, _ = _convert_non_diffusers_lora_to_diffusers(state)
    down = {name: value for name, value in converted.items() if ".down." in name or ".lora_A." in name}
    back = {int(value.flatten()[0]): name for name, value in down.items()}
    assert len(back) == len(made), (len(back), len(made))
    return [[name, back[number]] for number, name in enumerate(made)]


def main(out):
    unet_pairs, model = unet(DEPTHS, 2)
    made = {"unet": unet_pairs, "vae": vae(2), "lora": lora(model)}
    made["golden_unet"], made["golden_vae"] = unet(GOLDEN_DEPTHS, 1)[0], vae(1)
    with open(out, "w") as file:
        lists = (f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(pair, separators=(",", ":")) for pair in pairs) + "\n]" for name, pairs in made.items())
        file.write("{\n" + ",\n".join(lists) + "\n}\n")
    print({name: len(value) for name, value in made.items()})


main(sys.argv[1])
