"""Stage 1, language: the language model learns the world's words and how to reason about a grid of visual tokens, before it
has eyes. In the place of a picture stand tokens that are written from the scene itself: the sum of embeddings of what each
cell holds, which begin as the embeddings of the words for it. (The paper starts from a language model that has been trained on text; this is ours.)"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import data
from ..models.mgm import Mgm
from ..sizes import POCKET
from ..tokenizer import Tokenizer
from ..tokenizer import train as train_tokenizer
from ..world.scene import BACKGROUNDS, GRID, draw_scene
from ..world.talk import corpus
from ..world.things import COLOUR_NAMES, KINDS, WORDS
from .common import DEVICE, Muon, Run, accuracy, fit, question_loss

STEPS, BATCH, SEED = 1800, 24, 1


class Told(nn.Module):
    """Visual tokens written from a scene, [n, 64, hidden]: what a cell holds, in the words for it and a part of its own."""

    def __init__(self, hidden: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(size, hidden, padding_idx=0) for size in data.FIELDS.values())
        self.position_embed = nn.Parameter(torch.randn(GRID * GRID, hidden) * 0.05)
        self.offset_head = nn.Linear(2, hidden, bias=False)
        for table in self.fields:
            nn.init.normal_(table.weight, std=0.05)
            with torch.no_grad():
                table.weight[0].zero_()
        nn.init.normal_(self.offset_head.weight, std=0.03)
        for name, index in data.FIELD_INDEX.items():
            self.register_buffer(
                f"words{index}", word_shares(tokenizer, FIELD_WORDS.get(name, ()), data.FIELDS[name]), False
            )

    def forward(self, cells: Tensor, offsets: Tensor, words: Tensor) -> Tensor:
        """`words`: the language model's embeddings [vocabulary, hidden]."""
        told = self.position_embed + self.offset_head(offsets)
        for index, table in enumerate(self.fields):
            rows = table.weight + getattr(self, f"words{index}") @ words
            told = told + F.embedding(cells[..., index], rows)
        return told


# The words for the values of each field from 1 on.
FIELD_WORDS: dict[str, tuple[str, ...]] = {
    "kind": tuple(kind.name for kind in KINDS),
    "colour": COLOUR_NAMES,
    "text": WORDS,
    "digit1": tuple("0123456789"),
    "digit2": tuple("0123456789"),
    "digit3": tuple("0123456789"),
    "background": tuple(BACKGROUNDS),
}


def word_shares(tokenizer: Tokenizer, words: tuple[str, ...], size: int) -> Tensor:
    """For each value of a field the mean over the ids of its word: [size, vocabulary]."""
    shares = torch.zeros(size, tokenizer.vocab_size)
    for value, word in enumerate(words, 1):
        ids = [
            i
            for i in tokenizer.text(word if word.isdigit() else f" {word}")
            if tokenizer.model.id_to_piece(i) != "\u2581"
        ]
        for i in ids:
            shares[value, i] += 1 / len(ids)
    return shares


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
    model, told = Mgm().to(DEVICE), Told(POCKET.language.hidden_size, Tokenizer(tokenizer)).to(DEVICE)
    language = model.language
    recipe = data.Recipe()
    named = [*language.named_parameters(), *((f"told_embed.{n}", p) for n, p in told.named_parameters())]
    optimiser = Muon(named, rate=0.02, adam_rate=2e-3)

    def visual(batch: data.Batch) -> Tensor:
        return told(batch.cells.to(DEVICE), batch.offsets.to(DEVICE), language.embed_tokens.weight)

    def loss_of(batch: data.Batch) -> dict[str, Tensor]:
        answers, questions = question_loss(model, batch, visual(batch))
        return {"loss": answers, "questions": 0.25 * questions}

    def evaluate() -> dict[str, float]:
        held = data.Recipe(held_out=True, text_only=0.0)
        return accuracy(model, data.batches(tokenizer, held, 32, 0, SEED, count=2), visual)

    fit(
        run,
        steps or STEPS,
        {"language": language, "told": told},
        optimiser,
        lambda first: data.batches(tokenizer, recipe, BATCH, first, SEED),
        loss_of,
        evaluate,
    )
