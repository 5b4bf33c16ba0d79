"""Scenes: things and their positions, drawn from a seed, and their images."""

import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import things
from .sprites import coverage, has_colour, natural_colour, sprite
from .things import COLOUR_NAMES, COLOURS, KINDS, PAINTS, WORDS, Kind, any_kind, colour_distance

# Held-out scenes have seeds from here on; training never reaches them.
HELD_OUT = 1 << 40
SIDE = 192
GRID = 8  # no two centres are in the same of GRID x GRID cells, so that every token describes one thing
SMALL_TEXT = (7, 9)  # letter heights in pixels of SIDE; a third of that in the low-resolution view
LARGE_TEXT = (20, 34)


@dataclass(frozen=True)
class Thing:
    """A thing in a scene. Position of the centre and size of the longer side, both as fractions of the image's side."""

    kind: Kind
    colour: str | None  # its name in questions; None if the drawing has many colours
    painted: bool
    x: float
    y: float
    size: float
    angle: float
    shade: int = 0  # -2, 0 or 2

    @property
    def region(self) -> str:
        return things.region(self.x, self.y)

    @property
    def area(self) -> float:
        """The fraction of the image that it covers."""
        return self.size**2 * coverage(self.kind)

    @property
    def phrase(self) -> str:
        """Its name: recoloured things and shapes with their colour."""
        return f"{self.colour} {self.kind.name}" if self.painted and self.colour else self.kind.name


@dataclass(frozen=True)
class Label:
    """Printed text."""

    text: str
    small: bool
    x: float
    y: float
    height: float
    ink: str
    plate: str | None

    @property
    def region(self) -> str:
        return things.region(self.x, self.y)


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    labels: tuple[Label, ...]
    background: str | None  # a plain background's colour; None for patterns
    seed: int
    # Indices of the things in the held-out combination, and what is new about them.
    held_out: frozenset[int] = field(default_factory=frozenset)
    novelty: str | None = None


def _distance(ax: float, ay: float, bx: float, by: float) -> float:
    return max(abs(ax - bx), abs(ay - by))


def _place(rng: random.Random, taken: list[tuple[float, float, float]], size: float) -> tuple[float, float] | None:
    half = size / 2
    for _ in range(30):
        x, y = (rng.uniform(half * 0.9 + 0.01, 1 - half * 0.9 - 0.01) for _ in range(2))
        free = all(_distance(x, y, *other[:2]) > 0.48 * (size + other[2]) for other in taken)
        cells = {(int(other[0] * GRID), int(other[1] * GRID)) for other in taken}
        if free and (int(x * GRID), int(y * GRID)) not in cells:
            return x, y
    return None


_SIZES = {1: (0.25, 0.85), 2: (0.22, 0.45), 3: (0.2, 0.4), 4: (0.2, 0.34), 5: (0.17, 0.3), 6: (0.17, 0.27), 7: (0.16, 0.25),
          8: (0.16, 0.23), 9: (0.16, 0.22)}  # fmt: skip


def _look(rng: random.Random, kind: Kind) -> tuple[str | None, bool]:
    if kind.icon is None:
        return rng.choice(COLOUR_NAMES), True
    if rng.random() < 0.45:
        colour = rng.choice(PAINTS)
        if has_colour(kind, colour):
            return colour, True
    return natural_colour(kind), False


NOVELTIES = ("colour", "region", "pair")


def _novelty(kind: Kind, colour: str | None, painted: bool, place: str, others: list[Thing]) -> str | None:
    """Which of NOVELTIES a thing has, if any: its colour, its position, or its combination with another thing is held out."""
    if painted and colour and things.held_colour(kind.name, colour):
        return "colour"
    if things.held_region(kind.name, place):
        return "region"
    return "pair" if any(things.held_pair(kind.name, other.kind.name) for other in others) else None


def _contrasts(colour: str | None, background: tuple[int, int, int]) -> bool:
    return colour is None or colour_distance(COLOURS[colour], background) > 130


# Plain backgrounds by their name in questions.
BACKGROUNDS = {
    "white": (250, 250, 250), "black": (22, 22, 24), "gray": (150, 150, 152), "blue": (120, 170, 240),
    "green": (130, 200, 120), "yellow": (252, 236, 150), "pink": (250, 190, 215),
}  # fmt: skip


