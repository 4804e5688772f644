"""The browser's client as a file and as an npm package."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
from playwright.sync_api import Page

from pybalancer.client import JAVASCRIPT, Retry

from .conftest import HERE, ROOT

MOST_BYTES = 4096
TYPES = (JAVASCRIPT / "client.d.ts").read_text()

needs_npm = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")), reason="no node and npm here"
)


def run(*command: object, folder: Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_is_small() -> None:
    assert len(gzip.compress((JAVASCRIPT / "client.js").read_bytes(), 6)) < MOST_BYTES


def test_it_needs_nothing() -> None:
    source = (JAVASCRIPT / "client.js").read_text()
    assert not re.search(r"^\s*import\b|\bimport\(|\brequire\(", source, re.MULTILINE)
    package = json.loads((JAVASCRIPT / "package.json").read_text())
    assert not [name for name in package if name.lower().endswith("dependencies") or name == "scripts"]
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    assert (package["version"], package["license"]) == (workspace["version"], workspace["license"])


def test_the_types_name_what_there_is(page: Page) -> None:
    exported = page.evaluate("async () => Object.keys(await import('/client.js'))")
    declared = re.findall(r"^export (?:declare )?(?:class|function|const) (\w+)", TYPES, re.MULTILINE)
    assert sorted(exported) == sorted(declared)
    there = page.evaluate(
        """
        async () => {
            const {ReconnectingSocket} = await import("/client.js");
            const {World} = await import("/world.js");
            const socket = new ReconnectingSocket("ws://node.test/", [], {world: new World()});
            return [...Object.keys(socket), ...Object.getOwnPropertyNames(ReconnectingSocket.prototype)];
        }
        """
    )
    body = re.search(r"^export class ReconnectingSocket .*?^}", TYPES, re.MULTILINE | re.DOTALL)
    assert body
    members = re.findall(r"^  (?:readonly )?(\w+)[(:]", body[0], re.MULTILINE)
    inherited = {"addEventListener", "removeEventListener"}
    assert set(there) == set(members) - inherited


def rows(head: str) -> dict[str, str]:
    """First and second cells of the table in docs/clients.md whose first column has this head."""
    page = (ROOT / "docs/clients.md").read_text()
    table = page.split(f"| {head} |", 1)[1].split("\n\n", 1)[0]
    return dict(re.findall(r"^\| `(\w+)` \| ?([^|]*?) ?\|", table, re.MULTILINE))


def test_the_document_has_every_time_and_every_option(page: Page) -> None:
    defaults = page.evaluate("async () => (await import('/client.js')).DEFAULTS")
    assert defaults == asdict(Retry())
    times = {name: value for name, value in defaults.items() if name != "fallback"}
    assert {name: float(value) for name, value in rows("name").items()} == times
    body = re.search(r"^export interface Options .*?^}", TYPES, re.MULTILINE | re.DOTALL)
    assert body
    options = set(re.findall(r"^  (\w+)\?:", body[0], re.MULTILINE))
    assert options == set(rows("option"))


def test_the_programs_in_the_document_are_those_of_the_examples() -> None:
    page = (ROOT / "docs/clients.md").read_text()
    trio_block, loop_block = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    compile(trio_block, "docs/clients.md", "exec")
    assert loop_block in (ROOT / "examples/direct/with_websockets.py").read_text()


@needs_npm
@pytest.mark.timeout(300)
def test_npm_and_typescript_take_it(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    shutil.copy(HERE / "use.ts", tmp_path)
    quiet = ("--no-audit", "--no-fund", "--no-save", "--loglevel=error")
    run("npm", "install", *quiet, "typescript@5", JAVASCRIPT, folder=tmp_path)
    strict = ("--strict", "--noEmit", "--target", "es2022", "--lib", "es2022,dom")
    for resolution in ("bundler", "nodenext"):
        module = {"bundler": "esnext", "nodenext": "nodenext"}[resolution]
        how = ("--moduleResolution", resolution, "--module", module)
        run(tmp_path / "node_modules/.bin/tsc", *strict, *how, "use.ts", folder=tmp_path)
    # The rules run in node as they do in a page.
    script = """
        import {Comeback, ReconnectingSocket} from "pybalancer-client";
        console.log(new Comeback("ws://node.test/").wait(0, 0.5, {code: 1006}), ReconnectingSocket.OPEN);
    """
    assert run("node", "--input-type=module", "--eval", script, folder=tmp_path) == "250 1\n"


@needs_npm
def test_what_is_packed(tmp_path: Path) -> None:
    told = json.loads(run("npm", "pack", "--dry-run", "--json", JAVASCRIPT, folder=tmp_path))
    files = {
        file["path"] for file in (told[0] if isinstance(told, list) else next(iter(told.values())))["files"]
    }
    assert files == {"client.js", "client.d.ts", "package.json"}
    assert {path.name for path in JAVASCRIPT.iterdir()} == files
