"""Files that must be accepted, and files that must not, with what is said of them.

Every ``tests/config/invalid/NAME.toml`` has its messages beside it in ``NAME.expected``; a valid file has
one where it is warned about.
"""

from pathlib import Path

import pytest
from pydantic import BaseModel

from pybalancer.config import model
from pybalancer.config.compile import compile_plan, is_literal
from pybalancer.config.load import MOST_BYTES, MOST_PROBLEMS, load_bytes, load_file, load_text
from pybalancer.config.routes import named
from pybalancer.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "config"
VALID = sorted((FOLDER / "valid").glob("*.toml"))
INVALID = sorted((FOLDER / "invalid").glob("*.toml"))


def said(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "f.toml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid_file_is_accepted(path: Path) -> None:
    config = load_bytes(path.read_bytes(), path.name)
    expected = path.with_suffix(".expected")
    assert "".join(f"{problem}\n" for problem in config.warnings) == (
        expected.read_text() if expected.exists() else ""
    )


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_102_bad_file_is_rejected_whole_with_everything_that_is_wrong(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_bytes(path.read_bytes(), path.name)
    assert f"{caught.value}\n" == path.with_suffix(".expected").read_text()


def test_no_expectation_is_left_without_its_file() -> None:
    orphans = [path for path in FOLDER.glob("*/*.expected") if not path.with_suffix(".toml").exists()]
    assert orphans == []
    assert len(INVALID) >= 40


def test_one_valid_file_has_every_key_there_is() -> None:
    config = load_file(FOLDER / "valid" / "every-key.toml", env={})
    pool = config.pools["chat"]
    assert pool.health is not None
    # A secret is given in a file or in the open, never both.
    assert unset(config.balancer) == {"secret", "admin_token"}
    listener = config.listeners[0]
    route = listener.routes[0]
    sections = (config, config.log, listener, pool, pool.health, pool.backends[0])
    # Only where clients are sent elsewhere there is a target; nothing is relayed there.
    assert unset(route) == {"target"}
    assert listener.routes[1].target == "/chat"
    assert unset(pool.direct) == {"ticket_secret"}
    sections += (route.request_headers, route.response_headers, pool.drain, pool.rebalance, config.packet)
    # One key is for another mode.
    listener_keys = config.listeners[0].model_fields_set | config.listeners[1].model_fields_set
    assert listener_keys == set(type(listener).model_fields)
    assert [unset(section) - {"protocol"} for section in sections] == [set()] * len(sections)


def unset(section: BaseModel) -> set[str]:
    return set(type(section).model_fields) - section.model_fields_set


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_file_that_is_accepted_makes_a_plan(path: Path) -> None:
    """What the core refuses has no line and no column, so the checks must be the stricter ones."""
    config = load_bytes(path.read_bytes(), path.name)
    addresses = {
        (name, backend.name): backend.address if is_literal(backend.address) else "127.0.0.1:1"
        for name, pool in config.pools.items()
        for backend in pool.backends
    }
    compile_plan(config, addresses, {}, bytes(16))


def test_routes_have_one_name_each() -> None:
    text = (FOLDER / "valid" / "websocket-routes.toml").read_text()
    assert list(named(load_text(text).listeners[0])) == [
        "/",
        "/rooms/*",
        "/a/*/c/{id}/caf%C3%A9",
        "route 4",
        "route 5",
        "route 6",
        "handshakes",
        "route 8",
        "route 9",
        "/api/{version}/*",
        "rest",
    ]
    given = text.replace('"handshakes"', '"/rooms/*"').replace('"rest"', '"route 2"')
    names = list(named(load_text(given).listeners[0]))
    assert (names[1], names[6], names[10]) == ("route 2'", "/rooms/*", "route 2")
    assert len(names) == 11


def test_what_no_route_matches_has_a_route_too() -> None:
    config = load_file(FOLDER / "valid" / "every-key.toml", env={})
    assert [(name, route.pool) for name, route in named(config.listeners[0]).items()] == [
        ("rooms of the beta", "rooms"),
        ("/connect", "chat"),
        ("default", "chat"),
    ]


def test_102_oversized_file_is_rejected_without_reading_it_all(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES * 1000)  # Sparse: reading all of it would take 4 GiB.
    with pytest.raises(ConfigError, match=r"big\.toml: is larger than 4 MiB"):
        load_file(path, env={})


def test_102_file_of_unknown_keys_is_rejected_with_a_list_that_ends() -> None:
    lines = said("".join(f"polcy{number} = 1\n" for number in range(MOST_PROBLEMS * 10)))
    assert len(lines) == MOST_PROBLEMS + 1
    assert lines[-1].endswith(f"and {MOST_PROBLEMS * 9 + 1} more problems")


@pytest.mark.parametrize("depth", [100, 300, 450])
@pytest.mark.parametrize(("before", "after"), [("[", "]"), ("{ a = ", "}")])
def test_102_deep_nesting_is_rejected_not_crashed_on(depth: int, before: str, after: str) -> None:
    assert said("pools = " + before * depth + after * depth)


def test_missing_file_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; write one, or: pybalancer serve"):
        load_file(tmp_path / "none.toml", env={})


def test_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_file(tmp_path, env={})


def test_thousands_of_backends_are_accepted_and_more_than_there_is_room_for_are_not() -> None:
    def text(count: int) -> str:
        backends = (
            f'[[pools.p.backends]]\nname = "app-{n}"\naddress = "10.0.{n // 250}.{n % 250}:1"\n'
            for n in range(count)
        )
        return (
            '[[listeners]]\nname = "l"\nbind = ":0"\npool = "p"\n[pools.p]\ntable_size = 655373\n'
            + "".join(backends)
        )

    assert len(load_text(text(4095)).pools["p"].backends) == 4095
    assert said(text(4096)) == ["f.toml: 4097 listeners and backends together; there may be 4096"]


def test_a_configuration_does_not_change() -> None:
    config = load_file(FOLDER / "valid" / "smallest.toml", env={})
    with pytest.raises(ValueError, match="frozen"):
        config.pools["chat"].backends[0].weight = 2  # type: ignore[misc]
    assert config == load_file(FOLDER / "valid" / "smallest.toml", env={})
    assert isinstance(config, model.Config)
