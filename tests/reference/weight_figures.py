"""Figures of a few tensors of golden cases, as tests/readers/weights.rs compares them: python weight_figures.py [CASE ...]

For each tensor: the number of values, their sum, the sum of their absolute values, the first and the last.
"""

import json
import sys

from mgm_reference import read_weights
from random_weights import built

CASES = ("gemma-2b", "llama3-8b", "vicuna-7b", "vicuna-7b-hd")
CLIP = "OpenAI/clip-vit-large-patch14-336"
CONVNEXT = "OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup/open_clip_pytorch_model.bin"
TENSORS = (
    "model.embed_tokens.weight",
    "model.layers.2.mlp.down_proj.weight",
    "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.stages.2.blocks.1.mlp.fc1.weight",
    "model.vlm_uni_val_projector.1.weight",
)

if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        with built(case) as folder:
            checkpoint = json.loads((folder / "expected.json").read_text())["checkpoint"]
            weights = read_weights(folder / checkpoint) | read_weights(folder / CLIP) | read_weights(folder / CONVNEXT)
        print(case)
        for name in TENSORS:
            values = weights[name].double().flatten()
            figures = [len(values), *(float(x) for x in (values.sum(), values.abs().sum(), values[0], values[-1]))]
            print(f"            ({', '.join(map(repr, figures))}),")
