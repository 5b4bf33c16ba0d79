"""Makes golden cases: tiny checkpoints with random weights in the released layouts, and what a correct runtime computes
from them according to mgm_reference.py.

    python make_goldens.py [CASE ...]
    python make_goldens.py --again [CASE ...]     only the expected values, for the stored weights

The weights of a case are generated (random_weights.py), not stored. The script draws the output embedding again until
all greedy tokens win by a margin far above rounding and the answers are readable and depend on the image. Weights are
rounded to the dtype they are stored in before anything is computed from them.
"""

import io
import json
import math
import re
import shutil
import sys
from collections import Counter

import numpy as np
import sentencepiece as spm
import torch
from make_low_resolution import CASES as LOW_RESOLUTION
from make_low_resolution import low_resolution
from mgm_reference import Reference, Text, converse, expected, prompt_of, save_expected
from PIL import Image, ImageDraw
from random_weights import GOLDENS, built, entry, generate, torch_pickle, with_digests, write_manifest
from transformers import LlamaTokenizer

CLIP_FOLDER = "OpenAI/clip-vit-large-patch14-336"
CONVNEXT_FOLDER = "OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"
MIN_MARGIN = 0.02
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

# --- weights: entries of the manifest ---


class Weights:
    """A part of a checkpoint: name -> entry."""

    def __init__(self, dtype):
        self.dtype, self.out = DTYPES[dtype], {}

    def tensor(self, name, shape, std, mean=0.0):
        self.out[name] = entry(name, shape, std, mean, self.dtype)

    def constant(self, name, shape, value):
        self.out[name] = {"name": name, "dtype": "F32", "shape": list(shape), "value": value}

    def range(self, name, shape):
        self.out[name] = {"name": name, "dtype": "I64", "shape": list(shape), "range": True}

    def linear(self, name, outputs, inputs, bias=True, gain=1.2):
        self.tensor(f"{name}.weight", (outputs, inputs), gain / math.sqrt(inputs))
        if bias:
            self.tensor(f"{name}.bias", (outputs,), 0.1)

    def norm(self, name, width):
        self.tensor(f"{name}.weight", (width,), 0.2, 1.0)
        self.tensor(f"{name}.bias", (width,), 0.1)


def clip_weights(dtype, width, layers, ffn):
    w = Weights(dtype)
    embeddings = "vision_model.embeddings"
    w.tensor(f"{embeddings}.class_embedding", (width,), 0.5)
    w.tensor(f"{embeddings}.patch_embedding.weight", (width, 3, 14, 14), 0.08)
    w.tensor(f"{embeddings}.position_embedding.weight", (577, width), 0.5)
    w.norm("vision_model.pre_layrnorm", width)
    for i in range(layers):
        layer = f"vision_model.encoder.layers.{i}"
        for part in "qkv":
            w.linear(f"{layer}.self_attn.{part}_proj", width, width)
        w.linear(f"{layer}.self_attn.out_proj", width, width)
        w.norm(f"{layer}.layer_norm1", width)
        w.norm(f"{layer}.layer_norm2", width)
        w.linear(f"{layer}.mlp.fc1", ffn, width)
        w.linear(f"{layer}.mlp.fc2", width, ffn)
    w.norm("vision_model.post_layernorm", width)
    return w.out


def convnext_weights(dtype, dims, depths):
    w = Weights(dtype)
    w.tensor("stem.0.weight", (dims[0], 3, 4, 4), 1.2 / math.sqrt(48))
    w.tensor("stem.0.bias", (dims[0],), 0.1)
    w.norm("stem.1", dims[0])
    for i, (width, depth) in enumerate(zip(dims, depths)):
        stage = f"stages.{i}"
        if i:
            w.norm(f"{stage}.downsample.0", dims[i - 1])
            w.tensor(f"{stage}.downsample.1.weight", (width, dims[i - 1], 2, 2), 1.2 / math.sqrt(4 * dims[i - 1]))
            w.tensor(f"{stage}.downsample.1.bias", (width,), 0.1)
        for j in range(depth):
            block = f"{stage}.blocks.{j}"
            w.tensor(f"{block}.gamma", (width,), 0.2, 0.8)
            w.tensor(f"{block}.conv_dw.weight", (width, 1, 7, 7), 1.2 / 7)
            w.tensor(f"{block}.conv_dw.bias", (width,), 0.1)
            w.norm(f"{block}.norm", width)
            w.linear(f"{block}.mlp.fc1", 4 * width, width)
            w.linear(f"{block}.mlp.fc2", width, 4 * width)
    return w.out


