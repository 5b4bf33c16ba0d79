"""mgm and stable-diffusion.cpp on the same machine, alternating: a step of Stable Diffusion XL at its released size.

    python3 -m venv venv
    CMAKE_ARGS="-DSD_WEBP=OFF -DSD_WEBM=OFF" venv/bin/pip install numpy \\
        --no-binary stable-diffusion-cpp-python stable-diffusion-cpp-python==0.4.7
    venv/bin/python sdxl_race.py MGM [--size 256x256 512x512] [--rounds 2] [--peer-options NAME ...]

pip compiles it for this processor (a C++ compiler is needed). Text goes to standard error, one JSON object to standard
output.

Both use f16 weights and one thread per processor. A step is the UNet for a prompt and a negative prompt; the peer computes them one after
the other, mgm as a batch. Weights are random: the peer reads them from a file of 6.9 GB (`--checkpoint`; made if missing, never deleted),
mgm generates them on the device. `--peer-options` are switches of the peer's constructor, such as diffusion_flash_attn. VK_ICD_FILENAMES
chooses the Vulkan device. Every run reports the machine's load: with other work running, only the fastest runs mean something. Seconds in
parentheses are processor seconds of all threads, which other work lengthens less (they include threads that wait busily).
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER, OURS = "stable-diffusion.cpp", "mgm"
PARTS = ["text", "step", "decode"]
# Their names in mgm's report, and the notes on standard error when each begins.
OWN = {"text": "text", "UNet": "step", "VAE": "decode"}
OWN_BEGIN = {"mgm: encoding": "text", "mgm: denoising": "step", "mgm: decoding": "decode"}
TICKS = os.sysconf("SC_CLK_TCK")


def peer(checkpoint, width, height, steps, options, image_path):
    """Seconds of the peer's parts, and the standard deviation of its image."""
    import numpy as np
    import stable_diffusion_cpp as sd

    lines, ticks = [], []
    # Seconds of the clock and of the processors.
    now = lambda: np.array([time.perf_counter(), time.process_time()])

    @sd.sd_log_callback
    def on_log(_level, text, _data):
        lines.append((text.decode("utf-8", errors="replace"), now()))

    def logged(begin):
        found = [at for text, at in lines if begin in text]
        if len(found) != 1:
            raise RuntimeError(f"{len(found)} log lines with '{begin}':\n" + "".join(text for text, _ in lines))
        return found[0]

    def on_progress(step, total, _seconds):
        if total == steps and step == len(ticks):
            ticks.append(now())

    sd.sd_set_log_callback(on_log, ctypes.c_void_p(0))
    started = time.perf_counter()
    model = sd.StableDiffusion(
        model_path=str(checkpoint), n_threads=os.cpu_count(), vae_decode_only=True, **dict.fromkeys(options, True)
    )
    load = time.perf_counter() - started
    begin = now()
    (image,) = model.generate_image(
        prompt="a lighthouse on a cliff above the sea at dawn",
        negative_prompt="blurry, low quality",
        width=width,
        height=height,
        cfg_scale=7.0,
        sample_method="euler",
        sample_steps=steps,
        progress_callback=on_progress,
    )
    if len(ticks) != steps + 1:
        raise RuntimeError(f"{len(ticks) - 1} of {steps} steps were reported")
    each = [after - before for before, after in zip(ticks, ticks[1:])]
    spent = {
        "text": logged("get_learned_condition completed") - begin,
        "step": min(each, key=lambda seconds: seconds[0]),
        "decode": logged("decode_first_stage completed") - logged("decoding 1 latents"),
    }
    if image_path:
        image.save(image_path)
    # A NaN spreads over the whole image, which then has one colour.
    deviation = float(np.asarray(image, np.float32).std())
    return {
        **{part: float(seconds[0]) for part, seconds in spent.items()},
        "processor": {part: float(seconds[1]) for part, seconds in spent.items()},
        "steps": [float(seconds[0]) for seconds in each],
        "load": load,
        "image_deviation": deviation,
    }


def ran(process, name, errors):
    if process.wait():
        sys.exit(f"{name} failed:\n{errors[-4000:]}")


