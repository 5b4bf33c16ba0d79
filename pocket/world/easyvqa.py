"""easy-vqa (PyPI, MIT): images of one shape with questions in its own words. Only its train split is used for training."""

import json
import os
import random
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from .talk import Turn


def root() -> Path:
    """The folder `data` of the package, installed or named by POCKET_EASY_VQA."""
    if "POCKET_EASY_VQA" in os.environ:
        return Path(os.environ["POCKET_EASY_VQA"])
    found = find_spec("easy_vqa")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("easy-vqa is not installed: pip install -r pocket/requirements.txt, or set POCKET_EASY_VQA")
    return Path(found.submodule_search_locations[0]) / "data"


@lru_cache(maxsize=1)
def _questions() -> dict[int, list[tuple[str, str]]]:
    """Questions and answers by image."""
    by_image: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in json.loads((root() / "train" / "questions.json").read_text()):
        by_image.setdefault(image, []).append((question, answer))
    return by_image


@lru_cache(maxsize=2)
def images(held_out: bool) -> list[int]:
    """Images of the train split; a twentieth of them is for validation. Training never sees the test split."""
    return [image for i, image in enumerate(sorted(_questions())) if (i % 20 == 0) == held_out]


def picture(image: int) -> Image.Image:
    return Image.open(root() / "train" / "images" / f"{image}.png").convert("RGB")


def conversation(image: int, rng: random.Random, turns: int) -> list[Turn]:
    pairs = list(_questions()[image])
    rng.shuffle(pairs)
    return [Turn("easy-vqa", question, answer) for question, answer in pairs[:turns]]
