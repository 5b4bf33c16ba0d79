"""Reads what is in the inner loops of machine code, as Mesa's drivers print it.

`analyse(vendor, text)` returns the innermost loops of a kernel, each a `Loop`: its instructions by kind, the multiply-adds that an
invocation does in one iteration, and the widths of its loads.

    loops.py VENDOR FILE...      print the loops of dumps (amd, intel, nvidia, adreno, apple)
    loops.py VENDOR --code FILE  print the instructions of the heaviest loop, each with its kind
"""

import collections
import re
import sys

# Kinds of instructions. The vector ALU does the first six; scalar, memory and control instructions issue next to it on most GPUs.
ALU = ("fma", "dot", "matrix", "float", "int", "convert", "move")
# Instructions that multiply and add what the result needs.
USEFUL = ("fma", "dot", "matrix")


class Loop:
    """The instructions of one iteration."""

    def __init__(self):
        self.kinds = collections.Counter()
        self.multiply_adds = 0.0
        # By kind of access (load, shared, store, shared_store, scratch): bytes of one invocation -> number of instructions.
        self.widths = collections.defaultdict(collections.Counter)

    def add(self, kind, multiply_adds, width):
        self.kinds[kind] += 1
        self.multiply_adds += multiply_adds
        if width and kind in ("load", "shared", "store", "shared_store", "scratch"):
            self.widths[kind][width] += 1

    @property
    def instructions(self):
        return sum(self.kinds.values())

    @property
    def useful(self):
        return sum(self.kinds[kind] for kind in USEFUL)

    @property
    def alu(self):
        return sum(self.kinds[kind] for kind in ALU)

    def accesses(self, kind):
        """Such as `13x16 2x4`: thirteen accesses of 16 bytes, two of 4."""
        return " ".join(f"{count}x{width}" for width, count in sorted(self.widths[kind].items(), reverse=True))

    def bytes_per_load(self):
        widths = self.widths["load"]
        count = sum(widths.values())
        return sum(width * number for width, number in widths.items()) / count if count else None


def first(pattern, text, default=None):
    found = re.search(pattern, text)
    return found[1] if found else default


def amd(text):
    operations, loops, labels = [], [], {}
    for line in text.split("\n"):
        label = first(r"^(BB\d+):", line)
        if label:
            labels[label] = len(operations)
            continue
        line = line.strip()
        if not re.match(r"[a-z]", line):
            continue
        operation = line.split()[0]
        operations.append((operation, line.split(";")[0]))
        target = first(r"\b(BB\d+)\b", line)
        if "branch" in operation and target in labels:
            loops.append(range(labels[target], len(operations)))
    return operations, loops


AMD_WIDTHS = {
    "b32": 4, "b64": 8, "b96": 12, "b128": 16, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16,
    "u16": 2, "i16": 2, "u8": 1, "i8": 1, "ushort": 2, "sshort": 2, "ubyte": 1, "sbyte": 1, "short": 2, "d16": 2,
}  # fmt: skip


def amd_kind(operation, line):
    if operation.startswith("v_wmma"):
        return "matrix", 16 * 16 * 16, 0
    if operation.startswith("v_dual"):
        parts = [part.split()[0] for part in line.split("::")]
        multiply_adds = sum(1 if re.search(r"fmac|fma", part) else 2 if "dot2" in part else 0 for part in parts)
        return ("fma" if multiply_adds else "float"), multiply_adds, 0
    if re.match(r"v_pk_(fma|mad)", operation):
        return "fma", 2, 0
    if re.match(r"v_(fma|fmac|mac|mad|fmamk|fmaak|madak|madmk)_(f32|f16|mix|legacy)", operation):
        return "fma", 1, 0
    if operation.startswith("v_dot"):
        return "dot", int(operation[5]), 0
    if operation.startswith("v_cvt"):
        return "convert", 0, 0
    if re.match(r"v_(pk_)?(mul|add|sub|subrev|max|min)_f|v_(s_)?(exp|rcp|rsq|log|sqrt|sin|ldexp)", operation):
        return "float", 0, 0
    if re.match(r"v_(mov|cndmask|swap|accvgpr|readfirstlane|readlane|writelane)", operation):
        return "move", 0, 0
    if operation.startswith("v_"):
        return "int", 0, 0
    suffixes = [part for part in operation.split("_") if part in AMD_WIDTHS]
    width = AMD_WIDTHS[suffixes[-1]] if suffixes else 4
    if operation.startswith("ds_"):
        if "2addr" in operation or "read2" in operation or "write2" in operation:
            width *= 2
        if re.search(r"bpermute|permute|swizzle", operation):
            return "shuffle", 0, 0
        if "read" in operation or "load" in operation:
            return "shared", 0, width
        return "shared_store", 0, width
    if re.match(r"(buffer|global|flat)_load", operation):
        return "load", 0, width
    if re.match(r"(buffer|global|flat)_(store|atomic)", operation):
        return "store", 0, width
    if operation.startswith("scratch"):
        return "scratch", 0, width
    if re.match(r"s_(wait|delay|clause|nop|sleep)", operation):
        return "wait", 0, 0
    if "barrier" in operation:
        return "barrier", 0, 0
    if re.match(r"s_(c?branch|setpc|endpgm)", operation):
        return "control", 0, 0
    if re.match(r"s_(buffer_)?load", operation):
        return "uniform_load", 0, 0
    if operation.startswith("s_"):
        return "scalar", 0, 0
    return "int", 0, 0


