"""Prompts with weights for Stable Diffusion XL: how they are read, and their embeddings by transformers.

    prompt_weights.py ../data/diffusion/prompt_weights.json

writes the parts of awkward prompts; `make_sdxl_images.py` imports `embeddings`. Reading follows AUTOMATIC1111's web UI and
diffusers' community pipeline lpw_stable_diffusion_xl. With state h of a token, state e of its chunk's last position and
weight w, the weighted state is e + w (h - e), as in that pipeline. Chunks are padded like the prompts of diffusers' own
pipeline, so that a short prompt without weights has the same embeddings there; the pooled embedding is that of the first
chunk, as in the web UI.
"""

import json
import re
import sys
from pathlib import Path

PROMPTS = [
    "",
    "normal text",
    "an (important) word",
    "(unbalanced",
    "unbalanced)",
    "[less",
    "more]",
    r"\(literal\]",
    r"a \\ b \c",
    "trailing \\",
    "(unnecessary)(parens)",
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    "(a:1.2) (b:+.5) (c:-1) (d:2.)",
    "(16:9) at 3:1 (x:y) (z: 1)",
    "no bracket:1.5) after",
    "[a (b:1.5) [c]]",
    "(a [b:2) c]",
    "one BREAK two",
    "one BREAKFAST, unBREAK two",
    "(one BREAK two:1.5) three",
    "BREAK BREAK end BREAK",
    "(Größe:1.25) 金鉱 (山:0.8)",
    "()[](:1.5)",
    "((a)) ((b:1.1))",
]


def parse(prompt):
    """The sections of a prompt: lists of [text, weight]."""
    parts, opened = [], {"(": [], "[": []}

    def scale(start, factor):
        for part in parts[start:]:
            if part is not None:
                part[1] *= factor

    place = 0
    while place < len(prompt):
        char = prompt[place]
        if char == "\\":
            escaped = prompt[place + 1 : place + 2]
            escaped = escaped if escaped and escaped in "()[]\\" else ""
            parts.append([escaped, 1.0])
            place += 1 + len(escaped)
            continue
        number = re.compile(r":([+-]?(?:\d+\.?\d*|\.\d+))\)").match(prompt, place)
        if char in opened:
            opened[char].append(len(parts))
        elif number and opened["("]:
            scale(opened["("].pop(), float(number[1]))
            place = number.end()
            continue
        elif number:
            parts.append([number[0], 1.0])
            place = number.end()
            continue
        elif char == ")" and opened["("]:
            scale(opened["("].pop(), 1.1)
        elif char == "]" and opened["["]:
            scale(opened["["].pop(), 1 / 1.1)
        elif char in ":)]":
            parts.append([char, 1.0])
        else:
            run = re.compile(r"[^\\()\[\]:]+").match(prompt, place)[0]
            for index, text in enumerate(re.split(r"\s*\bBREAK\b\s*", run)):
                if index:
                    parts.append(None)
                parts.append([text, 1.0])
            place += len(run)
            continue
        place += 1
    for start in opened["("]:
        scale(start, 1.1)
    for start in opened["["]:
        scale(start, 1 / 1.1)
    sections = [[]]
    for part in parts:
        if part is None:
            sections.append([])
        elif sections[-1] and sections[-1][-1][1] == part[1]:
            sections[-1][-1][0] += part[0]
        else:
            sections[-1].append(part)
    return sections


def chunks(tokenizer, prompt):
    """Lists of 77 (id, weight)."""
    made = []
    sections = parse(prompt)
    for number, section in enumerate(sections):
        tokens = [
            (token, weight)
            for text, weight in section
            for token in tokenizer(text, add_special_tokens=False).input_ids
        ]
        if not tokens and number + 1 == len(sections) and made:
            continue
        for start in range(0, max(len(tokens), 1), 75):
            chunk = [(tokenizer.bos_token_id, 1.0), *tokens[start : start + 75], (tokenizer.eos_token_id, 1.0)]
            made.append(chunk + [(tokenizer.pad_token_id, 1.0)] * (77 - len(chunk)))
    return made


def encode(pipeline, prompt, count):
    """States [1, 77 * count, width] and the pooled embedding."""
    import torch

    states, pooled = [], None
    for index in range(count):
        both = []
        for tokenizer, encoder in [
            (pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)
        ]:
            made = chunks(tokenizer, prompt)
            chunk = made[index] if index < len(made) else chunks(tokenizer, "")[0]
            ids, weights = zip(*chunk)
            with torch.no_grad():
                output = encoder(torch.tensor([ids]), output_hidden_states=True)
            state = output.hidden_states[-2]
            end = state[:, -1:]
            both.append(end + torch.tensor(weights)[None, :, None] * (state - end))
        if pooled is None:
            pooled = output[0]
        states.append(torch.cat(both, dim=-1))
    return torch.cat(states, dim=1), pooled


def embeddings(pipeline, prompt, negative):
    """Arguments of a pipeline's call instead of the prompts. Without a negative prompt its embeddings are zeros."""
    import torch

    texts = [prompt] if negative is None else [prompt, negative]
    tokenizers = [pipeline.tokenizer, pipeline.tokenizer_2]
    count = max(len(chunks(tokenizer, text)) for text in texts for tokenizer in tokenizers)
    states, pooled = encode(pipeline, prompt, count)
    if negative is None:
        negative_states, negative_pooled = torch.zeros_like(states), torch.zeros_like(pooled)
    else:
        negative_states, negative_pooled = encode(pipeline, negative, count)
    return {
        "prompt_embeds": states,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": negative_states,
        "negative_pooled_prompt_embeds": negative_pooled,
    }


if __name__ == "__main__":
    cases = [{"prompt": prompt, "sections": parse(prompt)} for prompt in PROMPTS]
    Path(sys.argv[1]).write_text(json.dumps(cases, ensure_ascii=False) + "\n")
