"""Makes golden cases: tiny checkpoints with random weights in the released layouts, and what a correct runtime makes
of them according to mgm_reference.py.

    python make_goldens.py OUT [CASE ...]

Every tensor is drawn from a generator seeded by the case, the tensor's name and, for the language model, a seed that is
searched: the first whose greedy choices are all decided by a margin far above rounding, whose answers are readable and
depend on the picture. Weights are rounded to the dtype they are stored in before anything is computed from them.
"""

import hashlib
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import sentencepiece as spm
import torch
from mgm_reference import Reference, Text, converse, expected
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import LlamaTokenizer

HERE = Path(__file__).parent
GIVEN = HERE.parent / "goldens"
CLIP_FOLDER = "OpenAI/clip-vit-large-patch14-336"
CONVNEXT_FOLDER = "OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"
MIN_MARGIN = 5e-3
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# --- weights ---


def draw(seed, name, shape, std, mean=0.0):
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return mean + std * torch.randn(shape, generator=generator)


class Draw:
    """A state dict in the making."""

    def __init__(self, seed):
        self.seed, self.out = seed, {}

    def tensor(self, name, shape, std, mean=0.0):
        self.out[name] = draw(self.seed, name, shape, std, mean)

    def linear(self, name, outputs, inputs, bias=True, gain=1.2):
        self.tensor(f"{name}.weight", (outputs, inputs), gain / math.sqrt(inputs))
        if bias:
            self.tensor(f"{name}.bias", (outputs,), 0.1)

    def norm(self, name, width):
        self.tensor(f"{name}.weight", (width,), 0.2, 1.0)
        self.tensor(f"{name}.bias", (width,), 0.1)


def clip_weights(seed, width, layers, ffn):
    d = Draw(f"{seed}/clip")
    embeddings = "vision_model.embeddings"
    d.tensor(f"{embeddings}.class_embedding", (width,), 0.5)
    d.tensor(f"{embeddings}.patch_embedding.weight", (width, 3, 14, 14), 0.08)
    d.tensor(f"{embeddings}.position_embedding.weight", (577, width), 0.5)
    d.norm("vision_model.pre_layrnorm", width)
    for i in range(layers):
        layer = f"vision_model.encoder.layers.{i}"
        for part in "qkv":
            d.linear(f"{layer}.self_attn.{part}_proj", width, width)
        d.linear(f"{layer}.self_attn.out_proj", width, width)
        d.norm(f"{layer}.layer_norm1", width)
        d.norm(f"{layer}.layer_norm2", width)
        d.linear(f"{layer}.mlp.fc1", ffn, width)
        d.linear(f"{layer}.mlp.fc2", width, ffn)
    d.norm("vision_model.post_layernorm", width)
    return d.out


def convnext_weights(seed, dims, depths):
    d = Draw(f"{seed}/convnext")
    d.tensor("stem.0.weight", (dims[0], 3, 4, 4), 1.2 / math.sqrt(48))
    d.tensor("stem.0.bias", (dims[0],), 0.1)
    d.norm("stem.1", dims[0])
    for i, (width, depth) in enumerate(zip(dims, depths)):
        stage = f"stages.{i}"
        if i:
            d.norm(f"{stage}.downsample.0", dims[i - 1])
            d.tensor(f"{stage}.downsample.1.weight", (width, dims[i - 1], 2, 2), 1.2 / math.sqrt(4 * dims[i - 1]))
            d.tensor(f"{stage}.downsample.1.bias", (width,), 0.1)
        for j in range(depth):
            block = f"{stage}.blocks.{j}"
            d.tensor(f"{block}.gamma", (width,), 0.2, 0.8)
            d.tensor(f"{block}.conv_dw.weight", (width, 1, 7, 7), 1.2 / 7)
            d.tensor(f"{block}.conv_dw.bias", (width,), 0.1)
            d.norm(f"{block}.norm", width)
            d.linear(f"{block}.mlp.fc1", 4 * width, width)
            d.linear(f"{block}.mlp.fc2", width, 4 * width)
    return d.out


