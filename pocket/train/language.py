"""The language model learns the world's words and how to reason about a grid of visual tokens before it sees images. In place of
an image there are tokens written from the scene itself: the sum of embeddings of each cell's content and position, initialized
with the embeddings of the words for it. (The paper starts from a pretrained language model.)"""

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import data
from ..models.mgm import Mgm
from ..sizes import POCKET
from ..tokenizer import VOCABULARY, Tokenizer
from ..world.scene import BACKGROUNDS, GRID
from ..world.things import COLOUR_NAMES, KINDS, WORDS, region
from .common import DEVICE, Muon, Run, accuracy, compile_layers, fit, read

STEPS, BATCH, SEED = 1500, 24, 1


class SceneTokens(nn.Module):
    """Visual tokens written from a scene, [n, 64, hidden]: the content and position of a cell, each as the words for it plus a
    learned part."""

    def __init__(self, hidden: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(size, hidden, padding_idx=0) for size in data.FIELDS.values())
        self.position_embed = nn.Parameter(smooth_positions(hidden))
        self.offset_head = nn.Linear(2, hidden, bias=False)
        for name, table in zip(data.FIELDS, self.fields):
            # Words where they exist.
            nn.init.normal_(table.weight, std=0.003 if name in FIELD_WORDS else 0.02)
        with torch.no_grad():
            # Sizes are ordered from the start.
            sizes = self.fields[data.FIELD_INDEX["size"]].weight
            sizes.copy_(0.2 * sizes + torch.linspace(-1, 1, len(sizes))[:, None] * torch.randn(hidden) * 0.03)
            for table in self.fields:
                table.weight[0].zero_()
        nn.init.normal_(self.offset_head.weight, std=0.01)
        for name, index in data.FIELD_INDEX.items():
            shares = word_shares(tokenizer, FIELD_WORDS.get(name, ()), data.FIELDS[name])
            self.register_buffer(f"words{index}", shares, persistent=False)
        centres = [((cell % GRID + 0.5) / GRID, (cell // GRID + 0.5) / GRID) for cell in range(GRID * GRID)]
        places = word_shares(tokenizer, [{region(*centre): 1.0} for centre in centres], GRID * GRID + 1)[1:]
        self.register_buffer("place_words", places, persistent=False)

    def forward(self, cells: Tensor, offsets: Tensor, words: Tensor) -> Tensor:
        """`words`: the language model's embeddings [vocabulary, hidden]."""
        scene_tokens = self.position_embed + self.place_words @ words + self.offset_head(offsets)
        for index, table in enumerate(self.fields):
            rows = table.weight + getattr(self, f"words{index}") @ words
            scene_tokens = scene_tokens + F.embedding(cells[..., index], rows)
        return scene_tokens


def smooth_positions(hidden: int) -> Tensor:
    """Embeddings of the 64 places that change smoothly from left to right and from top to bottom."""
    steps = torch.linspace(0, math.pi, GRID)
    waves = torch.stack([torch.cos(steps), torch.sin(steps), torch.cos(2 * steps)])
    across, down = (waves.T @ torch.randn(3, hidden) * 0.01 for _ in range(2))
    return (down[:, None] + across[None]).reshape(GRID * GRID, hidden)


# The words for the values of each field, from 1, with their weights.
FIELD_WORDS: dict[str, Sequence[dict[str, float]]] = {
    "kind": [{kind.name: 0.8, kind.plural: 0.3, "thing things": 0.4} for kind in KINDS],
    "colour": [{colour: 1.0} for colour in COLOUR_NAMES],
    "text": [*({word: 1.0, "text": 0.4} for word in WORDS), {"text": 0.4, "number": 0.8}],
    **{f"digit{i}": [{digit: 1.0} for digit in "0123456789"] for i in (1, 2, 3)},
    "background": [{colour: 0.5, "background": 0.3} for colour in BACKGROUNDS],
}


def word_shares(tokenizer: Tokenizer, values: Sequence[dict[str, float]], size: int) -> Tensor:
    """For each value of a field, the weight of each id in the words for it: [size, vocabulary]."""
    shares = torch.zeros(size, tokenizer.vocab_size)
    space = tokenizer.model.piece_to_id("\u2581")
    for value, words in enumerate(values, 1):
        for text, weight in words.items():
            ids = [i for i in tokenizer.text(text if text.isdigit() else f" {text}") if i != space]
            for i in ids:
                shares[value, i] += weight / len(ids)
    return shares


def tokenizer_folder(folder: Path) -> Path:
    """The tokenizer's folder in a run: a copy of the one in `pocket/vocabulary`, whose ids the sizes in `sizes.py` are for."""
    out = folder / "tokenizer"
    if not out.exists():
        # Stages that start together race.
        copy = Path(tempfile.mkdtemp(dir=folder))
        shutil.copytree(VOCABULARY, copy, dirs_exist_ok=True)
        try:
            copy.rename(out)
        except OSError:
            shutil.rmtree(copy)
    return out


def main(folder: Path, steps: int | None = None) -> None:
    torch.manual_seed(SEED)
    run = Run("language", folder)
    tokenizer = tokenizer_folder(folder)
    model, scene_tokens = Mgm().to(DEVICE), SceneTokens(POCKET.language.hidden_size, Tokenizer(tokenizer)).to(DEVICE)
    language = model.language
    recipe = data.Recipe()
    named = [*language.named_parameters(), *((f"told_embed.{n}", p) for n, p in scene_tokens.named_parameters())]
    optimiser = Muon(named, rate=0.005, adam_rate=7e-4)
    compile_layers(*language.layers)

    def visual(batch: data.Batch) -> Tensor:
        return scene_tokens(batch.cells.to(DEVICE), batch.offsets.to(DEVICE), language.embed_tokens.weight)

    def loss_of(batch: data.Batch) -> dict[str, Tensor]:
        found = read(model, batch, visual(batch))
        # Questions are mostly about what is there, so predicting questions trains recognition too.
        questions = found.each[~found.answer].mean()
        return {"loss": found.each[found.answer].mean(), "questions": 0.25 * questions, "looks": 0.3 * found.looks}

    def evaluate() -> dict[str, float]:
        held = data.Recipe(held_out=True, text_only=0.0)
        return accuracy(model, data.batches(tokenizer, held, 32, 0, SEED, count=2), visual)

    fit(
        run,
        steps or STEPS,
        {"language": language, "told": scene_tokens},
        optimiser,
        lambda first: data.batches(tokenizer, recipe, BATCH, first, SEED),
        loss_of,
        evaluate,
    )
