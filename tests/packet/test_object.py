"""The committed object is what the source makes."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
STALE = "rust/packet/balancer.bpf.o is not made from its sources: run `make bpf`"

pytestmark = pytest.mark.pure


def build_bpf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_bpf", ROOT / "tools/build_bpf.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_object_names_its_source() -> None:
    made = build_bpf()
    named = re.findall(rb"\b[0-9a-f]{64}\b", made.OBJECT.read_bytes())
    assert named == [made.digest().encode()], STALE


@pytest.mark.parametrize("name", ["balancer.bpf.c", "layout.bpf.h", "read.bpf.h"])
def test_each_source_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build_bpf()
    for path in (made.SOURCE, *made.HEADERS):
        more = b"//" if path.name == name else b""
        (tmp_path / path.name).write_bytes(path.read_bytes() + more)
    before = made.digest()
    monkeypatch.setattr(made, "SOURCE", tmp_path / made.SOURCE.name)
    monkeypatch.setattr(made, "HEADERS", [tmp_path / path.name for path in made.HEADERS])
    assert made.digest() != before


def test_the_source_makes_the_object(tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="without ziglang the object cannot be made anew")
    made = build_bpf()
    made.compile_to(tmp_path / "object.o")
    same = (tmp_path / "object.o").read_bytes() == made.OBJECT.read_bytes()
    assert same, STALE


def test_nothing_of_a_machine_is_in_the_object() -> None:
    assert not re.search(rb"/(?:home|root|tmp|work|usr)/", build_bpf().OBJECT.read_bytes())
