"""What a picture shows, without a model: the drawing of the generator that is nearest to it."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .models.painter import SIDE
from .train.vae import as_tensor
from .world import drawings
from .world.things import COLOUR_NAMES, KINDS, PAINTS

SIZES = (0.68, 0.75, 0.82)


@cache
def gallery(background: str | None) -> tuple[list[tuple[str, str | None]], Tensor]:
    """The clean drawing of every thing in every colour on a background, in three sizes, small and flat."""
    wanted = [
        drawings.Drawing(kind, colour, colour is not None, background)
        for kind in KINDS
        for colour in (COLOUR_NAMES if kind.icon is None else (*PAINTS, None))
    ]
    names = [(drawing.kind.name, drawing.colour) for drawing in wanted for _ in SIZES]
    drawn = [
        F.avg_pool2d(as_tensor([drawings.picture(d, SIDE, size=size)]), 4).flatten() for d in wanted for size in SIZES
    ]
    return names, torch.stack(drawn)


def nearest(picture: Tensor, background: str | None) -> tuple[str, str | None]:
    """The thing and the colour (None: as it is) whose drawing on this background is nearest to a picture, which may be moved
    by a few pixels."""
    names, drawn = gallery(background)
    padded = F.pad(F.avg_pool2d(picture[None].float().cpu(), 4), (2, 2, 2, 2), mode="replicate")
    side = SIDE // 4
    moved = torch.stack([padded[0, :, y : y + side, x : x + side].flatten() for y in range(5) for x in range(5)])
    distance = torch.cdist(moved, drawn)
    return names[int(distance.amin(0).argmin())]
