"""The wheel as people get it: made by `make wheel`, installed where no compiler is, run from elsewhere."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Mapping
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "ld", "rustc", "cargo", "make")

# Builds and downloads: where nothing is warm, these take their time.
pytestmark = pytest.mark.timeout(900)


def run(*command: object, directory: Path, environment: Mapping[str, str]) -> str:
    """What a command printed; it has to succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words} exits with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def without(*prefixes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    # As from a shell, though this may run below another make.
    environment = without("MAKE", "MFLAGS", "DIST")
    run("make", "wheel", f"DIST={directory}", directory=ROOT, environment=environment)
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def archive(wheel: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(wheel) as opened:
        yield opened


def installed_environment(programs: Path) -> dict[str, str]:
    """One where these programs are all there are, and nothing points to the checkout."""
    kept = without("PYTHON", "PYBALANCER_", "VIRTUAL_ENV", "CARGO", "RUST", "CC", "CXX")
    return {**kept, "PATH": str(programs)}


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of an environment that was empty, and where nothing could be compiled, when the wheel came."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, symlinks=True, with_pip=True)
    found = directory / "bin"
    environment = installed_environment(found)
    assert not [tool for tool in COMPILERS if shutil.which(tool, path=environment["PATH"])]
    pip = (found / "python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:")
    run(*pip, wheel, directory=directory, environment=environment)
    return found


def test_it_is_for_every_python_from_3_11_on(wheel: Path, archive: zipfile.ZipFile) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, python, abi) == ("pybalancer", "cp311", "abi3")
    assert "linux" in platform
    about = Parser().parsestr(archive.read(f"{name}-{version}.dist-info/METADATA").decode())
    assert (about["Version"], about["Requires-Python"]) == (version, ">=3.11")
    assert about["License-Expression"] == "Apache-2.0"


def test_it_holds_the_package_and_nothing_else(archive: zipfile.ZipFile) -> None:
    """All that is in pybalancer/ (types, header, first page of help), no tests, no sources of the module."""
    package = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "pybalancer").rglob("*")
        if file.is_file() and file.suffix not in (".pyc", ".so")
    }
    for needed in (
        "_core.pyi",
        "py.typed",
        "cli/help.txt",
        "stats/pybalancer_stats.h",
        "js/client.js",
        "js/client.d.ts",
    ):
        assert f"pybalancer/{needed}" in package
    names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == package | {"pybalancer/_core.abi3.so"}
    (terms,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
    assert archive.read(terms) == (ROOT / "LICENSE").read_bytes()


def test_the_module_carries_no_debug_information(archive: zipfile.ZipFile) -> None:
    module = archive.read("pybalancer/_core.abi3.so")
    assert module.startswith(b"\x7fELF")
    # With the zeros it is a section's name; the bare word is in the part of Rust that prints backtraces.
    assert b"\0.debug_info\0" not in module


def later_pythons() -> list[str]:
    named = [f"python3.{minor}" for minor in range(sys.version_info.minor + 1, 20)]
    found = [python for python in named if shutil.which(python)]
    return [
        python
        for python in found
        if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    ]


def test_the_module_runs_under_later_pythons(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    """Under all that are here; it is imported without what the package depends on."""
    pythons = later_pythons()
    if not pythons:
        pytest.skip("no later Python is here")
    archive.extractall(tmp_path)
    script = "from pybalancer import _core; engine = _core.Engine(workers=1); print(engine.close())"
    for python in pythons:
        printed = run(python, "-c", script, directory=tmp_path, environment=without("PYTHON"))
        assert printed == "0\n"


def test_what_it_installs_comes_from_the_environment(programs: Path, tmp_path: Path) -> None:
    script = "from pybalancer import _core, balancer; print(_core.__file__); print(balancer.__file__)"
    printed = run(
        programs / "python", "-c", script, directory=tmp_path, environment=installed_environment(programs)
    )
    places = [Path(line) for line in printed.splitlines()]
    assert all(place.is_relative_to(programs.parent) for place in places), places


def test_version(programs: Path, wheel: Path, tmp_path: Path) -> None:
    printed = run(
        programs / "pybalancer", "version", directory=tmp_path, environment=installed_environment(programs)
    )
    assert wheel.stem.split("-")[1] in printed
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in printed


def test_demo(programs: Path, tmp_path: Path) -> None:
    environment = installed_environment(programs)
    printed = run(programs / "pybalancer", "demo", "--for", "3s", directory=tmp_path, environment=environment)
    assert "messages/s  tunnels: app-1 " in printed
    assert printed.splitlines()[-1].startswith("spread of new tunnels: app-1 ")
