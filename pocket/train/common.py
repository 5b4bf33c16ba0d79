"""What all stages share: the optimiser, the schedule, checkpoints, the log, held-out accuracy."""

import json
import os
import signal
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, splice
from ..models.mgm import Mgm
from ..tokenizer import IMAGE
from . import STOPPED

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def bf16() -> bool:
    """Whether matrix products are in bf16: on GPUs, and on CPUs where that is faster than f32. Measured, not asked: with AMX it is
    more than twice as fast, with AVX-512 BF16 twice as fast or half, and without either a fortieth."""
    if "POCKET_F32" in os.environ or DEVICE.type == "cuda":
        return "POCKET_F32" not in os.environ

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(384, 384, dtype=dtype)
        return min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=6))

    return seconds(torch.bfloat16) < seconds(torch.float32)


def mixed() -> torch.autocast | nullcontext:
    if not bf16():
        return nullcontext()
    return torch.autocast(DEVICE.type, torch.bfloat16)


def compile_layers(*layers: nn.Module) -> None:
    """Compiles the layers, which fuses the operations between matmuls: instruction tuning takes a fifth less time. `POCKET_EAGER`
    disables it, for machines without a C++ compiler."""
    if os.environ.get("POCKET_EAGER"):
        return
    torch._dynamo.config.recompile_limit = 64  # lengths, times training and evaluation, times watched and not
    for layer in layers:
        layer.compile(dynamic=False)


# --- the optimiser ---


def orthogonal(update: Tensor) -> Tensor:
    """The nearest matrix with singular values about 1, by five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.bfloat16() if bf16() else update
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of hidden layers, Adam for everything else: about half the steps of Adam alone."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        rate: float,
        adam_rate: float,
        decay: float = 0.02,
        scale: Callable[[str], float] = lambda _: 1.0,
        convolutions: bool = False,
    ) -> None:
        """`scale` reduces the learning rates of some parameters, by name. With `convolutions` kernels count as matrices [out, in * taps],
        except for those from or to pixels and latents."""
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in named:
            if parameter.requires_grad:
                matrix = parameter.dim() == 2 or (
                    convolutions and parameter.dim() == 4 and min(parameter.shape[:2]) > 8
                )
                hidden = matrix and not any(part in name for part in ("embed", "position", "head"))
                groups.setdefault((hidden, scale(name)), []).append(parameter)
        super().__init__(
            [
                {"params": parameters, "muon": hidden, "lr": 0.0, "base": (rate if hidden else adam_rate) * factor,
                 "decay": decay if hidden else 0.0}
                for (hidden, factor), parameters in sorted(groups.items(), key=lambda item: (not item[0][0], -item[0][1]))
            ],
            {},
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                grad, state = parameter.grad, self.state[parameter]
                if group["muon"]:
                    momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                    momentum.lerp_(grad, 0.05)
                    matrix = grad.lerp(momentum, 0.95).flatten(1)
                    scale = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
                    update = scale * orthogonal(matrix).view_as(parameter)
                else:
                    first = state.setdefault("first", torch.zeros_like(parameter))
                    second = state.setdefault("second", torch.zeros_like(parameter))
                    state["count"] = state.get("count", 0) + 1
                    first.lerp_(grad, 0.1)
                    second.lerp_(grad * grad, 0.02)
                    bias = (1 - 0.9 ** state["count"], 1 - 0.98 ** state["count"])
                    update = (first / bias[0]) / ((second / bias[1]).sqrt() + 1e-8)
                parameter.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"])

    def schedule(self, step: int, steps: int, warmup: int = 60) -> None:
        """Linear warm-up in `warmup` steps, constant, and decay to a twentieth in the last 40 %."""
        scale = min(1.0, (step + 1) / warmup) * min(1.0, max(0.05, (steps - step) / (0.4 * steps)))
        for group in self.param_groups:
            group["lr"] = group["base"] * scale


# --- runs ---


@dataclass
class Run:
    """A stage in progress: its folder, its log, its state."""

    stage: str
    folder: Path
    minutes: float = 4.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.saved = time.time()
        self.stop = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, *_: object) -> None:
        self.stop = True

    @property
    def path(self) -> Path:
        return self.folder / f"{self.stage}.pt"

    def log(self, **values: object) -> None:
        line = json.dumps({"stage": self.stage, "time": time.strftime("%H:%M:%S"), **values})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def save(self, **state: object) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)
        self.saved = time.time()

    def due(self) -> bool:
        return self.stop or time.time() - self.saved > 60 * self.minutes

    def load(self) -> dict | None:
        return torch.load(self.path, weights_only=False, map_location=DEVICE) if self.path.exists() else None

    def finish(self) -> None:
        (self.folder / f"{self.stage}.done").touch()


def load_stage(folder: Path, stage: str) -> dict:
    """The state of an earlier stage, finished or not."""
    path = folder / f"{stage}.pt"
    if not path.exists():
        raise SystemExit(f"stage {stage} comes first: {path} is missing; run `python -m pocket.train {stage}`")
    return torch.load(path, weights_only=False, map_location=DEVICE)


def fit(
    run: Run,
    steps: int,
    modules: dict[str, nn.Module],
    optimiser: Muon,
    batches: Callable[[int], Iterable[Any]],
    loss_of: Callable[[Any], dict[str, Tensor]],
    evaluate: Callable[[], dict[str, float]],
    evaluate_every: int = 150,
    log_every: int = 10,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Trains until `steps`, resuming the run. `loss_of` gives named losses; their sum is minimized."""
    first = 0
    state = run.load()
    if state:
        for name, module in modules.items():
            module.load_state_dict(state[name])
        rates = [group["base"] for group in optimiser.param_groups]
        optimiser.load_state_dict(state["optimiser"])
        for group, rate in zip(optimiser.param_groups, rates):
            group["base"] = rate  # as in the code, not as when the state was saved
        first = state["step"]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    sums: dict[str, float] = defaultdict(float)
    counted, since = 0, time.time()

    def save(step: int) -> None:
        run.save(step=step, optimiser=optimiser.state_dict(), **{n: m.state_dict() for n, m in modules.items()})

    for step, batch in zip(range(first, steps), batches(first)):
        optimiser.schedule(step, steps)
        with mixed():
            losses = loss_of(batch)
        total = sum(losses.values())
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if after_step:
            after_step(step)
        for name, value in losses.items():
            sums[name] += float(value.detach())
        counted += 1
        if (step + 1) % log_every == 0:
            seconds = (time.time() - since) / counted
            means = {name: round(value / counted, 4) for name, value in sums.items()}
            run.log(step=step + 1, of=steps, seconds=round(seconds, 3), **means)
            sums.clear()
            counted, since = 0, time.time()
        if (step + 1) % evaluate_every == 0 or step + 1 == steps:
            run.log(step=step + 1, held_out=evaluate())
            since = time.time()
        if run.due():
            save(step + 1)
            if run.stop:
                print(f"stopped at step {step + 1}; the same command goes on from there", flush=True)
                raise SystemExit(STOPPED)
    save(steps)
    run.finish()


