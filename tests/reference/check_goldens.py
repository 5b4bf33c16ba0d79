"""Compares golden cases with the reference implementations: python check_goldens.py CASE...

A case is a name in tests/goldens, whose weights are generated here, or the folder of a whole case, as `mgm-goldens` writes
it. Prints, for every tensor, the largest difference relative to the tensor's largest magnitude, and fails if one exceeds
1e-5 (and 1.5e-5 more for tensors in 16 bits) or a prompt, an id or a text differs.
"""

import json
import sys
from pathlib import Path

from mgm_reference import Reference, expected, load_expected
from random_weights import built
from sdxl_reference import sdxl_expected

BOUND = 1e-5


def compare(found, want):
    fine = found.keys() == want.keys()
    for name, (values, rounding) in sorted(want.items()):
        error = float((found[name] - values).abs().max() / values.abs().max())
        fine &= found[name].shape == values.shape and error <= BOUND + rounding
        print(f"  {name:28} {str(tuple(values.shape)):18} {error:.1e}")
    return fine


def equal(found, want, keys):
    differing = [key for key in keys if found[key] != want[key]]
    for key in differing:
        print(f"  {key} differs:\n    found    {found[key]!r}\n    expected {want[key]!r}")
    return not differing


def check(case):
    """`case` is the folder of a whole case."""
    meta = json.loads((case / "expected.json").read_text())
    want = load_expected(case / "expected.safetensors")
    print(f"{case.name}: {len(want)} tensors")
    if meta.get("model") == "sdxl":
        fields, found = sdxl_expected(case / "sdxl", meta, want["latents_initial"][0])
        return compare(found, want) & equal(fields, meta, fields)
    reference = Reference(case / meta["checkpoint"])
    questions = [turn["question"] for turn in meta["turns"]]
    turns, found = expected(reference, meta["family"], [case / name for name in meta["images"]], questions)
    for name in [name for name in want if name.endswith("_every_5")]:
        rows = found.pop(name.removesuffix("_every_5"))
        found[name] = rows.reshape(-1, rows.shape[-1])[::5]
    fine = compare(found, want)
    for turn, given in zip(turns, meta["turns"]):
        fine &= equal(turn, given, ("prompt", "input_ids", "n_embeds", "greedy_ids", "text"))
        print(f"  min_margin {turn['min_margin']:.6f}, given {given['min_margin']:.6f}")
    return fine


if __name__ == "__main__":
    failed = []
    for name in sys.argv[1:]:
        with built(Path(name) if Path(name).is_dir() else name) as folder:
            if not check(folder):
                failed.append(name)
    print("failed: " + ", ".join(failed) if failed else "all agree")
    sys.exit(bool(failed))
