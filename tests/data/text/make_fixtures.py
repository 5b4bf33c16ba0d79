"""Writes fixtures.json and the small models in this folder: token ids of many unusual strings by SentencePiece and transformers.

    pip install sentencepiece==0.2.* transformers==4.49.0 protobuf
    python make_fixtures.py

The golden checkpoints give most vocabularies; a few more are trained here on any English text (argument 1).
"""

import json
import os
import random
import sys
import tempfile

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb
from transformers import AutoTokenizer, GemmaTokenizer, GemmaTokenizerFast, LlamaTokenizer, LlamaTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.join(HERE, "..", "..")
VICUNA = "goldens/vicuna-7b/MGM-7B"
GEMMA = "goldens/gemma-2b/MGM-2B"
LLAMA3 = "goldens/llama3-8b/MGM-8B"

STRINGS = [
    "", " ", "  ", "   \n", "\n", "\n\n", "\t\t", "\r\n", "a", " a", "a ", "  a  b   c  ", "Hello world", "hello\nworld",
    "\u2581", "\u2581\u2581a", "a\u2581b", " \u2581 a", "USER: And why? ASSISTANT:", "What is unusual about this image?",
    "\nWhat is in this picture?", "12345 67.89", "1+1=2", "don't we're I'm he's , . ! ? ' x", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\u4e2d\u6587 english \u6df7\u6392", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "caf\u00e9 cafe\u0301", "\u0000\u0001\u001b[0m", "\u00a0nbsp\u2003em",
    "\ufeffbom", "\ufffd", "\u202eright", "\U0010ffff", "\u0e01\u0e33", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u05e2\u05d1\u05e8\u05d9\u05ea",
    "x" * 200, " " * 37, "ab" * 50, "\n" * 9, "the the the", "<unk>", "<s>", "</s>", "<s>hello</s>", "a</s>b", "a </s> b", "a</s>USER: b",
    "</s></s>", " </s>", "<0x0A>", "<0x0a>", "<image>", "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n", "<eos><bos><pad>",
    "<|im_start|>user\nhi<|im_end|><|im_start|>assistant\n", "<|im_end|>", "<|im_end|> x", "<|startoftext|>a<|endoftext|>",
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>", "[INST] hi [/INST] yes </s><s>[INST] more [/INST]",
    "<extra>", "a<extra>b", "a <extra> b </s> c", "<extra></s>", "<extra2>", "<h>a cat</h> <GEN>", "The licence grants patent rights, and the software is provided 'as is'.",
]
PARTS = [" ", "  ", "\n", "\u2581", "the", "soft", "ware", "licen", "se", "A", "Z", "0", "42", ".", ",", "'s", "\u00e9", "\u65e5", "\u672c",
         "\U0001f600", "\u0301", "\t", "<s>", "</s>", "<unk>", "<|im_end|>", "<end_of_turn>", "<extra>", "<|eot_id|>", "\x07", "<", ">", "{", "}"]


def strings(seed):
    rng = random.Random(seed)
    return STRINGS + ["".join(rng.choice(PARTS) for _ in range(rng.randint(1, 14))) for _ in range(25)]


def train(name, corpus, **options):
    path = os.path.join(HERE, name)
    lines = open(corpus, encoding="utf-8").read().split("\n")
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write("\n".join(lines))
    options = dict(model_type="bpe", character_coverage=0.9995, normalization_rule_name="identity", num_threads=1) | options
    spm.SentencePieceTrainer.train(input=file.name, model_prefix=path, minloglevel=2, **options)
    os.remove(path + ".vocab")
    os.remove(file.name)
    edit(name + ".model", lambda proto: proto.trainer_spec.ClearField("input"))


def edit(name, change, to=None):
    proto = pb.ModelProto()
    proto.ParseFromString(open(os.path.join(HERE, name), "rb").read())
    change(proto)
    proto.trainer_spec.model_prefix = ""
    open(os.path.join(HERE, to or name), "wb").write(proto.SerializeToString())


def make_unused(proto):
    """Every third merged piece is unused: it must be taken apart again."""
    normal = [piece for piece in proto.pieces if piece.type == 1 and len(piece.piece) > 1]
    for piece in normal[::3]:
        piece.type = 5


def path_of(source):
    return os.path.join(TESTS if source.startswith("goldens/") else HERE, source)


def tokenizer_case(name, files, load, seed):
    with tempfile.TemporaryDirectory() as folder:
        for file, source in files.items():
            with open(os.path.join(folder, file), "wb") as out:
                out.write(open(path_of(source), "rb").read() if isinstance(source, str) else json.dumps(source).encode())
        tokenizer = load(folder)
    rng = random.Random(seed)
    encode = [[text, tokenizer(text).input_ids] for text in strings(seed)]
    decode = []
    lists = [[rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 30))] for _ in range(30)]
    lists += [[i] for i in range(0, len(tokenizer), 13)] + [ids for _, ids in encode if ids]
    for ids in lists:
        try:
            decode.append([ids, tokenizer.decode(ids, skip_special_tokens=True), tokenizer.decode(ids)])
        except IndexError:  # transformers trips over some lists of special tokens
            pass
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "size": len(tokenizer)}
    return {"name": name, "files": files, "encode": encode, "decode": decode} | special


