"""Every size of the model, in one place. Names are those of the released configurations."""

from dataclasses import dataclass

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_FOLDER = "OpenAI/clip-vit-pocket"
CONVNEXT_FOLDER = "OpenAI/openclip-convnext-pocket"
IMAGE_SIDE = 128  # the side of generated images


@dataclass(frozen=True)
class ClipSizes:
    """The low-resolution tower: 8 x 8 tokens of a view of 64 x 64 pixels."""

    image_size: int = 64
    patch_size: int = 8
    hidden_size: int = 192
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 3  # heads of 64, as every CLIP has

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ConvNextSizes:
    """The high-resolution tower, on a view of three times the side."""

    image_size: int = 192
    depths: tuple[int, ...] = (1, 1, 3, 2)
    widths: tuple[int, ...] = (32, 64, 128, 256)

    @property
    def channels(self) -> int:
        return sum(self.widths)


@dataclass(frozen=True)
class LanguageSizes:
    """The language model: Llama's architecture."""

    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 5
    num_heads: int = 4
    vocab_size: int = 1397
    max_positions: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class Sizes:
    """The whole Mini-Gemini."""

    clip: ClipSizes = ClipSizes()
    convnext: ConvNextSizes = ConvNextSizes()
    language: LanguageSizes = LanguageSizes()


POCKET = Sizes()