def run_peer(arguments, size):
    command = [sys.executable, __file__, arguments.mgm, "--peer", "--size", size, "--steps", str(arguments.steps)]
    command += ["--checkpoint", str(arguments.checkpoint), "--peer-options", *arguments.peer_options]
    if arguments.image:
        command += ["--image", str(arguments.image)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, errors = process.communicate()
    ran(process, PEER, errors)
    return json.loads(out.strip().splitlines()[-1])


def run_own(arguments, size):
    command = [arguments.mgm, "bench", "--synthetic", "sdxl", "--size", size, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    spent, errors = {}, ""

    def processor():
        # The name, in parentheses, may hold anything.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    for line in process.stderr:
        errors += line
        for begin, part in OWN_BEGIN.items():
            if line.startswith(begin):
                spent[part] = processor()
    report_text = process.stdout.read()
    # What a process that has ended has used is known once it is waited for.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    ran(process, OURS, errors)
    marks = [spent[part] for part in PARTS] + [usage.ru_utime + usage.ru_stime]
    report = json.loads(report_text)
    return {
        **{OWN[part["name"]]: part["milliseconds"] / 1000 for part in report["parts"]},
        "processor": {part: after - before for part, before, after in zip(PARTS, marks, marks[1:])},
        "adapter": report["adapter"],
    }


def race(arguments):
    sizes = arguments.size
    runs = {size: {name: [] for name in [PEER, OURS]} for size in sizes}
    for _ in range(arguments.rounds):
        for size in sizes:
            for name, one_run in [(PEER, run_peer), (OURS, run_own)]:
                before = os.getloadavg()[0]
                one = one_run(arguments, size) | {"load_average": [before, os.getloadavg()[0]]}
                runs[size][name].append(one)
                tell(size, name, one)
    table = []
    for size, made in runs.items():
        fastest = {name: {part: min(one[part] for one in of_one) for part in PARTS} for name, of_one in made.items()}
        processor = {
            name: {part: min(one["processor"][part] for one in of_one) for part in PARTS} for name, of_one in made.items()
        }
        # How many times as fast as the peer this project is.
        ratio, processor_ratio = (
            {part: of[PEER][part] / of[OURS][part] for part in PARTS} for of in [fastest, processor]
        )
        table.append({
            "size": size, "runs": made, "fastest": fastest, "ratio": ratio,
            "processor": processor, "processor_ratio": processor_ratio,
        })
    return table


def tell(size, name, one):
    seconds = "  ".join(f"{part} {one[part]:7.2f} s ({one['processor'][part]:.2f})" for part in PARTS)
    load = " to ".join(f"{load:.1f}" for load in one["load_average"])
    print(f"{size:>9} {name:20} {seconds}  load {load}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mgm", help="this project's program")
    parser.add_argument("--size", nargs="+", default=["256x256", "512x512"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="of the peer in a run; the fastest counts")
    parser.add_argument("--checkpoint", type=Path, default=Path(tempfile.gettempdir()) / "sdxl-random.safetensors")
    parser.add_argument("--image", type=Path, help="where the peer's image goes")
    parser.add_argument("--peer-options", nargs="*", default=[])
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.checkpoint.exists():
        from sdxl_checkpoint import write

        print(f"making {arguments.checkpoint} …", file=sys.stderr)
        write(arguments.checkpoint)
    if arguments.peer:
        width, height = map(int, arguments.size[0].split("x"))
        made = peer(arguments.checkpoint, width, height, arguments.steps, arguments.peer_options, arguments.image)
        print(json.dumps(made))
        return
    table = race(arguments)
    print(f"{'fastest':>9} {'':20} " + "".join(f"{part:>22}" for part in PARTS), file=sys.stderr)
    for row in table:
        for name in [PEER, OURS]:
            cells = [f"{row['fastest'][name][part]:.2f} s ({row['processor'][name][part]:.2f})" for part in PARTS]
            print(f"{row['size']:>9} {name:20} " + "".join(f"{cell:>22}" for cell in cells), file=sys.stderr)
        cells = [f"x {row['ratio'][part]:.2f} ({row['processor_ratio'][part]:.2f})" for part in PARTS]
        print(f"{'':9} {'mgm is':20} " + "".join(f"{cell:>22}" for cell in cells), file=sys.stderr)
    options = arguments.peer_options
    print(json.dumps({"peer": PEER, "peer_options": options, "threads": os.cpu_count(), "table": table}))


if __name__ == "__main__":
    main()
