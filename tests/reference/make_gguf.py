"""Small GGUF files with the values that a correct runtime computes from them, and blocks of every type with their values.

    pip install gguf==0.19 torch==2.8 transformers==4.49 safetensors
    python tests/reference/make_gguf.py

Files are written with the gguf package, values dequantised by it, and logits computed by transformers on the dequantised
weights in f32. The models' weights are random; K-quants, which the package cannot make, are random blocks.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

OUT = Path(__file__).parent.parent / "data" / "gguf"
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
rng = np.random.default_rng(7)


def random_blocks(name, rows, columns, spread=1.0):
    """Rows of blocks with random integers and scales that give weights of about `spread`."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = rows * columns // block
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    levels = {"Q4_0": 8, "Q4_1": 8, "Q5_0": 16, "Q5_1": 16, "Q8_0": 127, "Q4_K": 8 * 32, "Q5_K": 16 * 32, "Q6_K": 32 * 64}
    scale = (spread / levels[name] * rng.uniform(0.5, 1.5, count)).astype(np.float16)
    minimum = (-spread * rng.uniform(0.5, 1.5, count)).astype(np.float16)
    bytes_of = lambda values: values.view(np.uint8).reshape(count, 2)
    if name == "Q6_K":
        blocks[:, 208:210] = bytes_of(scale)
    else:
        blocks[:, 0:2] = bytes_of(scale)
    if name in ("Q4_1", "Q5_1"):
        blocks[:, 2:4] = bytes_of(minimum)
    if name in ("Q4_K", "Q5_K"):
        blocks[:, 2:4] = bytes_of((-minimum.astype(np.float32) / 32).astype(np.float16))
    return blocks.reshape(rows, columns // block * size)


def dequantise(data, name):
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]).astype(np.float32)


def permute(rows, heads):
    """As llama.cpp's converter orders the rows of queries and keys."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows, heads):
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


class Writer:
    """A GGUF file and the transformers weights that are in it."""

    def __init__(self, path, architecture):
        self.file = gguf.GGUFWriter(path, architecture)
        self.state = {}

    def add(self, name, hf, kind, shape, heads=None, spread=0.06, norm=None):
        if norm is not None:
            values = (norm + 0.2 * rng.standard_normal(shape)).astype(np.float32)
            self.file.add_tensor(name, values)
            self.state[hf] = torch.tensor(values - (1 if norm == 2 else 0))
            return
        rows, columns = shape[-2], shape[-1]
        if kind in ("F32", "F16"):
            values = (spread * rng.standard_normal(shape)).astype(np.float16 if kind == "F16" else np.float32)
            self.file.add_tensor(name, values)
            values = values.astype(np.float32)
        elif kind == "BF16":
            values = (spread * rng.standard_normal(shape)).astype(np.float32)
            data = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
            self.file.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
            values = dequantise(data, "BF16")
        else:
            stack = int(np.prod(shape[:-2], dtype=int))
            data = random_blocks(kind, stack * rows, columns, spread)
            values = dequantise(data, kind).reshape(shape)
            data = data.reshape(*shape[:-1], -1)
            self.file.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        if heads:
            values = unpermute(values, heads)
        if isinstance(hf, list):
            for one, value in zip(hf, values):
                self.state[one] = torch.tensor(value)
        else:
            self.state[hf] = torch.tensor(values)

    def finish(self):
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


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
    """Logits at every position, and greedy ids."""
    model.eval()
    with torch.no_grad():
        ids = torch.tensor([prompt])
        logits = model(ids).logits[0].float().numpy()
        out = []
        for _ in range(tokens):
            out.append(int(model(ids).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[out[-1]]])], 1)
    return logits, out


def llama(results, tensors):
    path = OUT / "llama.gguf"
    writer = Writer(path, "llama")
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
    writer.finish()
    model = LlamaForCausalLM(config)
    model.load_state_dict({**writer.state, "lm_head.weight": writer.state["model.embed_tokens.weight"]})
    prompt = [1, 120, 84, 70, 85, 13, 40, 200, 3, 77, 2, 263]
    logits, greedy = expectations(model, prompt)
    tensors["llama.logits"] = logits
    results["llama"] = {"prompt": prompt, "greedy": greedy}


def mixtral(results, tensors):
    writer = Writer(OUT / "mixtral.gguf", "llama")
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
    writer.finish()
    model = MixtralForCausalLM(config)
    model.load_state_dict(writer.state)
    prompt = [1, 269, 260, 40, 262, 3, 200, 270, 265]
    logits, greedy = expectations(model, prompt)
    tensors["mixtral.logits"] = logits
    results["mixtral"] = {"prompt": prompt, "greedy": greedy}


def gemma(results, tensors):
    writer = Writer(OUT / "gemma.gguf", "gemma")
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
    writer.finish()
    model = GemmaForCausalLM(config)
    model.load_state_dict({**writer.state, "lm_head.weight": writer.state["model.embed_tokens.weight"]})
    prompt = [1, 259, 264, 30, 268, 5, 210, 271]
    logits, greedy = expectations(model, prompt)
    tensors["gemma.logits"] = logits
    results["gemma"] = {"prompt": prompt, "greedy": greedy}


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
    writer = Writer(OUT / f"{name}.gguf", "llama")
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
        writer.file.add_tensor("rope_freqs.weight", llama3_factors(config))
    writer.add("token_embd.weight", "model.embed_tokens.weight", "F16", (vocab, 64), spread=0.5)
    writer.add("output_norm.weight", "model.norm.weight", None, (64,), norm=1)
    layer, hf = "blk.0.", "model.layers.0."
    writer.add(layer + "attn_norm.weight", hf + "input_layernorm.weight", None, (64,), norm=1)
    writer.add(layer + "ffn_norm.weight", hf + "post_attention_layernorm.weight", None, (64,), norm=1)
    for part, hf_part, heads in [("attn_q", "q_proj", 2), ("attn_k", "k_proj", 2), ("attn_v", "v_proj", None), ("attn_output", "o_proj", None)]:
        writer.add(f"{layer}{part}.weight", f"{hf}self_attn.{hf_part}.weight", "F16", (64, 64), heads=heads, spread=0.3)
    for part, hf_part in [("ffn_gate", "gate_proj"), ("ffn_up", "up_proj"), ("ffn_down", "down_proj")]:
        writer.add(f"{layer}{part}.weight", f"{hf}mlp.{hf_part}.weight", "F16", (64, 64), spread=0.1)
    writer.finish()
    model = LlamaForCausalLM(config)
    model.load_state_dict({**writer.state, "lm_head.weight": writer.state["model.embed_tokens.weight"]})
    prompt = [1, *(int(i) for i in rng.integers(3, vocab, 48))]
    logits, greedy = expectations(model, prompt)
    tensors[f"{name}.logits"] = logits
    results[name] = {"prompt": prompt, "greedy": greedy}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    results, tensors = {}, {}
    for name in TYPES:
        data = random_blocks(name, 3, 512)
        tensors[f"{name}.blocks"] = data
        tensors[f"{name}.values"] = dequantise(data, name)
    llama(results, tensors)
    mixtral(results, tensors)
    gemma(results, tensors)
    scaled(results, tensors, "linear-rope", {"rope_type": "linear", "factor": 4.0})
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    scaled(results, tensors, "llama3-rope", {"rope_type": "llama3", "factor": 8.0, **llama3})
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, OUT / "expected.safetensors")
    (OUT / "expected.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
