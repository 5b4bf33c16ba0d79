"""Scores of answers by the evaluations of benchmarks: python make_scoring.py WHEELS OUT.json

WHEELS is a folder with lmms_eval 0.7.3 and salesforce_lavis 1.0.2 (pip download --no-deps lmms-eval==0.7.3 salesforce-lavis==1.0.2),
of which only the scoring functions run: the packages have many dependencies that these do not need.

VQA: an answer is normalised by EvalAI's processor (as LLaVA does before it submits) and scored by the VQAEval in LAVIS.
TextVQA: lmms-eval's process_results. MMMU: lmms-eval's parsers and eval_open; its parser of choices also accepts "B " after
other letters and "B."; the parser that Mini-Gemini used does not, so answers with those are left out.
"""

import ast
import contextlib
import io
import json
import random
import re
import statistics
import sys
import zipfile
from pathlib import Path

import numpy as np

ANNOTATORS = [
    ["yes"] * 10,
    ["red"] * 4 + ["dark red"] * 3 + ["maroon"] * 2 + ["brown"],
    ["2"] * 2 + ["two"] * 6 + ["3", "a few"],
    ["stop"] * 9 + ["stop sign"],
    ["Coca-Cola"] * 5 + ["coca cola"] * 3 + ["coke!", "the coke"],
    ["$1,000"] * 5 + ["1000 dollars"] * 5,
    ["3.50"] * 3 + ["3.5"] * 3 + ["3. 50"] * 2 + ["£3.50", "3.50 pounds"],
    ["don't walk"] * 5 + ["dont walk"] * 4 + ["walk"],
    ["mcdonald's"] * 8 + ["mcdonalds"] * 2,
    ["12:30"] * 6 + ["12 30"] * 2 + ["half past twelve"] * 2,
    ["unanswerable"] * 7 + ["nothing"] * 3,
    ["pedestrian/bike"] * 4 + ["bike"] * 6,
    ["e.g. this"] * 5 + ["eg this"] * 5,
    ["none"] * 4 + ["0"] * 6,
    ["no"] * 10,
]
ANSWERS = [
    "yes", "Yes.", "Yes, it is", "red", "Red", "a dark red", "maroon", "brown", "2", "two", "Two.", "3", "stop", "Stop sign",
    "coca-cola", "Coca Cola", "coke", "the coke!", "$1,000", "1000 dollars", "$1000", "3.50", "3.5", "3. 50", "don't walk",
    "dont walk", "DONT WALK", "McDonald's", "mcdonalds", "12:30", "12 30", "unanswerable", "bike", "pedestrian/bike",
    "e.g. this", "eg this", "none", "0", "zero", "no", "No", "", "the", "a few",
]
TEXTS = ANSWERS + [answer for answers in ANNOTATORS for answer in answers] + [
    "What's that?", "it's the dog's", "one, two and three", "1,000,000", "1, 000", "a/b", "a / b", "half-full", "half - full",
    "x=1", "(see) [this] {here}", "say \"hi\"", "back\\slash", "snake_case", "<tag>", "a@b.c", "`code`", "so; what", "end.", "1.5.",
    ".5", "v1.2.3", "...", "." * 40, "line\nbreak", "tab\there", "  spaces  ", "Yall'd've gone", "y'alldve", "couldnt've",
    "couldn'tve", "couldntve", "somebody'd", "somebodyd", "somebodyd've", "ow's'at", "'ows'at", "'ow'sat", "'ow's'at", "twas",
    "oclock", "hed", "shed", "shes", "she's", "well", "were", "Im", "Ive", "id've", "lets", "let's", "maam", "weve", "wed've",
    "none of the ten", "An apple", "THE END", "naïve café", "ÉCOLE", "數字", "ten thousand", "a", "an the a",
]
OPTIONS = ["a red ball", "The Blue Box", "green", "red", "$6"]
CHOICES = [
    "A", "(B)", " C ", "D.", "B, because", "(A) or (C)", "(C) or (A)", "the answer is (D)", "I would say that it is The blue box",
    "I would say green or a red ball or maybe green", "no idea", "", "E", "Z", "b", "it is red", "it is really red, that much is sure",
    "(Z)", "!?(E)?!", "'C'", ":B:", "It costs $6 in the shop down there", "I do not know at all what that is", "A B", "B A",
    "Between A and C", "none", "what", "hm", "green",
]
OPEN = [
    (["0.5"], ["0.5", "The answer is 0.50.", "1/2", ".5", "0.499", "so x = 0.5", "0.5 m", "It is 0.504 exactly", "5", "x=0.5\nthus 0.7"]),
    (["1,000"], ["1000", "It is 1,000 dollars", "1e3", "1,000.00", "about 1000.", "10,00", "result 1,000,000", "$1,000"]),
    (["A"], ["A", "a", "the answer is a", "banana", "answer a thing", "is A.", "aa"]),
    (["Paris", "the capital of France"], ["paris", "It is Paris.", "PARIS!", "London", "the capital of france", "France"]),
    (["-3"], ["-3", "minus 3", "3", "x = -3", "x=-3", "is -3.0", "5-3"]),
    (["2.675"], ["2.675", "2.67", "2.68", "2.674999", "2.6749999999999998"]),
    (["1.25e5", "125000"], ["1.25e5", "125,000", "125000.0", "1.25E+5", "1.25e5 m"]),
    (["x"], [":", "is :", "therefore x", "x marks", "Final answer x"]),
    (["45"], ["Step 1. We add.\nStep 2 gives 40\nSo the result is 45 degrees", "45,", "145", "45.004", "45.006", "so\nso 45", "a45b"]),
]


