"""An independent f32 implementation of Mini-Gemini inference on the CPU, made of libraries wherever one exists:
language models and CLIP from transformers, ConvNeXt from timm, images from Pillow. What no library has (patch info
mining, splicing, prompts) is written literally, unfolded, as the papers' equations read.

It reads a checkpoint folder in any of the released layouts; every weight is widened to f32 first.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.convnext import ConvNeXt
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GemmaConfig,
    GemmaForCausalLM,
    GemmaTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlamaTokenizerFast,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

IMAGE = -200
LOW = 336
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
LLAMA_3 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


def read_weights(folder):
    """All tensors of a checkpoint folder, sharded or not, or of a torch file, as f32."""
    if folder.is_file():
        return widened(torch.load(folder, weights_only=True))
    for index, single in [
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ]:
        if (folder / index).exists():
            files = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
        elif (folder / single).exists():
            files = [single]
        else:
            continue
        out = {}
        for file in files:
            path = folder / file
            out |= load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        return widened(out)
    raise FileNotFoundError(f"no weights in {folder}")


def widened(weights):
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def under(weights, prefix):
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def prompt_of(family, turns):
    """The prompt for [(question, answer), ..., (question, None)]."""
    if family == "vicuna":
        body = "".join(f"USER: {q} ASSISTANT:" + ("" if a is None else f" {a}</s>") for q, a in turns)
        return VICUNA + body
    if family == "gemma":
        return "".join(
            f"<start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n"
            + ("" if a is None else f"{a}<end_of_turn>\n<eos>")
            for q, a in turns
        )
    if family == "mixtral":
        return "<s>".join(f"[INST] {q} [/INST]" + ("" if a is None else f" {a} </s>") for q, a in turns)
    if family == "yi":
        return "<|im_start|>system\nAnswer the questions.<|im_end|>" + "".join(
            f"<|im_start|>user\n{q}<|im_end|><|im_start|>assistant\n" + ("" if a is None else f"{a}<|im_end|>")
            for q, a in turns
        )
    if family == "llama3":
        header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
        return header("system") + LLAMA_3 + "<|eot_id|>" + "".join(
            header("user") + q + "<|eot_id|>" + header("system") + ("" if a is None else f"{a}<|eot_id|>")
            for q, a in turns
        )
    raise ValueError(family)


class Text:
    """The tokenizer of a family, as the reference loads it."""

    def __init__(self, family, folder):
        self.family = family
        if family == "llama3":
            config = json.loads((folder / "tokenizer_config.json").read_text())
            self.tokenizer = PreTrainedTokenizerFast(
                tokenizer_file=str(folder / "tokenizer.json"),
                bos_token=config["bos_token"],
                eos_token=config["eos_token"],
                clean_up_tokenization_spaces=False,
            )
        else:
            kind = {"gemma": GemmaTokenizerFast, "mixtral": LlamaTokenizerFast}.get(family, LlamaTokenizer)
            self.tokenizer = kind.from_pretrained(folder)
        ids = {self.tokenizer.eos_token_id}
        if family == "yi":
            ids |= {2, 7}
        if family == "llama3":
            ids |= {self.tokenizer.convert_tokens_to_ids("<|eot_id|>")}
        self.stop_ids = ids

    def encode(self, prompt):
        """Encodes the text between the placeholders piece by piece, with one BOS at the start and one IMAGE per placeholder."""
        pieces = [self.tokenizer(piece).input_ids for piece in prompt.split("<image>")]
        bos = self.tokenizer.bos_token_id
        has_bos = bool(pieces[0]) and pieces[0][0] == bos
        out = [bos] if has_bos else []
        for i, piece in enumerate(pieces):
            out += ([IMAGE] if i else []) + (piece[1:] if has_bos else piece)
        return out

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


class Reference:
    """A checkpoint folder, ready to run."""

    def __init__(self, checkpoint):
        self.folder = Path(checkpoint)
        self.config = json.loads((self.folder / "config.json").read_text())
        self.weights = read_weights(self.folder)
        self.load_language_model()
        self.load_clip()
        self.load_convnext()
        self.mining = {
            name: under(self.weights, f"model.vlm_uni_{name}_projector.") for name in ("query", "aux", "val")
        }

    def tower(self, key):
        """The tower's own folder, next to the checkpoint's."""
        return self.folder.parent / self.config[key].removeprefix("model_zoo/")

    def load_language_model(self, weights=None):
        weights = weights or self.weights
        c = {k: v for k, v in self.config.items() if k not in ("architectures", "model_type", "torch_dtype")}
        if "num_local_experts" in c:
            model = MixtralForCausalLM(MixtralConfig(**c, attn_implementation="eager"))
        elif "gemma" in self.config["model_type"]:
            model = GemmaForCausalLM(GemmaConfig(**c, attn_implementation="eager"))
        else:
            model = LlamaForCausalLM(LlamaConfig(**c, attn_implementation="eager"))
        parts = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
        state = {k: v for k, v in weights.items() if k.startswith(parts)}
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        assert not unexpected and set(missing) <= tied, (missing, unexpected)
        self.language_model = model.float().eval()

    def load_clip(self):
        folder = self.tower("mm_vision_tower")
        inside = under(self.weights, "model.vision_tower.vision_tower.")
        state = inside or {k: v for k, v in read_weights(folder).items() if k.startswith("vision_model.")}
        state.pop("vision_model.embeddings.position_ids", None)
        if folder.exists():
            raw = json.loads((folder / "config.json").read_text())
            config = CLIPVisionConfig(**raw.get("vision_config", raw))
        else:
            width = state["vision_model.embeddings.class_embedding"].shape[0]
            layers = 1 + max(int(k.split(".")[3]) for k in state if ".encoder.layers." in k)
            config = CLIPVisionConfig(
                hidden_size=width,
                intermediate_size=state["vision_model.encoder.layers.0.mlp.fc1.bias"].shape[0],
                num_hidden_layers=layers,
                num_attention_heads=width // 64,  # every CLIP of OpenAI has heads of 64
                image_size=LOW,
                patch_size=state["vision_model.embeddings.patch_embedding.weight"].shape[-1],
            )
        self.clip = CLIPVisionModel(config)
        self.clip.load_state_dict(state)
        self.clip = self.clip.float().eval()

    def load_convnext(self):
        folder = self.tower("mm_vision_tower_aux")
        if self.config.get("optimize_vision_tower_aux") or not folder.exists():
            inside = under(self.weights, "model.vision_tower_aux.vision_")
            state = {k: v for k, v in inside.items() if k.startswith(("stem.", "stages."))}
        else:
            state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
            state = state.get("state_dict", state)
            state = {k.removeprefix("module."): v.float() for k, v in state.items()}
            state = {k: v for k, v in under(state, "visual.trunk.").items() if k.startswith(("stem.", "stages."))}
        dims = [state[f"stages.{i}.blocks.0.gamma"].shape[0] for i in range(4)]
        depths = [len({k.split(".")[3] for k in state if k.startswith(f"stages.{i}.blocks.")}) for i in range(4)]
        self.convnext = ConvNeXt(depths=depths, dims=dims, drop_path_rate=0.1)
        missing, unexpected = self.convnext.load_state_dict(state, strict=False)
        assert not unexpected and all(k.startswith("head.") for k in missing), (missing, unexpected)
        # Evaluation mode: no DropPath. (The released program forgets this; a correct one is deterministic.)
        self.convnext = self.convnext.float().eval()

    # --- vision ---

    def views(self, path):
        """High-resolution view [1, 3, S, S] and low-resolution tiles [n, 3, 336, 336]."""
        folder = self.tower("mm_vision_tower")
        processor = CLIPImageProcessor.from_pretrained(folder) if folder.exists() else CLIPImageProcessor()
        size = self.config["image_size_aux"]
        processor.size = {"shortest_edge": size}
        processor.crop_size = {"height": size, "width": size}
        image = Image.open(path).convert("RGB")
        if self.config["image_aspect_ratio"] == "pad":
            side = max(image.size)
            canvas = Image.new("RGB", (side, side), tuple(int(m * 255) for m in processor.image_mean))
            canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = canvas
        high = torch.from_numpy(np.asarray(processor(image, return_tensors="np")["pixel_values"]))
        grid = self.config.get("image_grid", 1)
        low = F.interpolate(high, size=(LOW * grid,) * 2, mode="bilinear", align_corners=False)
        tiles = [
            low[:, :, r * LOW : (r + 1) * LOW, c * LOW : (c + 1) * LOW] for r in range(grid) for c in range(grid)
        ]
        if self.config.get("image_global", False):
            tiles.append(F.interpolate(low, size=(LOW, LOW), mode="bilinear", align_corners=False))
        return high, torch.cat(tiles)

    def fused(self, high):
        """The four stages at stride 4, concatenated: [1, C, S/4, S/4]."""
        x = self.convnext.stem(high)
        maps = []
        for stage in self.convnext.stages:
            x = stage(x)
            maps.append(x)
        size = maps[0].shape[-2:]
        up = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps[1:]]
        return torch.cat([maps[0], *up], dim=1)

    def mine(self, x, f):
        """x [n, N*N, C] CLIP features, f [n, D, N*M, N*M] fused maps -> [n, N*N, C]."""

        def project(name, value):
            w = self.mining[name]
            value = F.layer_norm(value, value.shape[-1:], w["0.weight"], w["0.bias"], 1e-5)
            return F.linear(value, w["1.weight"], w["1.bias"])

        n, tokens, width = x.shape
        side = int(tokens**0.5)
        m = f.shape[-1] // side
        g = f.reshape(n, -1, side, m, side, m).permute(0, 2, 4, 3, 5, 1).reshape(n, tokens, m * m, -1)
        q = project("query", x)
        k = project("aux", g)
        v = project("val", g)
        score = torch.einsum("bnc,bnmc->bnm", q, k / width**0.5)
        return x + torch.einsum("bnm,bnmc->bnc", score.softmax(-1), v)

    def project(self, z):
        w = under(self.weights, "model.mm_projector.")
        z = F.gelu(F.linear(z, w["0.weight"], w["0.bias"]))
        return F.linear(z, w["2.weight"], w["2.bias"])

    @torch.no_grad()
    def encode_image(self, path):
        """One image: every intermediate tensor that a golden holds, by name."""
        high, low = self.views(path)
        hidden = self.clip(low, output_hidden_states=True).hidden_states[self.config["mm_vision_select_layer"]]
        clip = hidden[:, 1:]
        fused = self.fused(high)
        grid = self.config.get("image_grid", 1)
        half = fused.shape[-1] // grid
        maps = [
            fused[:, :, r * half : (r + 1) * half, c * half : (c + 1) * half] for r in range(grid) for c in range(grid)
        ]
        mined = [self.mine(clip[i : i + 1], f) for i, f in enumerate(maps)]
        if self.config.get("image_global", False):
            whole = F.interpolate(fused, scale_factor=1 / grid, mode="bilinear", align_corners=False)
            mined.insert(0, self.mine(clip[-1:], whole))
        mined = torch.cat(mined, dim=1)
        return {
            "pixels_high_sample": high[0, :, ::61, ::61],
            "pixels_low_sample": low[..., ::37, ::37],
            "clip": clip,
            "convnext_sample": fused[0, :, ::23, ::23],
            "mined": mined,
            "projected": self.project(mined),
        }

    # --- language ---

    @torch.no_grad()
    def answer(self, ids, visual, stop_ids, max_new_tokens=24, enough=0.0):
        """Prefill logits [n, vocab], greedy ids (a stop id included) and the least margin between the best two.

        The answer ends early where that margin is less than `enough`."""
        embed = self.language_model.get_input_embeddings()
        visual = iter(visual)
        parts, run = [], []
        for i in [*ids, None]:
            if i is None or i == IMAGE:
                parts.append(embed(torch.tensor([run], dtype=torch.long)))
                run = []
            if i == IMAGE:
                parts.append(next(visual))
            elif i is not None:
                run.append(i)
        sequence = torch.cat(parts, dim=1)
        out = self.language_model(inputs_embeds=sequence, use_cache=True)
        prefill = logits = out.logits[0]
        greedy, margin = [], float("inf")
        while True:
            best = logits[-1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            greedy.append(int(best.indices[0]))
            if greedy[-1] in stop_ids or len(greedy) == max_new_tokens or margin < enough:
                return prefill, greedy, margin
            out = self.language_model(
                input_ids=torch.tensor([greedy[-1:]]), past_key_values=out.past_key_values, use_cache=True
            )
            logits = out.logits[0]


def converse(reference, family, questions, encoded, enough=0.0):
    """Runs the turns; returns (expected.json's turns, tensors)."""
    text = Text(family, reference.folder)
    turns, tensors, history = [], {}, []
    for i, question in enumerate(questions):
        q = question
        if i == 0 and encoded:
            marks = [f"Image {k + 1}:<image>\n" if len(encoded) > 1 else "<image>\n" for k in range(len(encoded))]
            q = "".join(marks) + question
        prompt = prompt_of(family, [*history, (q, None)])
        ids = text.encode(prompt)
        visual = [image["projected"].reshape(1, -1, image["projected"].shape[-1]) for image in encoded]
        logits, greedy, margin = reference.answer(ids, visual, text.stop_ids, enough=enough)
        answer = text.decode(greedy)
        tensors[f"turn{i}.logits_last"] = logits[-1]
        tensors[f"turn{i}.logits_sample"] = logits[:: max(1, len(logits) // 16)]
        turns.append(
            {
                "question": question,
                "prompt": prompt,
                "input_ids": ids,
                "n_embeds": len(logits),
                "greedy_ids": greedy,
                "min_margin": margin,
                "text": answer,
            }
        )
        if margin < enough:
            break
        history.append((q, answer))
    return turns, tensors


# Tensors with a row for each visual token are most of a case. They are stored in 16 bits: whole, or every fifth row of those of several
# tiles, as NAME_every_5.
IN_16_BITS = ("clip", "mined", "projected")
MOST_ROWS = 1200
# The largest error of a value in 16 bits, as a part of the tensor's largest magnitude.
ROUNDING = 0.5 / 32767


def save_expected(tensors, path):
    """Writes `expected.safetensors`. A tensor in 16 bits is value = i16 * scale / 32767, `NAME_scale` the largest magnitude."""
    stored = {}
    for name, value in tensors.items():
        if name.split(".")[-1] in IN_16_BITS:
            rows = value.reshape(-1, value.shape[-1])
            if len(rows) > MOST_ROWS:
                name, value = f"{name}_every_5", rows[::5]
            scale = value.abs().max()
            stored[name] = (value.double() / scale * 32767).round().to(torch.int16)
            stored[f"{name}_scale"] = scale.reshape(1)
        else:
            stored[name] = value
    save_file(stored, path)


def load_expected(path):
    """The tensors of `expected.safetensors`: name -> (f32 tensor, largest error of its values relative to its scale)."""
    stored = load_file(path)
    tensors = {}
    for name, value in stored.items():
        if value.dtype == torch.int16:
            tensors[name] = ((value.double() * stored[f"{name}_scale"] / 32767).float(), ROUNDING)
        elif not (name.endswith("_scale") and name.removesuffix("_scale") in stored):
            tensors[name] = (value, 0.0)
    return tensors


def expected(reference, family, images, questions):
    """Everything a golden holds: (turns, tensors)."""
    encoded = [reference.encode_image(path) for path in images]
    turns, tensors = converse(reference, family, questions, encoded)
    for i, image in enumerate(encoded):
        tensors |= {f"image{i}.{name}": value for name, value in image.items()}
    return turns, {k: v.contiguous().clone() for k, v in tensors.items()}
