"""The world by hand.

    python -m pocket.world emoji                  render the emoji into the cache (POCKET_NOTO: the npm package's folder)
    python -m pocket.world sheet FILE.png         a contact sheet of scenes
    python -m pocket.world show SEED FILE.png     one scene and a conversation about it
    python -m pocket.world examples FOLDER        the pictures in pocket/examples
    python -m pocket.world export-eval FOLDER     the held-out questions, the small-text questions and the drawing requests
    python -m pocket.world cut-tests EVAL FOLDER  tests/data/pocket: the questions about some of the pictures of export-eval

`export-eval` writes, always the same for the same version:
    held-out.jsonl     2,000 questions about scenes with combinations that training never shows; `mgm eval --format jsonl`
    held-out-*.jsonl   those of them that are about the combination itself: a colour on a thing, a thing in a place, a pair
    small-text.jsonl   400 questions about small printed text alone, for the figure with and without mining
    drawing.jsonl      200 requests to draw: {"question", "prompt", "thing", "colour", "painted", "background"}
    images/            their pictures
"""

import argparse
import json
import random
import shutil
from collections import Counter
from pathlib import Path

from PIL import Image

from . import drawings, sprites
from .scene import NOVELTIES, SIDE, Scene, draw_scene, render
from .talk import REQUESTS, Talk, Turn, reading, talk_about

HELD_OUT = 1 << 40
EXPORT = HELD_OUT + (99 << 32)
PER_SCENE = 4
EXAMPLES = {"zebras": 556, "shark": 524, "cupcake": 508}  # held-out scenes


def _row(scene: Scene, turn: Turn, history: list[Turn], number: int, image: str) -> dict:
    row = {"id": number, "image": image, "question": turn.question, "answer": turn.answer, "kind": turn.kind}
    if history:
        row["history"] = [{"question": past.question, "answer": past.answer} for past in history]
    return row


def held_out_questions(folder: Path, count: int) -> list[dict]:
    """Questions of all kinds, rare kinds preferred, a few to a picture."""
    rows: list[dict] = []
    kinds: Counter[str] = Counter()
    seed = EXPORT
    while len(rows) < count:
        seed += 1
        scene = draw_scene(seed, held_out=True)
        if not scene.held_out:
            continue
        turns = talk_about(scene, random.Random(seed), 14)
        order = sorted(range(len(turns)), key=lambda i: (kinds[turns[i].kind], i))[: min(PER_SCENE, count - len(rows))]
        image = f"images/held-out-{seed - EXPORT:05}.png"
        for index in order:
            # Only what a follow-up question hangs on is history.
            start = index
            while turns[start].kind == "follow":
                start -= 1
            row = _row(scene, turns[index], turns[start:index], len(rows), image)
            new = any(scene.things[i] in turns[index].about for i in scene.held_out)
            rows.append(row | {"novelty": scene.novelty, "about_it": new})
            kinds[turns[index].kind] += 1
        if order:
            render(scene).save(folder / image)
    return rows


def small_text_questions(folder: Path, count: int) -> list[dict]:
    rows: list[dict] = []
    seed = EXPORT + (1 << 24)
    while len(rows) < count:
        seed += 1
        scene = draw_scene(seed, held_out=True, count=random.Random(seed).randint(1, 4), labels=1)
        if len(scene.labels) != 1 or not scene.labels[0].small:
            continue
        turn = reading(Talk(scene, random.Random(seed)), scene.labels[0])
        image = f"images/small-text-{len(rows):05}.png"
        render(scene).save(folder / image)
        rows.append(_row(scene, turn, [], len(rows), image))
    return rows


def drawing_requests(count: int) -> list[dict]:
    """Half of them things in colours that training never shows on them."""
    rows = []
    for number in range(count):
        rng = random.Random(EXPORT + number)
        wanted = drawings.draw(rng, held_out=number % 2 == 0)
        rows.append(
            {
                "id": number, "question": rng.choice(REQUESTS).format(wanted.prompt), "prompt": wanted.prompt, "thing": wanted.kind.name,
                "colour": wanted.colour, "painted": wanted.painted, "background": wanted.background,
            }
        )  # fmt: skip
    return rows


def export_eval(folder: Path, questions: int) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    held_out = held_out_questions(folder, questions)
    sets = {
        "held-out": held_out,
        **{
            f"held-out-{novelty}": [row for row in held_out if row["about_it"] and row["novelty"] == novelty]
            for novelty in NOVELTIES
        },
        "small-text": small_text_questions(folder, questions // 5),
        "drawing": drawing_requests(questions // 10),
    }
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(name, len(rows), dict(Counter(row.get("kind", "draw") for row in rows)))


def cut_tests(evaluation: Path, folder: Path) -> None:
    """The questions about every twentieth held-out picture and about the first thirty with small print."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for old in (folder / "images").iterdir():
        old.unlink()
    for name, every, most in (("held-out", 20, None), ("small-text", 1, 30)):
        rows = [json.loads(line) for line in (evaluation / f"{name}.jsonl").read_text().splitlines()]
        images = list(dict.fromkeys(row["image"] for row in rows))[:most:every]
        kept = [row for row in rows if row["image"] in images]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        for image in images:
            shutil.copyfile(evaluation / image, folder / image)
        print(name, len(kept), "questions about", len(images), "pictures")


def sheet(path: Path, seed: int = 1) -> None:
    out = Image.new("RGB", (6 * (SIDE + 8), 4 * (SIDE + 8)), "gray")
    for i in range(24):
        out.paste(render(draw_scene(seed + i)), (i % 6 * (SIDE + 8), i // 6 * (SIDE + 8)))
    out.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("emoji")
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
    if arguments.command == "emoji":
        sprites.render_emoji()
    elif arguments.command == "sheet":
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