def part(wheels, wheel, file, *names, **known):
    """Functions and classes of a file in a wheel, without running the rest of it."""
    with zipfile.ZipFile(next(Path(wheels).glob(f"{wheel}-*.whl"))) as archive:
        tree = ast.parse(archive.read(file))
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    scope = {"re": re, "random": random, "np": np, "sys": sys, "statistics": statistics, **known}
    exec(compile(tree, file, "exec"), scope)
    return [scope[name] for name in names]


class Questions:
    def __init__(self, qa):
        self.qa = qa

    def getQuesIds(self):
        return list(self.qa)


def main(wheels, out):
    tasks = "lmms_eval/tasks"
    (processor,) = part(wheels, "lmms_eval", f"{tasks}/_task_utils/vqa_eval_metric.py", "EvalAIAnswerProcessor")
    (text_vqa,) = part(
        wheels, "lmms_eval", f"{tasks}/textvqa/utils.py", "textvqa_process_results", EvalAIAnswerProcessor=processor
    )
    (vqa_eval,) = part(wheels, "salesforce_lavis", "lavis/common/vqa_tools/vqa_eval.py", "VQAEval")
    (choice,) = part(
        wheels, "lmms_eval", f"{tasks}/_task_utils/mmmu_mcq_utils.py", "parse_mmmu_multi_choice_response"
    )
    parse_open, eval_open, *_ = part(
        wheels, "lmms_eval", f"{tasks}/mmmu/utils.py",
        "parse_open_response", "eval_open", "extract_numbers", "check_is_number", "normalize_str",
    )

    def mark_text_vqa(answers, answer):
        doc = {"answers": list(answers), "question_id": 0}
        return text_vqa(doc, [answer])["exact_match"]

    def mark_vqa(answers, answer):
        truth = [{"answer": text, "answer_id": i} for i, text in enumerate(answers)]
        truths = Questions({0: {"answers": truth, "question_type": "", "answer_type": ""}})
        evaluation = vqa_eval(truths, Questions({0: {"answer": processor()(answer)}}), n=9)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        return evaluation.accuracy["overall"] / 100

    def table(mark):
        """All that get a mark above 0, and some that get none."""
        rows = []
        for answers in ANNOTATORS:
            scores = {answer: mark(answers, answer) for answer in dict.fromkeys(ANSWERS + answers)}
            none = [answer for answer, score in scores.items() if score == 0][::7]
            rows.append({"answers": answers, "scores": {a: s for a, s in scores.items() if s > 0 or a in none}})
        return rows

    random.seed(42)
    letters = [chr(ord("A") + i) for i in range(len(OPTIONS))]
    choices = [
        {"options": OPTIONS, "answer": answer, "letter": choice(answer, letters, dict(zip(letters, OPTIONS)))}
        for answer in CHOICES
    ]
    opens = [
        {"right": right, "answer": answer, "correct": eval_open(right, parse_open(answer))}
        for right, answers in OPEN
        for answer in answers
    ]
    result = {
        "normalised": {text: processor()(text) for text in TEXTS},
        "text_vqa": table(mark_text_vqa),
        "vqa": table(mark_vqa),
        "choices": choices,
        "open": opens,
    }
    Path(out).write_text(json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
