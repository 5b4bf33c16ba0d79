"""The file from which make_bpe.mjs makes tests/data/gguf/bpe.json: a byte-level BPE vocabulary and nothing else.

    pip install gguf==0.19 && python tests/reference/make_bpe.py

Its merges were counted on whole texts, across words, numbers and punctuation, so that every cut which a pre-tokenizer makes shows
in the ids.
"""

import json
from collections import Counter
from pathlib import Path

import gguf
from make_gguf import bytes_to_unicode

OUT = Path(__file__).parent.parent / "data" / "gguf"
MERGES = 600
TEXTS = [
    "a (b) [c] {d} <e> f-g h_i j/k l\\m",
    "Hello, world! Hello,world!! (yes) \"no\" 'maybe'...",
    "it's I'm we'll they'd you've she'RE IT'S DON'T don't",
    "1 12 123 1234 12345 1234567 3.14 1,000,000 a1b22c333 x=42;",
    "  two   three    four\tfive\t\tsix \n seven\n\n eight \n\n\n nine  ",
    "line one\nline two\r\nline three\r\n\r\nend\n",
    "price: $5 + 3 = 8 ^ 2 ~ 1 | `code` #tag @me 50% a&b *c* <= >=",
    "Caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4",
    "e\u0301 combining, \u0661\u0662\u0663 \u00bd \u00b2 \u2167 digits \u0967\u0968",
    "emoji \U0001f600\U0001f601 \U0001f1eb\U0001f1f7 \u2764\ufe0f \U0001f469\u200d\U0001f4bb end",
    "CamelCase camelCase HTTPServer XMLHttp2Request snake_case SCREAMING_CASE iPhone",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n",
    "https://example.org/a/b?c=d&e=f#g user@host.tld path/to/file.txt C:\\dir",
    "\u00a0no-break\u2003space \u2014 dash\u2013dash \u00abquote\u00bb \u201ccurly\u201d \u2018it\u2019s\u2019",
    "-1 +2 (-3) [4] a.b.c 1.2.3 v1.0-rc2 !!! ??? ... ,,, ;;;",
    " leading", "trailing ", "\n", " ", "  ", "", "\n\n  \n", "x", " 7", "7 ",
]


def merges_of(texts: list[str]) -> list[str]:
    letters = bytes_to_unicode()
    parts = [[letters[byte] for byte in text.encode()] for text in texts]
    merges = []
    while len(merges) < MERGES:
        pairs = Counter(pair for part in parts for pair in zip(part, part[1:]))
        best, count = max(pairs.items(), key=lambda item: (item[1], item[0]))
        merges.append(" ".join(best))
        for part in parts:
            at = 0
            while at + 1 < len(part):
                if (part[at], part[at + 1]) == best:
                    part[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def main() -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = merges_of(TEXTS)
    tokens = special + list(bytes_to_unicode().values())
    tokens += dict.fromkeys(merge.replace(" ", "") for merge in merges)
    file = gguf.GGUFWriter(OUT / "bpe.gguf", "llama")
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("PRE")
    file.add_token_list(tokens)
    file.add_token_types([3] * len(special) + [1] * (len(tokens) - len(special)))
    file.add_token_merges(merges)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    # llama.cpp wants the sizes of a model even where only its vocabulary is read.
    file.add_block_count(1)
    file.add_context_length(64)
    file.add_embedding_length(32)
    file.add_feed_forward_length(32)
    file.add_head_count(1)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_vocab_size(len(tokens))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    (OUT / "bpe.json").write_text(json.dumps({"texts": TEXTS}))


if __name__ == "__main__":
    main()
