"""The shared vectors against the model that made them and against the compiled core."""

import json
from pathlib import Path
from typing import Any

import pytest

from pybalancer import _core
from tests.model import maglev, make_vectors
from tests.model.siphash import siphash

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> dict[str, Any]:
    vectors: dict[str, Any] = json.loads((VECTORS / name).read_text())
    return vectors


FLOWS = load("flow.json")["flows"]
TABLES = load("maglev.json")["tables"]


@pytest.mark.parametrize(
    ("name", "rounds", "wide"),
    [("siphash-1-3", (1, 3), False), ("siphash-2-4", (2, 4), False), ("siphash-2-4-128", (2, 4), True)],
)
def test_the_model_hashes_as_the_reference_does(name: str, rounds: tuple[int, int], wide: bool) -> None:
    key = bytes(range(16))
    for length, expected in enumerate(load("siphash.json")[name]):
        hashed = siphash(key, bytes(range(length)), c=rounds[0], d=rounds[1], wide=wide)
        assert hashed == int(expected, 16), f"{length} bytes"


def test_the_files_are_what_the_model_makes() -> None:
    for name, text in make_vectors.files().items():
        current = (VECTORS / name).read_text() == text
        assert current, f"{name} is out of date: python -m tests.model.make_vectors"


@pytest.mark.parametrize(
    "flow", FLOWS, ids=lambda flow: f"{flow['source']}-{flow['key']}-{flow['secret'][:2]}"
)
def test_the_core_hashes_as_the_vectors_say(flow: dict[str, Any]) -> None:
    secret = bytes.fromhex(flow["secret"])
    assert _core.probe.flow_hash(secret, flow["source"], flow["key"]) == int(flow["hash"], 16)


@pytest.mark.parametrize("vector", TABLES, ids=lambda vector: f"{vector['name']}-{vector['secret'][:2]}")
def test_the_core_builds_the_tables_of_the_vectors(vector: dict[str, Any]) -> None:
    secret, size = bytes.fromhex(vector["secret"]), vector["size"]
    backends = [(name, weight) for name, weight in vector["backends"]]
    slots = _core.probe.maglev_table(secret, backends, size)
    assert slots[:: vector["every"]] == vector["slots"]
    # The digest covers the slots that the file leaves out.
    assert f"{maglev.digest(backends, slots, size):032x}" == vector["digest"]
    for key, order in vector["walks"].items():
        assert maglev.walk(slots, int(key, 16)) == order