def config(source, **changes):
    base = json.load(open(path_of(source + "/tokenizer_config.json")))
    return {key: value for key, value in (base | changes).items() if value != "absent"}


def slow(cls):
    return lambda folder: cls.from_pretrained(folder)


def main():
    corpus = sys.argv[1] if len(sys.argv) > 1 else "/usr/share/common-licenses/GPL-3"
    train("yi", corpus, vocab_size=480, byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, split_digits=True,
          allow_whitespace_only_pieces=True, bos_piece="<|startoftext|>", eos_piece="<|endoftext|>",
          user_defined_symbols=["<|Human|>", "<|Assistant|>", "<|System|>", "<|im_start|>", "<|im_end|>", "\u2581\u2581", "\n\n"])
    train("spaces", corpus, vocab_size=400, byte_fallback=True)
    train("no_bytes", corpus, vocab_size=200, remove_extra_whitespaces=False, user_defined_symbols=["lic", "e ", "<sep>"])
    train("suffix", corpus, vocab_size=200, byte_fallback=False, treat_whitespace_as_suffix=True)
    train("unigram", corpus, vocab_size=100, model_type="unigram", hard_vocab_limit=False)
    edit("yi.model", make_unused, to="unused.model")

    sentencepiece = []
    for seed, source in enumerate([VICUNA + "/tokenizer.model", GEMMA + "/tokenizer.model", "yi.model", "spaces.model", "no_bytes.model",
                                   "suffix.model", "unused.model"]):
        processor = spm.SentencePieceProcessor(model_file=path_of(source))
        sentencepiece.append({"model": source, "encode": [[text, processor.encode(text)] for text in strings(100 + seed)]})

    vicuna = {"tokenizer.model": VICUNA + "/tokenizer.model"}
    extra = lambda first: {str(first): {"content": "<extra>", "special": False, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False},
                           str(first + 1): {"content": "<extra2>", "special": True, "lstrip": True, "rstrip": True, "normalized": False, "single_word": False}}
    added = json.load(open(path_of(VICUNA + "/tokenizer_config.json")))["added_tokens_decoder"]
    yi_config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": False, "add_eos_token": False, "bos_token": "<|startoftext|>",
                 "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "<unk>", "clean_up_tokenization_spaces": False,
                 "added_tokens_decoder": {str(i): {"content": c, "special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
                                          for i, c in [(0, "<unk>"), (1, "<|startoftext|>"), (2, "<|endoftext|>"), (7, "<|im_end|>")]}}
    mixtral_config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
                      "eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False, "added_tokens_decoder": added}
    roles = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}

    with tempfile.TemporaryDirectory() as folder:
        open(folder + "/tokenizer.model", "wb").write(open(path_of(VICUNA + "/tokenizer.model"), "rb").read())
        json.dump(mixtral_config, open(folder + "/tokenizer_config.json", "w"))
        LlamaTokenizerFast.from_pretrained(folder)._tokenizer.save(os.path.join(HERE, "mixtral.json"), pretty=False)

    cases = [
        ("llama legacy=false", vicuna | {"tokenizer_config.json": config(VICUNA)}, slow(LlamaTokenizer)),
        ("llama legacy=true", vicuna | {"tokenizer_config.json": config(VICUNA, legacy=True)}, slow(LlamaTokenizer)),
        ("llama no prefix space", vicuna | {"tokenizer_config.json": config(VICUNA, add_prefix_space=False)}, slow(LlamaTokenizer)),
        ("llama with eos", vicuna | {"tokenizer_config.json": config(VICUNA, add_eos_token=True, add_bos_token=False)}, slow(LlamaTokenizer)),
        ("llama added tokens", vicuna | {"tokenizer_config.json": config(VICUNA, added_tokens_decoder=added | extra(600))}, slow(LlamaTokenizer)),
        ("llama added tokens, legacy=true", vicuna | {"tokenizer_config.json": config(VICUNA, legacy=True, added_tokens_decoder=added | extra(600))}, slow(LlamaTokenizer)),
        ("llama clean up", vicuna | {"tokenizer_config.json": config(VICUNA, clean_up_tokenization_spaces=True)}, slow(LlamaTokenizer)),
        ("llama special_tokens_map", vicuna | {"tokenizer_config.json": config(VICUNA, added_tokens_decoder="absent", bos_token="absent", eos_token="absent", unk_token="absent", pad_token="absent"),
                                                "special_tokens_map.json": roles, "added_tokens.json": {"<extra>": 600}}, slow(LlamaTokenizer)),
        ("model alone", vicuna, slow(LlamaTokenizer)),
        ("model with spaces removed, legacy=false", {"tokenizer.model": "spaces.model", "tokenizer_config.json": config(VICUNA)}, slow(LlamaTokenizer)),
        ("model with spaces removed, legacy=true", {"tokenizer.model": "spaces.model", "tokenizer_config.json": config(VICUNA, legacy=True)}, slow(LlamaTokenizer)),
        ("yi", {"tokenizer.model": "yi.model", "tokenizer_config.json": yi_config}, slow(LlamaTokenizer)),
        ("yi legacy=false", {"tokenizer.model": "yi.model", "tokenizer_config.json": yi_config | {"legacy": False}}, slow(LlamaTokenizer)),
        ("mixtral model", vicuna | {"tokenizer_config.json": mixtral_config, "config.json": {"model_type": "mgm_mixtral"}}, slow(LlamaTokenizerFast)),
        ("mixtral json", vicuna | {"tokenizer.json": "mixtral.json", "tokenizer_config.json": mixtral_config, "config.json": {"model_type": "mgm_mixtral"}}, slow(LlamaTokenizerFast)),
        ("gemma both", {file: GEMMA + "/" + file for file in ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]}, slow(GemmaTokenizerFast)),
        ("gemma json alone", {"tokenizer.json": GEMMA + "/tokenizer.json", "tokenizer_config.json": config(GEMMA)}, slow(GemmaTokenizerFast)),
        ("gemma model", {file: GEMMA + "/" + file for file in ["tokenizer.model", "tokenizer_config.json"]}, slow(GemmaTokenizer)),
        ("llama3", {file: LLAMA3 + "/" + file for file in ["tokenizer.json", "tokenizer_config.json"]}, slow(AutoTokenizer)),
        ("llama3 clean up", {"tokenizer.json": LLAMA3 + "/tokenizer.json", "tokenizer_config.json": config(LLAMA3, clean_up_tokenization_spaces=True)}, slow(AutoTokenizer)),
    ]
    tokenizers = [tokenizer_case(name, files, load, seed) for seed, (name, files, load) in enumerate(cases)]
    for name, cases in [("sentencepiece", sentencepiece), ("tokenizers", tokenizers)]:
        with open(os.path.join(HERE, name + ".json"), "w") as out:
            out.write("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")


main()
