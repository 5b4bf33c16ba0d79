"""The image model: Stable Diffusion XL's architecture at 128 x 128 pixels, built from the classes of diffusers and transformers,
with a small CLIP tokenizer."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..sizes import IMAGE_SIDE

SIDE, LATENT = IMAGE_SIDE, 16
POSITIONS = 24
MERGES = 700
# The start of the negative prompt of conversations; the text encoders have no room for more.
NEGATIVE = (
    "out of frame, lowres, text, error, cropped, worst quality, low quality, jpeg artifacts, ugly, duplicate, morbid, "
    "mutilated, out of frame, extra fingers, mutated hands, poorly drawn hands, poorly drawn face, mutation, deformed, blurry"
)
# As in `make run` and the demo page.
DENOISING_STEPS, GUIDANCE = 20, 5.0
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1,
}  # fmt: skip


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=1.0,  # measured after its training
        force_upcast=False,
    )


def make_text_encoders(vocab_size: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """The UNet attends to the last but one layer of both."""
    shared = {
        "vocab_size": vocab_size, "max_position_embeddings": POSITIONS, "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1, "pad_token_id": vocab_size - 1,
    }  # fmt: skip
    first = CLIPTextConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, hidden_act="quick_gelu",
        projection_dim=64, **shared)  # fmt: skip
    second = CLIPTextConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=3, hidden_act="gelu", projection_dim=96,
        **shared)  # fmt: skip
    return CLIPTextModel(first), CLIPTextModelWithProjection(second)


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 3, 4),
        norm_num_groups=16,
        cross_attention_dim=160,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=96 + 6 * 8,
        use_linear_projection=True,
    )


class ImageModel(nn.Module):
    """Text encoders and UNet, which are trained together."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = make_text_encoders(vocab_size)
        self.unet = make_unet()

    def conditions(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [n, positions] -> the UNet's context and the pooled text."""
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds

    def noise(self, latents: Tensor, times: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        sizes = torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE], device=latents.device, dtype=pooled.dtype)
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(latents), -1)}
        return self.unet(latents, times, encoder_hidden_states=context, added_cond_kwargs=added).sample


def as_tensor(images: list[Image.Image]) -> Tensor:
    """[n, 3, side, side] of -1..1."""
    return (
        torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1
    )


def as_image(pixels: Tensor) -> Image.Image:
    values = (pixels.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(values.cpu().numpy())


# --- the tokenizer ---


def _byte_letters() -> list[str]:
    """GPT-2's letters for the 256 bytes, in the order of CLIP's vocabulary."""
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    return list(bytes_to_unicode().values())


def train_tokenizer(corpus: list[str], folder: Path) -> None:
    """`vocab.json` and `merges.txt` of lower-case byte pairs with </w> at word ends, as CLIP's."""
    words = Counter(word for line in corpus for word in line.lower().replace(",", " ,").split())
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word, parts in split.items():
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            split[word] = merged
    letters = _byte_letters()
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges) + "\n")


def ids_of(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """[n, positions]"""
    return torch.tensor(tokenizer(prompts, padding="max_length", truncation=True).input_ids)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=POSITIONS, pad_token="<|endoftext|>"
    )


def pipeline(image_model: ImageModel, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionXLPipeline:
    """diffusers' pipeline of the components; `save_pretrained` writes the released layout."""
    return StableDiffusionXLPipeline(
        vae, image_model.text_encoder, image_model.text_encoder_2, tokenizer, tokenizer, image_model.unet,
        EulerDiscreteScheduler(**SCHEDULE), add_watermarker=False)  # fmt: skip
