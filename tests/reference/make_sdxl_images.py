"""Images that diffusers generates with the golden Stable Diffusion XL from seeds, on the CPU.

    make_sdxl_images.py ../data/diffusion/images

writes a PNG for each case, `cases.json` with the arguments of `mgm generate` for the same image, and `weights.json`: how to
generate the LoRA file that one case merges (random_weights.py).
"""

import json
import sys
from pathlib import Path

import diffusers
import numpy
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image
from random_weights import built, entry, with_digests, write_manifest

PROMPT = "a gold mine, misty hills"
LORA = "style.safetensors"


def lora():
    """The manifest of a LoRA file with Kohya's names and weights, and an alpha."""
    tensors = []
    for module, out, columns in [
        ("lora_unet_middle_block_1_transformer_blocks_0_attn2_to_out_0", 64, 64),
        ("lora_unet_output_blocks_0_1_transformer_blocks_1_ff_net_2", 64, 256),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 32, 32),
        ("lora_te1_text_model_encoder_layers_0_self_attn_out_proj", 32, 32),
        ("lora_te2_text_model_encoder_layers_1_self_attn_out_proj", 48, 48),
        ("lora_te2_text_model_encoder_layers_1_mlp_fc1", 96, 48),
    ]:
        tensors.append(entry(f"{module}.lora_down.weight", (4, columns), columns**-0.5))
        tensors.append(entry(f"{module}.lora_up.weight", (out, 4), 1.0))
        tensors.append({"name": f"{module}.alpha", "dtype": "F32", "shape": [], "value": 2.0})
    return with_digests({"seed": "lora", "files": [{"path": LORA, "tensors": tensors}]})


def cases(init):
    def case(name, scheduler=None, kind=None, settings=None, lora=None, strength=None, **call):
        call = {"width": 64, "height": 64, "steps": 4, "guidance_scale": 5.0, "seed": 7, **call}
        return name, {
            "scheduler": scheduler, "kind": kind, "settings": settings or {}, "lora": lora, "strength": strength, **call
        }

    yield case("plain", steps=6, width=128, height=128)
    yield case("negative", negative_prompt="lowres, blurry", seed=2**40 + 3)
    yield case("empty-negative", negative_prompt="")
    yield case("guidance-1", guidance_scale=1.0, negative_prompt="anything")
    yield case("wide", width=104, height=72, steps=3)
    yield case("long", prompt="gold " * 90, steps=3)
    yield case("karras", "euler-karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}, steps=5)
    trailing = {"timestep_spacing": "trailing"}
    yield case("trailing", "euler-trailing", "EulerDiscreteScheduler", trailing, steps=5)
    yield case("ancestral", "euler-a", "EulerAncestralDiscreteScheduler")
    yield case("turbo", "turbo", "EulerAncestralDiscreteScheduler", trailing, steps=1, guidance_scale=0.0)
    yield case("ddim", "ddim", "DDIMScheduler", steps=5)
    yield case("dpm", "dpm++-2m", "DPMSolverMultistepScheduler", steps=6)
    sde = {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    yield case("dpm-sde", "dpm++-2m-sde-karras", "DPMSolverMultistepScheduler", sde, steps=6)
    yield case("lcm", "lcm", "LCMScheduler", guidance_scale=1.0)
    yield case("image", strength=0.5, steps=6)
    yield case("image-ancestral", "euler-a", "EulerAncestralDiscreteScheduler", strength=0.8, steps=5)
    yield case("lora", lora=0.7)


def generate(model, folder, init, case):
    kind = StableDiffusionXLPipeline if case["strength"] is None else StableDiffusionXLImg2ImgPipeline
    pipeline = kind.from_pretrained(model, torch_dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    if case["kind"]:
        scheduler = getattr(diffusers, case["kind"])
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **case["settings"])
    if case["lora"]:
        with built(folder) as whole:
            pipeline.load_lora_weights(whole, weight_name=LORA)
        pipeline.fuse_lora(lora_scale=case["lora"])
    size = {"width": case["width"], "height": case["height"]}
    extra = size if case["strength"] is None else {
        "image": Image.open(init), "strength": case["strength"], "original_size": (64, 64), "target_size": (64, 64)
    }
    return pipeline(
        prompt=case.get("prompt", PROMPT),
        negative_prompt=case.get("negative_prompt"),
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(case["seed"]),
        output_type="np",
        **extra,
    ).images[0]


def main(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, lora())
    init = folder / "init.png"
    ramp = numpy.arange(64 * 64 * 3).reshape(64, 64, 3)
    Image.fromarray(((ramp * 7) % 251).astype(numpy.uint8)).save(init)
    listed = {}
    for name, case in cases(init):
        image = generate(model, folder, init, case)
        Image.fromarray((image * 255).round().astype(numpy.uint8)).save(folder / f"{name}.png")
        arguments = ["--prompt", case.get("prompt", PROMPT)]
        for key in ["steps", "guidance_scale", "seed", "negative_prompt", "scheduler"]:
            if case.get(key) is not None:
                arguments += [f"--{key.replace('_', '-')}", str(case[key])]
        arguments += ["--size", f"{case['width']}x{case['height']}"]
        if case["strength"]:
            arguments += ["--init-image", init.name, "--strength", str(case["strength"])]
        if case["lora"]:
            arguments += ["--lora", f"{LORA}:{case['lora']}"]
        listed[name] = arguments
        print(name, image.std())
    (folder / "cases.json").write_text(json.dumps(listed, indent=1) + "\n")


with built("sdxl-base") as case:
    main(case / "sdxl", Path(sys.argv[1]))
