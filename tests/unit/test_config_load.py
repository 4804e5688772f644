"""From text, environment and flags to a configuration, or to an error that says where."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pybalancer.config.load import (
    ENVIRONMENT,
    check,
    from_flags,
    load_bytes,
    load_file,
    load_mapping,
    load_text,
)
from pybalancer.errors import ConfigError, Problem

VALID = Path(__file__).parents[1] / "config" / "valid"
SMALLEST = (VALID / "smallest.toml").read_text()
SECRET = "000102030405060708090a0b0c0d0e0f"


def problems(call: Any, *arguments: Any, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    return [str(problem) for problem in caught.value.problems]


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pybalancer.toml"
    path.write_text(SMALLEST + '\n[balancer]\nworkers = 2\n[log]\nlevel = "error"\nformat = "human"\n')
    env = {"PYBALANCER_WORKERS": "3", "PYBALANCER_LOG_LEVEL": "debug"}
    config = load_file(path, env, {("balancer", "workers"): 4})
    assert (config.balancer.workers, config.log.level, config.log.format) == (4, "debug", "human")


def test_the_environment_of_the_process_is_read_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pybalancer.toml"
    path.write_text(SMALLEST)
    monkeypatch.setenv("PYBALANCER_WORKERS", "5")
    assert load_file(path).balancer.workers == 5
    assert load_text(SMALLEST).balancer.workers == 0  # Text stands for itself.


def test_every_variable_reaches_its_key() -> None:
    given_ = {
        "PYBALANCER_WORKERS": "7",
        "PYBALANCER_ADMIN": "unix:/run/a.sock",
        "PYBALANCER_SECRET": SECRET,
        "PYBALANCER_LOG_FORMAT": "json",
        "PYBALANCER_LOG_LEVEL": "warning",
        "PYBALANCER_PACKET_ROLE": "backend",
    }
    config = load_text(SMALLEST, env=given_)
    assert config.balancer.workers == 7
    assert config.balancer.admin == "unix:/run/a.sock"
    assert config.balancer.secret is not None
    assert config.balancer.secret.get_secret_value() == SECRET
    assert (config.log.format, config.log.level) == ("json", "warning")
    assert config.packet.role == "backend"
    assert load_text(SMALLEST, env={"PYBALANCER_SECRET_FILE": "/s"}).balancer.secret_file == "/s"
    assert set(given_) | {"PYBALANCER_SECRET_FILE"} == set(ENVIRONMENT)


def test_an_empty_variable_counts_as_not_set() -> None:
    config = load_text(SMALLEST + "\n[balancer]\nworkers = 2\n", env=dict.fromkeys(ENVIRONMENT, ""))
    assert config.balancer.workers == 2


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("PYBALANCER_WORKERS", "many", "must be a whole number"),
        ("PYBALANCER_WORKERS", "-1", "must be at least 0"),
        ("PYBALANCER_ADMIN", "127.0.0.1", "is not an address with a port"),
        ("PYBALANCER_ADMIN", "127.0.0.1:9000", "whoever reaches a TCP address"),
        ("PYBALANCER_SECRET", "tell-nobody", "a secret is 32 hexadecimal digits"),
        ("PYBALANCER_LOG_LEVEL", "warn", 'did you mean "warning"?'),
        ("PYBALANCER_SECRET_FILE", "a\0b", "a file is given by its path"),
    ],
)
def test_a_bad_variable_is_called_by_its_name(variable: str, text: str, message: str) -> None:
    (said,) = problems(load_text, SMALLEST, env={variable: text})
    assert said.startswith(f"environment: {variable}: ")
    assert message in said


def test_a_bad_flag_is_called_by_its_name() -> None:
    said = problems(load_text, SMALLEST, "f.toml", {}, {("balancer", "grace"): "5", ("log", "level"): "loud"})
    assert said[0].startswith("command line: --grace: '5' is not a time")
    assert said[1].startswith("command line: --level: must be one of")


def test_a_flag_hides_what_is_wrong_in_the_environment() -> None:
    env = {"PYBALANCER_LOG_LEVEL": "loud"}
    assert load_text(SMALLEST, "f", env, {("log", "level"): "info"}).log.level == "info"


def test_secrets_stay_out_of_messages_and_reprs() -> None:
    token = "letmein"
    text = SMALLEST + f'\n[balancer]\nsecret = "{SECRET}ff"\nadmin_token = "{token}"\nsecret_file = 5\n'
    with pytest.raises(ConfigError) as caught:
        load_text(text)
    error = caught.value
    said = f"{error}{error!r}{error.problems}{[problem.to_dict() for problem in error.problems]}"
    assert SECRET not in said
    assert token not in said
    assert error.__cause__ is None
    config = load_text(SMALLEST + f'\n[balancer]\nsecret = "{SECRET}"\nadmin_token = "{token * 3}"\n')
    shown = f"{config}{config!r}{config.model_dump()}{config.model_dump_json()}"
    assert SECRET not in shown
    assert token not in shown


def test_a_problem_for_machines() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(SMALLEST.replace("bind", "bnid"), "f.toml")
    missing, unknown = caught.value.problems
    assert missing.key == "listeners[0].bind"
    assert unknown.to_dict() == {
        "file": "f.toml",
        "line": 3,
        "column": 1,
        "key": "listeners[0].bnid",
        "message": "unknown key",
        "suggestion": 'did you mean "bind"?',
    }
    assert isinstance(caught.value, ValueError)


def test_flags_alone_make_one_pool() -> None:
    config = from_flags([":8080"], ["127.0.0.1:9001", "app-2:9002,weight=3"], health="tcp")
    (listener,) = config.listeners
    pool = config.pools["default"]
    assert (listener.name, listener.bind, listener.pool) == ("public", "[::]:8080", "default")
    assert [(b.name, b.address, b.weight) for b in pool.backends] == [
        ("127.0.0.1:9001", "127.0.0.1:9001", 1),
        ("app-2:9002", "app-2:9002", 3),
    ]
    assert pool.health is not None
    assert pool.health.kind == "tcp"


def test_flags_are_text_and_may_mean_numbers() -> None:
    config = from_flags(
        [":1", ":2"],
        ["127.0.0.1:1"],
        policy="random-two",
        max_skew="1.25",
        tries="5",
        idle_timeout="1h",
        slow_start=None,
    )
    pool = config.pools["default"]
    assert (pool.policy, pool.max_skew, pool.tries, pool.idle_timeout) == ("random-two", 1.25, 5, 3600)
    assert [listener.name for listener in config.listeners] == ["public-1", "public-2"]


def test_long_socket_paths_keep_the_end_of_their_name() -> None:
    path = "unix:/" + "d" * 60 + "/app-1.sock"
    (backend,) = from_flags([":1"], [path]).pools["default"].backends
    assert backend.address == path
    assert backend.name == path[-63:]


@pytest.mark.parametrize(
    ("listen", "to", "options", "expected"),
    [
        ([], [], {}, ["--listen: is missing", "--to: is missing"]),
        (["8080"], ["a:1"], {}, ["--listen: '8080' is not an address with a port; write \":8080\""]),
        ([":1"], ["a:1,weight=x"], {}, ["--to: 'x' is no weight; for example 127.0.0.1:9001,weight=3"]),
        ([":1"], ["a:1,weight="], {}, ["--to: '' is no weight"]),
        ([":1"], ["a:1,weight=65536"], {}, ["--to: must be at most 65535"]),
        ([":1"], ["a:1", "a:1"], {}, ["--to: another backend is named 'a:1'"]),
        ([":1", ":1"], ["a:1"], {}, ["--listen: listener 'public-1' binds [::]:1 already"]),
        ([":1"], ["a:1"], {"policy": "maglve"}, ["--policy: must be one of maglev"]),
        ([":1"], ["a:1"], {"max_skew": "0.5"}, ["--max-skew: must be more than 1.0"]),
        ([":1"], ["a:1"], {"health": "ping"}, ["--health: must be one of tcp, http, websocket"]),
    ],
)
def test_bad_flags(listen: list[str], to: list[str], options: dict[str, Any], expected: list[str]) -> None:
    said = problems(from_flags, listen, to, **options)
    assert len(said) == len(expected)
    for line, start in zip(said, expected, strict=True):
        assert line.startswith(f"command line: {start}")


def test_a_mapping_is_as_good_as_a_file() -> None:
    values = {
        "listeners": [{"name": "l", "bind": "127.0.0.1:0", "pool": "p"}],
        "pools": {"p": {"backends": [{"name": "b", "address": "127.0.0.1:1"}]}},
    }
    assert load_mapping(values).pools["p"].backends[0].weight == 1
    assert problems(load_mapping, {**values, "pool": 1}) == [
        "<mapping>: pool: unknown key; pools are [pools.NAME]"
    ]


def test_problem_without_a_place_or_a_key() -> None:
    assert str(Problem("f", None, None, "", "is empty")) == "f: is empty"
    assert str(Problem("f", 3, 2, "a.b", "is wrong", "do right")) == "f:3:2: a.b: is wrong; do right"


def refused_or_taken(call: Any, *arguments: Any) -> None:
    """Whatever comes, it is a configuration or a ConfigError that says something, a line for each problem."""
    said: list[str] | None = None
    try:
        call(*arguments)
    except ConfigError as error:
        said = [str(problem) for problem in error.problems]
    assert said is None or (said and all(line and line.isprintable() for line in said))


@given(st.binary(max_size=300))
def test_102_any_bytes_are_refused_or_taken(raw: bytes) -> None:
    refused_or_taken(load_bytes, raw, "f.toml")


@given(st.text(max_size=300))
def test_102_any_text_is_refused_or_taken(text: str) -> None:
    refused_or_taken(load_text, text, "f.toml")


FILES = [path.read_bytes() for path in sorted(VALID.parent.glob("*/*.toml")) if path.stat().st_size < 2000]


@given(st.data())
def test_102_any_damage_to_a_file_is_refused_or_taken(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.integers(start, min(len(raw), start + 12)))
        raw[start:end] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"=", b"[", b"{}", b"\n", b'"', b"[[a]]"])
        )
    refused_or_taken(load_bytes, bytes(raw), "f.toml")


WORDS = st.sampled_from(
    [
        "balancer",
        "log",
        "listeners",
        "pools",
        "chat",
        "name",
        "bind",
        "pool",
        "policy",
        "backends",
        "address",
        "weight",
        "health",
        "kind",
        "headers",
        "secret",
        "admin",
        "admin_token",
        "sources",
        "trusted",
        "accept_proxy",
        "mode",
        "routes",
        "path",
        "host",
        "header",
        "query",
        "key",
        "strip_prefix",
        "request_headers",
        "set",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["chat", ":8080", "127.0.0.1:1", "30s", "10.0.0.0/8", "unix:/x", "\udcff"]),
    st.sampled_from(["websocket", "/rooms/*", "*.example.com", "header:X", "path", True, "/\udcff"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(WORDS, TREES, max_size=5))
@example({"pools": 3})
@example({"pools": {"chat": {"health": {"headers": {"[key]": 3}}}}})
@example({"pools": {"[key]": 3}})
@example({"listeners": [{"name": 5, "pool": {}}], "pools": {}})
@example({"listeners": [{"mode": "websocket", "routes": [{"path": "/\udcff", "key": "query:\udcff"}]}]})
@example({"listeners": [{"mode": "websocket", "routes": {"set": {"[key]": True}}}]})
@example({"balancer": 3, "log": [], "listeners": {}, "pools": []})
def test_102_any_tree_of_values_is_refused_or_taken(tree: dict[str, Any]) -> None:
    refused_or_taken(load_mapping, tree)


@given(st.dictionaries(st.sampled_from(list(ENVIRONMENT)), st.text(max_size=20)), st.booleans())
def test_102_any_environment_is_refused_or_taken(env: dict[str, str], broken: bool) -> None:
    refused_or_taken(check, {"balancer": 3} if broken else {}, "f.toml", {}, env, {})