# --- answers ---


@dataclass
class Read:
    """The language model's losses on a batch."""

    each: Tensor  # [m] cross entropy of each id after the first
    hit: Tensor  # [m] whether it was the most likely one
    answer: Tensor  # [m] whether it is part of an answer
    rows: Tensor  # [m]
    columns: Tensor  # [m]
    looks: Tensor  # attention loss of the supervised heads


def read(model: Mgm, batch: Batch, visual: Tensor, answers_only: bool = False, teach: bool = True) -> Read:
    ids = batch.ids.to(DEVICE)
    answers = batch.answers.to(DEVICE)
    sequence, went = splice(model.embed(ids.clamp(min=0)), ids, visual)
    watch: list[Tensor] | None = [] if teach else None
    hidden = model.language(sequence, watch=watch)
    wanted = answers if answers_only else ids > 0
    rows, columns = wanted.nonzero(as_tuple=True)
    rows, columns = rows[columns > 0], columns[columns > 0]
    logits = model.language.logits(hidden[rows, went[rows, columns] - 1])
    target = ids[rows, columns]
    each = F.cross_entropy(logits, target, reduction="none")
    looks = look_loss(watch, batch, ids, went) if watch else each.new_zeros(())
    return Read(each, logits.argmax(-1) == target, answers[rows, columns], rows, columns, looks)


def look_loss(watch: list[Tensor], batch: Batch, ids: Tensor, went: Tensor) -> Tensor:
    """The attention loss of the supervised heads: minus the logarithm of their weight on the target.

    A lookup by name takes two steps, from the name to the cell and from the start of the answer to what was found. Neither helps
    without the other, so that answers alone don't teach it within 1,300 steps."""
    looks = batch.looks
    rows, columns, cells = (x.to(DEVICE) for x in (looks.rows, looks.columns, looks.cells))
    if not len(rows):
        return went.new_zeros((), dtype=torch.float)
    image = (ids == IMAGE).int().argmax(1)[rows]
    spots = image[:, None] + torch.arange(cells.shape[1], device=DEVICE)
    weights = torch.stack(watch)[looks.depth.to(DEVICE), rows, :, went[rows, columns]]  # [m, heads, length]
    inside = weights.gather(2, spots[:, None].expand(-1, weights.shape[1], -1)).float() * cells[:, None]
    return -(inside.sum(-1) + 1e-3).log().mean()


def accuracy(model: Mgm, batches: Iterable[Batch], visual_of: Callable[[Batch], Tensor]) -> dict[str, float]:
    """Share of answers with every id correct, by kind of question. (Under greedy decoding an answer is exact if and
    only if every id of it is the most likely one after those before.)"""
    right: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    with torch.no_grad(), mixed():
        for batch in batches:
            found = read(model, batch, visual_of(batch), answers_only=True, teach=False)
            hit = torch.zeros(batch.ids.shape, dtype=torch.bool)
            hit[found.rows.cpu(), found.columns.cpu()] = found.hit.cpu()
            for row, turns in enumerate(batch.turns):
                for kind, start, end in turns:
                    count[kind] += 1
                    right[kind] += bool(hit[row, start:end].all())
    out = {kind: round(right[kind] / count[kind], 3) for kind in sorted(count)}
    world = [kind for kind in count if kind not in ("easy-vqa", "draw", "talk")]
    out["world"] = round(sum(right[k] for k in world) / max(1, sum(count[k] for k in world)), 4)
    out["questions"] = sum(count.values())
    return out
