"""Makes the golden cases of Stable Diffusion XL: python make_sdxl_goldens.py [CASE ...]

The configurations and tokenizers are stored in tests/goldens/CASE/sdxl; this script draws weights for them
(random_weights.py) and writes what diffusers computes. `sdxl-base` came to this project with its configurations.
`sdxl-deep` has shapes unlike the released model's: four levels with two residual blocks in each, transformers of three
depths, one number of heads for all levels, odd latents of 9 x 13 (halved to 5 x 7, 3 x 4, 2 x 2), Karras sigmas, trailing
timesteps, no guidance, and the UNet and the autoencoder in f16.
"""

import json
import math
import sys

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from random_weights import GOLDENS, built, entry, normal, with_digests, write_manifest
from safetensors.torch import save_file
from sdxl_reference import sdxl_expected
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

NEGATIVE = "out of frame, lowres, text, error, cropped, worst quality, low quality, blurry"
CASES = {
    "sdxl-base": {
        "prompt": "a photo of a gold mine at dawn, misty hills",
        "negative_prompt": NEGATIVE,
        "height": 128,
        "width": 128,
        "steps": 6,
        "guidance_scale": 5.0,
    },
    "sdxl-deep": {
        "prompt": "a lantern on a narrow bridge, snow",
        "negative_prompt": "",
        "height": 72,
        "width": 104,
        "steps": 4,
        "guidance_scale": 1.0,
    },
}
HALF = {"sdxl-deep": ("unet", "vae")}


def models(folder):
    """Part, the name of its file and a model without data that has its tensors' names and shapes."""
    with init_empty_weights():
        for part, kind in [("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)]:
            yield part, "model", kind(CLIPTextConfig.from_pretrained(folder / part))
        for part, kind in [("unet", UNet2DConditionModel), ("vae", AutoencoderKL)]:
            yield part, "diffusion_pytorch_model", kind.from_config(kind.load_config(folder / part))


def distribution(name, shape):
    if "embeddings." in name:
        return {"std": 0.5}
    if name.endswith(".bias"):
        return {"std": 0.1}
    if len(shape) == 1:
        return {"std": 0.2, "mean": 1.0}
    return {"std": 1 / math.sqrt(math.prod(shape[1:]))}


def make(name):
    root, settings = GOLDENS / name, CASES[name]
    files = []
    for part, stem, model in models(root / "sdxl"):
        dtype = "F16" if part in HALF.get(name, ()) else "F32"
        shapes = {key: tuple(value.shape) for key, value in sorted(model.state_dict().items())}
        tensors = [entry(key, shape, **distribution(key, shape), dtype=dtype) for key, shape in shapes.items()]
        files.append({"path": f"sdxl/{part}/{stem}.safetensors", "tensors": tensors})
    manifest = with_digests({"seed": name, "files": files})
    shape = (1, 4, settings["height"] // 8, settings["width"] // 8)
    initial = torch.from_numpy(normal(f"{name}/latents", math.prod(shape))).float().reshape(shape)
    with built(root, manifest) as folder:
        fields, tensors = sdxl_expected(folder / "sdxl", settings, initial)
    image = tensors["image"]
    extremes = float(((image == 0) | (image == 1)).float().mean())
    print(f"{name}: image mean {image.mean():.3f}, deviation {image.std():.3f}, {extremes:.1%} black or white")
    assert image.std() > 0.1 and extremes < 0.2
    write_manifest(root, manifest)
    save_file(tensors, root / "expected.safetensors")
    meta = {"case": name, "model": "sdxl", **settings, **fields}
    (root / "expected.json").write_text(json.dumps(meta, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        make(name)
