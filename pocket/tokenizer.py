"""The language model's tokenizer: a SentencePiece BPE of its own, with the flags of the released Vicuna's, and the
conversation template that goes with it.

    python -m pocket.tokenizer FOLDER     trains one anew from the world's language

What is trained uses the one in `vocabulary`: another world has other ids, and then `sizes.py` and all stages change with it."""

import json
import random
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2

from .world.scene import draw_scene
from .world.talk import NUMBERS, SMALL_TALK, drawing_turn, talk_about
from .world.things import COLOUR_NAMES, KINDS, NAMES, SYNONYMS, WORDS, article

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VOCABULARY = Path(__file__).parent / "vocabulary"
PIECES = 1280  # of a new one, before names are made whole
BOS, EOS = 1, 2
IMAGE = -200


def complete(model: Path, words: Iterable[str]) -> int:
    """Appends merges until each of these words is one piece; returns the number of pieces."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())
    for word in words:
        pieces = spm.SentencePieceProcessor(model_proto=proto.SerializeToString()).encode(word, out_type=str)
        while len(pieces) > 1:
            pieces[:2] = ["".join(pieces[:2])]
            if not any(piece.piece == pieces[0] for piece in proto.pieces):
                lowest = min(piece.score for piece in proto.pieces)
                proto.pieces.add(piece=pieces[0], score=lowest - 1)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    model.write_bytes(proto.SerializeToString())
    return len(proto.pieces)


def train(corpus: Iterable[str], vocab_size: int, folder: Path, whole: Iterable[str] = ()) -> int:
    """Writes `tokenizer.model` and the two configurations that a released checkpoint has next to it. Each word of `whole` is
    one piece. Returns the number of pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        user_defined_symbols=["USER:", "\u2581ASSISTANT:"],  # one id each: turns here are short
        remove_extra_whitespaces=False,
        pad_id=-1,
    )
    (folder / "tokenizer.vocab").unlink()
    size = complete(folder / "tokenizer.model", whole)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    special = {"0": "<unk>", "1": "<s>", "2": "</s>"}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": True,
        "added_tokens_decoder": {i: {"content": content, **flags} for i, content in special.items()},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": "<unk>",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles, indent=1) + "\n")
    return size


class Tokenizer:
    """Encodes conversations as transformers' LlamaTokenizer with `legacy: false` does: a space before the whole of a piece
    (a piece is what stands between images), none after a special token."""

    def __init__(self, folder: Path) -> None:
        self.model = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.words = lru_cache(maxsize=200_000)(self._word)

    def _word(self, word: str) -> tuple[int, ...]:
        """A word that starts with the space character is encoded as inside a text, others as at the start of a text."""
        if word.startswith(" "):
            return tuple(self.model.encode(word[1:]))
        # Without the space added before every text: encoded after a word that never merges with it.
        ids = self.model.encode("\x01" + word)
        return tuple(ids[len(self.model.encode("\x01")) :])

    def text(self, text: str) -> list[int]:
        """Ids of a part of a text. No token crosses a space, so parts can be encoded separately."""
        ids: list[int] = []
        head, *rest = text.split(" ")
        if head:
            ids += self.words(head)
        for word in rest:
            ids += self.words(" " + word) if word else (self.model.piece_to_id("\u2581"),)
        return ids

    def decode(self, ids: list[int]) -> str:
        return self.model.decode([i for i in ids if i > EOS]).strip()

    @property
    def vocab_size(self) -> int:
        return self.model.get_piece_size()

    def conversation(self, turns: list[tuple[str, str | None]], image: bool) -> tuple[list[int], list[bool]]:
        """Ids of a conversation in the Vicuna template, IMAGE in place of an image, and which ids are answers.

        The last answer may be None: then this is a prompt."""
        ids, answers = [BOS], [False]

        def put(text: str, answer: bool = False, end: bool = False) -> None:
            new = self.text(text) + ([EOS] if end else [])
            ids.extend(new)
            answers.extend([answer] * len(new))

        put(f" {SYSTEM} USER:")
        for index, (question, answer) in enumerate(turns):
            if index:
                put("USER:")
            if image and index == 0:
                put(" ")
                ids.append(IMAGE)
                answers.append(False)
                put(f" \n{question} ASSISTANT:")
            else:
                put(f" {question} ASSISTANT:")
            if answer is not None:
                put(f" {answer}", answer=True, end=True)
        return ids, answers


def corpus(scenes: int) -> list[str]:
    """Text of the world, for the tokenizer."""
    lines = [SYSTEM] * 40
    for kind in KINDS:
        lines += [f"What colour is the {kind.name}? {article(kind.name)}", f"How many {kind.plural} are there?"] * 4
    for name in (*COLOUR_NAMES, *NUMBERS, *WORDS, *SYNONYMS.values()):
        lines += [f"the {name} ASSISTANT: {name}"] * 4
    for question, answer in SMALL_TALK:
        lines += [f'"{question} USER: {question} ASSISTANT: {answer}'] * 3
    for seed in range(scenes):
        rng = random.Random(seed)
        for turn in talk_about(draw_scene(seed), rng, 6):
            lines.append(f'"{turn.question} USER: {turn.question} ASSISTANT: {turn.answer}')
        turn = drawing_turn(rng)
        lines.append(f"USER: {turn.question} ASSISTANT: {turn.answer}")
    return lines


def main() -> None:
    folder = Path(sys.argv[1])
    size = train(corpus(3000), PIECES, folder, whole=NAMES)
    print(f"{folder}: {size} pieces")


if __name__ == "__main__":
    main()
