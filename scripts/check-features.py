#!/usr/bin/env python3
"""Checks that `cargo build`, `make test` and `make test-all` compile each dependency with the same features. Needs Python 3.9.

Where they differ, cargo compiles the dependency, and everything that depends on it, a second time: minutes for wgpu and naga.
tests/support/Cargo.toml turns on the features that are missing.
"""

import subprocess
import sys
from collections import defaultdict

BUILDS = {
    "cargo build": ["--edges", "normal,build"],
    "make test": ["--edges", "normal,build,dev"],
    "make test-all": ["--edges", "normal,build,dev", "--workspace", "--features", "mgm-cli/parquet"],
}


def features(options):
    """Package -> the sets of features with which it is compiled, without the packages of this workspace."""
    command = ["cargo", "tree", "--locked", "--prefix", "none", "--format", "{p}|{f}", *options]
    found = defaultdict(set)
    for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
        package, _, names = line.removesuffix(" (*)").partition("|")
        if package and not package.startswith("mgm-"):
            found[package].add(names)
    return found


first = features(BUILDS["cargo build"])
differing = False
for name, options in BUILDS.items():
    for package, sets in sorted(features(options).items()):
        if package in first and sets != first[package]:
            more = ", ".join(sorted({x for y in sets for x in y.split(",")} - {x for y in first[package] for x in y.split(",")}))
            print(f"{package}: {name} adds the features {more or 'of another combination'}; add them in tests/support/Cargo.toml")
            differing = True
sys.exit(differing)