def mining_weights(seed, clip_width, fused_width, hidden):
    d = Draw(f"{seed}/mining")
    for name, inputs in [("query", clip_width), ("aux", fused_width), ("val", fused_width)]:
        d.norm(f"model.vlm_uni_{name}_projector.0", inputs)
        d.linear(f"model.vlm_uni_{name}_projector.1", clip_width, inputs, gain=1.5)
    d.linear("model.mm_projector.0", hidden, clip_width, gain=1.0)
    d.linear("model.mm_projector.2", hidden, hidden, gain=1.5)
    return d.out


def language_weights(seed, config, quiet, loud=()):
    """`quiet`: tokens whose logits are kept small, so that answers are made of ordinary text; `loud`: the opposite."""
    d = Draw(f"{seed}/language")
    gemma, experts = "gemma" in config["model_type"], config.get("num_local_experts")
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    # Where the output embedding is the input embedding, small layers would make every token answer itself.
    gain = 6.0 if gemma else 1.2
    head = config.get("head_dim", hidden // heads)

    def rms(name):
        d.tensor(f"{name}.weight", (hidden,), 0.2, 0.0 if gemma else 1.0)

    d.tensor("model.embed_tokens.weight", (vocab, hidden), 1.2 / math.sqrt(hidden) if gemma else 1.0)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        d.linear(f"{layer}.self_attn.q_proj", heads * head, hidden, bias=False, gain=1.6)
        d.linear(f"{layer}.self_attn.k_proj", kv_heads * head, hidden, bias=False, gain=1.6)
        d.linear(f"{layer}.self_attn.v_proj", kv_heads * head, hidden, bias=False)
        d.linear(f"{layer}.self_attn.o_proj", hidden, heads * head, bias=False, gain=gain)
        if experts:
            d.linear(f"{layer}.block_sparse_moe.gate", experts, hidden, bias=False)
            for e in range(experts):
                expert = f"{layer}.block_sparse_moe.experts.{e}"
                d.linear(f"{expert}.w1", ffn, hidden, bias=False)
                d.linear(f"{expert}.w2", hidden, ffn, bias=False)
                d.linear(f"{expert}.w3", ffn, hidden, bias=False)
        else:
            d.linear(f"{layer}.mlp.gate_proj", ffn, hidden, bias=False)
            d.linear(f"{layer}.mlp.up_proj", ffn, hidden, bias=False)
            d.linear(f"{layer}.mlp.down_proj", hidden, ffn, bias=False, gain=gain)
        rms(f"{layer}.input_layernorm")
        rms(f"{layer}.post_attention_layernorm")
    rms("model.norm")
    head_name = "model.embed_tokens.weight" if gemma else "lm_head.weight"
    if not gemma:
        d.linear("lm_head", vocab, hidden, bias=False)
    d.out[head_name][sorted(quiet)] *= 0.3
    d.out[head_name][sorted(loud)] *= 1.6
    return d.out


def stored(weights, dtype):
    return {k: v.to(DTYPES[dtype]).contiguous() for k, v in weights.items()}


def widened(weights):
    return {k: v.float() for k, v in weights.items()}


# --- files ---


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_shards(folder, weights, form):
    """Two shards of about equal size and their index, as transformers writes them."""
    total = sum(v.nbytes for v in weights.values())
    shards, size = [{}], 0
    for name in sorted(weights):
        if len(shards) == 1 and size * 2 > total:
            shards.append({})
        shards[-1][name] = weights[name]
        size += weights[name].nbytes
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    index = {}
    for i, shard in enumerate(shards):
        file = f"{stem}-{i + 1:05}-of-{len(shards):05}.{suffix}"
        index |= dict.fromkeys(shard, file)
        if form == "safetensors":
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file)
    write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def picture(seed, width, height, path):
    """Bright shapes on a plain ground: easy to see, small to store."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(map(int, rng.integers(0, 256, 3))))
    pen = ImageDraw.Draw(image)
    for i in range(14):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        r = rng.uniform(0.06, 0.3) * min(width, height)
        box = [x - r, y - r * rng.uniform(0.4, 1.5), x + r, y + r]
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        [pen.ellipse, pen.rectangle][i % 2](box, fill=colour)
    for i in range(12):
        ends = [tuple(rng.uniform(0, 1, 2) * (width, height)) for _ in range(2)]
        pen.line(ends, fill=tuple(map(int, rng.integers(0, 256, 3))), width=1 + i % 3)
    image.save(path, optimize=True)


CLIP_PROCESSOR = {
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}


def write_clip(folder, weights, case):
    """The OpenAI folder: `vision` holds the vision tower alone, `openai` the layout of the original upload."""
    vision = {
        "attention_dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": case["clip"]["width"],
        "image_size": 336,
        "intermediate_size": case["clip"]["ffn"],
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": case["clip"]["heads"],
        "num_channels": 3,
        "num_hidden_layers": case["clip"]["layers"],
        "patch_size": 14,
        "projection_dim": 32,
    }
    if case.get("clip_form") == "openai":
        # One pickle with the text tower beside the vision tower, an integer buffer and a nested configuration.
        text = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "model_type": "clip_text_model"}
        write_json(
            folder / "config.json",
            {
                "architectures": ["CLIPModel"],
                "model_type": "clip",
                "projection_dim": 32,
                "text_config": text,
                "torch_dtype": "float32",
                "vision_config": vision,
            },
        )
        extra = {
            "logit_scale": torch.tensor(4.6052),
            "text_model.embeddings.position_ids": torch.arange(7)[None],
            "text_model.embeddings.token_embedding.weight": torch.zeros(9, 16),
            "vision_model.embeddings.position_ids": torch.arange(577)[None],
            "visual_projection.weight": torch.zeros(32, case["clip"]["width"]),
        }
        torch.save(extra | weights, folder / "pytorch_model.bin")
    else:
        write_json(folder / "config.json", {"architectures": ["CLIPVisionModel"], **vision})
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "preprocessor_config.json", CLIP_PROCESSOR)


def write_convnext(folder, weights, case):
    shutil.copytree(GIVEN / "vicuna-7b" / CONVNEXT_FOLDER, folder, ignore=shutil.ignore_patterns("*.bin"))
    width = case["convnext"]["dims"][-1]
    extra = {
        "logit_scale": torch.tensor(4.6052),
        "visual.head.mlp.fc1.weight": torch.zeros(4, width),
        "visual.trunk.head.norm.weight": torch.zeros(width),
        "text.token_embedding.weight": torch.zeros(8, 4),
    }
    state = {f"visual.trunk.{k}": v for k, v in weights.items()} | extra
    if case.get("convnext_form") == "training":
        # As open_clip's training loop saves it.
        state = {"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(state, folder / "open_clip_pytorch_model.bin")


# --- tokenizers ---

CORPUS = """
What is in this picture? Describe the image in detail. How many shapes are there? Which colour is the circle?
The picture shows a red square on a white ground with a green circle near the left edge of the frame.
There are three lines that cross each other, and a small blue rectangle stands below them.
A chat between a curious user and an artificial intelligence assistant. Answer the questions.
You are a helpful language and vision assistant who understands the visual content that the user provides.
On the right side of the photograph a woman is walking her dog along the river while two children watch the boats.
The text on the sign says that the shop opens at nine in the morning and closes at six in the evening.
Could you tell me what the weather is like, where the people are going and why the street is so empty?
I think that it was taken in the early morning because the shadows are long and the light is warm and soft.
Please answer with a single word or phrase. Yes or no: is the number of windows larger than seven?
In the background there is an old stone bridge, some tall trees, and a mountain that is covered with snow.
user assistant system model Image 1: Image 2: INST question answer prompt token layer weight
""".strip()


def train_tokenizer(folder, vocab, dummy_prefix, **more):
    """A small SentencePiece BPE with the flags of the released ones."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for line in CORPUS.splitlines() for _ in range(3)]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=vocab,
        character_coverage=0.9995,
        num_threads=1,
        minloglevel=2,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        pad_id=-1,
        **more,
    )
    (folder / "tokenizer.vocab").unlink()


