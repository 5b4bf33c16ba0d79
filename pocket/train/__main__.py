"""python -m pocket.train STAGE [--run FOLDER] [--steps N]

NEEDS lists the stages. Run the same command again to resume a stage."""

import argparse
import os
from importlib import import_module
from pathlib import Path

import torch

from . import NEEDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=tuple(NEEDS))
    parser.add_argument("--run", type=Path, default=Path(os.environ.get("POCKET_RUN", "pocket-run")))
    parser.add_argument("--steps", type=int, help="instead of the stage's own number")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    import_module(f".{arguments.stage}", __package__).main(arguments.run, arguments.steps)


if __name__ == "__main__":
    main()
