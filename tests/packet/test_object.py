"""The committed object is what the committed source makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_object_and_source_belong_together(tmp_path: Path) -> None:
    made = tmp_path / "balancer.bpf.o"
    command = [sys.executable, str(ROOT / "tools/build_bpf.py"), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert made.read_bytes() == (ROOT / "rust/packet/balancer.bpf.o").read_bytes(), "run `make bpf`"
