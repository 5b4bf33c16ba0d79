"""Generates training images for instruction tuning with the image model: they are blurred, slightly warped and textured, unlike
the generator's drawings.

Only images that the nearest-image check confirms are kept, and none of a held-out combination."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..models.image_model import DENOISING_STEPS, GUIDANCE, as_image, ids_of
from ..nearest import nearest
from ..world import drawings
from ..world.scene import BACKGROUNDS, Scene, Thing
from ..world.things import held_region, region
from . import STOPPED
from .common import DEVICE, Run, load_stage
from .unet import generate, trained_image_model, trained_vae

STEPS, BATCH, SEED = 50, 32, 7


def load_lessons(folder: Path) -> list[tuple[Scene, Image.Image]]:
    state = load_stage(folder, "lessons")
    pictures = state["pictures"].cpu().numpy()
    return [(scene_of(row), Image.fromarray(picture)) for row, picture in zip(state["rows"], pictures)]


def scene_of(row: dict) -> Scene:
    drawn = drawings.Drawing.of_row(row)
    thing = Thing(drawn.kind, drawn.colour, drawn.painted, row["x"], row["y"], row["size"], 0.0)
    return Scene((thing,), (), drawn.background or "white", seed=0)  # never rendered


def ground_of(picture: torch.Tensor) -> str:
    """The background whose colour is nearest to that of most of the border."""
    border = torch.cat([picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], dim=1)
    colour = (border.median(dim=1).values.cpu() + 1) * 127.5
    return min(BACKGROUNDS, key=lambda name: float((colour - torch.tensor(BACKGROUNDS[name])).norm()))


def main(folder: Path, steps: int | None = None) -> None:
    run, last = Run("lessons", folder), steps or STEPS
    (image_model, tokenizer), vae = trained_image_model(folder), trained_vae(folder)
    state = run.load() or {"step": 0, "rows": [], "pictures": torch.empty(0)}
    rows, pictures = state["rows"], list(state["pictures"].cpu()[: len(state["rows"])])
    for step in range(state["step"], last):
        first = SEED * (1 << 32) + step * BATCH
        wanted = [drawings.draw(random.Random(first + i)) for i in range(BATCH)]
        ids = ids_of(tokenizer, [drawing.prompt for drawing in wanted]).to(DEVICE)
        for drawing, picture in zip(wanted, generate(image_model, vae, ids, DENOISING_STEPS, GUIDANCE, seed=first)):
            found = nearest(picture, drawing.background)
            plain = ground_of(picture) == (drawing.background or "white")
            if plain and found.shows(drawing) and not held_region(drawing.kind.name, region(found.x, found.y)):
                rows.append(drawing.row() | {"size": found.size, "x": found.x, "y": found.y})
                pictures.append(torch.from_numpy(np.array(as_image(picture))))
        run.log(step=step + 1, of=last, kept=len(rows), painted=(step + 1) * BATCH)
        if run.due() or step + 1 == last:
            run.save(step=step + 1, rows=rows, pictures=torch.stack(pictures or [torch.empty(0)]))
            if run.stop:
                raise SystemExit(STOPPED)
    if not rows:
        raise SystemExit("none of the images shows what was asked for: train `unet` for longer")
    run.finish()
