"""Compile the programs of the packet room: ``python tools/build_bpf.py [OBJECT]``, as ``make bpf`` does.

The compiler is PyPI's ziglang, which is clang with the target bpf inside, so that nobody needs one of the
system. The same version makes the same bytes, wherever the checkout is.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = "rust/packet/balancer.bpf.c"
OBJECT = "rust/packet/balancer.bpf.o"
FLAGS = ["-target", "bpfel-freestanding-none", "-O2", "-g0", "-Wall", "-Wextra", "-Werror", "-c"]


def main() -> None:
    made = sys.argv[1] if len(sys.argv) > 1 else OBJECT
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, SOURCE, "-o", made]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