def draw_scene(
    seed: int,
    held_out: bool = False,
    count: int | None = None,
    labels: int | None = None,
    hard_text: bool = False,
    sizes: tuple[float, float] | None = None,
) -> Scene:
    """The scene of a seed. Without `held_out` it has no held-out combination; with it one, unless none was found for its things.
    With `hard_text` most labels are small, and most are numbers; `sizes` are things' sizes, instead of those for their number."""
    rng = random.Random(seed)
    background = rng.choice(list(BACKGROUNDS)) if rng.random() < 0.7 else None
    ground = BACKGROUNDS[background] if background else _ground(random.Random(seed + 1))[0]
    if count is None:
        count = rng.choice((1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8, 9))
    if labels is None:
        labels = rng.choice((0, 0, 0, 1, 1, 2)) if count < 6 else rng.choice((0, 0, 1))
    few = rng.random() < 0.35 and count > 2  # scenes for counting: few kinds, many of each
    novelty = random.Random(seed + 3).choice(NOVELTIES if count > 1 else NOVELTIES[:2])
    palette = [rng.choice(KINDS) for _ in range(2)] if few else None

    found: list[Thing] = []
    special: set[int] = set()
    taken: list[tuple[float, float, float]] = []
    low, high = sizes or _SIZES[count]
    for _ in range(count):
        size = rng.uniform(low, high)
        place = _place(rng, taken, size)
        if place is None:
            continue
        wanted = novelty if held_out and not special and (found or novelty != "pair") else None
        for _ in range(200):
            if palette and not wanted:
                kind = rng.choice(palette)
            else:
                kind = any_kind(rng)
            colour, painted = _look(rng, kind)
            if not _contrasts(colour, ground):
                continue
            if _novelty(kind, colour, painted, things.region(*place), found) == wanted:
                break
        else:
            continue
        if wanted:
            special.add(len(found))
        if wanted == "pair":
            special |= {i for i, other in enumerate(found) if things.held_pair(kind.name, other.kind.name)}
        angle = rng.uniform(-20, 20) if kind.icon else rng.choice((0, 0, rng.uniform(-15, 15)))
        found.append(Thing(kind, colour, painted, *place, size, angle, rng.choice((-2, 0, 2))))
        taken.append((*place, size))

    printed: list[Label] = []
    for _ in range(labels):
        small = rng.random() < (0.8 if hard_text else 0.5)
        height = rng.uniform(*(SMALL_TEXT if small else LARGE_TEXT)) / SIDE
        text = (
            rng.choice(WORDS)
            if rng.random() < (0.3 if hard_text else 0.6)
            else str(rng.randint(1, 99) if rng.random() < 0.5 else rng.randint(100, 999))
        )
        if text in {label.text for label in printed}:
            continue
        width = 0.72 * height * len(text) + 0.03
        place = _place(rng, taken, max(width, height))
        if place is None:
            continue
        plate = rng.choice((None, "white", "black", "yellow"))
        under = COLOURS[plate] if plate else ground
        inks = [name for name in ("black", "white", "red", "blue") if colour_distance(COLOURS[name], under) > 330]
        if not inks:
            continue
        printed.append(Label(text, small, *place, height, rng.choice(inks), plate))
        taken.append((*place, max(width, height)))
    return Scene(tuple(found), tuple(printed), background, seed, frozenset(special), novelty if special else None)


# --- images ---


def _ground(rng: random.Random) -> tuple[tuple[int, int, int], str]:
    """A pattern's middle colour and its kind."""
    base = tuple(rng.randint(60, 235) for _ in range(3))
    return base, rng.choice(("gradient", "stripes", "noise", "halves"))  # type: ignore[return-value]


def _background(scene: Scene, side: int, rng: random.Random) -> Image.Image:
    if scene.background:
        shade = rng.uniform(-6, 6)
        colour = tuple(int(min(255, max(0, c + shade))) for c in BACKGROUNDS[scene.background])
        return Image.new("RGB", (side, side), colour)
    base, pattern = _ground(random.Random(scene.seed + 1))
    noise = np.random.default_rng(scene.seed)
    y, x = np.mgrid[0:side, 0:side] / side
    turn = rng.uniform(0, 6.283)
    ramp = np.cos(turn) * x + np.sin(turn) * y
    level = {
        "gradient": 60 * ramp,
        "stripes": 18 * np.sign(np.sin(ramp * rng.uniform(20, 60))),
        "noise": noise.normal(0, 9, (side, side)),
        "halves": 24 * np.sign(y - rng.uniform(0.35, 0.7)),
    }[pattern]
    rgb = np.array(base)[None, None] + level[..., None]
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8), "RGB")


def render(scene: Scene, side: int = SIDE) -> Image.Image:
    """Renders the image, `side` pixels square."""
    rng = random.Random(scene.seed + 2)
    image = _background(scene, side, rng)
    for thing in scene.things:
        drawing = sprite(thing.kind, thing.colour if thing.painted else None, thing.shade)
        pixels = max(4, round(thing.size * side))
        if thing.angle:
            drawing = drawing.rotate(thing.angle, Image.Resampling.BILINEAR)
        drawing = drawing.resize((pixels, pixels), Image.Resampling.BILINEAR)
        image.paste(drawing, (round(thing.x * side - pixels / 2), round(thing.y * side - pixels / 2)), drawing)
    for label in scene.labels:
        _print(image, label, side)
    return image


def _print(image: Image.Image, label: Label, side: int) -> None:
    font = ImageFont.load_default(size=max(5, round(1.38 * label.height * side)))
    pen = ImageDraw.Draw(image)
    at = (label.x * side, label.y * side)
    if label.plate:
        left, top, right, bottom = pen.textbbox(at, label.text, font=font, anchor="mm")
        pad = max(2, round(0.25 * label.height * side))
        pen.rectangle([left - pad, top - pad, right + pad, bottom + pad], fill=COLOURS[label.plate])
    pen.text(at, label.text, font=font, anchor="mm", fill=COLOURS[label.ink])


def framed(image: Image.Image, rng: random.Random) -> Image.Image:
    """Sometimes stores an image larger or smaller than the model's input, as real images are."""
    if rng.random() < 0.8:
        return image
    side = rng.randint(128, 400)
    return image.resize((side, side), Image.Resampling.BICUBIC)
