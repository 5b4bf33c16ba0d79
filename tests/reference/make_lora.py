"""Adapter files by peft and LyCORIS, and the weights that these libraries merge.

    make_lora.py ../data/diffusion/lora

Needs lycoris-lora 4.1.3 and its requirements einops and toml besides requirements.txt. Writes `base.safetensors`, a few
weights of a Stable Diffusion XL with one layer per block; a file per case, as the library saved it; `cases.json`, which
files each case merges with which scale; and `expected.safetensors`, the weights that change, as CASE/NETWORK/NAME.

LyCORIS 4.1.3 multiplies LoHa and LoKr by alpha / rank twice in `get_merged_weight`; what its modules compute in `forward`,
where the factor is applied once, is expected here.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from lycoris.functional.general import weight_decompose
from lycoris.modules.full import FullModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
ORIGINAL = "input_blocks.3.1.transformer_blocks.0"
# Weights of the UNet: name in diffusers, name in the original code, shape, whether there is a bias.
UNET = [
    (f"{BLOCK}.attn1.to_q", f"{ORIGINAL}.attn1.to_q", (12, 12), False),
    (f"{BLOCK}.attn1.to_out.0", f"{ORIGINAL}.attn1.to_out.0", (12, 12), True),
    (f"{BLOCK}.attn2.to_k", f"{ORIGINAL}.attn2.to_k", (12, 4), False),
    (f"{BLOCK}.norm1", f"{ORIGINAL}.norm1", (12,), True),
    ("mid_block.resnets.0.conv1", "middle_block.0.in_layers.2", (4, 6, 3, 3), True),
]
TEXT = [("text_model.encoder.layers.0.self_attn.q_proj", (6, 6), True)]
TEXT_2 = [("text_model.encoder.layers.0.self_attn.q_proj", (8, 8), True)]
Q, OUT, K, NORM, CONV = (diffusers for diffusers, *_ in UNET)


def kohya(name):
    original = {diffusers: original for diffusers, original, *_ in UNET}
    return "lora_unet_" + original[name].replace(".", "_")


def layer(shape, bias):
    if len(shape) == 4:
        return torch.nn.Conv2d(shape[1], shape[0], shape[2:], padding=1, bias=bias)
    if len(shape) == 2:
        return torch.nn.Linear(shape[1], shape[0], bias=bias)
    return torch.nn.LayerNorm(shape[0])


class Tree(torch.nn.Module):
    """Layers under dotted names."""

    def __init__(self, layers):
        super().__init__()
        for name, module in layers.items():
            parent = self
            *path, last = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, torch.nn.Module())
                parent = parent._modules[part]
            parent.add_module(last, module)


def random(tensor, scale=0.5):
    with torch.no_grad():
        tensor.copy_(torch.randn(tensor.shape, generator=GENERATOR) * scale)


GENERATOR = torch.Generator().manual_seed(20)


class Made:
    def __init__(self, folder):
        self.folder, self.cases, self.expected = folder, {}, {}
        unet = {name: layer(shape, bias) for name, _, shape, bias in UNET}
        self.unet = Tree(unet)
        self.text = [Tree({name: layer(shape, bias) for name, shape, bias in part}) for part in (TEXT, TEXT_2)]
        base = {}
        for network, tree in [("unet", self.unet), ("text_1", self.text[0]), ("text_2", self.text[1])]:
            for name, value in tree.state_dict().items():
                random(value)
                base[f"{network}/{name}"] = value.clone()
        self.base = base
        save_file(base, folder / "base.safetensors")

    def layer(self, name):
        module = layer(*next((shape, bias) for diffusers, _, shape, bias in UNET if diffusers == name))
        module.load_state_dict(
            {kind: self.base[f"unet/{name}.{kind}"] for kind, _ in module.named_parameters()}
        )
        return module

    def case(self, name, merged, files):
        """`merged` has the weights that change, by network and name; `files` names, scales and peft's configurations."""
        self.cases[name] = files
        for tensor, value in merged.items():
            assert not torch.equal(value, self.base[tensor]), (name, tensor)
            self.expected[f"{name}/{tensor}"] = value.detach().float().contiguous()

    def save(self, name, state, metadata=None):
        state = {key: value.detach().contiguous().clone() for key, value in state.items()}
        save_file(state, self.folder / f"{name}.safetensors", metadata)

    def lycoris(self, name, kind, layers, scale=1.0, convert=lambda key, value: value, **settings):
        """Layers adapted by a module of LyCORIS, under the names of Kohya's scripts."""
        state, merged = {}, {}
        for index, target in enumerate(layers):
            org = self.layer(target)
            module = kind(kohya(target), org, 1.0, **settings)
            for key, value in module.named_parameters():
                if key != "dora_scale":
                    random(value)
                else:
                    with torch.no_grad():
                        value.mul_(torch.rand(value.shape, generator=GENERATOR) + 0.5)
            for key, value in module.custom_state_dict().items():
                state[f"{kohya(target)}.{key}"] = convert(key, value.detach())
            # The module as it is read again from the file.
            if hasattr(module, "load_state_dict"):
                changed = {key: state[f"{kohya(target)}.{key}"].float() for key in module.custom_state_dict()}
                with torch.no_grad():
                    for key, value in module.named_parameters():
                        if key in changed:
                            value.copy_(changed[key])
            if kind is LoConModule:
                weight = org.weight + module.make_weight() * module.scale * (1.0 if settings.get("weight_decompose") else scale)
            else:
                factor = 1.0 if settings.get("weight_decompose") else scale
                weight = org.weight + module.get_weight(module.shape) * factor
            if settings.get("weight_decompose"):
                decomposed = weight_decompose(weight, module.dora_scale, 1, settings.get("wd_on_out", True))
                weight = org.weight + scale * (decomposed - org.weight)
            merged[f"unet/{target}.weight"] = weight
        self.save(name, state)
        self.case(name, merged, [[f"{name}.safetensors", scale]])

    def peft(self, name, *configs, scales=None):
        """The UNet adapted by peft, one adapter for each configuration, merged in this order."""
        tree = Tree({target: self.layer(target) for target, *_ in UNET})
        model = get_peft_model(tree, configs[0], adapter_name="a0")
        for index, config in enumerate(configs[1:], 1):
            model.add_adapter(f"a{index}", config)
        for key, value in model.named_parameters():
            if any(part in key for part in ["lora_", "hada_", "lokr_"]):
                if "magnitude" in key:
                    with torch.no_grad():
                        value.mul_(torch.rand(value.shape, generator=GENERATOR) + 0.5)
                else:
                    random(value)
        files = []
        for index in range(len(configs)):
            adapter, file = f"a{index}", name if len(configs) == 1 else f"{name}-{index}"
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder, selected_adapters=[adapter])
                saved = Path(folder) / adapter
                self.save(file, load_file(saved / "adapter_model.safetensors"))
                config = json.loads((saved / "adapter_config.json").read_text())
            keep = ["peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"]
            config = {key: config[key] for key in keep if key in config}
            files.append([f"{file}.safetensors", 1.0, config])
        merged = model.merge_and_unload(adapter_names=[f"a{index}" for index in range(len(configs))])
        changed = {f"unet/{key}": value for key, value in merged.state_dict().items()}
        changed = {key: value for key, value in changed.items() if not torch.equal(value, self.base[key])}
        assert changed
        self.case(name, changed, files)


