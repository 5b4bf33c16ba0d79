"""Compares golden cases with this folder's reference implementation: python check_goldens.py CASE_FOLDER...

Prints, for every tensor, the largest difference relative to the tensor's largest magnitude, and fails if one exceeds
1e-5 or a prompt, an id or a text differs.
"""

import json
import sys
from pathlib import Path

from mgm_reference import Reference, expected
from safetensors.torch import load_file

BOUND = 1e-5


def check(case):
    meta = json.loads((case / "expected.json").read_text())
    want = load_file(case / "expected.safetensors")
    reference = Reference(case / meta["checkpoint"])
    questions = [turn["question"] for turn in meta["turns"]]
    turns, found = expected(reference, meta["family"], [case / name for name in meta["images"]], questions)
    fine = found.keys() == want.keys()
    print(f"{case.name}: {len(want)} tensors, {len(turns)} turns")
    for name in sorted(want):
        error = float((found[name] - want[name]).abs().max() / want[name].abs().max())
        fine &= found[name].shape == want[name].shape and error <= BOUND
        print(f"  {name:28} {str(tuple(want[name].shape)):18} {error:.1e}")
    for turn, given in zip(turns, meta["turns"]):
        for key in ("prompt", "input_ids", "n_embeds", "greedy_ids", "text"):
            if turn[key] != given[key]:
                fine = False
                print(f"  {key} differs:\n    found    {turn[key]!r}\n    expected {given[key]!r}")
        print(f"  min_margin {turn['min_margin']:.6f}, given {given['min_margin']:.6f}")
    return fine


if __name__ == "__main__":
    results = {case: check(Path(case)) for case in sys.argv[1:]}
    failed = [case for case, fine in results.items() if not fine]
    print("failed: " + ", ".join(failed) if failed else "all agree")
    sys.exit(bool(failed))
