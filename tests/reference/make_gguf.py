"""Small GGUF files with the values that a correct runtime computes from them, and blocks of every type with their values.

    pip install gguf==0.19 torch==2.8 transformers==4.49 safetensors
    python tests/reference/make_gguf.py

The gguf package writes the headers and dequantises; transformers computes the logits on the dequantised weights in f32. The
models' weights are random: `weights.json` says how to generate them (random_weights.py), and only the headers are stored.
K-quants, which the package cannot make, are random blocks.
"""

import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from random_weights import BLOCKS, HEADER, entry, generate, gguf_bytes, with_digests, write_manifest
from safetensors.numpy import save_file
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

OUT = Path(__file__).parent.parent / "data" / "gguf"
SEED = "gguf"
# Greedy tokens are the same in any f32 arithmetic if the best two logits differ by at least this much.
MARGIN = 0.02
rng = np.random.default_rng(7)


def dequantise(data, name):
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]).astype(np.float32)


def permute(rows, heads):
    """As llama.cpp's converter orders the rows of queries and keys."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows, heads):
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


class Writer:
    """A GGUF file, its part of the manifest, and the transformers weights that are in it."""

    def __init__(self, name, architecture, draw=0):
        self.name = name
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / f"{name}.gguf"
        self.file = gguf.GGUFWriter(self.path, architecture)
        # Another draw gives other weights: for greedy tokens with a wide margin.
        self.stream = f"{name}.{draw}" if draw else name
        self.entries, self.tensors, self.state = [], [], {}

    def add(self, name, hf, kind, shape, heads=None, spread=0.06, norm=None):
        stream = f"{self.stream}/{name}"
        if norm is not None:
            made = entry(name, shape, 0.2, float(norm), stream=stream)
        elif kind in BLOCKS:
            made = {"name": name, "dtype": kind, "shape": list(shape), "spread": spread, "stream": stream}
        else:
            made = entry(name, shape, spread, dtype=kind, stream=stream)
        values = self.write(made)
        if norm == 2:
            values = values - 1
        if heads:
            values = unpermute(values, heads)
        if isinstance(hf, list):
            for one, value in zip(hf, values):
                self.state[one] = torch.tensor(value)
        else:
            self.state[hf] = torch.tensor(values)

    def write(self, made):
        """Adds a tensor of the manifest. Returns its values in f32."""
        name, kind, tensor = made["name"], made["dtype"], generate(SEED, made)
        self.entries.append(made)
        self.tensors.append(tensor)
        if kind in ("F32", "F16"):
            self.file.add_tensor(name, tensor.numpy())
            return tensor.float().numpy()
        raw = tensor.view(torch.uint8).numpy()
        self.file.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        return dequantise(raw, kind).reshape(made["shape"])

    def finish(self):
        """Stores the header, and returns the file's part of the manifest."""
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()
        whole = self.path.read_bytes()
        start = min(tensor.data_offset for tensor in gguf.GGUFReader(self.path).tensors)
        assert whole == gguf_bytes(whole[:start], self.tensors), self.name
        (OUT / f"{self.path.name}{HEADER}").write_bytes(whole[:start])
        self.folder.cleanup()
        return {"path": self.path.name, "tensors": self.entries}


def bytes_to_unicode():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {}, 0
    for byte in range(256):
        if byte in keep:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


