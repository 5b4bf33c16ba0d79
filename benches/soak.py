#!/usr/bin/env python3
"""Memory and latency over many answers with images, in one process: `make soak`.

    soak.py MGM [--answers 1000] [--out DIR] [--svg FILE]
    soak.py --samples FILE [--svg FILE]

Asks the bundled model about three images in turn through `mgm eval`, one question at a time, so that every answer encodes an image. Samples
the memory of the process: resident, which on a software adapter contains the GPU's, and the GPU's as Linux counts it for each client of a
driver (`drm-memory-*` in /proc/PID/fdinfo). `mgm eval` holds its answers until it ends. After the first tenth, which warms caches up,
a line is fitted: memory over answers, and latency over answers. The run fails if memory grows by more than 1 % or 4 MiB over the rest, or
latency by more than 10 %, and the growth is outside twice its standard error. With --samples it only judges what web/benches/soak.mjs
measured in a browser: {"title", "series": [{"name", "kind": "memory" (bytes) or "latency" (seconds), "points": [[answers, value]]}]}. Its own
samples are in DIR/samples.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

IMAGES = Path(__file__).resolve().parent.parent / "pocket" / "examples"
MOST_GROWTH = {"memory": 0.01, "latency": 0.10}
MOST_BYTES = 4 << 20
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}


def fit(points):
    """The line through (x, y): slope, its standard error, and the mean of y."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, (residual / (n - 2) / spread) ** 0.5, mean_y


def memory_of(pid):
    """Bytes that a process has in memory and on GPUs; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        # One client may have several file descriptors.
        clients = {}
        for file in Path(f"/proc/{pid}/fdinfo").iterdir():
            text = file.read_text()
            client = re.search(r"^drm-client-id:\s*(\d+)", text, re.MULTILINE)
            amounts = re.findall(r"^drm-(?:memory|resident)-\w+:\s*(\d+) (KiB|MiB)?", text, re.MULTILINE)
            if client:
                clients[client[1]] = sum(int(amount) * UNITS[unit] for amount, unit in amounts)
        return pages * os.sysconf("SC_PAGE_SIZE") + sum(clients.values())
    except (OSError, IndexError):
        return 0


def run(mgm, answers, out):
    """Returns a list of (answers so far, seconds, resident bytes), one for each answer."""
    out.mkdir(parents=True, exist_ok=True)
    data, results = out / "questions.jsonl", out / "answers.jsonl"
    results.unlink(missing_ok=True)
    images = sorted(IMAGES.glob("*.png"))
    with open(data, "w") as file:
        for number in range(answers):
            question = {"image": str(images[number % len(images)]), "question": f"What is in image {number}?", "answer": "-"}
            file.write(json.dumps(question) + "\n")
    line = [mgm, "eval", "--format", "jsonl", "--data", str(data), "--out", str(results), "--batch", "1", "--max-new-tokens", "16"]
    samples, seen = [], -1
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=open(out / "log", "w"))
    started = time.monotonic()
    position, count = 0, 0
    while True:
        ended = process.poll() is not None
        if results.exists():
            with open(results, "rb") as file:
                file.seek(position)
                new = file.read()
            position += len(new)
            count += new.count(b"\n")
        # The first line describes the run.
        if count - 1 > seen:
            seen = count - 1
            memory = memory_of(process.pid)
            if memory:
                samples.append((seen, time.monotonic() - started, memory))
        if ended:
            break
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"mgm eval ended with {process.returncode}: {(out / 'log').read_text()[-1000:]}")
    return samples


SCALES = {"memory": ("MB", 1e6), "latency": ("ms", 1e-3)}


def judge(series):
    """Prints the growth of each series after its first tenth. Returns the number of those that grow."""
    failures = 0
    for one in series:
        unit, scale = SCALES[one["kind"]]
        points = one["points"][len(one["points"]) // 10 :]
        slope, error, mean = fit(points)
        count = points[-1][0] - points[0][0]
        limit = MOST_GROWTH[one["kind"]] * mean
        if one["kind"] == "memory":
            limit = max(limit, MOST_BYTES)
        grows = slope * count > limit and slope > 2 * error
        failures += grows
        print(f"{one['name']}: mean {mean / scale:.1f} {unit}; over {count} answers {slope * count / scale:+.2f} {unit} "
              f"(standard error {error * count / scale:.2f}){' GROWS' if grows else ''}")  # fmt: skip
    return failures


def plot(title, series, file):
    """A panel for each series: MB, or milliseconds per answer."""
    width, height, left = 720, 130, 70
    total = len(series) * (height + 35) + 20
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" font-family="sans-serif" font-size="12">',
             f'<text x="{left}" y="16">{title}</text>']  # fmt: skip
    for index, one in enumerate(series):
        top = 40 + index * (height + 35)
        unit, scale = SCALES[one["kind"]]
        points = [(x, y / scale) for x, y in one["points"]]
        most = max(y for _, y in points) * 1.1
        last = max(x for x, _ in points)
        place = lambda x, y: f"{left + x / last * (width - left - 20):.1f},{top + height - y / most * height:.1f}"
        path = " ".join(place(x, y) for x, y in points)
        lines += [
            f'<text x="{left}" y="{top - 6}">{one["name"]}, {unit}</text>',
            f'<polyline points="{path}" fill="none" stroke="#26c" />',
            f'<path d="M{left} {top}V{top + height}H{width - 20}" fill="none" stroke="#888" />',
            f'<text x="{left - 6}" y="{top + 10}" text-anchor="end">{most:.0f}</text>',
            f'<text x="{left - 6}" y="{top + height}" text-anchor="end">0</text>',
        ]
    lines.append(f'<text x="{width - 20}" y="{total - 4}" text-anchor="end">answers</text></svg>')
    Path(file).write_text("\n".join(lines) + "\n")


def measure(options):
    """The samples of the native program."""
    samples = run(options.mgm, options.answers, options.out)
    pairs = zip(samples, samples[1:])
    latency = [(second[0], (second[1] - first[1]) / (second[0] - first[0])) for first, second in pairs]
    adapter = subprocess.run([options.mgm, "info"], capture_output=True, text=True).stdout.splitlines()
    title = next((line.strip() for line in adapter if "llvmpipe" in line), "")
    memory = [(answers, bytes_) for answers, _, bytes_ in samples]
    report = {"title": title, "series": [{"name": "memory", "kind": "memory", "points": memory},
                                         {"name": "time per answer", "kind": "latency", "points": latency}]}  # fmt: skip
    (options.out / "samples.json").write_text(json.dumps(report))
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mgm", nargs="?")
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("target/soak"))
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    if (options.mgm is None) == (options.samples is None):
        parser.error("pass the program mgm, or --samples")
    report = json.loads(options.samples.read_text()) if options.samples else measure(options)
    if options.svg:
        plot(report["title"], report["series"], options.svg)
    sys.exit(1 if judge(report["series"]) else 0)


if __name__ == "__main__":
    main()
