"""Command line of the world.

    python -m pocket.world sheet FILE.png         a contact sheet of scenes
    python -m pocket.world show SEED FILE.png     one scene and a conversation about it
    python -m pocket.world examples FOLDER        the images in pocket/examples
    python -m pocket.world export-eval FOLDER     the held-out questions, the small-text questions and the drawing requests
    python -m pocket.world cut-tests EVAL FOLDER  tests/data/pocket: the questions about some of the images of export-eval

`export-eval` writes, always the same for the same version:
    held-out.jsonl     2,000 questions about scenes with combinations that training never shows; `mgm eval --format jsonl`
    held-out-*.jsonl   those of them that are about the combination itself: a colour on a thing, a thing in a place, a pair
    small-text.jsonl   400 questions about small printed text alone, for the figure with and without mining
    drawing.jsonl      200 requests to draw: {"question", "prompt", "thing", "colour", "painted", "background"}
    images/            their images
"""

import argparse
import random
from pathlib import Path

from PIL import Image

from .evaluation import cut_tests, export_eval
from .scene import HELD_OUT, SIDE, draw_scene, render
from .talk import talk_about

EXAMPLES = {"zebras": 556, "shark": 524, "cupcake": 508}  # held-out scenes


def sheet(path: Path) -> None:
    out = Image.new("RGB", (6 * (SIDE + 8), 4 * (SIDE + 8)), "gray")
    for i in range(24):
        out.paste(render(draw_scene(1 + i)), (i % 6 * (SIDE + 8), i // 6 * (SIDE + 8)))
    out.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sheet").add_argument("file", type=Path)
    show = commands.add_parser("show")
    show.add_argument("seed", type=int)
    show.add_argument("file", type=Path)
    commands.add_parser("examples").add_argument("folder", type=Path)
    exporting = commands.add_parser("export-eval")
    exporting.add_argument("folder", type=Path)
    exporting.add_argument("--questions", type=int, default=2000)
    cutting = commands.add_parser("cut-tests")
    cutting.add_argument("eval", type=Path)
    cutting.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "sheet":
        sheet(arguments.file)
    elif arguments.command == "show":
        scene = draw_scene(arguments.seed)
        render(scene).save(arguments.file)
        for turn in talk_about(scene, random.Random(arguments.seed), 12):
            print(f"[{turn.kind}] {turn.question}  ->  {turn.answer}")
    elif arguments.command == "cut-tests":
        cut_tests(arguments.eval, arguments.folder)
    elif arguments.command == "examples":
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for name, seed in EXAMPLES.items():
            render(draw_scene(HELD_OUT + seed, held_out=True)).save(arguments.folder / f"{name}.png", optimize=True)
    else:
        export_eval(arguments.folder, arguments.questions)


if __name__ == "__main__":
    main()
