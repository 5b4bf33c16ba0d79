"""All figures of the model card, measured with mgm.

    python -m pocket.world export-eval EVAL
    python -m pocket.figures EVAL OUT [--models models] [--f32 out/Pocket] [--mgm target/release/mgm]
    python -m pocket.judge EVAL OUT/drawings

Runs `mgm eval` on easy-vqa's test split, the held-out questions and those about small text (with and without the high-resolution
view) with the bundle; with `--f32`, the first two also with the exported checkpoint at full precision. Writes OUT/figures.json, which
identifies the bundle, and prints the card's tables. Answers are stored in OUT, so an interrupted run can be resumed."""

import argparse
import hashlib
import json
import subprocess
from collections import Counter
from pathlib import Path

from .world import easyvqa
from .world.scene import NOVELTIES


def percent(figures: dict) -> str:
    low, high = figures["interval"]
    return f"{100 * figures['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("eval", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--f32", type=Path)
    parser.add_argument("--mgm", type=Path, default=Path("target/release/mgm"))
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    easy_vqa = easyvqa.root()
    bundle = arguments.models / "pocket"

    def run(*command: str | Path) -> dict:
        done = subprocess.run(
            [arguments.mgm, "eval", *command, "--json"], check=True, stdout=subprocess.PIPE, text=True
        )
        return json.loads(done.stdout)

    def ask(name: str, model: Path, data: Path, *more: str) -> dict:
        form = "easy-vqa" if data == easy_vqa else "jsonl"
        return run(model, "--format", form, "--data", data, "--out", out / f"{name}.jsonl", *more)

    def mark_again(answers: str, data: Path) -> dict:
        """The figures of a subset of the answered questions."""
        asked = {str(json.loads(line)["id"]) for line in data.read_text().splitlines()}
        lines = (out / f"{answers}.jsonl").read_text().splitlines(keepends=True)[1:]
        some = out / f"{data.stem}-answers.jsonl"
        some.write_text("".join(line for line in lines if json.loads(line)["id"] in asked))
        return run("--answers", some, "--format", "jsonl", "--data", data)

    held_out, small = arguments.eval / "held-out.jsonl", arguments.eval / "small-text.jsonl"
    reports = {
        "easy-vqa": ask("easy-vqa", bundle, easy_vqa),
        "held-out": ask("held-out", bundle, held_out),
        "small-text": ask("small-text", bundle, small),
        "small-text low": ask("small-text-low", bundle, small, "--no-high-resolution"),
    }
    for novelty in NOVELTIES:
        reports[f"held-out {novelty}"] = mark_again("held-out", arguments.eval / f"held-out-{novelty}.jsonl")
    if arguments.f32:
        for name, data in (("easy-vqa", easy_vqa), ("held-out", held_out)):
            reports[f"{name} f32"] = ask(f"{name}-f32", arguments.f32, data, "--precision", "f32")
    kept = ("questions", "accuracy", "interval", "kinds")
    figures = {name: {key: report[key] for key in kept} for name, report in reports.items()}
    blind = blind_accuracy(held_out)
    for kind in figures["held-out"]["kinds"]:
        kind["blind"] = blind[kind["kind"]]
    bundle_sum = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    (out / "figures.json").write_text(json.dumps({"bundle.json": bundle_sum, **figures}, indent=1) + "\n")
    for name, report in reports.items():
        print(f"| {name} | {report['questions']} | {percent(report)} |")
    print("\n| kind of question | questions | right | always the commonest answer |\n| --- | --- | --- | --- |")
    for kind in figures["held-out"]["kinds"]:
        print(f"| {kind['kind']} | {kind['questions']} | {percent(kind)} | {100 * kind['blind']:.0f} % |")


def blind_accuracy(data: Path) -> dict[str, float]:
    """The accuracy of always giving the most frequent answer, by kind."""
    answers: dict[str, Counter[str]] = {}
    for line in data.read_text().splitlines():
        row = json.loads(line)
        answers.setdefault(row["kind"], Counter())[row["answer"]] += 1
    return {kind: found.most_common(1)[0][1] / found.total() for kind, found in answers.items()}


if __name__ == "__main__":
    main()
