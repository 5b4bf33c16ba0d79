#!/usr/bin/env python3
"""Renders docs/terminal.svg: real commands on the bundled models, with their real output.

    scripts/terminal-svg.py target/release/mgm [OUT]      needs Python 3.9 and nothing else
"""

import base64
import html
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "pocket/examples/shark.png"
# A command, and the image to show after its output (None: no image).
STEPS = [
    (["chat", "--image", IMAGE, "--prompt", "Describe the image.", "--prompt", "What colour is the cheese?", "--seed", "7"], IMAGE),
    (["chat", "--draw", "--prompt", "Draw a blue dog.", "--seed", "7", "--out", "dog.png"], "dog.png"),
]
WIDTH, FONT, LINE, PAD, SIDE = 76, 13, 18, 16, 128
ADVANCE = FONT * 0.602  # of a monospaced character
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b_.*?\x1b\\|\x1b\].*?(\x07|\x1b\\)", re.DOTALL)


def shown(arguments):
    """The command as a person types it, wrapped."""
    words = ["mgm"] + [f'"{word}"' if " " in word else word for word in arguments]
    lines = textwrap.wrap(" ".join(words), WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return [("$ " if index == 0 else "    ") + line + (" \\" if index + 1 < len(lines) else "") for index, line in enumerate(lines)]


def run(mgm, arguments, folder):
    """Lines of standard output. (Notes and progress go to standard error.)"""
    process = subprocess.run([mgm, *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
    text = ESCAPES.sub("", process.stdout).rstrip()
    return [part for line in text.splitlines() for part in textwrap.wrap(line, WIDTH) or [""]]


def png(path):
    """A data URI of a PNG file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def main():
    mgm = Path(sys.argv[1]).resolve()
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "terminal.svg"
    body, y = [], PAD + 28
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pocket").symlink_to(ROOT / "pocket")
        for arguments, image in STEPS:
            lines = [(line, "#f0f0f0") for line in shown(arguments)]
            lines += [(line, "#9fd39f") for line in run(mgm, arguments, folder)]
            for text, colour in lines:
                body.append(f'<text x="{PAD}" y="{y}" fill="{colour}" xml:space="preserve">{html.escape(text)}</text>')
                y += LINE
            if image:
                body.append(f'<image x="{PAD}" y="{y - 8}" width="{SIDE}" height="{SIDE}" href="{png(folder / image)}"/>')
                y += SIDE + LINE
    width, height = round(2 * PAD + WIDTH * ADVANCE), y - LINE + PAD
    buttons = "".join(f'<circle cx="{18 + 18 * index}" cy="15" r="5" fill="{colour}"/>' for index, colour in
                      enumerate(["#e0605a", "#e0b04a", "#6abf5e"]))
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        "<title>mgm in a terminal: two questions about an image, and a request to draw</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#1e2227"/>{buttons}',
        f'<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="{FONT}">',
        *body,
        "</g>",
        "</svg>",
    ]
    out.write_text("\n".join(svg) + "\n", encoding="utf-8")
    print(f"{out}: {width} x {height}")


if __name__ == "__main__":
    main()
