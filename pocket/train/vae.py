"""The autoencoder between 128 x 128 images and 16 x 16 latents."""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from ..models.image_model import SIDE, as_image, as_tensor, make_vae
from ..world import drawings
from ..world.scene import draw_scene, render
from .common import DEVICE, Muon, Run, fit

STEPS, BATCH, SEED = 1800, 12, 5


def sample(number: int) -> Image.Image:
    """Mostly drawings; one in eight is a scene of several things."""
    rng = random.Random(number)
    if rng.random() < 0.125:
        return render(draw_scene(number, count=rng.randint(1, 3), labels=0), SIDE)
    return drawings.picture(drawings.draw(rng), SIDE, rng)


def pictures(first: int, seed: int) -> Iterator[Tensor]:
    while True:
        start = seed * (1 << 32) + first * BATCH
        yield as_tensor([sample(start + i) for i in range(BATCH)])
        first += 1


def reconstruction_loss(guess: Tensor, target: Tensor) -> Tensor:
    """Absolute error of pixels, of their differences to neighbours, which keeps edges sharp, and of means over 4 x 4 pixels: without
    these, colours are learnt late."""
    loss = F.l1_loss(guess, target)
    for dim in (2, 3):
        loss = loss + F.l1_loss(guess.diff(dim=dim), target.diff(dim=dim))
    return loss + 2 * F.l1_loss(F.avg_pool2d(guess, 4), F.avg_pool2d(target, 4))


@torch.no_grad()
def scale_of(vae: AutoencoderKL, batches: int = 8) -> float:
    """One over the latents' standard deviation."""
    latents = [vae.encode(next(pictures(i, 99)).to(DEVICE)).latent_dist.mean for i in range(batches)]
    return 1 / float(torch.cat(latents).std())


def main(folder: Path, steps: int | None = None) -> None:
    torch.manual_seed(SEED)
    run = Run("vae", folder)
    vae = make_vae().to(DEVICE)
    optimiser = Muon(vae.named_parameters(), rate=0.008, adam_rate=1e-3, convolutions=True)

    def loss_of(batch: Tensor) -> dict[str, Tensor]:
        batch = batch.to(DEVICE)
        posterior = vae.encode(batch).latent_dist
        guess = vae.decode(posterior.sample()).sample
        return {"picture": reconstruction_loss(guess.float(), batch), "spread": 2e-5 * posterior.kl().mean() / 16}

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        rng = random.Random(7)
        target = as_tensor([drawings.picture(drawings.draw(rng, held_out=True), SIDE, rng) for _ in range(16)]).to(
            DEVICE
        )
        guess = vae.decode(vae.encode(target).latent_dist.mean).sample
        sheet = Image.new("RGB", (16 * SIDE, 2 * SIDE))
        for i in range(16):
            sheet.paste(as_image(target[i]), (i * SIDE, 0))
            sheet.paste(as_image(guess[i]), (i * SIDE, SIDE))
        sheet.save(folder / "vae.png")
        return {
            "psnr": round(float(10 * torch.log10(4 / F.mse_loss(guess, target))), 2),
            "scale": round(scale_of(vae, 2), 3),
        }

    fit(run, steps or STEPS, {"vae": vae}, optimiser, lambda first: pictures(first, SEED), loss_of, evaluate, 300)
