"""Training data of the image model: one thing on a plain background, and its prompt."""

import random
from dataclasses import dataclass

from PIL import Image

from .scene import BACKGROUNDS
from .sprites import has_colour, natural_colour, sprite
from .things import (
    COLOUR_NAMES,
    COLOURS,
    KIND_INDEX,
    KINDS,
    PAINTS,
    Kind,
    any_kind,
    article,
    colour_distance,
    held_colour,
)


@dataclass(frozen=True)
class Drawing:
    kind: Kind
    colour: str | None
    painted: bool
    background: str | None  # None is white

    @property
    def paint(self) -> str | None:
        """The colour of the recoloured drawing; None for its own colours."""
        return self.colour if self.painted else None

    def row(self) -> dict:
        return {
            "thing": self.kind.name,
            "colour": self.colour,
            "painted": self.painted,
            "background": self.background,
        }

    @classmethod
    def of_row(cls, row: dict) -> "Drawing":
        return cls(KINDS[KIND_INDEX[row["thing"]]], row["colour"], row["painted"], row["background"])

    @property
    def prompt(self) -> str:
        phrase = article(f"{self.colour} {self.kind.name}" if self.painted else self.kind.name)
        return f"{phrase} on {article(self.background)} background" if self.background else phrase


def draw(rng: random.Random, held_out: bool = False) -> Drawing:
    """A drawing to request. Held-out ones are things in colours they never have in training."""
    while True:
        kind = any_kind(rng)
        if kind.icon is None:
            colour, painted = rng.choice(COLOUR_NAMES), True
        elif held_out or rng.random() < 0.6:
            colour, painted = rng.choice(PAINTS), True
        else:
            colour, painted = natural_colour(kind), False
        background = rng.choice(list(BACKGROUNDS)) if rng.random() < 0.4 else None
        ground = BACKGROUNDS[background or "white"]
        if colour and colour_distance(COLOURS[colour], ground) < 130:
            continue
        if kind.icon and painted and not has_colour(kind, colour or ""):
            continue
        if (painted and held_colour(kind.name, colour or "")) == held_out:
            return Drawing(kind, colour, painted, background)


def picture(drawing: Drawing, side: int, rng: random.Random | None = None, size: float = 0.75) -> Image.Image:
    """Renders it; `rng` varies size and position slightly."""
    size = rng.uniform(0.66, 0.84) if rng else size
    x, y = (rng.uniform(0.46, 0.54) if rng else 0.5 for _ in range(2))
    image = Image.new("RGB", (side, side), BACKGROUNDS[drawing.background or "white"])
    shape = sprite(drawing.kind, drawing.paint)
    pixels = round(size * side)
    shape = shape.resize((pixels, pixels), Image.Resampling.BILINEAR)
    image.paste(shape, (round(x * side - pixels / 2), round(y * side - pixels / 2)), shape)
    return image
