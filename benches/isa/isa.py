#!/usr/bin/env python3
"""What GPU compilers make of the kernels: `make isa` (KERNELS.md, "Machine code").

    isa.py [--kernels REGEX] [--devices LIST] [--loops] [--write] [--all] [--llama]

Plans the models, compiles their kernels for each device, prints a line for each kernel and device, and the differences from
native/src/bench/predict/isa/DEVICE.tsv. Needs root, a Debian chroot (isa.py makes it) and Python 3.9; nothing is executed on a GPU.
"""

import argparse
import collections
import concurrent.futures
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chroot
import devices
import documents
import loops

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
# The tables DEVICE.tsv: in the program's sources, since `mgm bench --predict` reads them.
TABLES = REPOSITORY / "native" / "src" / "bench" / "predict" / "isa"
# Columns of DEVICE.tsv, and of the table.
COLUMNS = ("kernel", "subgroup", "fma/instr", "fma/alu", "loops", "load", "shared", "regs", "occupancy", "spills", "scratch", "instr", "cycles")
# Loops with fewer multiply-adds than this share of the heaviest are left out of the column `loops`.
SHARE = 0.2
# The most loops in that column.
LOOPS = 4
# Seconds of processor time that a compiler may take for a kernel: `--check`.
MOST_SECONDS = 5
# The document with the table of `--check`.
DRIVERS = REPOSITORY / "docs" / "drivers.md"
# Seconds of processor time without an answer after which a compiler is stopped.
PATIENCE = 120


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", default="", metavar="REGEX", help="names to compile, such as '^attention' [default: all]")
    parser.add_argument("--devices", default="", metavar="LIST",
                        help="such as navi21,dg2, or `quick` for one of each compiler [default: all]")  # fmt: skip
    parser.add_argument("--loops", action="store_true", help="print every inner loop by kinds of instructions")
    parser.add_argument("--write", action="store_true", help="update the tables with what was compiled")
    parser.add_argument("--all", action="store_true", help="choose among all specialisations, not only those that models use")
    parser.add_argument("--check", action="store_true",
                        help=f"only compile every specialisation, with each compiler, and list what takes more than {MOST_SECONDS} s")  # fmt: skip
    parser.add_argument("--robust", choices="012",
                        help="robustBufferAccess (1), robustBufferAccess2 (2) [default: 2, as wgpu has it; 0 for llama.cpp]")  # fmt: skip
    parser.add_argument("--llama", action="store_true", help="compile llama.cpp's shaders instead (downloads a crate)")
    parser.add_argument("--root", default=os.environ.get("ISA_ROOT", "/tmp/sid"), help="the chroot [default: /tmp/sid]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="devices to compile for at a time")
    parser.add_argument("--setup", action="store_true", help="only make the chroot and list the devices")
    options = parser.parse_args()
    default = "0" if options.llama else "2"
    options.default_robustness = options.robust in (None, default)
    options.robust = options.robust or default
    if options.devices == "quick":
        options.devices = list(devices.QUICK)
    elif options.check and not options.devices:
        options.devices = list(devices.CHECKED)
    else:
        options.devices = [name for name in re.split(r"[ ,]+", options.devices) if name] or list(devices.DEVICES)
    unknown = [name for name in options.devices if name not in devices.DEVICES]
    if unknown:
        parser.error(f"unknown devices {', '.join(unknown)}; known: {', '.join(devices.DEVICES)}")
    return options


def build(root):
    """Builds both binaries if a Rust file is newer than they are, and returns their folder in the chroot.

    cargo alone would build them for every edited shader, which isa-dump reads by itself. Other work trees may share CARGO_TARGET_DIR, so
    each has copies of its own.
    """
    names = ("isa-dump", "isa-compile")
    folder = root / "isa" / "bin" / hashlib.sha256(str(HERE).encode()).hexdigest()[:12]
    sources = [REPOSITORY / "Cargo.toml", HERE / "Cargo.toml", *(REPOSITORY / "src").rglob("*.rs"), *(HERE / "src").glob("*.rs")]
    newest = max(source.stat().st_mtime for source in sources)
    if all((folder / name).exists() and (folder / name).stat().st_mtime > newest for name in names):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target" / "isa"))
    target.mkdir(parents=True, exist_ok=True)
    command = ["cargo", "build", "--quiet", "--manifest-path", str(HERE / "Cargo.toml")]
    with open(target / "isa.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(target)})
        for name in names:
            shutil.copy(target / "debug" / name, folder)
    return folder


def dump(binaries, work, options):
    """Writes the modules, and the list of them."""
    command = [str(binaries / "isa-dump"), "--out", str(work / "spv"), "--kernels", options.kernels]
    if options.check:
        command.append("--every")
    elif options.all:
        command.append("--all")
    with open(work / "list.tsv", "w") as listed:
        # Mesa complains on standard error without XDG_RUNTIME_DIR.
        if subprocess.run(command, stdout=listed, env={"XDG_RUNTIME_DIR": "/tmp", **os.environ}).returncode:
            sys.exit("no modules")
    return sorted((work / "spv").glob("*.spv"))


class Checked:
    """What --check knows of a device from runs before: a line for each module, by the digest of what is compiled. A run that ended is resumed."""

    def __init__(self, name, options):
        # Another Mesa compiles otherwise, and so do other arguments.
        version = hashlib.sha256((chroot.VERSION + options.robust).encode()).hexdigest()[:12]
        self.path = Path(options.root) / "isa" / "checked" / f"{name}-{version}.tsv"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.found = {digest: dict(pair.split("=", 1) for pair in pairs) for digest, *pairs in (line.split("\t") for line in lines)}

    def add(self, digest, statistics):
        self.found[digest] = {key: value for key, value in statistics.items() if key in ("seconds", "skipped", "refused")}
        with open(self.path, "a") as file:
            file.write("\t".join([digest, *(f"{key}={value}" for key, value in self.found[digest].items())]) + "\n")


def module_digest(module):
    """The digest of a module, its override constants and its subgroup size."""
    files = [module, module.with_suffix(".spec"), module.with_suffix(".subgroup")]
    return hashlib.sha256(b"\0".join(file.read_bytes() if file.exists() else b"" for file in files)).hexdigest()


def check_for(name, binary, modules, options, out):
    """As compile_for, without the modules that were compiled before."""
    checked = Checked(name, options)
    digests = {module.stem: module_digest(module) for module in modules}
    # Equal modules have several names.
    new = {digests[module.stem]: module for module in modules if digests[module.stem] not in checked.found}
    print(f"{name}: {len(modules)} modules, {len(new)} to compile", flush=True)
    compile_for(name, binary, list(new.values()), options, out, lambda module, found: checked.add(digests[module], found))
    return {module: checked.found[digest] for module, digest in digests.items() if digest in checked.found}


def compile_for(name, binary, modules, options, out, report_module=lambda module, found: None):
    """Compiles modules for a device. Returns name -> statistics; modules that the driver crashes on are noted and skipped."""
    device = devices.DEVICES[name]
    results, start = {}, 0
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    root = Path(options.root)
    inside = lambda path: "/" + str(path.relative_to(root))
    while start < len(modules) and not options.stopped:
        command = [inside(binary), "--robust", options.robust, "--start", str(start)]
        command += [] if options.check else ["--isa", inside(out)]
        command += [inside(module) for module in modules]
        process = chroot.popen(root, device, command)
        reader = chroot.Reader(process, PATIENCE)
        printed = []
        for line in reader:
            if not line.startswith("=\t"):
                if not options.check:
                    printed.append(line)
                continue
            _, module, *pairs = line.rstrip("\n").split("\t")
            results[module] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            report_module(module, results[module])
            # Apple's driver prints machine code instead of reporting it.
            if printed:
                (out / f"{module}.txt").write_text("".join(printed))
                printed = []
        if process.returncode == 0:
            break
        if reader.last is None:
            raise RuntimeError(f"{name}: the device does not open:\n{reader.errors[-2000:]}")
        refused = modules[reader.last].stem
        results[refused] = {"refused": reader.reason()}
        if not options.stopped:
            report_module(refused, results[refused])
        start = reader.last + 1
    return results


def measure(device, statistics, code):
    """The row of one kernel: column -> text; and its loops."""
    if "skipped" in statistics:
        return None, []
    row = dict.fromkeys(COLUMNS, "")
    if "refused" in statistics:
        row["fma/instr"] = "refused: " + statistics["refused"]
        return row, []
    subgroup = int(statistics["subgroup"])
    registers, occupancy, spills, scratch, cycles = devices.statistics(device.vendor, statistics)
    found = loops.analyse(device.vendor, code, subgroup) if code else []
    show = lambda value: "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    row.update(
        subgroup=str(subgroup), regs=show(registers), occupancy=show(occupancy), spills=show(spills), scratch=show(scratch),
        instr=show(devices.instructions(statistics)), cycles=show(cycles),
    )  # fmt: skip
    if found:
        best = loops.heaviest(found)
        row["fma/instr"] = f"{best.multiply_adds / max(best.instructions, 1):.2f}"
        if best.multiply_adds:
            row["fma/alu"] = f"{100 * best.useful / max(best.alu, 1):.0f}%"
        heavy = [loop for loop in found if loop.multiply_adds >= max(SHARE * best.multiply_adds, 1)]
        # A loop for whole rows and one for the last rows, for instance: the heaviest are enough.
        heavy = [loop for loop in heavy if loop in sorted(heavy, key=lambda loop: -loop.multiply_adds)[:LOOPS]]
        row["loops"] = " ".join(f"{loop.instructions}/{loop.multiply_adds:g}" for loop in heavy)
        row["load"] = best.accesses("load")
        row["shared"] = best.accesses("shared")
        if best.kinds["scratch"]:
            row["scratch"] = f"{row['scratch']} (loop {best.kinds['scratch']})".strip()
    return row, found


def read_tsv(path):
    if not path.exists():
        return {}
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    return {line[0]: dict(zip(lines[0], line)) for line in lines[1:]}


def write_tsv(path, title, rows):
    lines = [f"# {title}: see KERNELS.md, \"Machine code\". Written by `make isa WRITE=1`.", "\t".join(COLUMNS)]
    lines += ["\t".join(rows[name].get(column, "") for column in COLUMNS) for name in sorted(rows)]
    path.write_text("\n".join(line.rstrip("\t") for line in lines) + "\n")


def table(rows):
    """Rows of texts as aligned columns."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def overview(rows):
    """Multiply-adds per instruction of every kernel on every device; `!` marks spills and scratch accesses in the loop."""
    kernels = sorted({kernel for found in rows.values() for kernel in found})

    def cell(row):
        if row is None or not row["fma/alu"]:
            return "-"
        spilled = row["spills"] not in ("", "0") or "loop" in row["scratch"]
        return row["fma/instr"] + ("!" if spilled else "")

    lines = [[kernel, *(cell(found.get(kernel)) for found in rows.values())] for kernel in kernels]
    lines = [line for line in lines if any(text != "-" for text in line[1:])]
    return table([["fma/instr", *rows], *lines]) if lines else ""


def difference(before, after):
    """What changed in a kernel, as `column before -> after`."""
    changed = [column for column in COLUMNS[1:] if before.get(column, "") != after[column]]
    return ", ".join(f"{column} {before.get(column) or '-'} -> {after[column] or '-'}" for column in changed)


def verdict(name, results):
    """A row of the table of --check, and what a compiler refuses or takes too long for."""
    seconds = {kernel: float(found["seconds"]) for kernel, found in results.items() if "seconds" in found}
    skipped = sum("skipped" in found for found in results.values())
    bad = {kernel: found["refused"] for kernel, found in results.items() if "refused" in found}
    refused = len(bad)
    bad |= {kernel: f"{time:.1f} s" for kernel, time in seconds.items() if time > MOST_SECONDS}
    slowest = max(seconds, key=seconds.get, default=None)
    shown = f"{seconds[slowest]:.2f} s: {slowest.split('~')[0]}" if slowest else "-"
    total = sum(seconds.values())
    return [devices.DEVICES[name].title, str(len(seconds)), str(skipped), str(refused), f"{1000 * total / max(len(seconds), 1):.0f} ms", shown], bad


def check(verdicts, options):
    """Prints the table of --check, and what is bad. Returns whether nothing is."""
    head = ["GPU", "compiled", "without its features", "refused", "mean", "slowest"]
    print("\n" + table([head] + [row for row, _ in verdicts.values()]))
    for name, (_, bad) in verdicts.items():
        for kernel, reason in bad.items():
            print(f"{name}: {kernel}: {reason}")
    if options.write:
        rows = [head, ["---"] * len(head)] + [row for row, _ in verdicts.values()]
        start, end = "<!-- table: make isa CHECK=1 WRITE=1 -->", "<!-- end of the compilers' table -->"
        documents.replace_table(DRIVERS, start, end, [f"| {' | '.join(row)} |" for row in rows])
    return not any(bad for _, bad in verdicts.values())


def report(name, results, out, options, stored):
    """Prints a device's table and differences; returns its rows."""
    device = devices.DEVICES[name]
    rows, details = {}, []
    for kernel in sorted(results):
        path = out / f"{kernel}.txt"
        code = path.read_text(errors="replace") if path.exists() else None
        row, found = measure(device, results[kernel], code)
        if row is None:
            continue
        row["kernel"] = kernel
        rows[kernel] = row
        for loop in found if options.loops else []:
            if loop.instructions < 8:
                continue
            kinds = " ".join(f"{kind} {count}" for kind, count in loop.kinds.most_common())
            details.append(f"    {kernel}: {loop.instructions} for {loop.multiply_adds:g}: {kinds}")
    print(f"\n{name}: {device.title}")
    print(table([list(COLUMNS)] + [[row[column] or "-" for column in COLUMNS] for row in rows.values()]))
    if details:
        print("loops:\n" + "\n".join(details))
    if options.default_robustness:
        lines = []
        for kernel, row in rows.items():
            if kernel not in stored:
                lines.append(f"    {kernel}: new" if stored else "")
            elif difference(stored[kernel], row):
                lines.append(f"    {kernel}: {difference(stored[kernel], row)}")
        if not options.kernels and not options.all:
            lines += [f"    {kernel}: no longer listed" for kernel in stored if kernel not in results]
        lines = [line for line in lines if line]
        print(f"differences from the stored table: {len(lines) or 'none'}" if stored else "there is no stored table yet")
        print("\n".join(lines), end="\n" if lines else "")
    sys.stdout.flush()
    return rows


def main():
    options = arguments()
    options.stopped = False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started = time.monotonic()
    root = Path(options.root)
    chroot.make(root)
    if options.setup:
        return
    for left in (root / "isa" / "runs").glob("*"):
        # A run that was killed.
        if not Path(f"/proc/{left.name}").exists():
            shutil.rmtree(left, ignore_errors=True)
    work = root / "isa" / "runs" / str(os.getpid())
    work.mkdir(parents=True)
    try:
        binaries = build(root)
        if options.llama:
            import llama

            vendors = {devices.DEVICES[name].vendor for name in options.devices}
            modules = llama.modules(root, work / "spv", vendors, options.kernels)
        else:
            dumped = dump(binaries, work, options)
            modules = collections.defaultdict(lambda: dumped)
        count = lambda name: len(modules[devices.DEVICES[name].vendor])
        if not any(count(name) for name in options.devices):
            sys.exit(f"no kernel matches {options.kernels!r}")
        print(f"{max(map(count, options.devices))} kernels for {len(options.devices)} devices", flush=True)
        pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
        compiles = check_for if options.check else compile_for
        begin = lambda name: pool.submit(
            compiles, name, binaries / "isa-compile", modules[devices.DEVICES[name].vendor], options, work / name
        )
        jobs = {name: begin(name) for name in options.devices}
        measured, verdicts = {}, {}
        for name, job in jobs.items():
            try:
                results = job.result()
            except RuntimeError as error:
                print(error, file=sys.stderr)
                continue
            if options.check:
                verdicts[name] = verdict(name, results)
                continue
            owner = devices.SAME_CODE.get(name, name)
            path = TABLES / (f"llama.{owner}.tsv" if options.llama else f"{owner}.tsv")
            stored = read_tsv(path)
            rows = measured[name] = report(name, results, work / name, options, stored)
            if options.write and options.default_robustness:
                whole = not options.kernels and not options.all
                write_tsv(path, devices.DEVICES[owner].title, rows if whole else {**stored, **rows})
        if options.check:
            clean = check(verdicts, options)
            print(f"{time.monotonic() - started:.0f} s")
            sys.exit(0 if clean and len(verdicts) == len(options.devices) else 1)
        if len(measured) > 1:
            print("\n" + overview(measured))
        # Machine code stays for a closer reading.
        latest = root / "isa" / "latest"
        for name in options.devices:
            if (work / name).exists():
                target = latest / ("llama" if options.llama else "mgm") / name
                target.mkdir(parents=True, exist_ok=True)
                for file in (work / name).iterdir():
                    shutil.move(str(file), target / file.name)
        print(f"\nmachine code: {latest}; {time.monotonic() - started:.0f} s")
    finally:
        options.stopped = True
        for process in chroot.STARTED:
            process.kill()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
