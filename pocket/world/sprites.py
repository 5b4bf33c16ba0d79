"""Drawings of things as RGBA images: Noto's emoji rendered from SVG, and shapes, both in any colour."""

import io
import json
import math
import os
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .things import COLOUR_NAMES, COLOURS, KINDS, NATURAL, Kind

SIDE = 128
CACHE = Path(os.environ.get("POCKET_CACHE", "pocket-cache"))
NOTO = Path(os.environ.get("POCKET_NOTO", "node_modules/@iconify-json/noto"))


def render_emoji() -> None:
    """Renders every emoji of the world into the cache (needs the npm package and resvg)."""
    import resvg_py

    icons = json.loads((NOTO / "icons.json").read_text())
    out = {}
    for kind in KINDS:
        if kind.icon is None:
            continue
        icon = icons["icons"][kind.icon]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">'
        svg += icon["body"] + "</svg>"
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE))
        image = Image.open(io.BytesIO(png)).convert("RGBA")
        out[kind.icon] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
    CACHE.mkdir(parents=True, exist_ok=True)
    temporary = CACHE / f"emoji-{os.getpid()}.npz"
    np.savez_compressed(temporary, **out)
    temporary.replace(CACHE / "emoji.npz")


@lru_cache(maxsize=1)
def _emoji() -> dict[str, np.ndarray]:
    path = CACHE / "emoji.npz"
    if not path.exists():
        render_emoji()
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _polygon(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of -1..1 on a canvas of four times the side."""
    half = 2 * SIDE
    return [(half + 0.94 * half * x, half + 0.94 * half * y) for x, y in points]


def _around(count: int, turn: float = -math.pi / 2, radius: float = 1.0) -> list[tuple[float, float]]:
    angles = [turn + 2 * math.pi * i / count for i in range(count)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


@cache
def _mask(shape: str) -> Image.Image:
    """A shape's coverage."""
    size = 4 * SIDE
    image = Image.new("L", (size, size), 0)
    pen = ImageDraw.Draw(image)
    box = [*_polygon([(-1, -1)])[0], *_polygon([(1, 1)])[0]]
    if shape == "circle":
        pen.ellipse(box, fill=255)
    elif shape == "oval":
        pen.ellipse([*_polygon([(-1, -0.6)])[0], *_polygon([(1, 0.6)])[0]], fill=255)
    elif shape == "heart":
        turns = [2 * math.pi * i / 80 for i in range(80)]
        points = [
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
            for t in turns
        ]
        pen.polygon(_polygon(points), fill=255)
    else:
        star = [p for pair in zip(_around(5), _around(5, -math.pi / 2 + math.pi / 5, 0.42)) for p in pair]
        points = {
            "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
            "rectangle": [(-1, -0.55), (1, -0.55), (1, 0.55), (-1, 0.55)],
            "triangle": [(0, -0.9), (1, 0.85), (-1, 0.85)],
            "diamond": [(0, -1), (0.65, 0), (0, 1), (-0.65, 0)],
            "star": star,
            "hexagon": _around(6),
            "cross": [(-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35), (0.35, 1), (-0.35, 1),
                      (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35)],
            "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)],
        }[shape]  # fmt: skip
        pen.polygon(_polygon(points), fill=255)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def paint(rgba: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Recolours a drawing in shades of one colour; preserves its lightness."""
    rgb, alpha = rgba[..., :3].astype(np.float32), rgba[..., 3]
    light = rgb @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    inside = light[alpha > 128]
    low, high = np.percentile(inside, [4, 96])
    light = np.clip((light - low) / max(high - low, 0.15), 0, 1)[..., None]
    base = np.array(colour, np.float32)
    dark, bright = base * 0.6, base + (255 - base) * 0.55
    out = np.where(light < 0.6, dark + (base - dark) * light / 0.6, base + (bright - base) * (light - 0.6) / 0.4)
    return np.dstack([np.clip(out, 0, 255).astype(np.uint8), alpha])


@lru_cache(maxsize=8192)
def sprite(kind: Kind, colour: str | None, shade: int = 0) -> Image.Image:
    """A thing in its own colours (`colour` None) or recoloured; `shade` -2..2 makes the colour darker or lighter."""
    if kind.icon is not None:
        rgba = _emoji()[kind.icon]
        if colour is not None:
            rgba = paint(rgba, _shaded(colour, shade))
        return Image.fromarray(rgba, "RGBA")
    image = Image.new("RGBA", (SIDE, SIDE), (*_shaded(colour or "black", shade), 0))
    image.putalpha(_mask(kind.name))
    return image


def _shaded(colour: str, shade: int) -> tuple[int, int, int]:
    red, green, blue = (int(min(255, max(0, c * (1 + 0.06 * shade)))) for c in COLOURS[colour])
    return red, green, blue


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB of 0 to 255 in CIELAB (D65)."""
    light = np.where(rgb <= 10.31475, rgb / 3294.6, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = light @ matrix.T / (0.9505, 1.0, 1.089)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@cache
def has_colour(kind: Kind, colour: str) -> bool:
    """Whether more of a recoloured drawing is closer to its colour (CIELAB) than to any other: the shadows of an orange lemon are
    brown."""
    rgba = np.asarray(sprite(kind, colour))[::2, ::2]
    pixels = _lab(rgba[rgba[..., 3] > 128][:, :3].astype(np.float32))
    named = _lab(np.array(list(COLOURS.values()), np.float32))
    nearest = np.linalg.norm(pixels[:, None] - named, axis=-1).argmin(1)
    return int(np.bincount(nearest, minlength=len(named)).argmax()) == COLOUR_NAMES.index(colour)


@cache
def coverage(kind: Kind) -> float:
    """The fraction of its square that a drawing covers."""
    return float(np.asarray(sprite(kind, None))[..., 3].mean()) / 255


def natural_colour(kind: Kind) -> str | None:
    """An emoji's colour, where its drawing leaves no doubt."""
    return NATURAL.get(kind.name)
