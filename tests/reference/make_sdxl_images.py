"""Images that diffusers generates with the golden Stable Diffusion XL from seeds, on the CPU.

    make_sdxl_images.py ../data/diffusion/images

writes a PNG for each case, `cases.json` with the arguments of `mgm generate` for the same image, and `weights.json`: how to
generate the LoRA file that one case merges, and the first convolution of an inpainting model (random_weights.py).
"""

import json
import sys
from pathlib import Path

import diffusers
import numpy
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from PIL import Image
from prompt_weights import embeddings
from random_weights import built, entry, with_digests, write_manifest
from safetensors.torch import load_file

PROMPT = "a gold mine, misty hills"
LORA = "style.safetensors"
# The UNet's first convolution in an inpainting model: latents, mask, latents of the image without the masked part.
INPAINTING = "inpainting.safetensors"


def lora():
    """The manifest of the inpainting model's convolution, and of a LoRA file with Kohya's names and weights, and an alpha."""
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
    convolution = [entry("conv_in.weight", (32, 9, 3, 3), 1 / 9)]
    files = [{"path": LORA, "tensors": tensors}, {"path": INPAINTING, "tensors": convolution}]
    return with_digests({"seed": "lora", "files": files})


def cases():
    def case(name, scheduler=None, kind=None, settings=None, lora=None, strength=None, **call):
        call = {"width": 64, "height": 64, "steps": 4, "guidance_scale": 5.0, "seed": 7, **call}
        named = {"scheduler": scheduler, "kind": kind, "settings": settings or {}, "lora": lora, "strength": strength}
        return name, {**named, "mask": False, "inpainting": False, "weights": None, **call}

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
    velocity = {"prediction_type": "v_prediction"}
    small = {"width": 48, "height": 48, "prediction_type": "v_prediction"}
    yield case("velocity", None, "EulerDiscreteScheduler", velocity, **small)
    zero = {**velocity, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for name, short, kind, more in [
        ("zero-snr-euler", "euler", "EulerDiscreteScheduler", {}),
        ("zero-snr-ancestral", "euler-a", "EulerAncestralDiscreteScheduler", {}),
        ("zero-snr-ddim", "ddim", "DDIMScheduler", {}),
        ("zero-snr-dpm", "dpm++-2m", "DPMSolverMultistepScheduler", {}),
        ("zero-snr-dpm-sde", "dpm++-2m-sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("zero-snr-lcm", "lcm", "LCMScheduler", {}),
    ]:
        yield case(name, f"{short}-zsnr", kind, {**zero, **more}, **small)
    size = {"width": 48, "height": 48, "steps": 3}
    # Without an option the number in the bracket turns the weights on.
    yield case("weights", prompt="a (gold:1.4) mine, [misty] (hills)", negative_prompt="(grey:1.2) sky", weights="auto", **size)
    long = "a (gold:1.3) mine, " + "misty hills, " * 40 + "BREAK (dawn:0.6), \\(snow\\)"
    yield case("weights-long", prompt=long, negative_prompt="blurry", weights="auto", **size)
    yield case("chunks", prompt="gold " * 90, weights="on", **size)
    yield case("inpaint", strength=0.8, steps=5, mask=True)
    yield case("inpaint-whole", strength=1.0, mask=True)
    yield case("inpaint-ancestral", "euler-a", "EulerAncestralDiscreteScheduler", strength=0.6, steps=5, mask=True)
    yield case("inpaint-dpm", "dpm++-2m", "DPMSolverMultistepScheduler", strength=0.9, steps=6, mask=True)
    yield case("inpainting-model", steps=4, strength=1.0, mask=True, inpainting=True)
    yield case("inpainting-model-part", steps=5, strength=0.7, mask=True, inpainting=True, guidance_scale=1.0)


def with_nine_channels(unet, folder):
    """The UNet with the first convolution of an inpainting model."""
    with built(folder) as whole:
        weight = load_file(whole / INPAINTING)["conv_in.weight"]
    convolution = torch.nn.Conv2d(9, weight.shape[0], 3, padding=1)
    convolution.load_state_dict({"weight": weight, "bias": unet.conv_in.bias})
    unet.conv_in = convolution
    unet.register_to_config(in_channels=9)


def generate(model, folder, case):
    kind = StableDiffusionXLPipeline if case["strength"] is None else StableDiffusionXLImg2ImgPipeline
    kind = StableDiffusionXLInpaintPipeline if case["mask"] else kind
    pipeline = kind.from_pretrained(model, torch_dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    if case["kind"]:
        scheduler = getattr(diffusers, case["kind"])
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **case["settings"])
    if case["lora"]:
        with built(folder) as whole:
            pipeline.load_lora_weights(whole, weight_name=LORA)
        pipeline.fuse_lora(lora_scale=case["lora"])
    if case["inpainting"]:
        with_nine_channels(pipeline.unet, folder)
    size = {"width": case["width"], "height": case["height"]}
    image = {"image": Image.open(folder / "init.png"), "strength": case["strength"]}
    if case["mask"]:
        extra = {**size, **image, "mask_image": Image.open(folder / "mask.png")}
    elif case["strength"] is not None:
        extra = {**image, "original_size": (64, 64), "target_size": (64, 64)}
    else:
        extra = size
    prompt, negative = case.get("prompt", PROMPT), case.get("negative_prompt")
    prompts = {"prompt": prompt, "negative_prompt": negative}
    if case["weights"]:
        prompts = embeddings(pipeline, prompt, negative)
    return pipeline(
        **prompts,
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
    # White on the right half with a grey edge, and a white square.
    mask = numpy.zeros((64, 64), numpy.uint8)
    mask[:, 30:] = (numpy.arange(34) * 16).clip(0, 255)
    mask[40:60, 4:20] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    listed, inpainting = {}, {}
    for name, case in cases():
        image = generate(model, folder, case)
        Image.fromarray((image * 255).round().astype(numpy.uint8)).save(folder / f"{name}.png")
        arguments = ["--prompt", case.get("prompt", PROMPT)]
        for key in ["steps", "guidance_scale", "seed", "negative_prompt", "scheduler", "prediction_type"]:
            if case.get(key) is not None:
                arguments += [f"--{key.replace('_', '-')}", str(case[key])]
        arguments += ["--size", f"{case['width']}x{case['height']}"]
        if case["strength"]:
            arguments += ["--init-image", init.name, "--strength", str(case["strength"])]
        if case["mask"]:
            arguments += ["--mask", "mask.png"]
        if case["weights"] == "on":
            arguments += ["--prompt-weights", "on"]
        if case["lora"]:
            arguments += ["--lora", f"{LORA}:{case['lora']}"]
        (inpainting if case["inpainting"] else listed)[name] = arguments
        print(name, image.std())
    (folder / "cases.json").write_text(json.dumps(listed, indent=1) + "\n")
    (folder / "inpainting.json").write_text(json.dumps(inpainting, indent=1) + "\n")


with built("sdxl-base") as case:
    main(case / "sdxl", Path(sys.argv[1]))
