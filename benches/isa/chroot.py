"""A Debian chroot with sid's Vulkan drivers of Mesa, and Mesa's no-op kernel interfaces (drm-shim) from a Debian source package.

Mirrors have the source of stable at all times, and that of sid for a day: the shims are stable's. They are meant for Mesa's own shader
statistics and cover what those need. A few edits, made by this script, let the newer drivers open on all of DEVICES. None of Mesa's text is stored here: each edit finds its place by a pattern, and stops with an
error if Mesa has changed there.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import devices

# sid has the newest drivers that are packaged. The edits below are for this version of the shims.
SUITE = "sid"
SOURCES = "trixie"
MESA = "25.0.7"
PACKAGES = """mesa-vulkan-drivers libvulkan1 glslc gcc g++ meson ninja-build pkg-config bison flex python3-mako python3-yaml
    python3-packaging python3-ply libdrm-dev libexpat1-dev zlib1g-dev libzstd-dev libelf-dev linux-libc-dev dpkg-dev patch xz-utils
    ca-certificates vulkan-validationlayers""".split()  # fmt: skip
# Raise it when an edit changes: the shims are built again.
VERSION = "2"
# Processes to end with this one.
STARTED = []


def mirror():
    """The Debian mirror that this machine uses."""
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(file.read_text(errors="replace") for file in files if file.is_file())
    found = re.search(r"^(?:URIs: *|deb +(?:\[[^]]*\] +)?)(\S*/debian)/?(?:\s|$)", text, re.MULTILINE)
    if not found:
        sys.exit("no Debian mirror in /etc/apt: set MIRROR")
    return found[1]


def enter(root, command):
    """A command line that runs `command` in the chroot, with /proc and /dev mounted for as long as it runs."""
    script = 'mount --bind /proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(root), *command]


def run(root, script):
    subprocess.run(enter(root, ["bash", "-ec", script]), check=True)


def make(root):
    """Makes the chroot, or brings it up to date. Does nothing if it is."""
    done = root / "isa" / "version"
    if done.exists() and done.read_text() == VERSION:
        return
    if os.geteuid() != 0:
        sys.exit("make isa needs root, for debootstrap and chroot")
    print(f"making a Debian {SUITE} chroot in {root}: debootstrap, and in it {' '.join(PACKAGES)} and the source of mesa")
    if not (root / "etc" / "apt").exists():
        if not shutil.which("debootstrap"):
            print("installing debootstrap")
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "debootstrap"], check=True)
        address = os.environ.get("MIRROR") or mirror()
        subprocess.run(["debootstrap", "--variant=minbase", SUITE, str(root), address], check=True)
        sources = f"deb {address} {SUITE} main\ndeb-src {address} {SOURCES} main\n"
        (root / "etc/apt/sources.list").write_text(sources)
        # A mirror may be a snapshot. Signatures are checked all the same.
        (root / "etc/apt/apt.conf.d/snapshot").write_text('Acquire::Check-Valid-Until "false";\n')
    (root / "isa").mkdir(exist_ok=True)
    quiet = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
    run(root, f"apt-get update -qq && {quiet} {' '.join(PACKAGES)} >/dev/null")
    run(root, f"""cd /isa && rm -rf source && mkdir source && cd source
        version=$(apt-cache showsrc mesa | sed -n 's/^Version: \\({MESA}.*\\)/\\1/p' | head -1)
        [ -n "$version" ] || {{ echo "{SOURCES} has no mesa {MESA}"; exit 1; }}
        apt-get source -qq mesa=$version >/dev/null 2>&1 && mv mesa-*/ mesa""")
    edit(root / "isa" / "source" / "mesa")
    run(root, """cd /isa && rm -rf build && meson setup build source/mesa -Dtools=drm-shim -Dvulkan-drivers= \\
        -Dgallium-drivers= -Dglx=disabled -Degl=disabled -Dgbm=disabled -Dllvm=disabled -Dplatforms= -Dopengl=false -Dgles1=disabled \\
        -Dgles2=disabled -Dvideo-codecs= -Dvalgrind=disabled -Dlibunwind=disabled -Dlmsensors=disabled -Dxmlconfig=disabled \\
        -Dzstd=disabled -Dshader-cache=disabled --buildtype=release -Db_ndebug=true >meson.log || { tail -30 meson.log; exit 1; }
        cd build && ninja $(ninja -t targets all | grep -oE '^src/[^ ]*_noop_drm_shim\\.so:' | tr -d : | sort -u) >../ninja.log ||
        { tail -30 ../ninja.log; exit 1; }""")
    done.write_text(VERSION)


class Edits:
    """Changes a file of Mesa's."""

    def __init__(self, path):
        self.path = path
        self.text = path.read_text()

    def replace(self, pattern, replacement, count=1):
        """Replaces exactly `count` matches of a regular expression."""
        self.text, found = re.subn(pattern, replacement, self.text, flags=re.MULTILINE | re.DOTALL)
        if found != count:
            sys.exit(f"{self.path}: {pattern!r} was found {found} times, expected {count}: this Mesa needs other edits")
        return self

    def append(self, text):
        self.text += text
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error[0] is None:
            self.path.write_text(self.text)


