"""Visual tokens and greedy ids of golden cases without the high-resolution branch: python make_low_resolution.py OUT_FOLDER

The projector takes CLIP's features as they are (no mining), the global tile's first. Writes low_resolution.safetensors
(every 29th token) and low_resolution.json (greedy ids of the first turn, and their least margin).
"""

import json
import sys
from pathlib import Path

import torch
from mgm_reference import Reference, Text
from random_weights import built
from safetensors.torch import save_file

CASES = ("vicuna-7b", "vicuna-7b-hd", "gemma-2b")
LENGTH = 8


def low_resolution(reference, family, images, turn):
    """(Every 29th visual token, the greedy ids of a turn about the only image and their least margin.)"""
    [image] = images
    _, low = reference.views(image)
    with torch.no_grad():
        hidden = reference.clip(low, output_hidden_states=True).hidden_states
        tiles = list(hidden[reference.config["mm_vision_select_layer"]][:, 1:])
        if reference.config.get("image_global", False):
            tiles.insert(0, tiles.pop())
        tokens = reference.project(torch.cat(tiles)[None])
    stop_ids = Text(family, reference.folder).stop_ids
    _, greedy, margin = reference.answer(turn["input_ids"], [tokens], stop_ids, LENGTH)
    return tokens[0, ::29].contiguous(), {"greedy_ids": greedy, "min_margin": margin}


def run(case):
    with built(case) as folder:
        meta = json.loads((folder / "expected.json").read_text())
        reference = Reference(folder / meta["checkpoint"])
        images = [folder / image for image in meta["images"]]
        return low_resolution(reference, meta["family"], images, meta["turns"][0])


if __name__ == "__main__":
    out = Path(sys.argv[1])
    results = {case: run(case) for case in CASES}
    save_file({case: tokens for case, (tokens, _) in results.items()}, out / "low_resolution.safetensors")
    turns = {case: turn for case, (_, turn) in results.items()}
    (out / "low_resolution.json").write_text(json.dumps(turns, indent=1) + "\n")
    print(turns)
