"""How much the kernel's verifier has to do with the programs: what grows past its limit is not loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pybalancer._core import PacketPath
from tests.wire.namespace import Namespace, needs_namespaces

pytestmark = needs_namespaces

LIMIT = 1_000_000
"""Instructions that it follows, each way through a program counted (BPF_COMPLEXITY_LIMIT_INSNS)."""
SHARE = 4
"""Kernels see through different things: what costs one little may cost another some times as much."""


def followed() -> dict[str, int]:
    """Of the programs that this process has open, by their tags; it is told since Linux 5.16."""
    found = {}
    for each in Path("/proc/self/fd").iterdir():
        if each.is_symlink() and "bpf-prog" in os.readlink(each):
            text = Path("/proc/self/fdinfo", each.name).read_text()
            told = dict(line.split(":", 1) for line in text.splitlines())
            if "verified_insns" not in told:
                pytest.skip("this kernel does not tell")
            found[told["prog_tag"]] = int(told["verified_insns"])
    return found


@pytest.mark.parametrize("program", ["director", "agent", "probe"])
def test_programs_are_far_from_the_limit(place: Namespace, program: str) -> None:
    before = followed().keys()
    with place.inside():
        path = PacketPath("agent" if program == "agent" else "director", secret=bytes(16), size=13)
        own = followed().keys() - before
        if program == "probe":
            path.attach_probe("here")
            own = followed().keys() - before - own
        (count,) = (count for tag, count in followed().items() if tag in own)
        path.close(keep=False)
    assert 0 < count < LIMIT // SHARE
