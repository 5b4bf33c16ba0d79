"""Logits through transformers' logits processors and warpers, in the order of `GenerationMixin._get_logits_processor`:
tests/data/ops/sampling.json. Presence and frequency penalties are not in transformers: they follow OpenAI's definition
(logit - count * frequency_penalty - (count > 0) * presence_penalty, counts over the answer)."""

import json
import pathlib

import torch
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper,
)

VOCAB = 24
PROMPT, ANSWER = [3, 5, 5, 8, 20], [7, 5, 7, 7, 11]
CASES = [
    {},
    {"min_p": 0.1},
    {"min_p": 0.6, "temperature": 0.5},
    {"top_k": 7, "top_p": 0.8, "min_p": 0.2, "temperature": 1.5},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7, "temperature": 0.8},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.75, "presence_penalty": -0.5},
    {"logit_bias": {2: 3.5, 9: -4.0, 5: 1.0}},
    {"logit_bias": {2: 2.0, 7: 5.0}, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "temperature": 0.7, "top_k": 9,
     "top_p": 0.9, "min_p": 0.05},
    {"min_tokens": 6, "stop": [7, 12], "temperature": 0.9},
    {"min_tokens": 5, "stop": [7, 12]},
]


def main():
    generator = torch.Generator().manual_seed(7)
    cases = []
    for options in CASES:
        logits = torch.randn(1, VOCAB, generator=generator) * 2
        ids = torch.tensor([PROMPT + ANSWER])
        scores = logits.clone()
        if bias := options.get("logit_bias"):
            scores = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])(ids, scores)
        if (penalty := options.get("repetition_penalty", 1.0)) != 1.0:
            scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
        counts = torch.bincount(torch.tensor(ANSWER), minlength=VOCAB)
        scores = scores - counts * options.get("frequency_penalty", 0.0)
        scores = scores - (counts > 0) * options.get("presence_penalty", 0.0)
        if stop := options.get("stop"):
            least = options["min_tokens"]
            scores = MinNewTokensLengthLogitsProcessor(len(PROMPT), least, torch.tensor(stop))(ids, scores)
        adjusted = scores
        for name, warper in [("temperature", TemperatureLogitsWarper), ("top_k", TopKLogitsWarper),
                             ("top_p", TopPLogitsWarper), ("min_p", MinPLogitsWarper)]:
            if name in options:
                scores = warper(options[name])(ids, scores)
        plain = lambda row: [None if value == float("-inf") else round(value, 7) for value in row[0].tolist()]
        cases.append({**options, "logits": logits[0].tolist(), "adjusted": plain(adjusted),
                      "probabilities": [round(value, 8) for value in scores.double().softmax(-1)[0].tolist()]})
        if bias:
            cases[-1]["logit_bias"] = list(bias.items())
    path = pathlib.Path(__file__).parents[1] / "data/ops/sampling.json"
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f'{{"prompt": {PROMPT}, "answer": {ANSWER}, "cases": [\n{lines}\n]}}\n')


main()
