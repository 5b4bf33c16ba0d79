"""The low-resolution tower: CLIP's ViT learns the content of each cell, as far as a third of the resolution shows it."""

from pathlib import Path

from ..models.vision import ClipVit, low_view
from ..sizes import POCKET
from . import towers
from .common import DEVICE

STEPS = 7500


def main(folder: Path, steps: int | None = None) -> None:
    tower = ClipVit(POCKET.clip).to(DEVICE)
    layers = tower.vision_model.encoder["layers"]
    width, side = POCKET.clip.hidden_size, POCKET.clip.image_size
    towers.train("clip", tower, layers, width, lambda pixels: tower(low_view(pixels, side)), folder, steps or STEPS)
