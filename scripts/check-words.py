#!/usr/bin/env python3
"""Checks texts, comments and names against the word list of CONTRIBUTING.md, and the lengths of lines. Needs Python 3.9 and nothing else.

    scripts/check-words.py [PATH...]      print FILE:LINE for every match; exit status 1 if there is one
    scripts/check-words.py --count        print matches per folder and rule instead

A line that must keep a listed word ends in `words: allow` (in a comment), or matches a pattern in ALLOWED.
"""

import argparse
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".cff", ".css", ".html", ".js", ".md", ".mjs", ".py", ".rs", ".sh", ".svg", ".toml", ".ts", ".tsx", ".wgsl", ".yml"}
NAMES = {"LICENSE", "Makefile", "NOTICE"}

# Files that are not checked: data, vendored text, the page that lists these very words, and this list.
SKIPPED = re.compile(
    r"""^(
      tests/goldens/ | tests/data/ | models/ | CONTRIBUTING\.md$ | _typos\.toml$ | scripts/check-words\.py$
      # Questions and answers that Pocket is trained on: changing a word would need a new model.
      | pocket/world/talk\.py$ | pocket/vocabulary/
    )""",
    re.VERBOSE,
)

# A rule: what is wrong, and what to write instead. Patterns ignore case. Without \b a pattern also finds parts of identifiers.
RULES = [
    (r"\btold\b", "reported, passed, documented"),
    (r"\bbeside\b", "next to, besides, relative to"),
    (r"\bbehind\b(?! (an? |the |one |its )?(cargo )?(feature|flag|lock|mutex|trait|proxy|firewall|schedule))", "after, suffix"),
    (r"\b(so many|so much of|as many as)\b", "N"),
    (r"\bc(omes?|ame|oming) along\b", "is bundled"),
    (r"\b(go|goes|went|gone|going) on\b(?! (the|an?) )", "continues, resumes"),
    (r"\bkept_|_kept\b|\bkept (for later|for reading|on (this|the) device|between turns|elsewhere|until)\b", "cached, stored, retained"),
    (r"\bwhat (\w+ ){1,6}(is|are|was|were) worth\b|\bof what it is worth\b", "accuracy, effect"),
    (r"picture", "image"),
    (r"(?<!in)paint(?!ing of)", "generate, denoise; image model"),
    (r"\blook(s|ed|ing)? (\w+ )?(at|into)\b", "encode (an image), read, attend to"),
    (r"\bplay(s|ed|ing)? (by the cpu|a gpu)\b", "software adapter"),
    (r"(?-i:linear_turned|_turned\b|\bTurns\b)|\bturned (by|in) rotary\b", "RoPE, rotate"),
    (r"\b(take|takes|took|taking) turns\b", "alternate, are interleaved"),
    (r"\blea(ve|ves|ving) away\b|\bleft away\b", "omit"),
    (r"\b(lie|lies|lay) (as|one|side|next|together)\b", "is stored, is laid out"),
    (r"\brightly\b", "correctly"),
    (r"\bis dear\b|\bare dear\b", "expensive"),
    (r"\basked for (is|are|was|were)\b", "the target is"),
]
RULES = [(re.compile(pattern, re.IGNORECASE), advice) for pattern, advice in RULES]

# Standard uses of the listed words.
ALLOWED = [
    r"words: allow",
    # HTML and CSS.
    r"</?picture>|\b(first|contentful)[- ]paint|will-change|paint-order",
    # Prompts in the words of Pocket's training data, and answers to them.
    r"(describe|in|of|about) (the|this|your) picture[.?]|\b(draw|generate|paint) (me )?(a|the) picture of|the picture shows?\b",
    # A field of Pocket's generated data.
    r"\"painted\"",
    # Iterators, slices and cursors.
    r"look[- ]?ahead|lookup|look up",
]
ALLOWED = re.compile("|".join(ALLOWED), re.IGNORECASE)


def files(paths):
    """Tracked and new files of the paths (all of the repository without one) that are checked."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--"]
    listed = subprocess.run(command + paths, check=True, capture_output=True, text=True).stdout.splitlines()
    checked = lambda name: Path(name).suffix in SUFFIXES or Path(name).name in NAMES
    return sorted({name for name in listed if checked(name) and not SKIPPED.match(name)})


def prose(text):
    """The comments and docstrings of a Python file, without code spans, as (line number, line): names in scripts are free."""
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        docstring = token.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type == tokenize.COMMENT or docstring:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, re.sub(r"`[^`]*`", "", line)
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.type


def long_lines(name, text):
    """The comments of a Rust file above 120 columns, and the prose of a document above 140: (line number, line, advice)."""
    code = False
    for number, line in enumerate(text.splitlines(), 1):
        if name.endswith(".rs"):
            if len(line) > 120 and line.lstrip().startswith("//"):
                yield number, line.strip()[:40], "comments of at most 120 columns"
        elif line.startswith("```"):
            code = not code
        # Rows of tables and links to images cannot be wrapped.
        elif len(line) > 140 and not code and not line.startswith(("|", "![", "[![")):
            yield number, line.strip()[:40], "prose of at most 140 columns"


def matches(name):
    """The matches of a file: (line number, text matched, advice)."""
    path = ROOT / name
    if not path.is_file():  # deleted in the work tree
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if name.endswith((".rs", ".md")):
        yield from long_lines(name, text)
    for number, line in prose(text) if path.suffix == ".py" else enumerate(text.splitlines(), 1):
        if ALLOWED.search(line):
            continue
        for pattern, advice in RULES:
            found = pattern.search(line)
            if found:
                yield number, found.group(), advice


def folder(name):
    """The folder to count a file under: the first two levels."""
    parts = Path(name).parts
    return "/".join(parts[: min(2, len(parts) - 1)]) or "."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", help="files or folders, relative to the repository [default: all]")
    parser.add_argument("--count", action="store_true", help="print matches per folder and word")
    arguments = parser.parse_args()

    total, folders, words = 0, Counter(), Counter()
    for name in files(arguments.paths):
        for number, text, advice in matches(name):
            total += 1
            folders[folder(name)] += 1
            words[text.lower()] += 1
            if not arguments.count:
                print(f"{name}:{number}: \"{text}\": write: {advice}")
    if arguments.count:
        print(f"{total:6} in all\n")
        for counts in (folders, words):
            for key, count in counts.most_common(40):
                print(f"{count:6} {key}")
            print()
    if total:
        print(f"{total} listed words or long lines; the list and what to write instead: CONTRIBUTING.md, Words", file=sys.stderr)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