def edit(mesa):
    """Lets the shims of Debian stable's Mesa build and work with the drivers of sid."""
    src = mesa / "src"
    with Edits(src / "meson.build") as file:
        # The shims alone: their drivers, which would build them otherwise, need much more.
        file.append("""
inc_amd = include_directories('amd')
inc_intel = include_directories('intel')
subdir('amd/drm-shim')
subdir('asahi/drm-shim')
subdir('freedreno/drm-shim')
subdir('nouveau/drm-shim')
subdir('intel/dev')
shared_library('intel_noop_drm_shim', ['intel/tools/intel_noop_drm_shim.c', intel_dev_serialize_src],
  include_directories: [inc_include, inc_src, inc_intel], gnu_symbol_visibility: 'hidden',
  dependencies: [dep_libdrm, dep_drm_shim, idep_mesautil, idep_intel_dev, idep_parson])
""")
    with Edits(src / "c11" / "threads.h") as file:
        # glibc has these names in <stdlib.h> since 2.43.
        names = "#define once_flag mesa_once_flag\n#define call_once mesa_call_once\n#undef ONCE_FLAG_INIT\n"
        file.replace(r"^(?=typedef pthread_once_t +once_flag;)", names)
    shutil.copy(Path(__file__).with_name("asahi_shim.c"), src / "asahi" / "drm-shim" / "asahi_noop.c")
    with Edits(src / "amd" / "drm-shim" / "amdgpu_noop_drm_shim.c") as file:
        file.replace(r"(?<=version_minor = )49(?=;)", "64")
        # RDNA 4: a Navi 31 that says it is a Navi 48.
        file.replace(
            r"^(?=   if \(gpu_id\) \{)",
            """   if (gpu_id && !strcmp(gpu_id, "navi48")) {
      static struct amdgpu_device copy;
      for (uint32_t i = 0; i < num_amdgpu_devices; i++)
         if (!strcmp(amdgpu_devices[i].name, "navi31"))
            copy = amdgpu_devices[i];
      copy.name = "navi48";
      copy.hw_ip_gfx.hw_ip_version_major = copy.hw_ip_compute.hw_ip_version_major = 12;
      copy.hw_ip_gfx.ip_discovery_version = copy.hw_ip_compute.ip_discovery_version = 0xc0001;
      copy.dev.device_id = 0x7550;
      copy.dev.external_rev = 0x51;
      copy.dev.family = 152;
      amdgpu_dev = &copy;
      return;
   }
""",
        )
    with Edits(src / "nouveau" / "drm-shim" / "nouveau_noop.c") as file:
        # Ada and Blackwell: copies, graphics and compute by NVIDIA's published class numbers.
        slot = "         sclass->sclass.oclass[idx].oclass = "
        file.replace(r"^(?=      case 0x170:\n      case 0x160:)", "      case 0x1b0:\n      case 0x190:\n")
        for after, blackwell, ada in (
            ("AMPERE_DMA_COPY_A", "0xcab5", "0xc7b5"),
            ("GA102_3D_CLASS", "0xce97", "0xc997"),
            ("GA102_COMPUTE_CLASS", "0xcec0", "0xc9c0"),
        ):
            cases = "".join(
                f"      case {chips}:\n{slot}{number};\n         break;\n" for chips, number in (("0x1b0", blackwell), ("0x190", ada))
            )
            file.replace(rf"^(?= *case 0x170:\n[^\n]*= {after};)", cases)
        file.replace(r"3ULL << 30", "12ULL << 30", 3)
    with Edits(src / "intel" / "tools" / "intel_noop_drm_shim.c") as file:
        file.replace(r"4ull \* 1024 \* 1024 \* 1024", "12ull * 1024 * 1024 * 1024", 2)
    with Edits(src / "drm-shim" / "device.c") as file:
        # Memory for a model of 7B, of which nothing is written, and submissions that are always done.
        file.replace(r"(?<=define SHIM_MEM_SIZE \()4ull", "16ull")
        file.replace(r"(?<=\[_IOC_NR\(DRM_IOCTL_SYNCOBJ_QUERY\)\] = )drm_shim_ioctl_stub", "drm_shim_ioctl_syncobj_query")
        file.replace(r"^(?=ioctl_fn_t core_ioctls\[\])", """static int
drm_shim_ioctl_syncobj_query(int fd, unsigned long request, void *arg)
{
   struct drm_syncobj_timeline_array *query = arg;
   for (uint32_t i = 0; i < query->count_handles; i++)
      ((uint64_t *)(uintptr_t)query->points)[i] = 1ull << 62;
   return 0;
}

""")
    with Edits(src / "freedreno" / "drm-shim" / "freedreno_noop.c") as file:
        # MSM_PARAM_EN_VM_BIND (0x15) is refused, so that the driver stays with the calls that the shim has. VM_BIND is 0x0d.
        file.replace(r"(?<=\[DRM_MSM_SET_PARAM\] = )msm_ioctl_noop", "msm_ioctl_set_param")
        file.replace(r"^(?=static ioctl_fn_t driver_ioctls)", """static int
msm_ioctl_set_param(int fd, unsigned long request, void *arg)
{
   return ((struct drm_msm_param *)arg)->param == 0x15 ? -EINVAL : 0;
}

""")
        file.replace(r"(?<=\[DRM_MSM_SUBMITQUEUE_QUERY\] = msm_ioctl_noop,\n)", "   [0x0d] = msm_ioctl_noop,\n")
        file.replace(r"(?<=device_infos\[\] = \{\n)",
                     "   { .gpu_id = 830, .chip_id = 0x44050000, .gmem_size = 12 << 20 },\n")  # fmt: skip


