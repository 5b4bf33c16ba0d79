"""Batches: scenes with their conversations as token ids, the target of each visual token, and the images that the towers see.

A sample depends only on its number (and the lessons), so that a resumed run sees the same samples as an uninterrupted one."""

import io
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .sizes import CLIP_MEAN, CLIP_STD, IMAGE_SIDE, POCKET
from .tokenizer import IMAGE, Tokenizer
from .world import easyvqa
from .world.scene import BACKGROUNDS, GRID, HELD_OUT, Scene, draw_scene, framed, render
from .world.talk import Turn, drawing_turn, small_talk, talk_about
from .world.things import COLOUR_NAMES, KIND_INDEX, KINDS, SYNONYMS, WORDS

# Worker processes for samples. On two cores training is as fast without.
WORKERS = int(os.environ.get("POCKET_WORKERS", "0"))
NUMBER = len(WORDS) + 1
PAD = 32  # ids of a batch are padded to a multiple of this

# The fields of a cell of the 8 x 8 grid and the number of values of each (0 is "nothing").
FIELDS = {
    "kind": len(KINDS) + 1,
    "colour": len(COLOUR_NAMES) + 1,
    "painted": 2,
    "size": 13,
    "text": len(WORDS) + 2,
    "digit1": 11,
    "digit2": 11,
    "digit3": 11,
    "background": len(BACKGROUNDS) + 1,
}
FIELD_INDEX = {name: index for index, name in enumerate(FIELDS)}


def cell_of(x: float, y: float) -> int:
    return int(y * GRID) * GRID + int(x * GRID)


def cells(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The fields of each cell, [64, fields], and the offset of its thing from the cell's centre, [64, 2] in -1..1."""
    values = np.zeros((GRID * GRID, len(FIELDS)), np.int64)
    offsets = np.zeros((GRID * GRID, 2), np.float32)
    if scene.background:
        values[:, FIELD_INDEX["background"]] = 1 + list(BACKGROUNDS).index(scene.background)

    def at(x: float, y: float) -> int:
        cell = cell_of(x, y)
        offsets[cell] = 2 * (x * GRID % 1) - 1, 2 * (y * GRID % 1) - 1
        return cell

    for thing in scene.things:
        cell = at(thing.x, thing.y)
        values[cell, :4] = (
            1 + KIND_INDEX[thing.kind.name],
            1 + COLOUR_NAMES.index(thing.colour) if thing.colour else 0,
            thing.painted,
            1 + int(np.clip(np.log(thing.size / 0.15) / np.log(0.72 / 0.15) * 12, 0, 11)),
        )
    for label in scene.labels:
        cell = at(label.x, label.y)
        if label.text.isdigit():
            digits = [1 + int(digit) for digit in label.text.rjust(3)[:3] if digit != " "]
            values[cell, 4:8] = (NUMBER, *([0] * (3 - len(digits)) + digits))
        else:
            values[cell, 4] = 1 + WORDS.index(label.text)
    return values, offsets


def pixels(image: Image.Image, size: int = POCKET.convnext.image_size) -> np.ndarray:
    """The high-resolution view [3, size, size] as the released program preprocesses it: padded, bicubic, normalised."""
    side = max(image.size)
    if image.width != image.height:
        canvas = Image.new("RGB", (side, side), tuple(int(m * 255) for m in CLIP_MEAN))
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    values = np.asarray(image, np.float32) / 255
    return ((values - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).transpose(2, 0, 1)


def softened(image: Image.Image, rng: random.Random) -> Image.Image:
    """A slightly warped, blurred and textured image that resembles the image model's, sometimes recompressed. There are few images
    from the image model itself; these cover every thing in every colour that may be shown."""
    noise = torch.Generator().manual_seed(rng.getrandbits(32))

    def smooth(channels: int, cells: int, strength: float) -> Tensor:
        coarse = torch.randn(1, channels, cells, cells, generator=noise) * strength
        return F.interpolate(coarse, (image.height, image.width), mode="bicubic", align_corners=True)

    picture = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None]
    bend = smooth(2, rng.randint(3, 8), rng.uniform(0, 0.025))[0].permute(1, 2, 0)[None]
    straight = F.affine_grid(torch.eye(2, 3)[None], list(picture.shape), align_corners=False)
    picture = F.grid_sample(picture, straight + bend, mode="bilinear", padding_mode="border", align_corners=False)
    picture = picture + smooth(3, rng.choice((16, 32, 64)), rng.uniform(0, 9))
    out = Image.fromarray(picture[0].permute(1, 2, 0).clamp(0, 255).round().byte().numpy(), "RGB")
    out = out.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.7)))
    if rng.random() < 0.4:
        file = io.BytesIO()
        out.save(file, "JPEG", quality=rng.randint(30, 90))
        out = Image.open(file).convert("RGB")
    return out


