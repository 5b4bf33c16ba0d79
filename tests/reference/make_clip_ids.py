"""Ids of awkward prompts by transformers' fast CLIP tokenizer.

    make_clip_ids.py ../data/diffusion/tokenizer ../data/diffusion/tokenizer_2 ../data/diffusion/clip_ids.json
"""

import json
import sys

from transformers import CLIPTokenizerFast

TEXTS = [
    "",
    " ",
    "a photo of a gold mine at dawn, misty hills",
    "UPPER Case and MiXeD",
    "  many   spaces\tand\nlines\r\n ",
    "don't we'll they've I'm he'd it's re'll",
    "hello!",
    "wow!!! really?! ...yes",
    "(masterpiece:1.2), [best quality], {8k} <lora:x:0.8>",
    "café cafe\u0301 naïve Ångström",
    "İstanbul ΣΑΣ ß straße",
    "3.14159 1,000,000 2²",
    "中文字符 日本語 한국어",
    "emoji 🙂👩‍👩‍👧 and \u200bzero\u200bwidth",
    "tab\u0000null\ufffdreplacement",
    "<|startoftext|> inside <|endoftext|> it",
    "<|STARTOFTEXT|>",
    "a_b-c/d\\e|f`g~h^i",
    "\u00a0no-break\u3000wide",
    "word " * 74,
    "word " * 75,
    "word " * 76,
    "supercalifragilisticexpialidocious " * 12,
    "out of frame, lowres, text, error, cropped, worst quality, low quality, jpeg artifacts, ugly, duplicate, morbid, "
    "mutilated, out of frame, extra fingers, mutated hands, poorly drawn hands, poorly drawn face, mutation, deformed, "
    "blurry, dehydrated, bad anatomy, bad proportions, extra limbs, cloned face, disfigured, gross proportions",
]


def main(first, second, out):
    made = []
    tokenizers = [CLIPTokenizerFast.from_pretrained(folder) for folder in [first, second]]
    for text in TEXTS:
        ids = [
            tokenizer(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
            for tokenizer in tokenizers
        ]
        made.append({"text": text, "ids": ids, "length": len(tokenizers[0](text)["input_ids"])})
    with open(out, "w") as file:
        json.dump(made, file, separators=(",", ":"))
        file.write("\n")


main(*sys.argv[1:])
