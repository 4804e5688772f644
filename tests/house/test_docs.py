"""Documents say what is: what can be compared with the code is compared here."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybalancer import _core
from pybalancer.cli import app, exits
from pybalancer.stats import Stats
from pybalancer.stats.collector import StatsCollector

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
}
README, OPERATING = PAGES["README.md"], PAGES["docs/operating.md"]
ARCHITECTURE = PAGES["docs/architecture.md"]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def section(page: str, title: str) -> str:
    """From a heading to the next of the same level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {title!r}"
    return found[1]


def table(text: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    lines = text.split("\n")
    heads = {number - 1 for number, line in enumerate(lines) if line.startswith("|---")}
    rows = [line for number, line in enumerate(lines) if line.startswith("| ") and number not in heads]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def blocks(page: str, language: str) -> list[str]:
    return [text for tag, text in _FENCED.findall(page) if tag == language]


def prose(page: str) -> str:
    return _FENCED.sub("", page)


def spans(page: str) -> list[str]:
    """What is written `so` in the prose."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def code(page: str) -> str:
    """Spans and blocks, a line each."""
    return "\n".join([*spans(page), *(text for _, text in _FENCED.findall(page))])


def run(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    given = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=given, capture_output=True, text=True, check=False
    )


def test_the_configuration_reference_is_current(tmp_path: Path) -> None:
    made = run("-m", "pybalancer.config.reference", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert PAGES["docs/config.md"] == made.stdout, "run `make docs`"


def test_commands_in_documents_are_those_that_there_are() -> None:
    named = {
        word for page in PAGES.values() for word in re.findall(r"(?<!from )\bpybalancer ([a-z]+)", code(page))
    }
    assert named == set(app.COMMANDS)


@pytest.mark.parametrize(
    ("page", "number"), [(name, n) for name, page in PAGES.items() for n in range(len(blocks(page, "toml")))]
)
def test_configurations_in_documents_pass_the_check(
    page: str, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pybalancer.toml"
    file.write_text(blocks(PAGES[page], "toml")[number])
    assert app.run(["check", str(file)]) == exits.FINE, capsys.readouterr().err
    assert capsys.readouterr().err == ""


def test_the_readme_has_configurations_and_programs() -> None:
    assert len(blocks(README, "toml")) >= 1
    assert len(blocks(README, "python")) >= 2


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_programs_in_the_readme_run(number: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(blocks(README, "python")[number])
    done = run("program.py", folder=tmp_path, STATE_DIRECTORY=str(tmp_path / "state"))
    assert done.returncode == 0, done.stderr
    assert "clients connect to 127.0.0.1:" in done.stdout


def test_every_reason_is_explained() -> None:
    source = (ROOT / "rust/core/src/record.rs").read_text()
    reasons = re.findall(r'Reason::\w+ => "([a-z-]+)"', source)
    assert len(reasons) > 10, "the reasons are written in another way now: mend this test"
    rows = table(section(OPERATING, "Records"))
    assert all(what and whose for _, what, whose in rows)
    assert sorted(reason for reason, _, _ in rows) == sorted(f"`{reason}`" for reason in reasons)


def test_every_metric_is_explained() -> None:
    engine = _core.Engine(workers=1)
    try:
        with Stats(fd=engine.stats_fd) as stats:
            families = list(StatsCollector(stats).collect())
    finally:
        engine.close()
    ends = {"counter": "_total", "info": "_info", "gauge": ""}
    exposed = {family.name + ends[family.type] for family in families}
    rows = table(section(OPERATING, "Metrics"))
    assert all(what for _, _, what in rows)
    assert sorted(name for name, _, _ in rows) == sorted(f"`{name}`" for name in exposed)
    assert set(re.findall(r"\bpybalancer_\w+", OPERATING)) <= exposed


def test_every_reason_of_packets_is_explained() -> None:
    rows = table(section(PAGES["docs/packet.md"], "Seeing it"))
    explained = {name.strip("`"): what for name, what in rows}
    assert set(explained) == set(_core.PacketPath.REASONS)
    assert all(explained.values())


def test_every_exit_code_is_explained() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    rows = table(section(OPERATING, "Exit codes"))
    assert sorted(int(code) for code, _ in rows) == sorted(codes)


def logged(tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """Line, and the parts between the placeholders, of all that a module logs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "_log":
                given = [one.value for one in node.args if isinstance(one, ast.Constant)]
                yield node.lineno, [part for text in given for part in re.split(r"%\w+", str(text))]
        elif isinstance(node, ast.FunctionDef) and node.name == "describe":
            for answer in ast.walk(node):
                if isinstance(answer, ast.Return) and answer.value is not None:
                    values = [one.value for one in ast.walk(answer) if isinstance(one, ast.Constant)]
                    yield answer.lineno, [text for text in values if isinstance(text, str)]


def test_every_log_line_is_explained() -> None:
    explained = section(OPERATING, "Log lines")
    looked_at, missing = 0, []
    for path in sorted((ROOT / "pybalancer").rglob("*.py")):
        for line, parts in logged(ast.parse(path.read_text())):
            # The first words of any length tell one line from another; behind a semicolon is advice.
            words = next((text.split(";")[0].strip() for text in parts if len(text) > 8), None)
            looked_at += words is not None
            if words is not None and words not in explained:
                missing.append(f"{path.name}:{line}: {words}")
    assert looked_at > 15, "logs are written in another way now: mend this test"
    assert missing == []


def python_requirements() -> Iterator[tuple[str, str]]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = [*content["project"]["dependencies"], *content["build-system"]["requires"]]
    for group in content["dependency-groups"].values():
        listed += group
    for text in listed:
        name, requirement = re.fullmatch(r"([\w-]+)(.*)", text.replace(" ", "")).groups()
        yield name, requirement


def rust_requirements() -> Iterator[tuple[str, str]]:
    """Of every crate but our own, which are there by path."""
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]
    tables = [workspace["dependencies"]]
    for member in workspace["members"]:
        content = tomllib.loads((ROOT / member / "Cargo.toml").read_text())
        tables += [
            content.get(kind, {}) for kind in ("dependencies", "dev-dependencies", "build-dependencies")
        ]
    for table in tables:
        for name, given in table.items():
            entry = {"version": given} if isinstance(given, str) else given
            if "version" in entry:
                yield name, entry["version"]
            else:
                assert "path" in entry or entry.get("workspace"), f"{name} has neither version nor path"


