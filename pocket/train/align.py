"""Alignment: patch info mining and the projector, and nothing else, learn to write what the language model reads.

Its target is what the language model was raised on: the tokens written from the scene. How far they are from it says little about
what they tell (of a word, most is right when it is known to be a word), so that heads, thrown away like the towers', read
them, too. Now and then the high-resolution
branch is switched off, so that the low-resolution view alone says what it can."""

from pathlib import Path

import torch
from torch import Tensor

from .. import data
from ..models.mgm import Mgm
from ..sizes import POCKET
from ..tokenizer import Tokenizer
from .common import DEVICE, Muon, Run, accuracy, fit, load_stage
from .language import SceneTokens, tokenizer_folder
from .towers import RECIPE, CellHeads, cell_loss

STEPS, BATCH, SEED = 1500, 24, 3
SWITCHED_OFF = 0.12  # share of images whose high-resolution branch is off


def token_loss(visual: Tensor, target: Tensor, cells: Tensor, known: Tensor) -> Tensor:
    """How far visual tokens are from those written from the scene, against how far the latter spread. Cells that hold
    something weigh as much as all that are empty."""
    error = (visual.float() - target).square().mean(-1) / target.var(dim=(0, 1)).mean()
    held = (cells[..., :8].amax(-1) > 0) & known[:, None]
    empty = ~held & known[:, None]
    return error[held].sum() / held.sum().clamp(min=1) + error[empty].sum() / empty.sum().clamp(min=1)


def keep_mask(batch: data.Batch) -> Tensor:
    generator = torch.Generator().manual_seed(int(batch.cells.sum()))  # the same after a stop
    return (torch.rand(len(batch.ids), generator=generator) >= SWITCHED_OFF).float().to(DEVICE)


def held_out_accuracy(
    model: Mgm, tokenizer: Path, batches: int, seed: int, easy_vqa: bool, mining: bool = True
) -> dict:
    """Accuracy on held-out scenes (and the validation part of easy-vqa's train split), with mining or with it switched off."""
    share = 0.25 if easy_vqa else 0.0
    recipe = data.Recipe(images=True, held_out=True, text_only=0.0, easy_vqa=share)

    def visual(batch: data.Batch) -> Tensor:
        keep = None if mining else torch.zeros(len(batch.ids), device=DEVICE)
        return model.see(batch.pixels.to(DEVICE), keep)

    return accuracy(model, data.batches(tokenizer, recipe, 32, 0, seed, count=batches), visual)


def main(folder: Path, steps: int | None = None) -> None:
    torch.manual_seed(SEED)
    run = Run("align", folder)
    tokenizer = tokenizer_folder(folder)
    model, scene_tokens = Mgm().to(DEVICE), SceneTokens(POCKET.language.hidden_size, Tokenizer(tokenizer)).to(DEVICE)
    language, clip, convnext = (load_stage(folder, stage) for stage in ("language", "clip", "convnext"))
    model.language.load_state_dict(language["language"])
    scene_tokens.load_state_dict(language["told"])
    words = language["language"]["embed_tokens.weight"].clone()
    model.vision.clip.load_state_dict(clip["tower"])
    model.vision.convnext.load_state_dict(convnext["tower"])
    model.requires_grad_(False)
    scene_tokens.requires_grad_(False)
    vision = model.vision
    heads = CellHeads(POCKET.language.hidden_size).to(DEVICE)
    modules = {"mining": vision.mining.requires_grad_(), "projector": vision.projector.requires_grad_(), "heads": heads}
    named = [(f"{part}.{name}", p) for part, module in modules.items() for name, p in module.named_parameters()]
    optimiser = Muon(named, rate=0.005, adam_rate=7e-4)

    def loss_of(batch: data.Batch) -> dict[str, Tensor]:
        cells, offsets = batch.cells.to(DEVICE), batch.offsets.to(DEVICE)
        target = scene_tokens(cells, offsets, words).float()
        visual = model.see(batch.pixels.to(DEVICE), keep_mask(batch))
        return {
            "tokens": token_loss(visual, target, cells, batch.known.to(DEVICE)),
            "cells": 0.5 * cell_loss(heads(visual.float()), cells, offsets),
        }

    fit(run, steps or STEPS, modules, optimiser, lambda first: data.batches(tokenizer, RECIPE, BATCH, first, SEED), loss_of,
        lambda: held_out_accuracy(model, tokenizer, 2, SEED, easy_vqa=False), evaluate_every=400)  # fmt: skip
