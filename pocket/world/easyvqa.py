"""easy-vqa (PyPI, MIT): pictures of one shape with questions in its own words. Only its train split is trained on."""

import json
import os
import random
from functools import lru_cache
from pathlib import Path

from PIL import Image

from .talk import Turn

ROOT = Path(os.environ.get("POCKET_EASY_VQA", "easy_vqa/data"))


@lru_cache(maxsize=2)
def _questions(split: str) -> dict[int, list[tuple[str, str]]]:
    """Questions and answers by picture."""
    by_image: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in json.loads((ROOT / split / "questions.json").read_text()):
        by_image.setdefault(image, []).append((question, answer))
    return by_image


def images(split: str) -> list[int]:
    return sorted(_questions(split))


def picture(split: str, image: int) -> Image.Image:
    return Image.open(ROOT / split / "images" / f"{image}.png").convert("RGB")


def conversation(split: str, image: int, rng: random.Random, turns: int) -> list[Turn]:
    pairs = list(_questions(split)[image])
    rng.shuffle(pairs)
    return [Turn("easy-vqa", question, answer) for question, answer in pairs[:turns]]
