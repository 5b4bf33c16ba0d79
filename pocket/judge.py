"""Evaluates the image model: mgm draws 200 requests, and Pocket and a nearest-image check against the generator's drawings judge
the images.

    python -m pocket.judge EVAL OUT [--models models] [--mgm target/release/mgm] [--clean]

EVAL is the output of `python -m pocket.world export-eval`. Every request is handled as in a conversation: Pocket writes the prompt and
the image model generates the image, with the negative prompt of conversations and the number of steps of `make run` and the demo page.
An image is correct

* for Pocket, if it names the requested thing and colour in a new conversation (`mgm eval`, two questions that cannot be answered with
  "yes"; it was trained on images of this image model, of other combinations: `pocket/train/lessons.py`);
* for the nearest-image check, if of the drawings of all things in all colours on that background, in three sizes and 25 positions, the
  requested one is the nearest.

`--clean` judges the generator's drawings of the requests instead, which measures recognition errors.

OUT receives the images, `questions.jsonl`, the answers, `sheet.png` and `figures.json`. An interrupted run can be resumed; images of other
bundles are refused."""

import argparse
import hashlib
import json
import subprocess
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .models.image_model import DENOISING_STEPS, GUIDANCE, NEGATIVE, SIDE, as_tensor
from .nearest import nearest
from .world import drawings
from .world.things import SHAPES, be, held_region

COLUMNS, LABEL = 20, 22


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def evaluate(mgm: Path, model: Path, questions: list[dict], data: Path, out: Path) -> dict[str, str]:
    """Answers by id, by `mgm eval`."""
    data.write_text("".join(json.dumps(row) + "\n" for row in questions))
    subprocess.run([mgm, "eval", model, "--format", "jsonl", "--data", data, "--out", out], check=True)
    return {str(row["id"]): row["text"] for row in lines(out) if "text" in row}


def same_bundles(models: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Records which bundles the folder's files are from; exits if they are from others."""
    of = {name: hashlib.sha256((models / name / "bundle.json").read_bytes()).hexdigest() for name in names}
    note = folder / "bundles.json"
    if note.exists() and json.loads(note.read_text()) != of:
        raise SystemExit(f"{folder} has images of other bundles: name an empty folder")
    note.write_text(json.dumps(of))


def file_of(row: dict) -> str:
    return f"{row['id']:03}.png"


def generate_images(rows: list[dict], mgm: Path, models: Path, folder: Path) -> None:
    """Has Pocket write the prompts and the image model generate the images; existing images are kept."""
    asked = [
        {
            "id": str(row["id"]),
            "question": f"{row['question']} <GEN>",
            "answer": f"<h>{row['prompt']}</h>",
            "kind": "draw",
        }
        for row in rows
    ]
    written = evaluate(mgm, models / "pocket", asked, folder / "requests.jsonl", folder / "requests-answers.jsonl")
    for row in rows:
        picture = folder / file_of(row)
        if picture.exists():
            continue
        words = written[str(row["id"])].partition("<h>")[2].partition("</h>")[0]
        drawn = folder / "drawn.png"
        command = [mgm, "generate", models / "pocket-sdxl", "--prompt", words, "--negative-prompt", NEGATIVE, "--steps",
                   str(DENOISING_STEPS), "--guidance-scale", str(GUIDANCE), "--seed", str(row["id"]), "--out", drawn, "--no-preview"]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"request {row['id']}: {done.stderr}")
        drawn.replace(picture)


def names(answer: str) -> str:
    """The thing that an answer names, without its article."""
    words = answer.lower().rstrip(". ").split()
    return " ".join(words[1:] if words[:1] in (["a"], ["an"]) else words)


def questions_about(row: dict) -> list[dict]:
    image = file_of(row)
    asked = [
        {
            "id": f"{row['id']}-thing",
            "image": image,
            "question": "What is it?",
            "answer": row["thing"],
            "kind": "thing",
        }
    ]
    if row["colour"]:
        question = f"What colour {be(row['thing'])} the {row['thing']}?"
        asked.append(
            {
                "id": f"{row['id']}-colour",
                "image": image,
                "question": question,
                "answer": row["colour"],
                "kind": "colour",
            }
        )
    return asked


def sheet(rows: list[dict], folder: Path, verdicts: dict[int, tuple[bool, bool]]) -> Image.Image:
    """All images, each with the request and a bar below it (left Pocket, right the nearest image; green or red)."""
    side, high = 84, -(-len(rows) // COLUMNS)
    out = Image.new("RGB", (COLUMNS * (side + 4), high * (side + LABEL)), "white")
    pen = ImageDraw.Draw(out)
    font = ImageFont.load_default(size=9)
    for index, row in enumerate(rows):
        x, y = index % COLUMNS * (side + 4), index // COLUMNS * (side + LABEL)
        wanted = f"{row['colour']} {row['thing']}" if row["painted"] else row["thing"]
        pen.text((x, y + side + 5), wanted, font=font, fill="black")
        out.paste(Image.open(folder / file_of(row)).convert("RGB").resize((side, side)), (x, y))
        for part, right in enumerate(verdicts[row["id"]]):
            left = x + part * side // 2
            pen.rectangle((left, y + side + 1, left + side // 2 - 2, y + side + 4), fill="green" if right else "red")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("eval", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--mgm", type=Path, default=Path("target/release/mgm"))
    parser.add_argument("--clean", action="store_true", help="look at the generator's drawings")
    arguments = parser.parse_args()
    mgm, folder = arguments.mgm, arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    same_bundles(arguments.models, folder, ("pocket",) if arguments.clean else ("pocket", "pocket-sdxl"))
    rows = lines(arguments.eval / "drawing.jsonl")

    if arguments.clean:
        for row in rows:
            drawings.picture(drawings.Drawing.of_row(row), SIDE).save(folder / file_of(row))
    else:
        generate_images(rows, mgm, arguments.models, folder)

    looked = [question for row in rows for question in questions_about(row)]
    said = evaluate(mgm, arguments.models / "pocket", looked, folder / "questions.jsonl", folder / "looks.jsonl")
    verdicts = {}
    for row in rows:
        fresh = all(names(said[q["id"]]) == q["answer"] for q in questions_about(row))
        picture = as_tensor([Image.open(folder / file_of(row)).convert("RGB")])[0]
        verdicts[row["id"]] = (fresh, nearest(picture, row["background"]).shows(drawings.Drawing.of_row(row)))
    sheet(rows, folder, verdicts).save(folder / "sheet.png")

    groups = {
        "all": rows,
        "colours never seen on the thing": [row for row in rows if row["held_out"]],
        "things never seen in the middle": [row for row in rows if held_region(row["thing"], "middle")],
        "shapes": [row for row in rows if row["thing"] in SHAPES],
    }
    figures = {}
    for name, which in groups.items():
        fresh, near = ([verdicts[row["id"]][i] for row in which] for i in (0, 1))
        both = sum(a and b for a, b in zip(fresh, near))
        figures[name] = {"images": len(which), "fresh look": sum(fresh), "nearest image": sum(near), "both": both}
        print(f"{name}: {figures[name]}")
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
