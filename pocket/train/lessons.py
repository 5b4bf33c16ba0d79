"""Stage 6: the painter paints for the answering model, which comes after: what is painted is soft, a little bent and has a faint
texture, none of which the generator's own drawings are. Of things and colours in those Pocket told 92 %, in the same drawings painted
75 %, before it had seen any.

Only pictures that the nearest-picture check takes for what was asked are kept, and none of what is kept from training."""

import random
from pathlib import Path

import torch

from ..data import Lesson
from ..models.painter import Painter, load_tokenizer
from ..nearest import nearest
from ..world import drawings
from ..world.scene import novelty_of
from ..world.things import region
from . import STOPPED
from .common import DEVICE, Run, load_stage, mixed
from .paint import paint, tokenizer_folder, trained_vae
from .vae import as_image

COUNT, BATCH, SEED = 1600, 32, 7
STEPS, GUIDANCE = 20, 5.0  # as conversations draw


def main(folder: Path, steps: int | None = None) -> None:
    """`steps` is a number of batches."""
    run = Run("lessons", folder)
    tokenizer, vae = load_tokenizer(tokenizer_folder(folder)), trained_vae(folder)
    painter = Painter(len(tokenizer)).to(DEVICE)
    painter.load_state_dict(load_stage(folder, "paint")["average"])
    state = run.load() or {"step": 0, "lessons": []}
    lessons: list[Lesson] = state["lessons"]
    last = steps or COUNT // BATCH
    for step in range(state["step"], last):
        first = SEED * (1 << 32) + step * BATCH
        wanted = [drawings.draw(random.Random(first + i)) for i in range(BATCH)]
        ids = torch.tensor(tokenizer([d.prompt for d in wanted], padding="max_length", truncation=True).input_ids)
        with mixed():
            made = paint(painter, vae, ids.to(DEVICE), STEPS, GUIDANCE, seed=first).float().clamp(-1, 1)
        for drawing, picture in zip(wanted, made):
            found = nearest(picture, drawing.background)
            colour = drawing.colour if drawing.painted else None
            place = region(found.x, found.y)
            if (found.kind, found.colour) == (drawing.kind.name, colour) and not novelty_of(
                drawing.kind, drawing.colour, drawing.painted, place, []
            ):
                lessons.append(Lesson(drawing, found.size, found.x, found.y, as_image(picture)))
        run.log(step=step + 1, of=last, kept=len(lessons), painted=(step + 1) * BATCH)
        if run.due() or step + 1 == last:
            run.save(step=step + 1, lessons=lessons)
            if run.stop:
                raise SystemExit(STOPPED)
    run.finish()