def shim(root, name):
    """The shared library of a shim, as the chroot sees it."""
    found = sorted((root / "isa" / "build" / "src").rglob(f"lib{name}_noop_drm_shim.so"))
    if not found:
        raise RuntimeError(f"there is no shim for {name}")
    return "/" + str(found[0].relative_to(root))


def popen(root, device, command):
    """Starts a command in the chroot on a device."""
    environment = {
        "LD_PRELOAD": shim(root, device.shim),
        "VK_DRIVER_FILES": f"/usr/share/vulkan/icd.d/{device.driver}_icd.json",
        "MESA_SHADER_CACHE_DISABLE": "true",
        "XDG_RUNTIME_DIR": "/tmp",
        **device.environment,
    }
    pairs = [f"{key}={value}" for key, value in environment.items()]
    line = enter(root, ["/usr/bin/env", *pairs, *command])
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    STARTED.append(process)
    return process


def processor_seconds(process):
    """Processor time of a process and its threads: /proc/PID/stat, utime and stime."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Reader:
    """The lines that isa-compile prints; stops it when it is silent for more than `patience` seconds of processor time, or 30 times as
    long: on a busy machine a compiler waits for its turn."""

    def __init__(self, process, patience):
        self.process = process
        self.patience = patience
        self.heard = self.now()
        # The module that was begun last, and what else was on standard error.
        self.last = None
        self.errors = ""
        self.stopped = False
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self.read_errors, self.watch)]
        for thread in self.threads:
            thread.start()

    def read_errors(self):
        for line in self.process.stderr:
            if line.startswith("@"):
                self.last = int(line[1:])
            else:
                self.errors += line

    def now(self):
        return processor_seconds(self.process), time.monotonic()

    def watch(self):
        while self.process.poll() is None:
            processor, wall = (now - heard for now, heard in zip(self.now(), self.heard))
            if processor > self.patience or wall > 30 * self.patience:
                self.stopped = True
                self.process.kill()
            time.sleep(0.2)

    def __iter__(self):
        for line in self.process.stdout:
            self.heard = self.now()
            yield line
        self.process.wait()
        for thread in self.threads:
            thread.join()

    def reason(self):
        return f"more than {self.patience} s" if self.stopped else f"the compiler ended with {self.process.returncode}"


if __name__ == "__main__":
    # chroot.py ROOT DEVICE COMMAND...: runs a command on a device.
    root, name, *command = sys.argv[1:]
    process = popen(Path(root), devices.DEVICES[name], command)
    out, errors = process.communicate()
    print(out, end="")
    print(errors, end="", file=sys.stderr)
    sys.exit(process.returncode)