@dataclass
class Looks:
    """The attention targets of supervised heads, one entry for each id that has one."""

    rows: Tensor  # [m] of the batch
    columns: Tensor  # [m] of the ids
    depth: Tensor  # [m] 0: the id ends the name of a kind in the scene; 1: an answer starts after it
    cells: Tensor  # [m, 64] the target


@dataclass
class Batch:
    """Ids with IMAGE in place of an image's tokens, padded on the right with 0."""

    ids: Tensor  # [n, length]
    answers: Tensor  # [n, length] whether an id is part of an answer
    cells: Tensor  # [n, 64, fields]
    offsets: Tensor  # [n, 64, 2]
    known: Tensor  # [n] whether the cells are known (they are not for easy-vqa's images)
    pixels: Tensor | None  # [n, 3, S, S]
    looks: Looks
    turns: list[list[tuple[str, int, int]]]  # for each sample: kind of question, first and end of its answer's ids


@dataclass(frozen=True)
class Recipe:
    """The mix of samples."""

    length: int = 192  # maximum number of ids of a conversation
    images: bool = False  # render images
    easy_vqa: float = 0.0  # share of samples
    text_only: float = 0.03  # share of samples without an image
    draw: float = 0.1  # share of conversations with a request to draw
    instructed: float = 0.0  # share of short questions followed by the benchmarks' instruction
    held_out: bool = False
    dense: bool = False  # only images with their cells, no conversations
    lessons: Sequence[tuple[Scene, Image.Image]] = ()  # images from the image model, among those of one large thing


@dataclass
class Sample:
    turns: list[Turn]
    scene: Scene | None
    image: Image.Image | None


SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
SENTENCES = ("describe", "refuse", "draw", "talk")


def make_sample(number: int, recipe: Recipe) -> Sample:
    sample = _plain_sample(number, recipe)
    rng = random.Random(number + 5)
    for index, turn in enumerate(sample.turns):
        # easy-vqa's evaluation always appends it.
        share = 0.5 if turn.kind == "easy-vqa" else recipe.instructed
        if turn.kind not in SENTENCES and rng.random() < share:
            sample.turns[index] = replace(turn, question=turn.question + SHORT_ANSWER)
    return sample