def nvidia(text):
    """Blocks with their successors: the body of a loop need not be contiguous."""
    operations, loops = [], []
    spans, before, after, block = {}, collections.defaultdict(list), {}, None
    for line in text.split("\n"):
        header = re.match(r"^block(?:\.u)? (\d+) \S+ \[(.*?)\]", line)
        if header:
            block = int(header[1])
            spans[block] = (len(operations), len(operations))
            before[block] = [int(number) for number in re.findall(r"\d+", header[2])]
            continue
        end = re.match(r"^\} -> \[(.*)\]", line)
        if end:
            spans[block] = (spans[block][0], len(operations))
            after[block] = [int(number) for number in re.findall(r"\d+", end[1])]
            continue
        line = line.strip()
        if not line or line.startswith("//"):
            continue
        operation = re.match(r"^(?:@!?u?p\w+\s+)?(?:[^=]*?\s*=\s*)?([a-z][\w.\[\]]*)", line)
        if operation:
            operations.append((operation[1], line.split("//")[0]))
    for last, targets in after.items():
        for head in (target for target in targets if target <= last):
            body, queue = {head}, [last]
            while queue:
                block = queue.pop()
                if block not in body:
                    body.add(block)
                    queue += before[block]
            loops.append([index for block in sorted(body) for index in range(*spans[block])])
    return operations, loops


def nvidia_kind(operation, line):
    if operation.startswith("ffma"):
        return "fma", 1, 0
    if operation.startswith("hfma2"):
        return "fma", 2, 0
    if operation.startswith("hmma"):
        sizes = re.search(r"m(\d+)n(\d+)k(\d+)", line)
        m, n, k = map(int, sizes.groups()) if sizes else (16, 8, 16)
        return "matrix", m * n * k, 0
    if operation.startswith("imma"):
        return "matrix", 16 * 8 * 32, 0
    if operation.startswith("idp"):
        return "dot", 4, 0
    if re.match(r"(i2f|f2f|f2i|i2i|f2fp)", operation):
        return "convert", 0, 0
    if re.match(r"(fmul|fadd|fmnmx|mufu|hadd2|hmul2|hmnmx|fset|fswz)", operation):
        return "float", 0, 0
    width = first(r"\.(b128|b64|b32|b16|u16|i16|u8|b8|i8)", operation)
    width = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}[width.lstrip("bui")] if width else 4
    for prefix, kind in (
        ("ld.shared", "shared"), ("ldsm", "shared"), ("st.shared", "shared_store"), ("ld.global", "load"), ("st.global", "store"),
        ("ld.local", "scratch"), ("st.local", "scratch"), ("ldc", "uniform_load"),
    ):  # fmt: skip
        if operation.startswith(prefix):
            return kind, 0, width
    if re.match(r"(bar|membar)", operation):
        return "barrier", 0, 0
    if re.match(r"(bra|bssy|bsync|exit|nop|warpsync|bclear|break)", operation):
        return "control", 0, 0
    if re.match(r"(shfl|vote|redux|match)", operation):
        return "shuffle", 0, 0
    if re.match(r"(mov|sel|r2ur|prmt|u?cs2r|s2r)", operation):
        return "move", 0, 0
    return "int", 0, 0


def intel(text):
    operations, loops, labels = [], [], {}
    for line in text.split("\n"):
        label = first(r"^(L\d+):", line)
        if label:
            labels[label] = len(operations)
            continue
        line = re.sub(r"^\([^)]*\)\s*", "", line.strip())
        operation = first(r"^([a-z][\w.]*)\s", line)
        if not operation or "simd" in line[:12].lower():
            continue
        if not re.search(r"\(\d+\)", line[:60]) and operation not in ("else", "endif", "if", "while", "break", "halt"):
            continue
        operations.append((operation, line))
        target = first(r"\b(L\d+)\b", line)
        if operation == "while" and target in labels:
            loops.append(range(labels[target], len(operations)))
    return operations, loops


