#!/usr/bin/env python3
"""Host time per token: `make host-time` (KERNELS.md, "Host time").

    host.py MGM [--model NAME] [--devices LIST]

Runs `mgm bench --synthetic` on real drivers over kernel interfaces that run nothing (benches/isa/chroot.py), so that every step takes just
the time of the host: recording, wgpu, the driver. Answers are meaningless. Needs root.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import chroot
import devices

# Long enough that attention splits its keys: the most dispatches a token.
PROMPT, TOKENS = 640, 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mgm", type=Path, help="the program, built with --release")
    parser.add_argument("--model", default="mgm-7b")
    parser.add_argument("--devices", default="navi31,dg2", metavar="LIST", help="[default: navi31,dg2]")
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("ISA_ROOT", "/tmp/sid")), help="the chroot [default: /tmp/sid]")
    options = parser.parse_args()
    chroot.make(options.root)
    program = options.root / "isa" / "bin" / "mgm"
    program.parent.mkdir(exist_ok=True)
    shutil.copy(options.mgm, program)
    print(f"{options.model} at q4, {TOKENS} tokens after {PROMPT}: milliseconds a token on the host")
    print(f"{'driver':<44} {'dispatches':>10} {'record, submit':>14} {'in all':>8}")
    for name in options.devices.split(","):
        command = ["/isa/bin/mgm", "bench", "--synthetic", options.model, "--precision", "q4", "--json"]
        command += ["--prefill", str(PROMPT), "--decode", str(TOKENS)]
        process = chroot.popen(options.root, devices.DEVICES[name], command)
        out, errors = process.communicate()
        if process.returncode:
            sys.exit(f"{name}: {errors}")
        report = json.loads(out)
        decode = next(part for part in report["parts"] if part["name"] == "decode")
        dispatches, total = decode["dispatches"] / decode["tokens"], decode["milliseconds"] / decode["tokens"]
        print(f"{report['adapter']:<44} {dispatches:>10.0f} {decode['host_ms_per_token']:>14.3f} {total:>8.3f}")


if __name__ == "__main__":
    main()
