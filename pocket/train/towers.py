"""Shared code of both towers' stages (`clip`, `convnext`): each tower learns separately to predict the content of each cell of the
8 x 8 grid. The prediction heads are discarded. (The released towers come from contrastive training on captions; dense targets
learn from thousands of images rather than billions.)"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import data
from ..data import FIELD_INDEX, FIELDS
from .common import DEVICE, Muon, Run, compile_layers, fit
from .language import tokenizer_folder

BATCH, SEED = 24, 2
RECIPE = data.Recipe(images=True, dense=True, text_only=0.0)


class CellHeads(nn.Module):
    """Linear heads over features [n, 64, width]: every field of a cell, and the offset of the thing's centre."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sum(FIELDS.values()) + 2)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        out = self.head(self.norm(features)).float()
        *fields, offsets = out.split([*FIELDS.values(), 2], dim=-1)
        return fields, offsets


def cell_loss(predicted: tuple[list[Tensor], Tensor], cells: Tensor, offsets: Tensor) -> Tensor:
    """Kind, text and background have targets everywhere, the other fields only in cells with a thing."""
    fields, guess = predicted
    thing = cells[..., FIELD_INDEX["kind"]] > 0
    text = cells[..., FIELD_INDEX["text"]] > 0
    number = cells[..., FIELD_INDEX["text"]] == data.NUMBER
    total = guess.new_zeros(())
    for name, index in FIELD_INDEX.items():
        logits, target = fields[index], cells[..., index]
        if name in ("kind", "text"):
            # Most cells are empty: together they weigh as much as all others.
            present = target > 0
            each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
            share = present.sum().clamp(min=1)
            total = total + each[present].sum() / share + 2 * each[~present].mean()
        elif name == "background":
            total = total + 0.3 * F.cross_entropy(logits.flatten(0, 1), target.flatten())
        else:
            where = number if name.startswith("digit") else thing
            if where.any():
                total = total + 0.5 * F.cross_entropy(logits[where], target[where])
    placed = thing | text
    if placed.any():
        total = total + 0.3 * F.mse_loss(guess[placed], offsets[placed])
    return total


def field_accuracy(predicted: list[Tensor], cells: Tensor, right: dict, count: dict) -> None:
    thing, text = cells[..., FIELD_INDEX["kind"]] > 0, cells[..., FIELD_INDEX["text"]] > 0
    number = cells[..., FIELD_INDEX["text"]] == data.NUMBER
    guesses = [logits.argmax(-1) for logits in predicted]
    hits = {name: guesses[i] == cells[..., i] for name, i in FIELD_INDEX.items()}
    digits = hits["digit1"] & hits["digit2"] & hits["digit3"]
    long = cells[..., FIELD_INDEX["digit1"]] > 0
    named = {
        "kind": (hits["kind"], thing), "colour": (hits["colour"], thing & (cells[..., FIELD_INDEX["painted"]] > 0)),
        "empty": (hits["kind"], ~thing), "size": (hits["size"], thing), "word": (hits["text"], text & ~number),
        "number": (hits["text"] & digits, number), "number of 3 digits": (hits["text"] & digits, number & long),
        "background": (hits["background"], thing),
    }  # fmt: skip
    for name, (hit, where) in named.items():
        right[name] += int((hit & where).sum())
        count[name] += int(where.sum())


def train(stage: str, tower: nn.Module, layers: Iterable[nn.Module], width: int, features: Callable[[Tensor], Tensor],
          folder: Path, steps: int) -> None:  # fmt: skip
    """Trains a tower. `features` makes one feature of `width` for each cell, [n, 64, width], from high-resolution views."""
    torch.manual_seed(SEED)
    run = Run(stage, folder)
    tokenizer = tokenizer_folder(folder)
    modules = {"tower": tower, "heads": CellHeads(width).to(DEVICE)}
    named = [(f"{part}.{name}", p) for part, module in modules.items() for name, p in module.named_parameters()]
    compile_layers(*layers)

    def tell(batch: data.Batch) -> tuple[list[Tensor], Tensor]:
        return modules["heads"](features(batch.pixels.to(DEVICE)).float())

    def loss_of(batch: data.Batch) -> dict[str, Tensor]:
        return {"cells": cell_loss(tell(batch), batch.cells.to(DEVICE), batch.offsets.to(DEVICE))}

    def evaluate() -> dict[str, float]:
        right, count = defaultdict(int), defaultdict(int)
        held = data.Recipe(images=True, dense=True, text_only=0.0, held_out=True)
        with torch.no_grad():
            for batch in data.batches(tokenizer, held, 32, 0, SEED, count=8):
                field_accuracy(tell(batch)[0], batch.cells.to(DEVICE), right, count)
        return {name: round(right[name] / max(1, count[name]), 3) for name in count}

    fit(run, steps, modules, Muon(named, rate=0.007, adam_rate=1e-3),
        lambda first: data.batches(tokenizer, RECIPE, BATCH, first, SEED), loss_of, evaluate, evaluate_every=300)  # fmt: skip
