"""The whole model, and its greedy answers."""

import torch
from torch import Tensor, nn

from ..sizes import POCKET
from .language import LanguageModel
from .vision import Vision, low_view

LIMIT = 64  # maximum number of ids of an answer


class Mgm(nn.Module):
    """Both towers, mining, projector and language model."""

    def __init__(self) -> None:
        super().__init__()
        self.language = LanguageModel(POCKET.language)
        self.vision = Vision(POCKET.clip, POCKET.convnext, POCKET.language.hidden_size)

    def see(self, high: Tensor, keep: Tensor | None = None) -> Tensor:
        """High-resolution views [n, 3, S, S] -> visual tokens [n, tokens, hidden]."""
        return self.vision(low_view(high, POCKET.clip.image_size), high, keep)

    def embed(self, ids: Tensor) -> Tensor:
        return self.language.embed_tokens(ids)

    @torch.no_grad()
    def greedy(self, pieces: list[Tensor], stop: int) -> list[int]:
        """The answer to a prompt given as pieces of embeddings [length, hidden]."""
        caches: list[list] = [[] for _ in self.language.layers]
        hidden = self.language(torch.cat(pieces)[None].float(), caches)
        answer: list[int] = []
        while len(answer) < LIMIT:
            best = int(self.language.logits(hidden[0, -1]).argmax())
            answer.append(best)
            if best == stop:
                break
            hidden = self.language(self.embed(torch.tensor([[best]], device=hidden.device)), caches)
        return answer
