"""The questions and requests of the model card's figures."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

from . import drawings
from .scene import HELD_OUT, NOVELTIES, Scene, draw_scene, render
from .talk import REQUESTS, Talk, Turn, reading, talk_about

EXPORT = HELD_OUT + (99 << 32)
PER_SCENE = 4


def _row(scene: Scene, turn: Turn, history: list[Turn], number: int, image: str) -> dict:
    row = {"id": number, "image": image, "question": turn.question, "answer": turn.answer, "kind": turn.kind}
    if history:
        row["history"] = [{"question": past.question, "answer": past.answer} for past in history]
    return row


def held_out_questions(folder: Path, count: int) -> list[dict]:
    """Questions of all kinds, rare kinds preferred, a few per image."""
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
            # The history has only what a follow-up question refers to.
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
    """Half of them are things in colours that they never have in training."""
    rows = []
    for number in range(count):
        rng = random.Random(EXPORT + number)
        wanted = drawings.draw(rng, held_out=number % 2 == 0)
        rows.append(
            {
                "id": number,
                "question": rng.choice(REQUESTS).format(wanted.prompt),
                "prompt": wanted.prompt,
                **wanted.row(),
                "held_out": number % 2 == 0,
            }
        )
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
    """The questions about every twentieth held-out image and about the first thirty with small text."""
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