def bpe_tokenizer(file):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["Ġ t", "h e", "Ġt he", "i n", "r e", "o n", "Ġ a", "e r", "a t", "Ġ s", "e n", "Ġ w", "o u", "Ġ c"]
    tokens = special + list(bytes_to_unicode().values()) + [merge.replace(" ", "") for merge in merges]
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list(tokens)
    file.add_token_types([3] * len(special) + [1] * (len(tokens) - len(special)))
    file.add_token_merges(merges)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_add_bos_token(False)
    file.add_chat_template(
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return len(tokens)


def spm_tokenizer(file, template):
    words = ["▁the", "▁a", "he", "in", "▁t", "▁w", "th", "er", "on", "an", "▁", "e", "t", "a", "o", "n", "i", "s", "r", "h", "w", "?"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + words
    file.add_tokenizer_model("llama")
    file.add_token_list(tokens)
    file.add_token_scores([0.0] * 259 + [-float(index) for index in range(len(words))])
    file.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_unk_token_id(0)
    file.add_add_bos_token(True)
    file.add_chat_template(template)
    return len(tokens)


def common(file, config, head_dim):
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_rope_freq_base(config.rope_theta)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_dimension_count(head_dim)


def expectations(model, prompt, tokens=12):
    """Logits at every position, and greedy ids, with the smallest difference between the best two logits."""
    model.eval()
    with torch.no_grad():
        ids = torch.tensor([prompt])
        logits = model(ids).logits[0].float().numpy()
        out, margin = [], np.inf
        for _ in range(tokens):
            best = model(ids).logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            out.append(int(best.indices[0]))
            ids = torch.cat([ids, torch.tensor([[out[-1]]])], 1)
    return logits, out, margin


def record(results, tensors, name, model, prompt):
    logits, greedy, margin = expectations(model, prompt)
    print(f"{name}: margin {margin:.3f}, largest logit {np.abs(logits).max():.2f}, ids {greedy}")
    assert margin >= MARGIN, f"{name}: choose another draw"
    tensors[f"{name}.logits"] = logits
    results[name] = {"prompt": prompt, "greedy": greedy}


def llama(results, tensors):
    writer = Writer("llama", "llama")
    vocab = bpe_tokenizer(writer.file)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, rope_theta=50000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )
    common(writer.file, config, 64)
    writer.add("token_embd.weight", "model.embed_tokens.weight", "Q5_1", (vocab, 256), spread=0.5)
    writer.add("output_norm.weight", "model.norm.weight", None, (256,), norm=1)
    layer, hf = "blk.0.", "model.layers.0."
    writer.add(layer + "attn_norm.weight", hf + "input_layernorm.weight", None, (256,), norm=1)
    writer.add(layer + "ffn_norm.weight", hf + "post_attention_layernorm.weight", None, (256,), norm=1)
    # Types as llama.cpp mixes them: queries, keys and values need not have the same.
    writer.add(layer + "attn_q.weight", hf + "self_attn.q_proj.weight", "Q4_K", (256, 256), heads=4)
    writer.add(layer + "attn_k.weight", hf + "self_attn.k_proj.weight", "Q5_K", (128, 256), heads=2)
    writer.add(layer + "attn_v.weight", hf + "self_attn.v_proj.weight", "Q6_K", (128, 256))
    writer.add(layer + "attn_output.weight", hf + "self_attn.o_proj.weight", "Q5_0", (256, 256))
    writer.add(layer + "ffn_gate.weight", hf + "mlp.gate_proj.weight", "Q4_0", (256, 256))
    writer.add(layer + "ffn_up.weight", hf + "mlp.up_proj.weight", "Q4_0", (256, 256))
    writer.add(layer + "ffn_down.weight", hf + "mlp.down_proj.weight", "Q8_0", (256, 256))
    file = writer.finish()
    model = LlamaForCausalLM(config)
    model.load_state_dict({**writer.state, "lm_head.weight": writer.state["model.embed_tokens.weight"]})
    prompt = [1, 120, 84, 70, 85, 13, 40, 200, 3, 77, 2, 263]
    record(results, tensors, "llama", model, prompt)
    return file


def mixtral(results, tensors):
    writer = Writer("mixtral", "llama")
    template = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    vocab = spm_tokenizer(writer.file, template)
    config = MixtralConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, rope_theta=1e6, rms_norm_eps=1e-5, num_local_experts=4, num_experts_per_tok=2, sliding_window=None,
    )
    common(writer.file, config, 16)
    writer.file.add_expert_count(4)
    writer.file.add_expert_used_count(2)
    writer.add("token_embd.weight", "model.embed_tokens.weight", "F16", (vocab, 64), spread=0.5)
    writer.add("output.weight", "lm_head.weight", "Q8_0", (vocab, 64), spread=0.3)
    writer.add("output_norm.weight", "model.norm.weight", None, (64,), norm=1)
    for index in range(2):
        layer, hf = f"blk.{index}.", f"model.layers.{index}."
        writer.add(layer + "attn_norm.weight", hf + "input_layernorm.weight", None, (64,), norm=1)
        writer.add(layer + "ffn_norm.weight", hf + "post_attention_layernorm.weight", None, (64,), norm=1)
        writer.add(layer + "attn_q.weight", hf + "self_attn.q_proj.weight", "Q4_1", (64, 64), heads=4, spread=0.1)
        writer.add(layer + "attn_k.weight", hf + "self_attn.k_proj.weight", "Q4_1", (32, 64), heads=2, spread=0.1)
        writer.add(layer + "attn_v.weight", hf + "self_attn.v_proj.weight", "BF16", (32, 64), spread=0.1)
        writer.add(layer + "attn_output.weight", hf + "self_attn.o_proj.weight", "Q5_1", (64, 64), spread=0.1)
        writer.add(layer + "ffn_gate_inp.weight", hf + "block_sparse_moe.gate.weight", "F32", (4, 64), spread=0.5)
        experts = lambda part: [f"{hf}block_sparse_moe.experts.{expert}.{part}.weight" for expert in range(4)]
        writer.add(layer + "ffn_gate_exps.weight", experts("w1"), "Q4_0", (4, 96, 64), spread=0.1)
        writer.add(layer + "ffn_up_exps.weight", experts("w3"), "Q4_0", (4, 96, 64), spread=0.1)
        writer.add(layer + "ffn_down_exps.weight", experts("w2"), "Q5_0", (4, 64, 96), spread=0.1)
    file = writer.finish()
    model = MixtralForCausalLM(config)
    model.load_state_dict(writer.state)
    prompt = [1, 269, 260, 40, 262, 3, 200, 270, 265]
    record(results, tensors, "mixtral", model, prompt)
    return file