def intel_kind(operation, line):
    """Multiply-adds are those of all channels of the instruction."""
    channels = int(first(r"\((\d+)(?:\|M\d+)?\)", line, "8"))
    if operation in ("mad", "mac") and not re.search(r":(d|ud|w|uw)\b", line):
        return "fma", channels, 0
    if operation.startswith("dp4a"):
        return "dot", 4 * channels, 0
    if operation.startswith("dpas"):
        return "matrix", 8 * 8 * 16, 0
    if operation.startswith("send"):
        access = re.search(r"\b(load|store)(?:_cmask)?\.(ugm|slm)\.d(\d+)(?:u32)?(?:x(\d+)(t)?)?", line)
        if access:
            width = int(access[3]) // 8 * int(access[4] or 1)
            if access[5]:
                return "uniform_load", 0, width
            kinds = {"loadslm": "shared", "storeslm": "shared_store", "loadugm": "load", "storeugm": "store"}
            return kinds[access[1] + access[2]], 0, width
        if "scratch" in line.lower():
            return "scratch", 0, 4
        if "barrier" in line or "fence" in line:
            return "barrier", 0, 0
        # Before Xe-HPG messages are named by their data port.
        legacy = re.search(r"(untyped|a64|byte scattered|oword|dword scattered)[\w ]*(read|write)", line.lower())
        if legacy:
            shared = "slm" in line.lower()
            kind = {"read": "shared" if shared else "load", "write": "shared_store" if shared else "store"}[legacy[2]]
            # A mask of 0xN leaves out channels of the four.
            mask = first(r"Mask = 0x(\w)", line)
            return kind, 0, 4 * (4 - bin(int(mask, 16)).count("1")) if mask else 4
        return "send", 0, 4
    if operation.startswith("math"):
        return "float", 0, 0
    if operation.startswith(("sync", "nop")):
        return "wait", 0, 0
    if operation in ("if", "else", "endif", "while", "break", "cont", "halt", "jmpi"):
        return "control", 0, 0
    if operation in ("mov", "sel", "csel"):
        if re.search(r":f\b.*:(d|ud|w|uw|b|ub|hf)\b|:hf\b.*:f\b", line):
            return "convert", 0, 0
        return "move", 0, 0
    integer = ("shl", "shr", "asr", "and", "or", "xor", "not", "cmp", "rol", "ror", "add3")
    if operation in integer or operation.startswith(("bf", "add3")) or re.search(r":(d|ud|w|uw|b|ub|q|uq)\b", line):
        return "int", 0, 0
    return "float", 0, 0


def adreno(text):
    operations, loops, labels = [], [], {}
    for line in text.split("\n"):
        label = first(r"^(l\d+):", line)
        if label:
            labels[label] = len(operations)
            continue
        line = line.strip()
        repeat = first(r"^(?:\([a-z]+\d*\) *)*\(rpt(\d)\)", line)
        line = re.sub(r"^(\([a-z]+\d*\) *)+", "", line)
        operation = first(r"^([a-z][\w.]*)", line)
        if not operation:
            continue
        operations.append((operation, line + (f" @rpt{repeat}" if repeat else "")))
        target = first(r"#(l\d+)", line)
        if target in labels:
            loops.append(range(labels[target], len(operations)))
    return operations, loops


def adreno_kind(operation, line):
    repeats = 1 + int(first(r"@rpt(\d)", line, "0"))
    count = first(r", (\d+)\s*$", line.split("@")[0].strip())
    width = 4 * int(count) if count else 4
    if operation.startswith("mad.f"):
        return "fma", repeats, 0
    if operation.startswith("dp"):
        return "dot", (4 if operation.startswith("dp4") else 2) * repeats, 0
    if operation.startswith("cov"):
        return "convert", 0, 0
    if operation.startswith("mov"):
        types = first(r"mov\.(\w+)", operation, "")
        return ("move" if types in ("f32f32", "f16f16", "u32u32", "s32s32", "u16u16", "") else "convert"), 0, 0
    if re.match(r"((mul|add|min|max|cmps|sel)\.f|sqrt|rcp|rsq|exp|log|floor|absneg\.f)", operation):
        return "float", 0, 0
    if operation.startswith("nop"):
        return "wait", 0, 0
    if operation.startswith("ldl"):
        return "shared", 0, width
    if operation.startswith("stl"):
        return "shared_store", 0, width
    if operation.startswith("isam"):
        return "load", 0, 4 * len(first(r"\(([xyzw]+)\)", line, "x"))
    if operation.startswith("ldc"):
        return "uniform_load", 0, width
    if re.match(r"(ldib|ldg|ldgb)", operation):
        return "load", 0, width
    if re.match(r"(stib|stg|stgb)", operation):
        return "store", 0, width
    if re.match(r"(ldp|stp)", operation):
        return "scratch", 0, width
    if re.match(r"(bar|fence)", operation):
        return "barrier", 0, 0
    if re.match(r"(br|jump|getone|getlast|shps|shpe|end|pred|bany|ball|kill)", operation):
        return "control", 0, 0
    return "int", 0, 0