def _plain_sample(number: int, recipe: Recipe) -> Sample:
    rng = random.Random(number * 7919 + 13)
    draw = rng.random()
    if draw < recipe.text_only:
        turns = small_talk(rng, rng.randint(1, 3)) + [drawing_turn(rng) for _ in range(rng.randint(0, 3))]
        rng.shuffle(turns)
        return Sample(turns, None, None)
    if draw < recipe.text_only + recipe.easy_vqa:
        which = rng.choice(easyvqa.images(recipe.held_out))
        turns = easyvqa.conversation(which, rng, 16)
        return Sample(turns, None, easyvqa.picture(which) if recipe.images else None)
    image = None
    if recipe.held_out:
        scene = draw_scene(number, held_out=True)
    elif recipe.dense:
        # An image costs the same whatever it shows: these are full of things or text, or show one large thing.
        draw = rng.random()
        if draw < 0.7:
            if draw < 0.36:
                count, labels = rng.choice((9, 9, 9, 8, 8, 7, 6, 5, 4, 3, 2, 1)), rng.choice((1, 2, 3))
            else:
                count, labels = rng.choice((1, 2, 3)), rng.choice((8, 16, 24))
            # Small numbers are learnt last.
            scene = draw_scene(number, count=count, labels=labels, hard_text=True)
        else:
            scene, image = _large(number, rng, recipe)
    elif rng.random() < 0.2:
        scene, image = _large(number, rng, recipe)
    else:
        # Reading is learnt last, so there is more text than in the world in general.
        scene = draw_scene(number, labels=rng.choice((None, None, 1, 2, 4)))
    turns = [] if recipe.dense else talk_about(scene, rng, 15)
    if turns and rng.random() < recipe.draw:
        turns[min(len(turns), rng.randint(1, 12)) - 1] = drawing_turn(rng)
    if not recipe.images:
        return Sample(turns, scene, None)
    return Sample(turns, scene, framed(image or render(scene), rng))


def _large(number: int, rng: random.Random, recipe: Recipe) -> tuple[Scene, Image.Image | None]:
    """One large thing, as in generated images. Half are from the image model, if there are any; half of the rest are blurred to resemble
    them."""
    if recipe.lessons and rng.random() < 0.5:
        return rng.choice(recipe.lessons)
    scene = draw_scene(number, count=1, labels=0, sizes=(0.55, 0.85))
    draw = rng.random()
    if not recipe.images or draw < 0.3:
        return scene, None
    image = render(scene, IMAGE_SIDE)
    return scene, softened(image, rng) if draw > 0.5 else image


def collate(samples: list[Sample], tokenizer: Tokenizer, recipe: Recipe) -> Batch:
    rows, marks, spans = [], [], []
    for sample in samples:
        picture = sample.scene is not None or sample.image is not None
        turns = [(turn.question, turn.answer) for turn in sample.turns]
        while True:
            ids, answers = tokenizer.conversation(turns, picture)
            if len(ids) <= recipe.length:
                break
            turns.pop()
        found, start = [], None
        for index, answer in enumerate([*answers, False]):
            if answer and start is None:
                start = index
            elif not answer and start is not None:
                found.append((sample.turns[len(found)].kind, start, index))
                start = None
        rows.append(ids)
        marks.append(answers)
        spans.append(found)
    # Few distinct lengths, since layers are compiled for each.
    longest = -max(map(len, rows), default=0) // PAD * -PAD
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    answers = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (these, mark) in enumerate(zip(rows, marks)):
        ids[row, : len(these)] = torch.tensor(these)
        answers[row, : len(mark)] = torch.tensor(mark)
    described = [cells(sample.scene) if sample.scene else _nothing() for sample in samples]
    kinds = np.stack([values[:, 0] for values, _ in described])
    looks = looks_of(samples, rows, spans, kinds, tokenizer)
    views = None
    if recipe.images:
        blank = np.zeros((3, POCKET.convnext.image_size, POCKET.convnext.image_size), np.float32)
        views = torch.from_numpy(np.stack([pixels(s.image) if s.image else blank for s in samples]))
    return Batch(
        ids,
        answers,
        torch.from_numpy(np.stack([values for values, _ in described])),
        torch.from_numpy(np.stack([offsets for _, offsets in described])),
        torch.tensor([sample.scene is not None for sample in samples]),
        views,
        looks,
        spans,
    )


@lru_cache(maxsize=1)
def names_of(tokenizer: Tokenizer) -> dict[tuple[int, ...], int]:
    """The ids of the kinds' names, and the corresponding values of the field."""
    names = {}
    for index, kind in enumerate(KINDS, 1):
        for name in {kind.name, kind.plural, SYNONYMS.get(kind.name, kind.name)}:
            names[tuple(tokenizer.text(f" {name}"))] = index
    return names


