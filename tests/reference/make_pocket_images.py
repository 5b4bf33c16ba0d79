"""Images that diffusers generates with Pocket SDXL in f32: tests/data/pocket/{blue-dog,red-car}.png.

    python -m pocket.export pocket-run out --part image-model
    python tests/reference/make_pocket_images.py out/sdxl tests/data/pocket
"""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

IMAGES = {"blue-dog": ("a blue dog", 1), "red-car": ("a red car on a yellow background", 2)}

pipeline = StableDiffusionXLPipeline.from_pretrained(sys.argv[1])
for name, (prompt, seed) in IMAGES.items():
    image = pipeline(
        prompt, num_inference_steps=20, guidance_scale=5.0, height=128, width=128,
        generator=torch.Generator().manual_seed(seed)).images[0]  # fmt: skip
    image.save(Path(sys.argv[2]) / f"{name}.png")
