"""The vision side: CLIP ViT, ConvNeXt, patch info mining and the projector. Parameters have the names and shapes of the
released checkpoints, so that a state dict can be exported as it is.

The layers are standard; they are implemented here because both towers must be fast on a CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sizes import ClipSizes, ConvNextSizes

# --- the low-resolution tower ---


class ClipAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            project(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, width))


class ClipMlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # QuickGELU


class ClipLayer(nn.Module):
    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.self_attn = ClipAttention(width, sizes.num_heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = ClipMlp(width, sizes.intermediate_size)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipEmbeddings(nn.Module):
    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, sizes.patch_size, sizes.patch_size, bias=False)
        self.position_embedding = nn.Embedding(sizes.grid**2 + 1, width)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1).to(patches.dtype), patches], dim=1)
        return x + self.position_embedding.weight


class ClipModel(nn.Module):
    """`vision_model` in checkpoints."""

    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(sizes)
        self.pre_layrnorm = nn.LayerNorm(sizes.hidden_size)  # the checkpoints' spelling
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(ClipLayer(sizes) for _ in range(sizes.num_layers))})
        self.post_layernorm = nn.LayerNorm(sizes.hidden_size)  # released, unused


class ClipVit(nn.Module):
    """Pixels [n, 3, side, side] -> features of the patches [n, grid * grid, width], from the last layer, not normalised."""

    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.vision_model = ClipModel(sizes)

    def forward(self, pixels: Tensor) -> Tensor:
        model = self.vision_model
        x = model.pre_layrnorm(model.embeddings(pixels))
        for layer in model.encoder["layers"]:
            x = layer(x)
        return x[:, 1:]


# --- the high-resolution tower ---


class Depthwise(torch.autograd.Function):
    """A depthwise 7 x 7 convolution. On CPUs its backward pass as matrix products takes a third of the library's time."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=3, groups=len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        channels, (batch, _, height, width) = len(weight), x.shape
        grad = grad.contiguous()
        grad_x = F.conv2d(grad, weight.to(x.dtype).flip(2, 3), padding=3, groups=channels)
        padded = F.pad(x, (3, 3, 3, 3)).transpose(0, 1)
        columns = grad.transpose(0, 1).reshape(channels, batch * height, width)
        taps = []
        for dy in range(7):
            rows = padded[:, :, dy : dy + height].reshape(channels, batch * height, width + 6)
            products = torch.bmm(rows.transpose(1, 2), columns)
            taps.append(torch.stack([products.diagonal(-dx, 1, 2).float().sum(-1) for dx in range(7)], dim=-1))
        grad_weight = torch.stack(taps, dim=1).unsqueeze(1).to(weight.dtype)
        return grad_x, grad_weight, grad.float().sum((0, 2, 3)).to(weight.dtype)


class DepthwiseConv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=3, groups=len(self.weight))
        return Depthwise.apply(x, self.weight, self.bias)


class ConvNextMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ConvNextBlock(nn.Module):
    """Channels last: x + gamma * mlp(norm(depthwise(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.1))
        self.conv_dw = DepthwiseConv(width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = ConvNextMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
        return x + (self.mlp(self.norm(y)) * self.gamma).to(x.dtype)


class PatchConv(nn.Module):
    """A convolution whose stride is its side, as one matrix product; the parameters are a convolution's. Channels last."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, side, side)
        self.side, self.weight, self.bias = side, convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        s = self.side
        patches = x.reshape(batch, height // s, s, width // s, s, channels).permute(0, 1, 3, 5, 2, 4)
        return F.linear(patches.reshape(batch, height // s, width // s, -1), self.weight.flatten(1), self.bias)


class ConvNextStage(nn.Module):
    def __init__(self, inputs: int | None, width: int, depth: int) -> None:
        super().__init__()
        if inputs:
            self.downsample = nn.ModuleList([nn.LayerNorm(inputs, eps=1e-6), PatchConv(inputs, width, 2)])
        self.blocks = nn.ModuleList(ConvNextBlock(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in getattr(self, "downsample", ()):
            x = layer(x)
        for block in self.blocks:
            x = block(x)
        return x


class ConvNext(nn.Module):
    """Pixels [n, 3, side, side] -> the raw outputs of the four stages, channels last, at strides of 4, 8, 16 and 32."""

    def __init__(self, sizes: ConvNextSizes) -> None:
        super().__init__()
        widths = sizes.widths
        self.stem = nn.ModuleList([PatchConv(3, widths[0], 4), nn.LayerNorm(widths[0], eps=1e-6)])
        inputs = (None, *widths[:-1])
        self.stages = nn.ModuleList(ConvNextStage(*each) for each in zip(inputs, widths, sizes.depths))
        for module in self.modules():
            if isinstance(module, nn.Linear | PatchConv):
                nn.init.trunc_normal_(module.weight, std=0.5 / module.weight[0].numel() ** 0.5)
                nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = pixels.permute(0, 2, 3, 1)
        for layer in self.stem:
            x = layer(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


# --- mining and projector ---


def bilinear(x: Tensor, side: int) -> Tensor:
    """Resizes maps [n, h, w, channels] with two matmuls: PyTorch's backward pass took a sixth of a training step."""
    eye = torch.eye(x.shape[1], device=x.device)[None]
    weights = F.interpolate(eye, size=side, mode="linear", align_corners=False)[0].to(x.dtype)
    return torch.einsum("nhwc,hy,wx->nyxc", x, weights, weights)


class Mining(nn.Module):
    """Patch info mining (Mini-Gemini, section 3.2). Each low-resolution token has one query and attends over the cells of the
    high-resolution map that lie under it. The projections of keys and values are folded out of the cells, which changes
    nothing in real arithmetic: q . (W_k f + b_k) = (W_k^T q) . f + what the softmax cancels."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(low), nn.Linear(low, low))
        self.aux = nn.Sequential(nn.LayerNorm(high), nn.Linear(high, low))
        self.val = nn.Sequential(nn.LayerNorm(high), nn.Linear(high, low))

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """x [n, tokens, low], maps of four strides -> the mined residual of each token [n, tokens, low]."""
        batch, tokens, low = x.shape
        grid = int(tokens**0.5)
        side = maps[0].shape[1]
        window = side // grid
        cells = torch.cat([maps[0], *(bilinear(stage, side) for stage in maps[1:])], dim=-1)
        width = cells.shape[-1]
        cells = cells.reshape(batch, grid, window, grid, window, width).permute(0, 1, 3, 2, 4, 5)
        cells = cells.reshape(batch, tokens, window * window, width)
        normed = F.layer_norm(cells.float(), (width,), None, None, 1e-5).to(cells.dtype)

        q = self.query(x)
        (key_norm, key), (value_norm, value) = self.aux, self.val
        folded = (q @ key.weight.to(q.dtype)) * key_norm.weight / low**0.5
        score = torch.einsum("ntc,ntmc->ntm", folded.to(normed.dtype), normed)
        pooled = torch.einsum("ntm,ntmc->ntc", score.float().softmax(-1).to(normed.dtype), normed)
        return value(pooled * value_norm.weight + value_norm.bias)


def low_view(high: Tensor, side: int) -> Tensor:
    """The low-resolution view, made from the high-resolution one without antialiasing, as the released program does it."""
    return F.interpolate(high, size=(side, side), mode="bilinear", align_corners=False)


class Vision(nn.Module):
    """Maps two views of an image to visual tokens in the language model's embedding space."""

    def __init__(self, clip: ClipSizes, convnext: ConvNextSizes, hidden_size: int) -> None:
        super().__init__()
        self.clip = ClipVit(clip)
        self.convnext = ConvNext(convnext)
        self.mining = Mining(clip.hidden_size, convnext.channels)
        self.projector = nn.Sequential(
            nn.Linear(clip.hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )

        nn.init.normal_(self.projector[2].weight, std=0.005)  # word embeddings are small

    def features(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's features plus the mined residual."""
        x = self.clip(low)
        return x, self.mining(x, self.convnext(high))

    def forward(self, low: Tensor, high: Tensor, keep: Tensor | None = None) -> Tensor:
        """`keep` [n]: 0 for images whose high-resolution branch is switched off."""
        x, mined = self.features(low, high)
        if keep is not None:
            mined = mined * keep[:, None, None].to(mined.dtype)
        return self.projector(x + mined)