def gemma(results, tensors):
    writer = Writer("gemma", "gemma")
    template = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
    vocab = spm_tokenizer(writer.file, template)
    config = GemmaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=48, max_position_embeddings=256, rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh",
    )
    common(writer.file, config, 48)
    writer.file.add_key_length(48)
    writer.file.add_value_length(48)
    writer.add("token_embd.weight", "model.embed_tokens.weight", "Q8_0", (vocab, 64), spread=0.2)
    # llama.cpp's converter adds the 1 that Gemma's norms leave out.
    writer.add("output_norm.weight", "model.norm.weight", None, (64,), norm=2)
    for index in range(2):
        layer, hf = f"blk.{index}.", f"model.layers.{index}."
        writer.add(layer + "attn_norm.weight", hf + "input_layernorm.weight", None, (64,), norm=2)
        writer.add(layer + "ffn_norm.weight", hf + "post_attention_layernorm.weight", None, (64,), norm=2)
        writer.add(layer + "attn_q.weight", hf + "self_attn.q_proj.weight", "Q4_1", (96, 64), spread=0.1)
        writer.add(layer + "attn_k.weight", hf + "self_attn.k_proj.weight", "Q8_0", (48, 64), spread=0.1)
        writer.add(layer + "attn_v.weight", hf + "self_attn.v_proj.weight", "Q5_1", (48, 64), spread=0.1)
        writer.add(layer + "attn_output.weight", hf + "self_attn.o_proj.weight", "F16", (64, 96), spread=0.1)
        writer.add(layer + "ffn_gate.weight", hf + "mlp.gate_proj.weight", "Q4_1", (128, 64), spread=0.1)
        writer.add(layer + "ffn_up.weight", hf + "mlp.up_proj.weight", "Q5_0", (128, 64), spread=0.1)
        writer.add(layer + "ffn_down.weight", hf + "mlp.down_proj.weight", "Q4_0", (64, 128), spread=0.1)
    file = writer.finish()
    model = GemmaForCausalLM(config)
    model.load_state_dict({**writer.state, "lm_head.weight": writer.state["model.embed_tokens.weight"]})
    prompt = [1, 259, 264, 30, 268, 5, 210, 271]
    record(results, tensors, "gemma", model, prompt)
    return file


