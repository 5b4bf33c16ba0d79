"""The figure of README.md: the effect of patch info mining on small text.

    python -m pocket.figure OUT/figures.json docs/mining.svg     OUT: of python -m pocket.figures

Left, an image and its printed number as both towers see it; right, the accuracy with 95 % confidence intervals."""

import argparse
import base64
import io
import json
from pathlib import Path

from PIL import Image

from .sizes import POCKET

PICTURE, BOX = Path(__file__).parent / "examples" / "shark.png", (128, 150, 170, 192)
TEXT = 'font-family="system-ui, sans-serif" font-size="13"'
INK, MUTED, MINED, LOW = "#1a1d23", "#5a6270", "#3149b5", "#b0b7c6"


def embedded(image: Image.Image, x: int, y: int, side: int) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{side}" height="{side}" image-rendering="pixelated" href="data:image/png;base64,{data}"/>'


def views() -> list[str]:
    """The image, and the crop with the number at high and low resolution."""
    picture = Image.open(PICTURE).convert("RGB")
    high, low = POCKET.convnext.image_size, POCKET.clip.image_size
    picture = picture.resize((high, high), Image.Resampling.BICUBIC)
    # As in mgm: bilinear, which at a third of the size is the centre of every nine pixels.
    small = picture.resize((low, low), Image.Resampling.NEAREST)
    shrunk = tuple(round(edge * low / high) for edge in BOX)
    label = f'<text y="22" {TEXT} fill="{INK}"'
    return [
        f'{label} x="10">image</text>', embedded(picture, 10, 32, 150),
        f'{label} x="180">{high} pixels</text>', embedded(picture.crop(BOX), 180, 32, 150),
        f'{label} x="350">{low} pixels</text>', embedded(small.crop(shrunk), 350, 32, 150),
    ]  # fmt: skip


def bar(y: int, name: str, colour: str, report: dict) -> list[str]:
    left, width = 530, 260
    share, (low, high) = report["accuracy"], report["interval"]
    middle = y + 12
    return [
        f'<text x="{left}" y="{y - 6}" {TEXT} fill="{INK}">{name}: {100 * share:.1f} %</text>',
        f'<rect x="{left}" y="{y}" width="{max(1, share * width):.1f}" height="24" rx="3" fill="{colour}"/>',
        f'<path d="M{left + low * width:.1f} {middle}H{left + high * width:.1f}" stroke="{INK}" stroke-width="2"/>',
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    figures = json.loads(arguments.figures.read_text())
    mined, low = figures["small-text"], figures["small-text low"]
    title = f"Small print read by Pocket: {100 * mined['accuracy']:.1f} % with mining, {100 * low['accuracy']:.1f} % without"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 200" role="img" aria-label="{title}">',
        '<rect width="820" height="200" rx="8" fill="#ffffff"/>',
        *views(),
        *bar(60, "both towers and mining", MINED, mined),
        *bar(125, "low resolution alone", LOW, low),
        f'<text x="530" y="176" {TEXT} fill="{MUTED}">of {mined["questions"]} questions about small print</text>',
        "</svg>",
    ]
    arguments.out.write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
