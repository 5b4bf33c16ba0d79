"""The whole model, and its greedy answers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sizes import POCKET, Sizes
from .language import LanguageModel
from .vision import Vision


class Mgm(nn.Module):
    """Both towers, mining, projector and language model."""

    def __init__(self, sizes: Sizes = POCKET) -> None:
        super().__init__()
        self.sizes = sizes
        self.language = LanguageModel(sizes.language)
        self.vision = Vision(sizes.clip, sizes.convnext, sizes.language.hidden_size)

    def see(self, high: Tensor, keep: Tensor | None = None) -> Tensor:
        """High-resolution views [n, 3, S, S] -> visual tokens [n, tokens, hidden]. The low-resolution view is made from the
        high-resolution one, without antialiasing, as the released program does it."""
        side = self.sizes.clip.image_size
        low = F.interpolate(high, size=(side, side), mode="bilinear", align_corners=False)
        return self.vision(low, high, keep)

    def embed(self, ids: Tensor) -> Tensor:
        return self.language.embed_tokens(ids)

    @torch.no_grad()
    def greedy(self, pieces: list[Tensor], stop: int, limit: int = 64) -> list[int]:
        """The answer to a prompt given as pieces of embeddings [length, hidden]."""
        caches: list[list] = [[] for _ in self.language.layers]
        hidden = self.language(torch.cat(pieces)[None].float(), caches)
        answer: list[int] = []
        while len(answer) < limit:
            best = int(self.language.logits(hidden[0, -1]).argmax())
            answer.append(best)
            if best == stop:
                break
            hidden = self.language(self.embed(torch.tensor([[best]], device=hidden.device)), caches)
        return answer