def main(folder):
    folder = Path(folder)
    made = Made(folder)

    def half(key, value):
        # Trainers write alphas as integers too.
        return torch.tensor(int(value)) if key == "alpha" else value.half()

    made.lycoris("locon", LoConModule, [Q, K, CONV], 0.6, lora_dim=2, alpha=3)
    made.lycoris("locon-tucker", LoConModule, [CONV], lora_dim=3, alpha=1, use_tucker=True, convert=half)
    made.lycoris("locon-rs", LoConModule, [Q], lora_dim=2, alpha=3, rs_lora=True)
    made.lycoris("loha", LohaModule, [OUT, CONV], 0.8, lora_dim=2, alpha=1, convert=half)
    made.lycoris("loha-tucker", LohaModule, [CONV], lora_dim=2, alpha=3, use_tucker=True)
    made.lycoris("lokr", LokrModule, [Q, CONV], 0.9, lora_dim=1, alpha=2)
    made.lycoris("lokr-both", LokrModule, [Q, OUT], lora_dim=1, alpha=3, decompose_both=True)
    made.lycoris("lokr-whole", LokrModule, [K, CONV], lora_dim=8, alpha=3, full_matrix=True)
    made.lycoris("lokr-unbalanced", LokrModule, [Q], lora_dim=1, alpha=2, factor=3, unbalanced_factorization=True)
    made.lycoris("lokr-tucker", LokrModule, [CONV], lora_dim=1, alpha=2, use_tucker=True)
    dora = {"weight_decompose": True, "lora_dim": 2, "alpha": 1}
    made.lycoris("dora-rows", LoConModule, [K, CONV], 0.7, **dora)
    made.lycoris("dora-channels", LoConModule, [Q, CONV], 0.7, wd_on_out=False, **dora)
    made.lycoris("dora-loha", LohaModule, [Q], **dora)
    made.lycoris("dora-lokr", LokrModule, [K], wd_on_out=False, weight_decompose=True, lora_dim=1, alpha=2)

    # Differences of whole weights, biases and norms.
    state, merged = {}, {}
    for target in [OUT, CONV]:
        org = made.layer(target)
        module = FullModule(kohya(target), org)
        random(module.weight)
        random(module.bias)
        state[f"{kohya(target)}.diff"], state[f"{kohya(target)}.diff_b"] = module.weight, module.bias
        weight, bias = module.get_merged_weight(0.5)
        merged[f"unet/{target}.weight"], merged[f"unet/{target}.bias"] = weight, bias
    org = made.layer(NORM)
    module = NormModule(kohya(NORM), org)
    random(module.w_norm)
    random(module.b_norm)
    state[f"{kohya(NORM)}.w_norm"], state[f"{kohya(NORM)}.b_norm"] = module.w_norm, module.b_norm
    merged[f"unet/{NORM}.weight"] = org.weight + 0.5 * module.w_norm
    merged[f"unet/{NORM}.bias"] = org.bias + 0.5 * module.b_norm
    made.save("full", state)
    made.case("full", merged, [["full.safetensors", 0.5]])

    # Factors of rows, and of input channels.
    state, merged = {}, {}
    for target, on_input in [(Q, False), (K, True), (CONV, True)]:
        org = made.layer(target)
        module = IA3Module(kohya(target), org, train_on_input=on_input)
        random(module.weight)
        state[f"{kohya(target)}.weight"], state[f"{kohya(target)}.on_input"] = module.weight, module.on_input
        merged[f"unet/{target}.weight"] = module.get_merged_weight(0.5)[0]
    made.save("ia3", state)
    made.case("ia3", merged, [["ia3.safetensors", 0.5]])

    linear = ["to_q", "to_out.0", "to_k"]
    patterns = {"rank_pattern": {"attn2.to_k": 3}, "alpha_pattern": {"to_q": 5, r".*attn1\.to_out\.[0-9]": 7}}
    made.peft("peft", LoraConfig(r=2, lora_alpha=3, target_modules=[*linear, "conv1"], **patterns))
    made.peft("peft-rs", LoraConfig(r=3, lora_alpha=2, target_modules=["to_k"], use_rslora=True))
    made.peft("peft-dora", LoraConfig(r=2, lora_alpha=3, target_modules=["to_k", "conv1"], use_dora=True))
    made.peft("peft-loha", LoHaConfig(r=2, alpha=3, target_modules=["to_q"]))
    made.peft("peft-lokr", LoKrConfig(r=2, alpha=3, target_modules=["to_q", "to_k"], alpha_pattern={"to_k": 1}))
    made.peft(
        "peft-order",
        LoraConfig(r=1, lora_alpha=1, target_modules=["to_k"]),
        LoraConfig(r=2, lora_alpha=3, target_modules=["to_k"], use_dora=True),
        LoraConfig(r=1, lora_alpha=2, target_modules=["to_k"]),
    )
    (folder / "cases.json").write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(files)}" for name, files in made.cases.items()) + "\n}\n")
    save_file(made.expected, folder / "expected.safetensors")
    print({file.name: file.stat().st_size for file in sorted(folder.iterdir())})
    print(sum(file.stat().st_size for file in folder.iterdir()))


main(sys.argv[1])
