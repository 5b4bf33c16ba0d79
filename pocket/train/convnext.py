"""The high-resolution tower: ConvNeXt learns the content of each cell, small text included."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.vision import ConvNext
from ..sizes import POCKET
from ..world.scene import GRID
from . import towers
from .common import DEVICE

STEPS = 9000


def window_means(maps: list[Tensor]) -> Tensor:
    """Maps of four strides, channels last, as one feature for each cell of the grid: [n, 64, channels]."""
    pooled = []
    for stage in maps:
        stage = stage.permute(0, 3, 1, 2)
        side = stage.shape[-1]
        if side % GRID == 0:
            stage = F.avg_pool2d(stage, side // GRID)
        else:
            stage = F.interpolate(stage.float(), size=(GRID, GRID), mode="bilinear", align_corners=False)
        pooled.append(stage.float())
    return torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)


def main(folder: Path, steps: int | None = None) -> None:
    tower = ConvNext(POCKET.convnext).to(DEVICE)
    blocks = [block for stage in tower.stages for block in stage.blocks]
    width = POCKET.convnext.channels
    towers.train("convnext", tower, blocks, width, lambda pixels: window_means(tower(pixels)), folder, steps or STEPS)
