"""Makes ``_ffi.py`` from ``pybalancer_stats.h``, the one description of the shared memory.

Run ``python -m pybalancer.stats._ffi_build`` after a change of the header. The result is committed,
so that an installed pybalancer needs neither a C compiler nor pycparser; a test checks that it is
current. Out-of-line *ABI* mode: cffi computes the layout, nothing is compiled or linked.
"""

import tempfile
from pathlib import Path

from cffi import FFI  # type: ignore[import-untyped]

HEADER = Path(__file__).with_name("pybalancer_stats.h")
GENERATED = Path(__file__).with_name("_ffi.py")
BANNER = "# Made by _ffi_build.py from pybalancer_stats.h: do not edit.\n# ruff: noqa: E501\n# fmt: off\n"


def generate() -> str:
    """The text of ``_ffi.py`` as the header wants it."""
    ffi = FFI()
    ffi.cdef(HEADER.read_text(encoding="utf-8"))
    ffi.set_source("pybalancer.stats._ffi", None)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "_ffi.py"
        ffi.emit_python_code(str(target))
        return BANNER + target.read_text(encoding="utf-8").removeprefix("# auto-generated file\n")


if __name__ == "__main__":
    GENERATED.write_text(generate(), encoding="utf-8")
