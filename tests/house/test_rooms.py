"""The arrows between the rooms hold (docs/architecture.md), and so do the habits that a machine can see."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

ARROWS: dict[str, set[str]] = {
    "rust/core": set(),
    "rust/engine": {"pybalancer-core"},
    "rust/packet": {"pybalancer-core"},
    "rust/bridge": {"pybalancer-core", "pybalancer-engine", "pybalancer-packet"},
    "rust/sim": {"pybalancer-core"},
    "bench/wire": set(),
}
"""Which crates of ours each may use."""

WORLD = {"libc", "mio", "nix", "pyo3", "rand", "rustix", "socket2", "tokio"}
"""Crates that touch what core must not know."""

UNSAFE_HOMES = ["rust/engine/src/sys.rs", "rust/packet/src/sys.rs"]

MOST_LINES = 600
EXCUSE = "longer than 600 lines because"
"""What the first lines of a file say that is longer, its tests aside."""


def sources(folder: str, *suffixes: str) -> list[Path]:
    found = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    assert found, f"no sources in {folder}: does this test look at the right place?"
    return sorted(found)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def manifest(crate: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / crate / "Cargo.toml").read_text())


def without_comments(rust: str) -> str:
    return re.sub(r"//.*", "", rust)


def without_tests(rust: str) -> str:
    return re.split(r"^#\[cfg\(test\)\]\nmod ", rust, maxsplit=1, flags=re.MULTILINE)[0]


def test_the_arrows_are_those_of_all_crates() -> None:
    assert set(manifest(".")["workspace"]["members"]) == set(ARROWS)


@pytest.mark.parametrize("crate", ARROWS)
def test_crates_use_those_below_them_only(crate: str) -> None:
    tables = [manifest(crate).get(kind, {}) for kind in ("dependencies", "build-dependencies")]
    used = {name for table in tables for name in table if name.startswith("pybalancer")}
    assert used <= ARROWS[crate]


def test_core_knows_no_world() -> None:
    root = (ROOT / "rust/core/src/lib.rs").read_text()
    assert re.search(r"^#!\[no_std\]$", root, re.MULTILINE)
    assert re.search(r"^#!\[forbid\(unsafe_code\)\]$", root, re.MULTILINE)
    for path in sources("rust/core/src", ".rs"):
        text = path.read_text().replace("#[cfg(test)]\nextern crate std;", "")
        assert "extern crate std" not in text, name_of(path)
    for name, entry in manifest("rust/core")["dependencies"].items():
        assert name not in WORLD
        assert isinstance(entry, dict), f"{name} brings std: default-features = false"
        assert entry.get("default-features") is False, f"{name} brings std: default-features = false"


@pytest.mark.parametrize("crate", ["rust/core", "rust/engine", "rust/packet"])
def test_python_ends_at_the_bridge(crate: str) -> None:
    named = [name_of(path) for path in sources(crate, ".rs", ".toml") if "pyo3" in path.read_text()]
    assert named == []


def test_unsafe_has_one_address_in_each_room() -> None:
    unsafe = re.compile(r"\bunsafe\s*(?:\{|fn\b|impl\b|extern\b|trait\b)")
    paths = [*sources("rust", ".rs"), *sources("bench", ".rs")]
    found = [name_of(path) for path in paths if unsafe.search(without_comments(path.read_text()))]
    assert found == UNSAFE_HOMES


def test_there_is_one_event_loop() -> None:
    found = []
    for path in sources("pybalancer", ".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{name_of(path)}:{node.lineno}" for name in names if name.split(".")[0] == "asyncio"]
    assert found == []


def test_files_are_short_or_say_why_not() -> None:
    long = []
    for folder in ("rust", "pybalancer", "tests", "bench"):
        for path in sources(folder, ".rs", ".py", ".c", ".h"):
            text = path.read_text()
            head = " ".join(re.sub(r"^[/#!*\s]+", "", line) for line in text.split("\n")[:30])
            counted = without_tests(text) if path.suffix == ".rs" else text
            if counted.count("\n") > MOST_LINES and EXCUSE not in head.lower():
                long.append(f"{name_of(path)}: {counted.count(chr(10))} lines")
    assert long == []


def test_what_the_makefile_runs_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipes = "\n".join(line for line in makefile.split("\n") if line.startswith("\t"))
    files = set(re.findall(r"(?<![\w./-])((?:bench|docs|pybalancer|rust|tests|tools)/[\w./-]*\w)", recipes))
    modules = set(re.findall(r"-m ((?:bench|pybalancer|tests|tools)[\w.]*)", recipes))
    assert files
    assert modules
    missing = [name for name in files if not (ROOT / name).exists()]
    for module in modules:
        path = ROOT / module.replace(".", "/")
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
            missing.append(module)
    assert missing == []
    packages = {manifest(crate)["package"]["name"] for crate in ARROWS}
    assert set(re.findall(r"cargo build .*-p ([\w-]+)", recipes)) <= packages


def test_ci_runs_what_make_test_says() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"`make ([\w-]+)", readme)) <= targets
