"""Exports a run's models as released checkpoints: the Mini-Gemini folder, both towers' folders next to it, and the image model
in diffusers' layout.

    python -m pocket.export RUN OUT [--part mgm|image-model]
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .models.mgm import Mgm
from .sizes import CLIP_FOLDER, CLIP_MEAN, CLIP_STD, CONVNEXT_FOLDER, POCKET
from .train.common import load_stage

MODEL_FOLDER = "Pocket"
IMAGE_MODEL_FOLDER = "sdxl"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def config_json() -> dict:
    """The model's `config.json` with every meaningful key of the released ones."""
    language = POCKET.language
    return {
        "architectures": ["MGMLlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "image_aspect_ratio": "pad",
        "image_global": False,
        "image_grid": 1,
        "image_grid_pinpoints": None,
        "image_size_aux": POCKET.convnext.image_size,
        "initializer_range": 0.02,
        "intermediate_size": language.intermediate_size,
        "max_position_embeddings": language.max_positions,
        "mm_hidden_size": POCKET.clip.hidden_size,
        "mm_hidden_size_aux": POCKET.convnext.channels,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -1,
        "mm_vision_tower": f"model_zoo/{CLIP_FOLDER}",
        "mm_vision_tower_aux": f"model_zoo/{CONVNEXT_FOLDER}",
        "model_type": "mgm",
        "num_attention_heads": language.num_heads,
        "num_hidden_layers": language.num_layers,
        "num_key_value_heads": language.num_heads,
        "optimize_vision_tower": True,
        "optimize_vision_tower_aux": True,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": language.rope_theta,
        "tie_word_embeddings": True,
        "tokenizer_model_max_length": language.max_positions,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float32",
        "transformers_version": "4.36.2",
        "use_cache": True,
        "vocab_size": language.vocab_size,
    }


def clip_config_json() -> dict:
    clip = POCKET.clip
    return {
        "architectures": ["CLIPVisionModel"],
        "attention_dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": clip.hidden_size,
        "image_size": clip.image_size,
        "intermediate_size": clip.intermediate_size,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": clip.num_heads,
        "num_channels": 3,
        "num_hidden_layers": clip.num_layers,
        "patch_size": clip.patch_size,
        "projection_dim": clip.hidden_size,
    }


def preprocessor_json() -> dict:
    return {
        "crop_size": POCKET.clip.image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "resample": 3,
        "size": POCKET.clip.image_size,
    }


def open_clip_json() -> dict:
    return {
        "model_cfg": {
            "embed_dim": POCKET.convnext.widths[-1],
            "vision_cfg": {
                "timm_model_name": "convnext",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "",
                "timm_drop": 0.0,
                "timm_drop_path": 0.0,
                "image_size": POCKET.convnext.image_size,
            },
        },
        "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
    }


def checkpoint_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with the names of a released checkpoint."""
    prefixes = {
        "language.": "model.",
        "vision.clip.": "model.vision_tower.vision_tower.",
        "vision.convnext.": "model.vision_tower_aux.vision_",
        "vision.projector.": "model.mm_projector.",
    }
    out = {}
    for name, value in state.items():
        if name.startswith("vision.mining."):
            module, rest = name.removeprefix("vision.mining.").split(".", 1)
            new = f"model.vlm_uni_{module}_projector.{rest}"
        else:
            ours = next(prefix for prefix in prefixes if name.startswith(prefix))
            new = prefixes[ours] + name.removeprefix(ours)
        out[new] = value.contiguous()
    return out


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def export(model: Mgm, tokenizer: Path, out: Path) -> Path:
    """Writes OUT/Pocket and OUT/OpenAI/...; returns the model's folder."""
    folder = out / MODEL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    weights = checkpoint_names(model.state_dict())
    write_json(folder / "config.json", config_json())
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    for file in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / file, folder / file)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    prefix = "model.vision_tower.vision_tower."
    clip = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    write_json(out / CLIP_FOLDER / "config.json", clip_config_json())
    write_json(out / CLIP_FOLDER / "preprocessor_config.json", preprocessor_json())
    save_file(clip, out / CLIP_FOLDER / "model.safetensors", metadata={"format": "pt"})

    prefix = "model.vision_tower_aux.vision_"
    high = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    write_json(out / CONVNEXT_FOLDER / "open_clip_config.json", open_clip_json())
    torch.save(
        {f"visual.trunk.{name}": value for name, value in high.items()},
        out / CONVNEXT_FOLDER / "open_clip_pytorch_model.bin",
    )
    return folder


def export_image_model(folder: Path, out: Path) -> Path:
    """Writes OUT/sdxl in diffusers' layout."""
    from .models.image_model import pipeline
    from .train.unet import trained_image_model, trained_vae

    image_model, tokenizer = trained_image_model(folder)
    pipeline(image_model.cpu(), trained_vae(folder).cpu(), tokenizer).save_pretrained(out / IMAGE_MODEL_FOLDER)
    return out / IMAGE_MODEL_FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", choices=("mgm", "image-model"), help="one of the two alone")
    arguments = parser.parse_args()
    if arguments.part != "image-model":
        model = Mgm()
        model.load_state_dict(load_stage(arguments.run, "instruct")["model"])
        print(export(model, arguments.run / "tokenizer", arguments.out))
    if arguments.part != "mgm":
        print(export_image_model(arguments.run, arguments.out))


if __name__ == "__main__":
    main()
