"""Compile rust/packet/balancer.bpf.c, as ``make bpf`` does.

The object is committed, so that nobody who builds or installs pybalancer needs a compiler for BPF. It says
in its section ".source" which sources it was made from; with the same ziglang (pyproject.toml's group "dev"
names one version) the same sources make the same bytes, and tests/packet/test_object.py holds both.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "rust/packet/balancer.bpf.c"
HEADERS = sorted(SOURCE.parent.glob("*.bpf.h"))
OBJECT = SOURCE.with_suffix(".o")
FLAGS = (
    "-target", "bpfel-freestanding-none", "-mcpu=v3", "-O2", "-fno-stack-protector", "-fno-ident",
    "-Wall", "-Wextra", "-Werror",
)  # fmt: skip


def digest() -> str:
    """SHA-256 of the sources, each with its name and length, so that nothing can move between them unseen."""
    found = hashlib.sha256()
    for path in (SOURCE, *HEADERS):
        text = path.read_bytes()
        found.update(f"{path.name} {len(text)}\n".encode() + text)
    return found.hexdigest()


def compile_to(target: Path) -> None:
    """Compile the source, from a folder of its own: no path of this machine gets into the object."""
    with tempfile.TemporaryDirectory() as folder:
        for path in (SOURCE, *HEADERS):
            shutil.copy(path, folder)
        command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, f'-DSOURCE="{digest()}"']
        subprocess.run([*command, "-c", SOURCE.name, "-o", "object.o"], cwd=folder, check=True)
        shutil.copy(Path(folder) / "object.o", target)


if __name__ == "__main__":
    compile_to(OBJECT)
    print(f"{OBJECT.relative_to(ROOT)}: {OBJECT.stat().st_size} bytes")
