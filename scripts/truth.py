#!/usr/bin/env python3
"""The kernel, session and golden tests on every driver and with every set of features: `make truth`.

    truth.py [--only REGEX] [--suites LIST] [--again] [--write] [--list]

Results are kept in target/truth/results.json after every run, and only what failed or is missing is run again, unless the tests were built
anew. --write makes docs/drivers.md of them. Rows that this machine cannot run (a processor without AVX-512, no root for a chroot with a
current Mesa, a missing package) are printed and are in the table with the reason.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "benches" / "isa"))
import chroot  # noqa: E402
import documents  # noqa: E402

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
RESULTS = TARGET / "truth" / "results.json"
TABLE = REPOSITORY / "docs" / "drivers.md"
LAVAPIPE = "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json"
SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json"
VALIDATION = Path("/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json")
# Suite -> (program of tests, arguments).
SUITES = {
    "ops": ("kernels", ["ops::"]),
    "session": ("models", ["session::"]),
    "goldens": ("goldens", []),
}
# The most seconds that a suite may take.
PATIENCE = 3600
BUILD = ["cargo", "test", "--release", "--test", "kernels", "--test", "models", "--test", "goldens", "--no-run"]


class Row:
    """A row of the table: a driver and its settings."""

    def __init__(self, name, driver, environment=None, missing=None, root=None, mistake=None):
        self.name = name
        self.driver = driver
        self.environment = environment or {}
        # Why this machine cannot run it.
        self.missing = missing
        # The chroot to run it in.
        self.root = root
        # A test that makes a mistake which this row's layer must report.
        self.mistake = mistake


def rows():
    flags = Path("/proc/cpuinfo").read_text()
    lavapipe = lambda **more: {"VK_DRIVER_FILES": LAVAPIPE, "VK_ICD_FILENAMES": LAVAPIPE, **more}
    no_lavapipe = None if Path(LAVAPIPE).exists() else "mesa-vulkan-drivers is not installed"
    for bits, lanes, flag in (("128", 4, "sse2"), ("256", 8, "avx2"), ("512", 16, "avx512f")):
        missing = no_lavapipe or (None if re.search(rf"\b{flag}\b", flags) else f"the processor has no {flag}")
        yield Row(f"subgroups of {lanes}", "lavapipe", lavapipe(LP_NATIVE_VECTOR_WIDTH=bits), missing)
    for names in ("shader-f16", "subgroups", "shader-f16,subgroups", "timestamps", "limits", "shader-f16,subgroups,limits"):
        yield Row(f"without {names.replace(',', ', ')}", "lavapipe", lavapipe(MGM_WITHOUT=names), no_lavapipe)
    missing = None if Path(SWIFTSHADER).exists() else "chromium is not installed"
    yield Row("as it is", "SwiftShader", {"VK_DRIVER_FILES": SWIFTSHADER, "VK_ICD_FILENAMES": SWIFTSHADER}, missing)
    root = Path(os.environ.get("ISA_ROOT", "/tmp/sid"))
    inside = "/usr/share/vulkan/icd.d/lvp_icd.json"
    no_root = "a chroot needs root" if os.geteuid() else None if (root / "isa" / "version").exists() else "run make isa first"
    current = {"VK_DRIVER_FILES": inside, "VK_ICD_FILENAMES": inside}
    yield Row("with 8 x 8 cooperative matrices", "lavapipe of Debian sid", current, no_root, root)
    missing = no_lavapipe or (None if VALIDATION.exists() else "vulkan-validationlayers is not installed")
    layer = {"VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation"}
    enables = {**layer, "VK_LAYER_ENABLES": "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT"}
    yield Row("Khronos validation, synchronisation", "lavapipe", lavapipe(**enables), missing, None, "two_writes_without_a_barrier")
    # GPU-assisted validation finds accesses out of bounds only where the driver does not check them itself. The layer of Debian 12 misses them.
    enables = {**current, **layer, "VK_LAYER_VALIDATE_CORE": "0", "VK_LAYER_GPUAV_ENABLE": "1", "MGM_WITHOUT": "bounds-checks"}
    yield Row("Khronos validation, GPU-assisted", "lavapipe of Debian sid", enables, no_root, root, "a_write_out_of_bounds")


def programs():
    """Builds the programs of tests: name -> path."""
    built = subprocess.run([*BUILD, "--message-format=json"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    if built.returncode:
        sys.exit("the tests do not build")
    found = {}
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["kind"] == ["test"]:
            found[message["target"]["name"]] = Path(message["executable"])
    return found


def command(row, program, arguments):
    line = [str(program), *arguments]
    if row.root is None:
        return line, {**os.environ, **row.environment}
    # The tests read files of the repository by its path.
    pairs = [f"{key}={value}" for key, value in row.environment.items()]
    folders = sorted({str(REPOSITORY), str(TARGET.resolve())})
    mounts = "".join(f'mkdir -p "$0{folder}" && mount --rbind "{folder}" "$0{folder}" && ' for folder in folders)
    script = f'mount --bind /proc "$0/proc" && mount --rbind /dev "$0/dev" && {mounts}exec chroot "$0" "$@"'
    inside = ["/usr/bin/env", *pairs, "XDG_RUNTIME_DIR=/tmp", f"PWD={REPOSITORY}", *line]
    return ["unshare", "--mount", "sh", "-c", script, str(row.root), *inside], {**os.environ}


def messages(text):
    """How many messages of the validation layer a log has."""
    settings = "WARNING-Setting-Limit-Adjusted|VALIDATION-SETTINGS"
    return len(re.findall(rf"Validation (?:Error|Warning): \[ (?!{settings})", text))


def is_checking(row, program):
    """Whether the row's layer reports the mistake that it must report."""
    line, environment = command(row, program, ["--ignored", row.mistake, "--nocapture"])
    text = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True, errors="replace").stdout
    return "1 passed" in text and messages(text) > 0


