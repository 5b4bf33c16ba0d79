"""The language model: a decoder of Llama's architecture with tied embeddings, with the names of released checkpoints."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sizes import LanguageSizes


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


def rotary_tables(positions: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, dim]; both halves are equal."""
    frequencies = theta ** -(torch.arange(0, dim, 2).float() / dim)
    angles = torch.arange(positions).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


# Layers whose first heads have supervised attention: on what a question names, then on what the answer is about.
TAUGHT_LAYERS, TAUGHT_HEADS = (1, 3), 2


def attend(q: Tensor, k: Tensor, v: Tensor, watch: list[Tensor] | None) -> Tensor:
    """Causal attention. PyTorch's on a GPU; on a CPU plain matmuls are three times as fast at these lengths.
    `watch` receives the weights of the supervised heads [batch, heads, length, length]."""
    if q.is_cuda and watch is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    batch, heads, length, dim = q.shape
    q, k, v = (x.reshape(batch * heads, length, dim) for x in (q * dim**-0.5, k, v))
    mask = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    weights = torch.baddbmm(mask.expand(batch * heads, length, length), q, k.transpose(1, 2)).softmax(-1)
    if watch is not None:
        watch.append(weights.view(batch, heads, length, length)[:, :TAUGHT_HEADS])
    return torch.bmm(weights.to(v.dtype), v).view(batch, heads, length, dim)


class Attention(nn.Module):
    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.heads = sizes.num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list | None, watch: list[Tensor] | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            project(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            cache[:] = [k, v]
        y = attend(q, k, v, watch) if length > 1 else F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = Mlp(sizes.hidden_size, sizes.intermediate_size)
        self.input_layernorm = RmsNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(sizes.hidden_size, sizes.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list | None, watch: list[Tensor] | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, watch)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Maps embeddings to hidden states; `logits` computes logits of selected states."""

    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.num_layers))
        self.norm = RmsNorm(sizes.hidden_size, sizes.rms_norm_eps)
        cos, sin = rotary_tables(sizes.max_positions, sizes.head_dim, sizes.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)  # layers start by adding nothing
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 if "embed" in name else parameter.shape[1] ** -0.5)

    def forward(
        self, embeddings: Tensor, caches: list[list] | None = None, watch: list[Tensor] | None = None
    ) -> Tensor:
        """`watch` receives the weights of the supervised heads, one tensor for each of `TAUGHT_LAYERS`."""
        start = caches[0][0].shape[2] if caches and caches[0] else 0
        span = slice(start, start + embeddings.shape[1])
        x = embeddings
        for index, layer in enumerate(self.layers):
            cache = caches[index] if caches is not None else None
            x = layer(x, self.cos[span], self.sin[span], cache, watch if index in TAUGHT_LAYERS else None)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight).float()
