#!/usr/bin/env python3
"""Replaces the repository's address on GitHub wherever it is written. Needs Python 3.9, git and nothing else.

    scripts/set-repository.py OWNER/NAME

`mgm-rs/mgm`, as Cargo.toml has it, is a placeholder until the repository is published. Links inside the repository are relative
where GitHub resolves them; only the pages of crates.io, docs.rs, npm and CITATION.cff need the address.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ("https://github.com/", "https://raw.githubusercontent.com/")


def main(new):
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        sys.exit(f"expected OWNER/NAME, found {new}")
    manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    old = re.search(r'^repository = "https://github\.com/([^"]+)"', manifest, re.MULTILINE).group(1)
    pattern = re.compile("(" + "|".join(map(re.escape, HOSTS)) + ")" + re.escape(old) + r"(?![\w-])")
    listed = subprocess.run(["git", "grep", "-lIF", f"/{old}"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    for path in map(ROOT.joinpath, listed.stdout.splitlines()):
        text = path.read_text(encoding="utf-8")
        changed, count = pattern.subn(rf"\g<1>{new}", text)
        if count:
            path.write_text(changed, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {count}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