def run(row, suite, program):
    """Runs a suite: what became of it."""
    line, environment = command(row, program, SUITES[suite][1])
    log = RESULTS.parent / f"{re.sub(r'[^a-z0-9]+', '-', f'{row.driver} {row.name} {suite}'.lower())}.log"
    started = time.monotonic()
    with open(log, "w") as out:
        try:
            code = subprocess.run(line, stdout=out, stderr=subprocess.STDOUT, env=environment, timeout=PATIENCE).returncode
        except subprocess.TimeoutExpired:
            code = "timeout"
    text = log.read_text(errors="replace")
    passed = sum(map(int, re.findall(r"test result: .*?(\d+) passed", text)))
    failed = sum(map(int, re.findall(r"test result: .*?(\d+) failed", text)))
    reported = messages(text)
    return {
        "ok": code == 0 and passed > 0 and reported == 0,
        "code": code,
        "passed": passed,
        "failed": failed,
        "messages": reported,
        "seconds": round(time.monotonic() - started),
        "log": str(log),
    }


def cell(result):
    if result is None:
        return "not run"
    if result["ok"]:
        return f"{result['passed']} passed, {result['seconds']} s"
    if result["code"] == "timeout":
        return f"**stopped after {result['seconds']} s**"
    return f"**{result['failed']} failed**, {result['passed']} passed" + (f", {result['messages']} messages" if result["messages"] else "")


def table(results):
    lines = [f"| driver | features | {' | '.join(SUITES)} |", "| --- | --- |" + " --- |" * len(SUITES)]
    for row in rows():
        cells = [cell(results.get(f"{row.driver}: {row.name}: {suite}")) for suite in SUITES]
        if row.missing and set(cells) == {"not run"}:
            cells = [f"not run: {row.missing}"] + [""] * (len(SUITES) - 1)
        lines.append(f"| {row.driver} | {row.name} | {' | '.join(cells)} |")
    return lines


def write(results):
    """Replaces the table in the document."""
    documents.replace_table(TABLE, "<!-- table: make truth WRITE=1 -->", "<!-- end of table -->", table(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="rows by driver and name, such as 'SwiftShader|without'")
    parser.add_argument("--suites", default=",".join(SUITES), metavar="LIST", help=f"of {', '.join(SUITES)} [default: all]")
    parser.add_argument("--again", action="store_true", help="run what has passed, too")
    parser.add_argument("--write", action="store_true", help="update the table in docs/drivers.md")
    parser.add_argument("--list", action="store_true", help="print the rows and run nothing")
    options = parser.parse_args()
    suites = [name for name in options.suites.split(",") if name]
    unknown = [name for name in suites if name not in SUITES]
    if unknown:
        parser.error(f"unknown suites {', '.join(unknown)}; known: {', '.join(SUITES)}")
    chosen = [row for row in rows() if re.search(options.only, f"{row.driver}: {row.name}")]
    if options.list:
        for row in chosen:
            print(f"{row.driver}: {row.name}" + (f" (not here: {row.missing})" if row.missing else ""))
        return
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found = programs()
    failures = 0
    for row in chosen:
        if row.missing:
            print(f"{row.driver}: {row.name}: not run here: {row.missing}", flush=True)
            continue
        if row.mistake and not is_checking(row, found["kernels"]):
            print(f"{row.driver}: {row.name}: the layer does not report the mistake that {row.mistake} makes", flush=True)
            failures += 1
            continue
        for suite in suites:
            key = f"{row.driver}: {row.name}: {suite}"
            program = found[SUITES[suite][0]]
            built = f"{program.name} {program.stat().st_mtime}"
            if not options.again and kept.get(key, {}).get("ok") and kept[key]["built"] == built:
                continue
            result = {**run(row, suite, program), "built": built}
            kept[key] = result
            RESULTS.write_text(json.dumps(kept, indent=1))
            print(f"{key}: {cell(result)}" + ("" if result["ok"] else f" ({result['log']})"), flush=True)
            failures += not result["ok"]
    if options.write:
        write(kept)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
