"""Asks a trained model about an image in PyTorch, and compares the program `mgm` with it.

python -m pocket.answer RUN --image FILE "What colour is the cat?" ...
python -m pocket.answer RUN --compare EXPORTED_FOLDER --mgm target/release/mgm [--scenes 4]
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

import torch
from PIL import Image

from . import data
from .models.mgm import LIMIT, Mgm
from .tokenizer import EOS, IMAGE, Tokenizer
from .world.scene import HELD_OUT, draw_scene, render
from .world.talk import talk_about


def load(run: Path) -> Mgm:
    """The model of the last stage that saved one."""
    torch.manual_seed(0)  # parts that no stage has trained yet are at least reproducible
    model = Mgm()
    if (run / "instruct.pt").exists():
        model.load_state_dict(torch.load(run / "instruct.pt", weights_only=False, map_location="cpu")["model"])
        return model.eval()
    for stage, parts in {
        "language": {"language": model.language},
        "clip": {"tower": model.vision.clip},
        "convnext": {"tower": model.vision.convnext},
        "align": {"mining": model.vision.mining, "projector": model.vision.projector},
    }.items():
        if (run / f"{stage}.pt").exists():
            state = torch.load(run / f"{stage}.pt", weights_only=False, map_location="cpu")
            for name, module in parts.items():
                module.load_state_dict(state[name])
    return model.eval()


@torch.no_grad()
def answers(model: Mgm, tokenizer: Tokenizer, image: Image.Image | None, questions: list[str]) -> list[str]:
    """Greedy answers to the turns of one conversation."""
    visual = model.see(torch.from_numpy(data.pixels(image))[None])[0] if image else None
    turns: list[tuple[str, str | None]] = []
    for question in questions:
        turns.append((question, None))
        ids, _ = tokenizer.conversation(turns, visual is not None)
        pieces = []
        if visual is not None:
            at = ids.index(IMAGE)
            pieces = [model.embed(torch.tensor(ids[:at])), visual]
            ids = ids[at + 1 :]
        answer = model.greedy([*pieces, model.embed(torch.tensor(ids))], EOS)
        turns[-1] = (question, tokenizer.decode(answer))
    return [answer or "" for _, answer in turns]


def compare(model: Mgm, tokenizer: Tokenizer, folder: Path, mgm: Path, scenes: int) -> bool:
    """Whether the program gives the same answers as PyTorch in f32."""
    same = True
    for seed in range(scenes):
        scene = draw_scene(HELD_OUT + seed, held_out=True)
        questions = [turn.question for turn in talk_about(scene, random.Random(seed), 3)]
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            render(scene).save(file.name)
            command = [str(mgm), "chat", str(folder), "--image", file.name, "--temperature", "0", "--precision", "f32",
                       "--max-new-tokens", str(LIMIT), "--json"]  # fmt: skip
            for question in questions:
                command += ["--prompt", question]
            said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            ours = answers(model, tokenizer, Image.open(file.name).convert("RGB"), questions)
        theirs = [turn["text"].strip() for turn in said["turns"]]
        same &= ours == theirs
        print(f"{'same' if ours == theirs else 'DIFFERENT'}: {questions}\n  PyTorch {ours}\n  mgm     {theirs}")
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("questions", nargs="*")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--compare", type=Path, help="an exported folder")
    parser.add_argument("--mgm", type=Path, default=Path("target/release/mgm"))
    parser.add_argument("--scenes", type=int, default=4)
    arguments = parser.parse_intermixed_args()
    model, tokenizer = load(arguments.run), Tokenizer(arguments.run / "tokenizer")
    if arguments.compare:
        raise SystemExit(not compare(model, tokenizer, arguments.compare, arguments.mgm, arguments.scenes))
    image = Image.open(arguments.image).convert("RGB") if arguments.image else None
    for question, answer in zip(arguments.questions, answers(model, tokenizer, image, arguments.questions)):
        print(f"{question}  ->  {answer}")


if __name__ == "__main__":
    main()
