"""Stage 4, instruction tuning, with requests to draw mixed in: projector and mining, and language model and towers at
half the rate. The dense target of the alignment stays as a second loss: it costs nothing and tells more than answers do."""

from pathlib import Path

import torch
from torch import Tensor

from .. import data
from ..models.mgm import Mgm
from ..sizes import POCKET
from ..tokenizer import Tokenizer
from .align import held_out_accuracy, keep_mask, token_loss
from .common import DEVICE, Muon, Run, compile_layers, fit, load_stage, read
from .language import Told, tokenizer_folder

STEPS, BATCH, SEED = 2600, 20, 4
RECIPE = data.Recipe(images=True, easy_vqa=0.2, text_only=0.04, instructed=0.1)


def rate_of(name: str) -> float:
    return 1.0 if "mining." in name or "projector." in name else 0.5


def main(folder: Path, steps: int | None = None) -> None:
    torch.manual_seed(SEED)
    run = Run("instruct", folder)
    tokenizer = tokenizer_folder(folder)
    model, told = Mgm().to(DEVICE), Told(POCKET.language.hidden_size, Tokenizer(tokenizer)).to(DEVICE)
    language, towers, aligned = (load_stage(folder, stage) for stage in ("language", "towers", "align"))
    model.language.load_state_dict(language["language"])
    told.load_state_dict(language["told"])
    words = language["language"]["embed_tokens.weight"].clone()
    told.requires_grad_(False)
    model.vision.clip.load_state_dict(towers["clip"])
    model.vision.convnext.load_state_dict(towers["convnext"])
    model.vision.mining.load_state_dict(aligned["mining"])
    model.vision.projector.load_state_dict(aligned["projector"])
    model.vision.clip.vision_model.post_layernorm.requires_grad_(False)
    optimiser = Muon(model.named_parameters(), rate=0.004, adam_rate=6e-4, scale=rate_of)
    compile_layers(*model.language.layers, *model.vision.clip.vision_model.encoder["layers"], model.vision.mining)

    def loss_of(batch: data.Batch) -> dict[str, Tensor]:
        cells = batch.cells.to(DEVICE)
        visual = model.see(batch.pixels.to(DEVICE), keep_mask(batch))
        target = told(cells, batch.offsets.to(DEVICE), words).float()
        found = read(model, batch, visual, answers_only=True)
        return {
            "answers": found.each.mean(),
            "looks": 0.1 * found.looks,
            "tokens": 0.3 * token_loss(visual, target, cells, batch.known.to(DEVICE)),
        }

    def evaluate() -> dict:
        with_mining = held_out_accuracy(model, tokenizer, 3, SEED, easy_vqa=True)
        without = held_out_accuracy(model, tokenizer, 2, SEED, easy_vqa=True, mining=False)
        return with_mining | {
            "read small without mining": without.get("read small"),
            "world without mining": without["world"],
        }

    fit(run, steps or STEPS, {"model": model}, optimiser, lambda first: data.batches(tokenizer, RECIPE, BATCH, first, SEED),
        loss_of, evaluate, evaluate_every=200)  # fmt: skip