def mining_weights(dtype, clip_width, fused_width, hidden):
    w = Weights(dtype)
    for name, inputs in [("query", clip_width), ("aux", fused_width), ("val", fused_width)]:
        w.norm(f"model.vlm_uni_{name}_projector.0", inputs)
        w.linear(f"model.vlm_uni_{name}_projector.1", clip_width, inputs, gain=1.5)
    w.linear("model.mm_projector.0", hidden, clip_width, gain=1.0)
    w.linear("model.mm_projector.2", hidden, hidden, gain=1.5)
    return w.out


def language_weights(dtype, config, quiet, loud=()):
    """`quiet`: tokens whose logits are kept small, so that answers are made of ordinary text; `loud`: the opposite."""
    w = Weights(dtype)
    gemma, experts = "gemma" in config["model_type"], config.get("num_local_experts")
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    # Where the output embedding is the input embedding, small layers would make every token answer itself.
    gain = 6.0 if gemma else 1.2
    head = config.get("head_dim", hidden // heads)

    def rms(name):
        w.tensor(f"{name}.weight", (hidden,), 0.2, 0.0 if gemma else 1.0)

    w.tensor("model.embed_tokens.weight", (vocab, hidden), 1.2 / math.sqrt(hidden) if gemma else 1.0)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        w.linear(f"{layer}.self_attn.q_proj", heads * head, hidden, bias=False, gain=1.6)
        w.linear(f"{layer}.self_attn.k_proj", kv_heads * head, hidden, bias=False, gain=1.6)
        w.linear(f"{layer}.self_attn.v_proj", kv_heads * head, hidden, bias=False)
        w.linear(f"{layer}.self_attn.o_proj", hidden, heads * head, bias=False, gain=gain)
        if experts:
            w.linear(f"{layer}.block_sparse_moe.gate", experts, hidden, bias=False)
            for e in range(experts):
                expert = f"{layer}.block_sparse_moe.experts.{e}"
                w.linear(f"{expert}.w1", ffn, hidden, bias=False)
                w.linear(f"{expert}.w2", hidden, ffn, bias=False)
                w.linear(f"{expert}.w3", ffn, hidden, bias=False)
        else:
            w.linear(f"{layer}.mlp.gate_proj", ffn, hidden, bias=False)
            w.linear(f"{layer}.mlp.up_proj", ffn, hidden, bias=False)
            w.linear(f"{layer}.mlp.down_proj", hidden, ffn, bias=False, gain=gain)
        rms(f"{layer}.input_layernorm")
        rms(f"{layer}.post_attention_layernorm")
    rms("model.norm")
    head_name = "model.embed_tokens.weight" if gemma else "lm_head.weight"
    if not gemma:
        w.linear("lm_head", vocab, hidden, bias=False)
    if rows := scaled_rows(quiet, 0.3) + scaled_rows(loud, 1.6):
        w.out[head_name]["rows"] = rows
    return w.out


def scaled_rows(ids, factor):
    """[first, end, factor] for each run of consecutive ids."""
    rows = []
    for i in sorted(ids):
        if rows and rows[-1][1] == i:
            rows[-1][1] += 1
        else:
            rows.append([i, i + 1, factor])
    return rows


# --- files ---


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def sharded(root, folder, weights, form):
    """Two shards of about equal size, as transformers writes them, and their index; a stored index decides instead."""
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    index = root / folder / f"{stem}.{suffix}.index.json"
    if index.exists():
        places = json.loads(index.read_text())["weight_map"]
    else:
        total = sum(map(size, weights.values()))
        places, written = {}, 0
        for name in sorted(weights):
            places[name] = f"{stem}-{1 + (written * 2 > total):05}-of-00002.{suffix}"
            written += size(weights[name])
        write_json(index, {"metadata": {"total_size": total}, "weight_map": places})
    files = []
    for file in sorted(set(places.values())):
        entries = [weights[name] for name in sorted(weights) if places[name] == file]
        files.append({"path": f"{folder}/{file}", "tensors": entries})
        if form == "bin":
            state = generated(entries)
            torch_pickle(root / folder / file, state, state.values())
    return files


def size(tensor):
    return math.prod(tensor["shape"]) * {"F32": 4, "F16": 2, "BF16": 2}[tensor["dtype"]]


def generated(entries):
    """A state dict of the right dtypes and shapes."""
    return {tensor["name"]: generate("any", tensor) for tensor in entries}


def prefixed(prefix, weights):
    return {prefix + name: {**tensor, "name": prefix + name} for name, tensor in weights.items()}


def draw_image(seed, width, height, path):
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


def clip_files(root, weights, case):
    """The OpenAI folder: the vision tower alone, or ("openai") the layout of the original upload."""
    folder = root / CLIP_FOLDER
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
        # One pickle with the text tower next to the vision tower, an integer buffer and a nested configuration.
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
        extra = Weights("float32")
        extra.constant("logit_scale", (), 4.6052)
        extra.range("text_model.embeddings.position_ids", (1, 7))
        extra.constant("text_model.embeddings.token_embedding.weight", (9, 16), 0.0)
        extra.range("vision_model.embeddings.position_ids", (1, 577))
        extra.constant("visual_projection.weight", (32, case["clip"]["width"]), 0.0)
        entries = [*extra.out.values(), *weights.values()]
        state = generated(entries)
        torch_pickle(folder / "pytorch_model.bin", state, state.values())
        files = [{"path": f"{CLIP_FOLDER}/pytorch_model.bin", "tensors": entries}]
    else:
        if "config" in case:
            write_json(folder / "config.json", {"architectures": ["CLIPVisionModel"], **vision})
        entries = sorted(weights.values(), key=lambda tensor: tensor["name"])
        files = [{"path": f"{CLIP_FOLDER}/model.safetensors", "tensors": entries}]
    if "config" in case:
        write_json(folder / "preprocessor_config.json", CLIP_PROCESSOR)
    return files


def convnext_files(root, weights, case):
    """The LAION folder: open_clip's whole model in one pickle."""
    folder = root / CONVNEXT_FOLDER
    if "config" in case:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(GOLDENS / "vicuna-7b" / CONVNEXT_FOLDER / "open_clip_config.json", folder)
    width = case["convnext"]["dims"][-1]
    extra = Weights("float32")
    extra.constant("logit_scale", (), 4.6052)
    extra.constant("visual.head.mlp.fc1.weight", (4, width), 0.0)
    extra.constant("visual.trunk.head.norm.weight", (width,), 0.0)
    extra.constant("text.token_embedding.weight", (8, 4), 0.0)
    entries = [*prefixed("visual.trunk.", weights).values(), *extra.out.values()]
    state = tensors = generated(entries)
    if case.get("convnext_form") == "training":
        # As open_clip's training loop saves it.
        state = {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": v for name, v in tensors.items()}}
    torch_pickle(folder / "open_clip_pytorch_model.bin", state, tensors.values())
    return [{"path": f"{CONVNEXT_FOLDER}/open_clip_pytorch_model.bin", "tensors": entries}]


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
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
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
    (folder / "tokenizer.model").write_bytes(model.getvalue())


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
            if (GOLDENS / case / file).exists():
                shutil.copyfile(GOLDENS / case / file, folder / file)

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
    """Special tokens, and tokens that are not printable text by themselves."""
    decode = text.tokenizer.decode
    return {
        i
        for token, i in text.tokenizer.get_vocab().items()
        if re.fullmatch("<[^<>]+>", token) or "\ufffd" in decode([i]) or not decode([i]).isprintable()
    }


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

# The first four came to this project with their configurations, tokenizers and images, which are stored.
GIVEN = {
    "clip": {"width": 64, "heads": 4, "layers": 4, "ffn": 128},
    "convnext": {"dims": [12, 24, 40, 56], "depths": [1, 2, 3, 1]},
    "images": ["image0.png"],
}
CASES = {
    "gemma-2b": {
        **GIVEN,
        "family": "gemma",
        "checkpoint": "MGM-2B",
        "questions": ["What is in this picture?"],
        "bytes": True,
    },
    "llama3-8b": {
        **GIVEN,
        "family": "llama3",
        "checkpoint": "MGM-8B",
        "questions": ["How many shapes are there?"],
        "long": ("word", "word "),
    },
    "vicuna-7b": {
        **GIVEN,
        "family": "vicuna",
        "checkpoint": "MGM-7B",
        "questions": ["Describe the image in detail.", "And which colour is the circle?"],
        "bytes": True,
    },
    "vicuna-7b-hd": {
        **GIVEN,
        "family": "vicuna",
        "checkpoint": "MGM-7B-HD",
        "questions": ["Read the text."],
        "bytes": True,
    },
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
        "copied_head": True,
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


def unacceptable(case, text, turns):
    """Why the last of some turns will not do, or None."""
    special_ids = set(text.tokenizer.all_special_ids) | text.stop_ids
    turn = turns[-1]
    greedy = turn["greedy_ids"]
    if turn["min_margin"] < MIN_MARGIN:
        return "margin"
    if len(set(greedy)) < 5:
        return "monotonous"
    if "stops_at" in case and len(turns) == 1:
        if greedy[-1] != case["stops_at"] or len(greedy) < 6 or special_ids & set(greedy[:-1]):
            return "stop"
    elif special_ids & set(greedy):
        return "special token"
    if case.get("bytes"):
        # Only texts that Python and other languages trim alike.
        if turn["text"] != text.tokenizer.decode(greedy, skip_special_tokens=True).strip(" \n"):
            return "trimmed"
    elif not turn["text"].isprintable() or "\ufffd" in turn["text"] or turn["text"] == "":
        return "unprintable"
    return None


def unsuitable(name, case, reference, text, encoded, turns):
    """Why a whole conversation will not do, or None."""
    if case.get("bytes") and not any("\ufffd" in turn["text"] for turn in turns):
        return "no broken characters"
    if encoded:
        # The same prompt about other images must have another answer.
        blank = [torch.zeros(1, *image["projected"].shape[1:]) for image in encoded]
        _, greedy, _ = reference.answer(turns[0]["input_ids"], blank, text.stop_ids)
        if greedy == turns[0]["greedy_ids"]:
            return "blind"
    for question in case.get("long", ()):
        # A test counts what 120 tokens allocate.
        ids = text.encode(prompt_of(case["family"], [(question, None)]))
        _, greedy, _ = reference.answer(ids, [], text.stop_ids, 120)
        if len(greedy) < 120:
            return "a long answer that stops"
    if name in LOW_RESOLUTION:
        _, low = low_resolution(reference, case["family"], case["images"], turns[0])
        greedy = low["greedy_ids"]
        same = greedy == turns[0]["greedy_ids"][: len(greedy)]
        if low["min_margin"] < MIN_MARGIN or text.stop_ids & set(greedy) or same:
            return "answer without the high-resolution branch"
    return None


def weight_files(name, root, case, config, text):
    """The files of the manifest; writes what is stored next to it."""
    dtype, tower_dtype = config["torch_dtype"], case.get("tower_dtype", "float32")
    clip_config = {k: v for k, v in case["clip"].items() if k != "heads"}
    inside = case.get("towers_inside")
    clip = clip_weights(dtype if inside else tower_dtype, **clip_config)
    convnext = convnext_weights(dtype if inside else tower_dtype, **case["convnext"])
    weights = mining_weights(dtype, case["clip"]["width"], config["mm_hidden_size_aux"], config["hidden_size"])
    files = []
    if inside:
        weights |= prefixed("model.vision_tower.vision_tower.", clip)
        weights |= prefixed("model.vision_tower_aux.vision_", convnext)
    else:
        files += convnext_files(root, convnext, case) + clip_files(root, clip, case)
    loud = {case["stops_at"]} if "stops_at" in case else set()
    quiet = set() if case.get("bytes") else quiet_ids(text) - loud
    weights |= language_weights(dtype, config, quiet, loud)
    if case.get("copied_head"):
        # Released tied checkpoints still hold a copy of the embedding.
        table = weights["model.embed_tokens.weight"]
        weights["lm_head.weight"] = {**table, "name": "lm_head.weight"}
    return files + sharded(root, case["checkpoint"], weights, case.get("form", "safetensors"))


def search(name, case, reference, text, encoded, manifest):
    """Draws the output embedding again until the answers are acceptable; the manifest names the stream it came from."""
    names = {"lm_head.weight"}
    if reference.config["tie_word_embeddings"]:
        names.add("model.embed_tokens.weight")
    heads = [tensor for file in manifest["files"] for tensor in file["tensors"] if tensor["name"] in names]
    output, refused = reference.language_model.get_output_embeddings().weight, Counter()
    for seed in range(2000):
        for head in heads:
            head["stream"] = f"head/{seed}"
            output.data.copy_(generate(manifest["seed"], head))
        turns, _ = converse(reference, case["family"], case["questions"], encoded, MIN_MARGIN)
        reasons = [unacceptable(case, text, turns[: turn + 1]) for turn in range(len(turns))]
        reason = next(filter(None, reasons), None) or unsuitable(name, case, reference, text, encoded, turns)
        if reason is None:
            print(f"{name}: refused {dict(refused)}")
            return seed
        refused[reason] += 1
        if seed % 100 == 99:
            print(f"{name}: refused {dict(refused)}", flush=True)
    raise RuntimeError(f"{name}: no seed will do: {refused}")


def make(name):
    case = {"clip": SMALL_CLIP, "convnext": SMALL_CONVNEXT, **CASES[name]}
    root = GOLDENS / name
    folder = root / case["checkpoint"]
    if "config" in case:
        shutil.rmtree(root, ignore_errors=True)
        case["tokenizer"](folder)
        config = full_config(case)
        write_json(folder / "config.json", config)
        for i, (width, height) in enumerate(case["images"]):
            draw_image([sum(name.encode()), i], width, height, root / f"image{i}.png")
        images = [f"image{i}.png" for i in range(len(case["images"]))]
    else:
        config = json.loads((folder / "config.json").read_text())
        images = case["images"]
    text = Text(case["family"], folder)
    assert len(text.tokenizer) == config["vocab_size"], len(text.tokenizer)
    # The runtime also stops at the configuration's id, which may be an ordinary token.
    text.stop_ids = text.stop_ids | {config["eos_token_id"]}
    files = weight_files(name, root, case, config, text)

    manifest = {"seed": name, "files": files}
    paths = [root / image for image in images]
    with built(root, manifest) as made:
        reference = Reference(made / case["checkpoint"])
    reference.folder = folder
    encoded = [reference.encode_image(path) for path in paths]
    seed = search(name, case | {"images": paths}, reference, text, encoded, manifest)
    with built(root, manifest) as made:
        reference = Reference(made / case["checkpoint"])
    reference.folder = folder
    turns, tensors = expected(reference, case["family"], paths, case["questions"])
    print(f"{name}: head {seed}, margins {[round(turn['min_margin'], 4) for turn in turns]}")

    write_manifest(root, with_digests(manifest))
    save_expected(tensors, root / "expected.safetensors")
    meta = {
        "case": name,
        "family": case["family"],
        "checkpoint": case["checkpoint"],
        "images": images,
        "image_size_aux": config["image_size_aux"],
        "image_grid": config["image_grid"],
        "image_global": config["image_global"],
        "image_token_id": -200,
        "turns": turns,
    }
    (root / "expected.json").write_text(json.dumps(meta, separators=(",", ":")) + "\n")
    for turn in turns:
        print(f"  {turn['n_embeds']} embeds, {len(turn['greedy_ids'])} ids: {turn['text']!r}")
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    print(f"  {total / 1e6:.2f} MB", flush=True)


def make_again(name):
    """Computes the expected values of the stored weights again. Prompts, ids and texts must be those stored."""
    root = GOLDENS / name
    meta = json.loads((root / "expected.json").read_text())
    questions = [turn["question"] for turn in meta["turns"]]
    with built(name) as made:
        reference = Reference(made / meta["checkpoint"])
        turns, tensors = expected(reference, meta["family"], [root / image for image in meta["images"]], questions)
    for turn, stored in zip(turns, meta["turns"], strict=True):
        assert turn | {"min_margin": stored["min_margin"]} == stored, f"{name}: {turn}"
    save_expected(tensors, root / "expected.safetensors")
    print(f"{name}: {(root / 'expected.safetensors').stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    run, names = (make_again, sys.argv[2:]) if sys.argv[1:2] == ["--again"] else (make, sys.argv[1:])
    for name in names or CASES:
        run(name)
