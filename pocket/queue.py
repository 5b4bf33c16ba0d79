"""Runs all stages unattended, two at a time, each on one core, as soon as their inputs exist. A stage that runs alone gets all cores.

    nice -n 19 python -m pocket.queue [--run FOLDER] [--slots N] [--threads N]

It can be stopped (SIGTERM: the stages save and exit) and started again: finished stages are skipped, others resume."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .train import NEEDS, STOPPED

TRIES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path(os.environ.get("POCKET_RUN", "pocket-run")))
    parser.add_argument("--slots", type=int, default=2, help="stages at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each stage")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen] = {}
    failures: dict[str, int] = {}
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        for process in running.values():
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def done(stage: str) -> bool:
        return (arguments.run / f"{stage}.done").exists()

    while True:
        for stage, process in list(running.items()):
            if process.poll() is not None:
                del running[stage]
                if process.returncode not in (0, STOPPED):
                    failures[stage] = failures.get(stage, 0) + 1
                print(f"{time.strftime('%H:%M:%S')} {stage} ended with {process.returncode}", flush=True)
        ready = [
            stage
            for stage, needs in NEEDS.items()
            if not done(stage) and stage not in running and all(map(done, needs)) and failures.get(stage, 0) < TRIES
        ]
        starting = ready[: 0 if stopping else max(0, arguments.slots - len(running))]
        # The last stage runs alone.
        alone = len(starting) == 1 and not running
        for stage in starting:
            command = [sys.executable, "-m", "pocket.train", stage, "--run", str(arguments.run),
                       "--threads", str(arguments.threads * (arguments.slots if alone else 1))]  # fmt: skip
            with (arguments.run / f"{stage}.out").open("a") as output:
                running[stage] = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            print(f"{time.strftime('%H:%M:%S')} {stage} starts, process {running[stage].pid}", flush=True)
        if not running and (stopping or not ready):
            break
        time.sleep(2)
    left = [stage for stage in NEEDS if not done(stage)]
    if left and not stopping:
        raise SystemExit(f"not done: {', '.join(left)}; {arguments.run}/STAGE.out says why")


if __name__ == "__main__":
    main()
