"""Stage 2, the low-resolution tower: CLIP's ViT learns to tell what lies in each cell, as far as a third of the resolution shows it."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..models.vision import ClipVit
from ..sizes import POCKET
from . import towers
from .common import DEVICE

STEPS = 7500


def low_view(high: Tensor) -> Tensor:
    side = POCKET.clip.image_size
    return F.interpolate(high, size=(side, side), mode="bilinear", align_corners=False)


def main(folder: Path, steps: int | None = None) -> None:
    tower = ClipVit(POCKET.clip).to(DEVICE)
    layers = tower.vision_model.encoder["layers"]
    towers.train(
        "clip", tower, layers, POCKET.clip.hidden_size, lambda pixels: tower(low_view(pixels)), folder, steps or STEPS
    )