def apple(text):
    """The disassembly that AGX_MESA_DEBUG=shaders prints: of the kernel and of its preamble, which is shorter."""
    programs, operations, offsets, jumps = [], [], {}, []
    for line in text.split("\n") + ["0: 00 end"]:
        found = re.match(r"\s*([0-9a-f]+): [0-9a-f]+\s+([a-z]\w*)(.*)", line)
        if not found:
            continue
        offset = int(found[1], 16)
        if offset == 0:
            loops = [range(offsets[target], last + 1) for target, last in jumps if target in offsets]
            programs.append((operations, loops))
            operations, offsets, jumps = [], {}, []
        offsets[offset] = len(operations)
        back = first(r"^\s*(-\d+)", found[3])
        if found[2].startswith("jmp") and back:
            jumps.append((offset + int(back), len(operations)))
        operations.append((found[2], found[2] + found[3]))
    return max(programs, key=lambda program: len(program[0]))


APPLE_KINDS = {
    "wait": "wait", "nop": "wait", "barrier": "barrier", "lload": "shared", "lstore": "shared_store", "load": "load", "store": "store",
    "uniform": "uniform_load", "stack_load": "scratch", "stack_store": "scratch", "if": "control", "else": "control",
    "while": "control", "pop_exec": "control", "stop": "control", "trap": "control", "mov": "move", "ldimm": "move", "csel": "int",
    "convert": "convert", "iadd": "int",
}  # fmt: skip


def apple_kind(operation, line):
    if operation in ("ffma", "hfma"):
        return "fma", 1, 0
    kind = APPLE_KINDS.get(operation)
    if kind in ("load", "store", "shared", "shared_store", "scratch"):
        size = int(first(r", [iuf](\d+)", line, "32")) // 8
        return kind, 0, size * len(first(r", ([xyzw]+)\b", line, "x"))
    if kind:
        return kind, 0, 0
    if operation.startswith("jmp"):
        return "control", 0, 0
    if operation.startswith(("simd", "quad")):
        return "shuffle", 0, 0
    if "_to_" in operation or operation.startswith("convert"):
        return "convert", 0, 0
    if operation.startswith(("f", "h", "exp2", "rcp", "rsqrt", "log2", "sin", "round")):
        return "float", 0, 0
    return "int", 0, 0


VENDORS = {
    "amd": (amd, amd_kind),
    "nvidia": (nvidia, nvidia_kind),
    "intel": (intel, intel_kind),
    "adreno": (adreno, adreno_kind),
    "apple": (apple, apple_kind),
}


def bodies(loops, count):
    """Innermost loops in order; then the other loops without those inside them; then all instructions."""
    sets = sorted({frozenset(loop) for loop in loops}, key=min)
    inside = {loop: [other for other in sets if other < loop] for loop in sets}
    yield [sorted(loop) for loop in sets if not inside[loop]]
    yield [sorted(loop.difference(*inside[loop])) for loop in sets if inside[loop]]
    yield [list(range(count))]


def analyse(vendor, text, subgroup=None):
    """The innermost loops of a kernel, in order. If none multiplies, those around them, or the whole kernel."""
    parse, kind = VENDORS[vendor]
    operations, loops = parse(text)
    # Intel's instructions name their channels, not their invocations.
    share = 1 / (subgroup or 8) if vendor == "intel" else 1
    first_found = None
    for level in bodies(loops, len(operations)):
        found = []
        for indices in level:
            loop = Loop()
            loop.operations = [operations[index] for index in indices]
            for operation, line in loop.operations:
                name, multiply_adds, width = kind(operation, line)
                # A matrix operation is that of a whole subgroup.
                part = 1 / (subgroup or 32) if name == "matrix" else share
                loop.add(name, multiply_adds * part, width)
            found.append(loop)
        if any(loop.multiply_adds for loop in found):
            return found
        first_found = first_found or found
    return first_found


def heaviest(loops):
    return max(loops, key=lambda loop: (loop.multiply_adds, loop.instructions))


def main():
    vendor, *files = sys.argv[1:]
    code = files[:1] == ["--code"]
    for file in files[code:]:
        with open(file, errors="replace") as source:
            found = analyse(vendor, source.read())
        if code:
            for operation, line in heaviest(found).operations:
                print(f"{VENDORS[vendor][1](operation, line)[0]:12} {line}")
            continue
        print(file)
        for loop in found:
            kinds = " ".join(f"{kind} {count}" for kind, count in loop.kinds.most_common())
            print(f"    {loop.instructions} instructions, {loop.multiply_adds:g} multiply-adds: {kinds}")
            for kind in loop.widths:
                print(f"        {kind}: {loop.accesses(kind)}")


if __name__ == "__main__":
    main()
