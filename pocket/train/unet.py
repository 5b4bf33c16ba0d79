"""Trains the UNet and both text encoders to remove noise from latents, given the prompt."""

import copy
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from ..models.image_model import (
    LATENT,
    NEGATIVE,
    SCHEDULE,
    SIDE,
    ImageModel,
    as_image,
    as_tensor,
    ids_of,
    load_tokenizer,
    make_vae,
    train_tokenizer,
)
from ..nearest import nearest
from ..world import drawings
from ..world.things import COLOUR_NAMES, KINDS
from .common import DEVICE, Muon, Run, fit, load_stage, mixed
from .vae import scale_of

STEPS, BATCH, SEED = 6500, 32, 6
LATENTS = 24_000
AVERAGE = 0.999  # of the moving average of the weights


def tokenizer_folder(folder: Path) -> Path:
    out = folder / "clip-tokenizer"
    if not (out / "vocab.json").exists():
        corpus = [drawings.draw(random.Random(i)).prompt for i in range(4000)]
        corpus += [f"{colour} {kind.name}" for kind in KINDS for colour in COLOUR_NAMES] + [NEGATIVE] * 20
        train_tokenizer(corpus, out)
    return out


def trained_vae(folder: Path) -> AutoencoderKL:
    vae = make_vae().to(DEVICE)
    vae.load_state_dict(load_stage(folder, "vae")["vae"])
    vae.requires_grad_(False).eval()
    vae.register_to_config(scaling_factor=round(scale_of(vae), 4))
    return vae


def latents(folder: Path, vae: AutoencoderKL) -> tuple[Tensor, list[str]]:
    """Scaled latents of drawings and their prompts, cached on disk, since images repeat."""
    path = folder / "latents.pt"
    weights = b"".join(value.cpu().numpy().tobytes() for value in vae.state_dict().values())
    made_by = f"{hashlib.sha256(weights).hexdigest()} {vae.config.scaling_factor}"
    if path.exists():
        stored = torch.load(path, weights_only=False)
        if stored.get("vae") == made_by:
            return stored["latents"], stored["prompts"]
    found, prompts = [], []
    with torch.no_grad(), mixed():
        for first in range(0, LATENTS, 32):
            shown = []
            for number in range(first, first + 32):
                rng = random.Random(number + SEED * (1 << 32))
                drawing = drawings.draw(rng)
                prompts.append(drawing.prompt)
                shown.append(drawings.picture(drawing, SIDE, rng))
            mean = vae.encode(as_tensor(shown).to(DEVICE)).latent_dist.mean
            found.append((mean * vae.config.scaling_factor).half().cpu())
    temporary = path.with_suffix(".tmp")
    torch.save({"latents": torch.cat(found), "prompts": prompts, "vae": made_by}, temporary)
    temporary.replace(path)
    return torch.cat(found), prompts


def trained_image_model(folder: Path) -> tuple[ImageModel, CLIPTokenizer]:
    tokenizer = load_tokenizer(tokenizer_folder(folder))
    image_model = ImageModel(len(tokenizer)).to(DEVICE)
    image_model.load_state_dict(load_stage(folder, "unet")["average"])
    return image_model.eval(), tokenizer


@torch.no_grad()
def generate(image_model: ImageModel, vae: AutoencoderKL, ids: Tensor, steps: int, guidance: float, seed: int) -> Tensor:
    """Images [n, 3, side, side] of -1..1 for prompts' ids, with guidance against the empty prompt."""
    with mixed():
        scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False)
        scheduler.set_timesteps(steps)
        context, pooled = image_model.conditions(ids)
        context = torch.cat([torch.zeros_like(context), context])
        pooled = torch.cat([torch.zeros_like(pooled), pooled])
        x = torch.randn(len(ids), 4, LATENT, LATENT, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        for time in scheduler.timesteps:
            without, with_text = image_model.noise(torch.cat([x, x]), time, context, pooled).chunk(2)
            x = scheduler.step(without + guidance * (with_text - without), time, x).prev_sample
        picture = vae.decode(x / vae.config.scaling_factor).sample
    return picture.float().clamp(-1, 1)


def main(folder: Path, steps: int | None = None) -> None:
    torch.manual_seed(SEED)
    run = Run("unet", folder)
    tokenizer = load_tokenizer(tokenizer_folder(folder))
    vae = trained_vae(folder)
    stored, prompts = latents(folder, vae)
    ids, negative = ids_of(tokenizer, prompts), ids_of(tokenizer, [NEGATIVE])
    image_model = ImageModel(len(tokenizer)).to(DEVICE)
    if DEVICE.type == "cpu":
        # PyTorch's fused attention has a slow backward pass at 256 positions: a step takes a fifth less time without.
        image_model.unet.set_attn_processor(AttnProcessor())
    average = copy.deepcopy(image_model).requires_grad_(False).eval()
    optimiser = Muon(image_model.named_parameters(), rate=0.005, adam_rate=7e-4, convolutions=True)
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod

    def batches(first: int) -> Iterator[tuple[Tensor, ...]]:
        step = first
        while True:
            generator = torch.Generator().manual_seed(SEED * (1 << 20) + step)
            chosen = torch.randint(len(stored), (BATCH,), generator=generator)
            yield (
                stored[chosen].float(), ids[chosen], torch.randint(0, 1000, (BATCH,), generator=generator),
                torch.randn(BATCH, *stored.shape[1:], generator=generator), torch.rand(BATCH, generator=generator),
            )  # fmt: skip
            step += 1

    def loss_of(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        clean, text, times, noise, drop = (each.to(DEVICE) for each in batch)
        # Some are unconditional, for guidance. Half of these get the usual negative prompt.
        text = torch.where(((drop >= 0.06) & (drop < 0.12))[:, None], negative.to(DEVICE), text)
        context, pooled = image_model.conditions(text)
        prompted = (drop >= 0.06).to(context.dtype)
        alpha = alphas.to(DEVICE)[times][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        guess = image_model.noise(noisy, times, context * prompted[:, None, None], pooled * prompted[:, None]).float()
        signal = (alpha / (1 - alpha)).flatten()
        weight = signal.clamp(max=5) / signal  # min-SNR: nearly clean latents teach little
        return {"noise": (weight * (guess - noise).square().mean((1, 2, 3))).mean() * 3}

    @torch.no_grad()
    def after_step(step: int) -> None:
        keep = min(AVERAGE, (step + 1) / (step + 10))
        for mine, new in zip(average.parameters(), image_model.parameters()):
            mine.lerp_(new, 1 - keep)

    def evaluate() -> dict[str, float]:
        wanted = [drawings.draw(random.Random(i), held_out=i % 2 == 0) for i in range(16)]
        text = ids_of(tokenizer, [drawing.prompt for drawing in wanted]).to(DEVICE)
        made = generate(average, vae, text, steps=15, guidance=4.0, seed=1)
        sheet = Image.new("RGB", (8 * SIDE, 4 * SIDE))
        right = 0
        for i, drawing in enumerate(wanted):
            at = (i % 8 * SIDE, i // 8 * 2 * SIDE)
            sheet.paste(drawings.picture(drawing, SIDE), at)
            sheet.paste(as_image(made[i]), (at[0], at[1] + SIDE))
            right += nearest(made[i], drawing.background).shows(drawing)
        sheet.save(folder / "unet.png")
        return {"nearest image is the one asked for": right / len(wanted)}

    fit(run, steps or STEPS, {"painter": image_model, "average": average}, optimiser, batches, loss_of, evaluate, 500,
        after_step=after_step)  # fmt: skip