def special(content):
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": content, **flags, "special": True}


def tokenizer_config(bos, eos, pad, decoder, **more):
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(i): special(content) for i, content in decoder.items()},
        "bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": 2048,
        "pad_token": pad,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
        **more,
    }


def copy_given(case):
    files = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]

    def copy(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if (GIVEN / case / file).exists():
                shutil.copyfile(GIVEN / case / file, folder / file)

    return copy


def mixtral_tokenizer(folder):
    """As Mixtral's: legacy, a dummy prefix on every segment."""
    train_tokenizer(folder, 480, True)
    decoder = {0: "<unk>", 1: "<s>", 2: "</s>"}
    write_json(folder / "tokenizer_config.json", tokenizer_config("<s>", "</s>", "<unk>", decoder, legacy=True))
    # The released model loads the fast tokenizer; the slow one must agree where both can be used.
    fast = Text("mixtral", folder).tokenizer
    slow = LlamaTokenizer.from_pretrained(folder)
    for text in ("[INST] ", "\nHow many shapes? [/INST]", "[INST] a [/INST] b </s><s>[INST] c [/INST]"):
        assert fast(text).input_ids == slow(text).input_ids, text


def yi_tokenizer(folder):
    """As Yi's: no dummy prefix, no BOS, turn marks that only the SentencePiece file knows (6) or both know (7)."""
    marks = ["<|Human|>", "<|Assistant|>", "<|System|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]
    train_tokenizer(
        folder, 500, False, user_defined_symbols=marks, bos_piece="<|startoftext|>", eos_piece="<|endoftext|>"
    )
    decoder = {0: "<unk>", 1: "<|startoftext|>", 2: "<|endoftext|>", 7: "<|im_end|>"}
    config = tokenizer_config("<|startoftext|>", "<|im_end|>", "<unk>", decoder, legacy=True, add_bos_token=False)
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})