def looks_of(
    samples: list[Sample],
    rows: list[list[int]],
    spans: list[list[tuple[str, int, int]]],
    kinds: np.ndarray,
    tokenizer: Tokenizer,
) -> Looks:
    names = names_of(tokenizer)
    longest = max(map(len, names))
    found: list[tuple[int, int, int, np.ndarray]] = []
    for row, (ids, sample) in enumerate(zip(rows, samples)):
        if sample.scene is None:
            continue
        for end in range(len(ids)):
            # A name within a longer name doesn't count.
            kind = next(
                (k for n in range(longest, 0, -1) if (k := names.get(tuple(ids[max(0, end + 1 - n) : end + 1])))), 0
            )
            if kind and (kinds[row] == kind).any():
                found.append((row, end, 0, kinds[row] == kind))
        for (_, start, _), turn in zip(spans[row], sample.turns):
            if turn.about:
                where = np.zeros(GRID * GRID, bool)
                where[[cell_of(item.x, item.y) for item in turn.about]] = True
                found.append((row, start - 1, 1, where))
    columns = [torch.tensor([entry[i] for entry in found], dtype=torch.long) for i in range(3)]
    places = np.stack([entry[3] for entry in found]) if found else np.zeros((0, GRID * GRID), bool)
    return Looks(*columns, torch.from_numpy(places))


def _nothing() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((GRID * GRID, len(FIELDS)), np.int64), np.zeros((GRID * GRID, 2), np.float32)


class Batches(IterableDataset):
    """An endless sequence of batches from a sample number on."""

    def __init__(
        self, tokenizer: Path, recipe: Recipe, size: int, first: int, seed: int, batches: int | None = None
    ) -> None:
        self.tokenizer, self.recipe, self.size, self.first, self.seed = tokenizer, recipe, size, first, seed
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        tokenizer = Tokenizer(self.tokenizer)
        base = (HELD_OUT if self.recipe.held_out else 0) + self.seed * (1 << 32)
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        number = self.first + first
        while self.batches is None or number < self.first + self.batches:
            start = base + number * self.size
            samples = [make_sample(start + i, self.recipe) for i in range(self.size)]
            yield collate(samples, tokenizer, self.recipe)
            number += step


def batches(
    tokenizer: Path, recipe: Recipe, size: int, first: int, seed: int, count: int | None = None, workers: int = WORKERS
) -> Iterator[Batch]:
    data = Batches(tokenizer, recipe, size, first, seed, count)
    return iter(DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))


def splice(embed: Tensor, ids: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of the ids [n, length, hidden] with each row's visual tokens [n, tokens, hidden] in place of its IMAGE.

    Returns the sequences [n, length - 1 + tokens, hidden] and the position of each id [n, length]. Rows without an image keep
    their ids in order and are padded on the right."""
    n, length = ids.shape
    tokens = visual.shape[1]
    place = (ids == IMAGE).int()
    has = place.any(1)
    at = torch.where(has, place.argmax(1), torch.full((n,), length, device=ids.device))
    positions = torch.arange(length, device=ids.device)[None].expand(n, -1)
    went = positions + (positions > at[:, None]) * (tokens - 1)
    total = length - 1 + tokens
    out = embed.new_zeros(n, total + 1, embed.shape[-1])
    # Ids beyond the end (rows without an image have none) and IMAGE itself go to a spare slot.
    target = torch.where(ids == IMAGE, torch.full_like(went, total), went)
    out = out.scatter(1, target[..., None].expand(-1, -1, embed.shape[-1]), embed)
    rows = has.nonzero()[:, 0]
    if len(rows):
        spots = at[rows, None] + torch.arange(tokens, device=ids.device)
        out = out.index_put((rows[:, None], spots), visual[rows].to(out.dtype))
    return out[:, :total], went
