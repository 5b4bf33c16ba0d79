"""Recognizes an image without a model: finds the nearest drawing of the generator."""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .models.image_model import SIDE, as_tensor
from .world import drawings
from .world.things import COLOUR_NAMES, KINDS, PAINTS

SIZES = (0.68, 0.75, 0.82)
POOL, REACH = 4, 2  # drawings are compared by means over 4 x 4 pixels, shifted by at most two of these


class Nearest(NamedTuple):
    """A drawing. Size and position are fractions of the image's side, as in a scene."""

    kind: str
    colour: str | None  # None: as it is
    size: float
    x: float
    y: float

    def shows(self, wanted: drawings.Drawing) -> bool:
        return (self.kind, self.colour) == (wanted.kind.name, wanted.paint)


@cache
def gallery(background: str | None) -> tuple[list[tuple[str, str | None, float]], Tensor]:
    """The clean drawing of every thing in every colour on a background, in three sizes, small and flat."""
    shown = [
        (drawings.Drawing(kind, colour, colour is not None, background), size)
        for kind in KINDS
        for colour in (COLOUR_NAMES if kind.icon is None else (*PAINTS, None))
        for size in SIZES
    ]
    drawn = [F.avg_pool2d(as_tensor([drawings.picture(d, SIDE, size=size)]), POOL).flatten() for d, size in shown]
    return [(d.kind.name, d.colour, size) for d, size in shown], torch.stack(drawn)


def nearest(picture: Tensor, background: str | None) -> Nearest:
    """The drawing on this background that is nearest to an image [3, side, side] of -1..1."""
    shown, drawn = gallery(background)
    padded = F.pad(F.avg_pool2d(picture[None].cpu(), POOL), (REACH,) * 4, mode="replicate")
    side, moves = SIDE // POOL, range(2 * REACH + 1)
    moved = torch.stack([padded[0, :, y : y + side, x : x + side].flatten() for y in moves for x in moves])
    distance = torch.cdist(moved, drawn)
    move, which = divmod(int(distance.argmin()), len(shown))
    down, right = divmod(move, len(moves))
    return Nearest(*shown[which], 0.5 + (right - REACH) / side, 0.5 + (down - REACH) / side)
