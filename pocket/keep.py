"""Puts a run's stages into a folder in f16, without their optimisers' states, and back: what to carry to another machine.

    python -m pocket.keep save FOLDER [--run RUN] [--stages language clip]
    python -m pocket.keep restore FOLDER [--run RUN]

Finished stages stay finished; others go on at their step, with new momenta. The log comes along."""

import argparse
import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .train import NEEDS


def save(run: Path, folder: Path, stages: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        path = run / f"{stage}.pt"
        if path.exists():
            state = torch.load(path, weights_only=False, map_location="cpu")
            modules = {name: value for name, value in state.items() if name not in ("step", "optimiser")}
            tensors = {
                f"{module}/{name}": value.half().contiguous() if value.is_floating_point() else value.contiguous()
                for module, values in modules.items()
                for name, value in values.items()
            }
            done = (run / f"{stage}.done").exists()
            metadata = {"step": str(state["step"]), "done": str(int(done))}
            save_file(tensors, folder / f"{stage}.safetensors", metadata)
    copy(run, folder)


def restore(run: Path, folder: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.safetensors")):
        stage = path.stem
        if stage not in NEEDS:
            raise SystemExit(f"{path}: there is no stage {stage}")
        if not (run / f"{stage}.pt").exists():
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                state: dict = {"step": int(metadata["step"])}
                for key in file.keys():
                    module, name = key.split("/", 1)
                    tensor = file.get_tensor(key)
                    state.setdefault(module, {})[name] = tensor.float() if tensor.is_floating_point() else tensor
            torch.save(state, run / f"{stage}.pt")
            if metadata["done"] == "1":
                (run / f"{stage}.done").touch()
    copy(folder, run)


def copy(source: Path, target: Path) -> None:
    if (source / "log.jsonl").exists():
        shutil.copy(source / "log.jsonl", target / "log.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("save", "restore"))
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--stages", nargs="+", choices=tuple(NEEDS), default=tuple(NEEDS), help="to save [default: all]"
    )
    parser.add_argument("--run", type=Path, default=Path(os.environ.get("POCKET_RUN", "pocket-run")))
    arguments = parser.parse_args()
    if arguments.action == "save":
        save(arguments.run, arguments.folder, arguments.stages)
    else:
        restore(arguments.run, arguments.folder)


if __name__ == "__main__":
    main()