def llama3_factors(config):
    """What llama.cpp's converter writes as rope_freqs.weight for Llama 3.1: what each pair's frequency is divided by."""
    scaling, dim = config.rope_scaling, config.hidden_size // config.num_attention_heads
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    context = scaling["original_max_position_embeddings"]
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * config.rope_theta ** (i / dim)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def scaled(results, tensors, name, scaling):
    """A model whose rotary frequencies are scaled, over a prompt long enough to tell."""
    writer = Writer(name, "llama")
    vocab = spm_tokenizer(writer.file, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=256, rope_theta=100.0, rope_scaling=scaling, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )
    common(writer.file, config, 32)
    if scaling["rope_type"] == "linear":
        writer.file.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.file.add_rope_scaling_factor(scaling["factor"])
    else:
        factors = llama3_factors(config)
        values = [float(factor) for factor in factors]
        writer.write({"name": "rope_freqs.weight", "dtype": "F32", "shape": list(factors.shape), "values": values})
    writer.add("token_embd.weight", "model.embed_tokens.weight", "F16", (vocab, 64), spread=0.5)
    writer.add("output_norm.weight", "model.norm.weight", None, (64,), norm=1)
    layer, hf = "blk.0.", "model.layers.0."
    writer.add(layer + "attn_norm.weight", hf + "input_layernorm.weight", None, (64,), norm=1)
    writer.add(layer + "ffn_norm.weight", hf + "post_attention_layernorm.weight", None, (64,), norm=1)
    for part, hf_part, heads in [("attn_q", "q_proj", 2), ("attn_k", "k_proj", 2), ("attn_v", "v_proj", None), ("attn_output", "o_proj", None)]:
        writer.add(f"{layer}{part}.weight", f"{hf}self_attn.{hf_part}.weight", "F16", (64, 64), heads=heads, spread=0.3)
    for part, hf_part in [("ffn_gate", "gate_proj"), ("ffn_up", "up_proj"), ("ffn_down", "down_proj")]:
        writer.add(f"{layer}{part}.weight", f"{hf}mlp.{hf_part}.weight", "F16", (64, 64), spread=0.1)
    file = writer.finish()
    model = LlamaForCausalLM(config)
    model.load_state_dict({**writer.state, "lm_head.weight": writer.state["model.embed_tokens.weight"]})
    prompt = [1, *(int(i) for i in rng.integers(3, vocab, 48))]
    record(results, tensors, name, model, prompt)
    return file


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    results, tensors = {}, {}
    for name in BLOCKS:
        shape, entry = [3, 512], {"name": f"{name}.blocks", "dtype": name, "spread": 1.0}
        tensors[entry["name"]] = generate(SEED, {**entry, "shape": shape}).numpy()
        tensors[f"{name}.values"] = dequantise(tensors[entry["name"]], name)
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    files = [
        llama(results, tensors),
        mixtral(results, tensors),
        gemma(results, tensors),
        scaled(results, tensors, "linear-rope", {"rope_type": "linear", "factor": 4.0}),
        scaled(results, tensors, "llama3-rope", {"rope_type": "llama3", "factor": 8.0, **llama3}),
    ]
    write_manifest(OUT, with_digests({"seed": SEED, "files": files}))
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, OUT / "expected.safetensors")
    (OUT / "expected.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