def quiet_ids(text):
    """Byte tokens and special tokens."""
    return {i for token, i in text.tokenizer.get_vocab().items() if re.fullmatch("<[^<>]+>", token)}


# --- cases ---

SMALL_CLIP = {"width": 48, "heads": 3, "layers": 3, "ffn": 96}
SMALL_CONVNEXT = {"dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
LLAMA = {
    "architectures": ["MGMLlamaForCausalLM"],
    "model_type": "mgm",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 600,
    "rope_theta": 10000.0,
}
VICUNA_TOKENIZER = copy_given("vicuna-7b/MGM-7B")

CASES = {
    "two-images": {
        "family": "vicuna",
        "checkpoint": "MGM-7B",
        "images": [(150, 233), (310, 170)],
        "questions": ["What differs between them?"],
        "tokenizer": VICUNA_TOKENIZER,
        "config": LLAMA,
    },
    "mixtral-8x7b": {
        "family": "mixtral",
        "checkpoint": "MGM-8x7B",
        "images": [(240, 200)],
        "questions": ["How many shapes are there?", "And which one is red?"],
        "tokenizer": mixtral_tokenizer,
        "dtype": "bfloat16",
        "config": {
            "architectures": ["MGMMixtralForCausalLM"],
            "model_type": "mgm_mixtral",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            "rope_theta": 1000000.0,
            "vocab_size": 480,
            "max_position_embeddings": 32768,
        },
    },
    "yi-34b": {
        "family": "yi",
        "checkpoint": "MGM-34B",
        "images": [(200, 260)],
        "questions": ["What does the picture show?", "Why?"],
        "tokenizer": yi_tokenizer,
        "form": "bin",
        "dtype": "bfloat16",
        "tower_dtype": "float16",
        "clip_form": "openai",
        "stops_at": 7,
        "config": {
            **LLAMA,
            "hidden_size": 160,
            "intermediate_size": 192,
            "num_attention_heads": 10,
            "num_key_value_heads": 2,
            "rope_theta": 5000000.0,
            "vocab_size": 500,
            "pad_token_id": 0,
        },
    },
    "vicuna-7b-hd-no-global": {
        "family": "vicuna",
        "checkpoint": "MGM-7B-HD",
        "images": [(400, 260)],
        "questions": ["Describe the image in detail."],
        "tokenizer": VICUNA_TOKENIZER,
        "clip": {"width": 32, "heads": 2, "layers": 3, "ffn": 64},
        "config": {
            **LLAMA,
            "image_size_aux": 1536,
            "image_grid": 2,
            "image_global": False,
            "tokenizer_model_max_length": 4096,
        },
    },
    "no-image": {
        "family": "vicuna",
        "checkpoint": "MGM-7B",
        "images": [],
        "questions": ["Why is the sky blue?", "And at night?"],
        "tokenizer": VICUNA_TOKENIZER,
        "clip": {"width": 32, "heads": 2, "layers": 2, "ffn": 64},
        "config": LLAMA,
    },
    "gemma-tie-multi": {
        "family": "gemma",
        "checkpoint": "Mini-Gemini-2B",
        "images": [(320, 180)],
        "questions": ["What is in this picture?", "Which colour is it?"],
        "tokenizer": copy_given("gemma-2b/MGM-2B"),
        "dtype": "float16",
        "towers_inside": True,
        "clip": {"width": 64, "heads": 1, "layers": 3, "ffn": 96},
        "config": {
            "architectures": ["MiniGeminiGemmaForCausalLM"],
            "model_type": "mini_gemini_gemma",
            "hidden_size": 64,
            "intermediate_size": 224,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            # Every release of transformers reads this as the tanh form; about "gelu" they differ (see README.md).
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "vocab_size": 639,
            "max_position_embeddings": 8192,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
    },
    "square-crop": {
        "family": "vicuna",
        "checkpoint": "MGM-7B",
        "images": [(180, 271)],
        "questions": ["What stands on the left?"],
        "tokenizer": VICUNA_TOKENIZER,
        "convnext_form": "training",
        "clip": {"width": 48, "heads": 2, "layers": 3, "ffn": 72},
        "convnext": {"dims": [20, 36, 52, 76], "depths": [2, 1, 3, 1]},
        "config": {**LLAMA, "image_aspect_ratio": "square"},
    },
}


def full_config(case):
    """config.json as released, with this case's sizes."""
    config = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "image_aspect_ratio": "pad",
        "image_global": False,
        "image_grid": 1,
        "image_grid_pinpoints": None,
        "image_size_aux": 768,
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "mm_hidden_size": case["clip"]["width"],
        "mm_hidden_size_aux": sum(case["convnext"]["dims"]),
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"model_zoo/{CLIP_FOLDER}",
        "mm_vision_tower_aux": f"model_zoo/{CONVNEXT_FOLDER}",
        "optimize_vision_tower": False,
        "optimize_vision_tower_aux": False,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "torch_dtype": case.get("dtype", "float32"),
        "transformers_version": "4.36.2",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
    }
    return dict(sorted((config | case["config"]).items()))


def acceptable(case, reference, text, seen, turns):
    special_ids = set(text.tokenizer.all_special_ids) | text.stop_ids
    for i, turn in enumerate(turns):
        greedy = turn["greedy_ids"]
        if turn["min_margin"] < MIN_MARGIN or len(set(greedy)) < 4:
            return False
        if "stops_at" in case and i == 0:
            if greedy[-1] != case["stops_at"] or len(greedy) < 6 or special_ids & set(greedy[:-1]):
                return False
        elif special_ids & set(greedy):
            return False
        if not turn["text"].isprintable() or "\ufffd" in turn["text"] or turn["text"] == "":
            return False
    if seen:
        # The same prompt over other pictures must be answered differently.
        blank = [torch.zeros(1, *s["projected"].shape[1:]) for s in seen]
        _, greedy, _ = reference.answer(turns[0]["input_ids"], blank, text.stop_ids)
        return greedy != turns[0]["greedy_ids"]
    return True


def make(name, root):
    case = {"clip": SMALL_CLIP, "convnext": SMALL_CONVNEXT, **CASES[name]}
    out = root / name
    if out.exists():
        shutil.rmtree(out)
    folder = out / case["checkpoint"]
    case["tokenizer"](folder)
    config = full_config(case)
    write_json(folder / "config.json", config)
    text = Text(case["family"], folder)
    assert len(text.tokenizer) == config["vocab_size"], len(text.tokenizer)

    dtype, tower_dtype = case.get("dtype", "float32"), case.get("tower_dtype", "float32")
    clip_config = {k: v for k, v in case["clip"].items() if k != "heads"}
    clip = clip_weights(name, **clip_config)
    convnext = convnext_weights(name, **case["convnext"])
    fixed = mining_weights(name, case["clip"]["width"], config["mm_hidden_size_aux"], config["hidden_size"])
    if case.get("towers_inside"):
        fixed |= {f"model.vision_tower.vision_tower.{k}": v for k, v in clip.items()}
        fixed |= {f"model.vision_tower_aux.vision_{k}": v for k, v in convnext.items()}
    else:
        write_convnext(out / CONVNEXT_FOLDER, stored(convnext, tower_dtype), case)
        write_clip(out / CLIP_FOLDER, stored(clip, tower_dtype), case)
    fixed = stored(fixed, dtype)

    images = []
    for i, (width, height) in enumerate(case["images"]):
        images.append(out / f"image{i}.png")
        picture([sum(name.encode()), i], width, height, images[-1])

    loud = {case["stops_at"]} if "stops_at" in case else set()
    quiet = quiet_ids(text) - loud
    reference = seen = None
    for seed in range(1000):
        weights = stored(language_weights(f"{name}/{seed}", config, quiet, loud), dtype)
        if reference is None:
            write_shards(folder, fixed | weights, case.get("form", "safetensors"))
            reference = Reference(folder)
            seen = [reference.see(path) for path in images]
        reference.load_language_model(widened(weights))
        turns, _ = converse(reference, case["family"], case["questions"], seen)
        if acceptable(case, reference, text, seen, turns):
            break
    else:
        raise RuntimeError(f"{name}: no seed will do")
    print(f"{name}: language model seed {seed}, margins {[round(turn['min_margin'], 4) for turn in turns]}")

    if config["tie_word_embeddings"]:
        # Released tied checkpoints still hold a copy of the embedding.
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    write_shards(folder, fixed | weights, case.get("form", "safetensors"))
    turns, tensors = expected(Reference(folder), case["family"], images, case["questions"])
    save_file(tensors, out / "expected.safetensors")
    meta = {
        "case": name,
        "family": case["family"],
        "checkpoint": case["checkpoint"],
        "images": [path.name for path in images],
        "image_size_aux": config["image_size_aux"],
        "image_grid": config["image_grid"],
        "image_global": config["image_global"],
        "image_token_id": -200,
        "turns": turns,
    }
    (out / "expected.json").write_text(json.dumps(meta, indent=1))
    for turn in turns:
        print(f"  {turn['n_embeds']} embeds, {len(turn['greedy_ids'])} ids: {turn['text']!r}")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"  {size / 1e6:.2f} MB")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name in sys.argv[2:] or CASES:
        make(name, root)