def test_the_picture_of_an_exchange_is_that_of_the_code() -> None:
    source = (ROOT / "rust/engine/src/exchange.rs").read_text()
    (drawn,) = re.findall(r"//! ```text\n(.*?)//! ```", source, re.DOTALL)
    picture = textwrap.dedent(re.sub(r"^//! ?", "", drawn, flags=re.MULTILINE))
    assert [line.rstrip() for line in picture.splitlines()] in [
        [line.rstrip() for line in textwrap.dedent(text).splitlines()] for text in blocks(ARCHITECTURE, "")
    ]


def test_every_dependency_has_its_row() -> None:
    rows = table(section(ARCHITECTURE, "Dependencies"))
    assert all(why for _, _, _, why in rows)
    listed = [(name, requirement.strip("`")) for name, requirement, _, _ in rows]
    assert sorted(listed) == sorted({*python_requirements(), *rust_requirements()})


def anchors(page: str) -> set[str]:
    """As GitHub makes them from headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(PAGES[name])):
        if re.match(r"[a-z]+:", link):
            continue
        where, _, anchor = link.partition("#")
        target = (ROOT / name).parent.joinpath(where).resolve() if where else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


MADE_LATER = {"bench/RESULTS.md"}
"""By `make bench`."""


@pytest.mark.parametrize("name", PAGES)
def test_files_that_documents_name_are_there(name: str) -> None:
    places = re.compile(r"(?:rust|pybalancer|tests|bench|docs|examples|tools)/[\w./-]*")
    named = {span for span in spans(PAGES[name]) if places.fullmatch(span)}
    assert [path for path in sorted(named - MADE_LATER) if not (ROOT / path).exists()] == []
