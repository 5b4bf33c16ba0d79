"""Instruction tuning, with requests to draw mixed in: projector and mining, and language model and towers at
half the rate. The dense target of the alignment stays as a second loss, also of full images that nothing is asked about: it tells
more than answers do."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .. import data
from ..models.mgm import Mgm
from ..sizes import POCKET
from ..tokenizer import Tokenizer
from .align import held_out_accuracy, keep_mask, token_loss
from .common import DEVICE, Muon, Run, compile_layers, fit, load_stage, read
from .language import SceneTokens, tokenizer_folder
from .lessons import load_lessons
from .towers import RECIPE as FULL
from .towers import CellHeads, cell_loss

STEPS, BATCH, SEED = 3200, 16, 4
PICTURES = 12  # in addition to the conversations
RECIPE = data.Recipe(images=True, easy_vqa=0.2, text_only=0.04, instructed=0.1)


def rate_of(name: str) -> float:
    return 1.0 if "mining." in name or "projector." in name else 0.5


def main(folder: Path, steps: int | None = None) -> None:
    torch.manual_seed(SEED)
    run = Run("instruct", folder)
    lessons = load_lessons(folder)
    recipe, full = replace(RECIPE, lessons=lessons), replace(FULL, lessons=lessons)
    tokenizer = tokenizer_folder(folder)
    model, scene_tokens = Mgm().to(DEVICE), SceneTokens(POCKET.language.hidden_size, Tokenizer(tokenizer)).to(DEVICE)
    heads = CellHeads(POCKET.language.hidden_size).to(DEVICE)
    language = load_stage(folder, "language")
    scene_tokens.load_state_dict(language["told"])
    words = language["language"]["embed_tokens.weight"].clone()
    scene_tokens.requires_grad_(False)
    if not run.path.exists():
        clip, convnext, aligned = (load_stage(folder, stage) for stage in ("clip", "convnext", "align"))
        model.language.load_state_dict(language["language"])
        model.vision.clip.load_state_dict(clip["tower"])
        model.vision.convnext.load_state_dict(convnext["tower"])
        model.vision.mining.load_state_dict(aligned["mining"])
        model.vision.projector.load_state_dict(aligned["projector"])
        heads.load_state_dict(aligned["heads"])
    model.vision.clip.vision_model.post_layernorm.requires_grad_(False)
    named = [*model.named_parameters(), *((f"heads.{name}", p) for name, p in heads.named_parameters())]
    optimiser = Muon(named, rate=0.004, adam_rate=6e-4, scale=rate_of)
    compile_layers(*model.language.layers, *model.vision.clip.vision_model.encoder["layers"], model.vision.mining)

    def batches(first: int) -> Iterator[tuple[data.Batch, data.Batch]]:
        talks = data.batches(tokenizer, recipe, BATCH, first, SEED)
        return zip(talks, data.batches(tokenizer, full, PICTURES, first, SEED + 100))

    def loss_of(both: tuple[data.Batch, data.Batch]) -> dict[str, Tensor]:
        def of_both(name: str) -> Tensor:
            return torch.cat([getattr(batch, name) for batch in both]).to(DEVICE)

        cells = of_both("cells")
        visual = model.see(of_both("pixels"), torch.cat([keep_mask(batch) for batch in both]))
        offsets = of_both("offsets")
        target = scene_tokens(cells, offsets, words).float()
        found = read(model, both[0], visual[: len(both[0].ids)], answers_only=True)
        return {
            "answers": found.each.mean(),
            "looks": 0.1 * found.looks,
            "tokens": 0.4 * token_loss(visual, target, cells, of_both("known")),
            "cells": 0.15 * cell_loss(heads(visual[-PICTURES:].float()), cells[-PICTURES:], offsets[-PICTURES:]),
        }

    def evaluate() -> dict:
        with_mining = held_out_accuracy(model, tokenizer, 3, SEED, easy_vqa=True)
        without = held_out_accuracy(model, tokenizer, 2, SEED, easy_vqa=True, mining=False)
        return with_mining | {
            "read small without mining": without.get("read small"),
            "world without mining": without["world"],
        }

    fit(
        run, steps or STEPS, {"model": model, "heads": heads}, optimiser, batches, loss_of, evaluate, evaluate_every=200
    )
