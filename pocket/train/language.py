"""Stage 1, language: the language model learns the world's words and how to reason about a grid of visual tokens, before it
has eyes. In the place of a picture stand tokens that are written from the scene itself: the sum of embeddings of what
each cell holds. (The paper starts from a language model that has been trained on text; this is ours.)"""

from pathlib import Path

import torch
from torch import Tensor, nn

from .. import data
from ..models.mgm import Mgm
from ..sizes import POCKET
from ..tokenizer import train as train_tokenizer
from ..world.scene import GRID, draw_scene
from ..world.talk import corpus
from .common import DEVICE, Muon, Run, accuracy, answer_loss, fit

STEPS, BATCH, SEED = 1800, 24, 1


class Told(nn.Module):
    """Visual tokens written from a scene, [n, 64, hidden]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(size, hidden, padding_idx=0) for size in data.FIELDS.values())
        self.position_embed = nn.Parameter(torch.randn(GRID * GRID, hidden) * 0.05)
        self.offset_head = nn.Linear(2, hidden, bias=False)
        for table in self.fields:
            nn.init.normal_(table.weight, std=0.05)
            with torch.no_grad():
                table.weight[0].zero_()
        nn.init.normal_(self.offset_head.weight, std=0.03)

    def forward(self, cells: Tensor, offsets: Tensor) -> Tensor:
        told = sum(table(cells[..., index]) for index, table in enumerate(self.fields))
        return told + self.position_embed + self.offset_head(offsets)


def tokenizer_folder(folder: Path) -> Path:
    """The tokenizer's folder; it is trained if there is none."""
    out = folder / "tokenizer"
    if not (out / "tokenizer.model").exists():
        train_tokenizer(corpus(3000, draw_scene), POCKET.language.vocab_size, out)
    return out


def main(folder: Path, steps: int | None = None) -> None:
    torch.manual_seed(SEED)
    run = Run("language", folder)
    tokenizer = tokenizer_folder(folder)
    model, told = Mgm().to(DEVICE), Told(POCKET.language.hidden_size).to(DEVICE)
    language = model.language
    recipe = data.Recipe()
    named = [*language.named_parameters(), *((f"told_embed.{n}", p) for n, p in told.named_parameters())]
    optimiser = Muon(named, rate=0.02, adam_rate=2e-3)

    def visual(batch: data.Batch) -> Tensor:
        return told(batch.cells.to(DEVICE), batch.offsets.to(DEVICE))

    def evaluate() -> dict[str, float]:
        held = data.Recipe(held_out=True, text_only=0.0)
        return accuracy(model, data.batches(tokenizer, held, 32, 0, SEED, count=2), visual)

    fit(
        run,
        steps or STEPS,
        {"language": language, "told": told},
        optimiser,
        lambda first: data.batches(tokenizer, recipe, BATCH, first, SEED),
        lambda batch: {"loss": answer_loss(model, batch, visual(batch))[0]},
        evaluate,
    )
