"""From a file, a text, a mapping or flags to a checked ``Config``, or to all that is wrong with it."""

from __future__ import annotations

import copy
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from pybalancer.config import messages, rules
from pybalancer.config.model import Config
from pybalancer.config.positions import Path, Place, positions
from pybalancer.config.rules import path_text
from pybalancer.errors import ConfigError, Problem

MOST_BYTES: Final = 4 << 20
"""A configuration of thousands of backends has a few hundred KiB."""

MOST_PARTS: Final = 16
"""Parts of a key; the deepest of ours has five."""

MOST_PROBLEMS: Final = 1000
"""As many are listed. A file with more is something else by mistake."""

COMMAND_LINE: Final = "command line"

ENVIRONMENT: Final[Mapping[str, tuple[str, str]]] = {
    "PYBALANCER_WORKERS": ("balancer", "workers"),
    "PYBALANCER_ADMIN": ("balancer", "admin"),
    "PYBALANCER_SECRET": ("balancer", "secret"),
    "PYBALANCER_SECRET_FILE": ("balancer", "secret_file"),
    "PYBALANCER_LOG_FORMAT": ("log", "format"),
    "PYBALANCER_LOG_LEVEL": ("log", "level"),
    "PYBALANCER_PACKET_ROLE": ("packet", "role"),
}
"""Variables that override the file. An empty one counts as not set."""


def load_file(
    path: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    overrides: Mapping[tuple[str, str], Any] | None = None,
) -> Config:
    """Read and check a file; flags (``overrides``) go before the environment, that before the file.

    Raises ConfigError with every problem that was found.
    """
    name = os.fspath(path)
    try:
        with FilePath(name).open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        hint = "write one, or: pybalancer serve --listen :8080 --to HOST:PORT"
        missing = isinstance(error, FileNotFoundError)
        raise ConfigError(
            [Problem(name, None, None, "", error.strerror or str(error), hint if missing else None)]
        ) from None
    return load_bytes(raw, name, os.environ if env is None else env, overrides)


def load_bytes(
    raw: bytes,
    name: str,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[tuple[str, str], Any] | None = None,
) -> Config:
    """The same from bytes."""
    if len(raw) > MOST_BYTES:
        raise ConfigError([Problem(name, None, None, "", f"is larger than {MOST_BYTES >> 20} MiB")])
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise ConfigError([Problem(name, line, column, "", "is not UTF-8")]) from None
    return load_text(text, name, env, overrides)


def load_text(
    text: str,
    name: str = "<text>",
    env: Mapping[str, str] | None = None,
    overrides: Mapping[tuple[str, str], Any] | None = None,
) -> Config:
    """The same from text. ``name`` stands for the file in messages."""
    if text.startswith("\ufeff"):
        raise ConfigError([Problem(name, 1, 1, "", "begins with a byte order mark", "save it without")])
    if (line := next(_deepest(text), None)) is not None:
        raise ConfigError([Problem(name, line, 1, "", "is nested too deeply")])
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax(name, text, str(error))]) from None
    except ValueError:
        # The only one that tomllib passes on: int() refuses to read a number of thousands of digits.
        raise ConfigError([Problem(name, None, None, "", "has a number of too many digits")]) from None
    except RecursionError:
        raise ConfigError([Problem(name, None, None, "", "is nested too deeply")]) from None
    return check(values, name, positions(text), env or {}, overrides or {})


def load_mapping(values: Mapping[str, Any], name: str = "<mapping>") -> Config:
    """The same from what a TOML file would parse to."""
    return check(dict(values), name, {}, {}, {})


def from_flags(
    listen: Sequence[str],
    to: Sequence[str],
    *,
    policy: str = "maglev",
    health: str | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[tuple[str, str], Any] | None = None,
    **pool: Any,
) -> Config:
    """The configuration that ``serve --listen … --to …`` means: one pool, named ``default``.

    ``to`` may end in ``,weight=N``. ``health`` is a kind of check. ``pool`` has more keys of the pool;
    numbers may be given as text.
    """
    problems = [
        Problem(COMMAND_LINE, None, None, flag, "is missing", f"for example {flag} {example}")
        for flag, given, example in (("--listen", listen, ":8080"), ("--to", to, "127.0.0.1:9001"))
        if not given
    ]
    if problems:
        raise ConfigError(problems)
    backends = []
    for address in to:
        where, comma, weight = address.partition(",weight=")
        if comma and not isinstance(_number(weight), int):
            hint = "for example 127.0.0.1:9001,weight=3"
            problems.append(Problem(COMMAND_LINE, None, None, "--to", f"{weight!r} is no weight", hint))
        name = where[-63:]  # The names of long socket paths keep their end.
        backends.append({"name": name, "address": where, "weight": _number(weight) if comma else 1})
    if problems:
        raise ConfigError(problems)
    many = len(listen) > 1
    listeners = [
        {"name": f"public-{index}" if many else "public", "bind": bind, "pool": "default"}
        for index, bind in enumerate(listen, 1)
    ]
    settings: dict[str, Any] = {"policy": policy, "backends": backends}
    if health is not None:
        settings["health"] = {"kind": health}
    settings |= {key: _number(value) for key, value in pool.items() if value is not None}
    values = {"listeners": listeners, "pools": {"default": settings}}
    flags: dict[Path, str] = {("listeners",): "--listen"}
    flags |= {("pools", "default", key): _flag(key) for key in settings}
    flags["pools", "default", "backends"] = "--to"
    return check(values, COMMAND_LINE, {}, env or {}, overrides or {}, flags)


def check(
    values: dict[str, Any],
    name: str,
    places: Mapping[Path, Place],
    env: Mapping[str, str],
    overrides: Mapping[tuple[str, str], Any],
    flags: Mapping[Path, str] | None = None,
) -> Config:
    """Values to ``Config``. ``places`` and ``flags`` tell where a key stands, by its path."""
    variables: dict[Path, str] = {}
    flags = dict(flags or {})
    for variable, path in ENVIRONMENT.items():
        if text := env.get(variable):
            _put(values, path, text)
            variables[path] = variable
    for path, value in overrides.items():
        _put(values, path, value)
        variables.pop(path, None)
        flags[path] = _flag(path[1])

    def problem(path: Path, message: str, suggestion: str | None) -> Problem:
        if path in variables:
            return Problem("environment", None, None, variables[path], message, suggestion)
        if flag := _nearest(path, flags):
            return Problem(COMMAND_LINE, None, None, flag, message, suggestion)
        # Of a missing key its table.
        line, column = _nearest(path, places) or (None, None)
        return Problem(name, line, column, path_text(path), message, suggestion)

    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        found = list(messages.findings(error))
        # So that all is said at once: what else would be wrong if these were right.
        reported = {path for path, _, _ in found}
        found += [finding for finding in _beyond(values, found) if finding[0] not in reported]
        raise ConfigError(_in_order(found, problem)) from None
    if found := list(rules.mistakes(config)):
        raise ConfigError(_in_order(found, problem))
    config.note(_in_order(list(rules.doubts(config)), problem))
    return config


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _number(value: Any) -> Any:
    """A flag or variable that stands for a number; anything else stays, and the model says what is wrong."""
    if isinstance(value, str) and len(value) < 20:
        if re.fullmatch(r"-?[0-9]+", value):
            return int(value)
        if re.fullmatch(r"-?[0-9]*\.[0-9]+", value):
            return float(value)
    return value


def _put(values: dict[str, Any], path: tuple[str, str], value: Any) -> None:
    section = values.setdefault(path[0], {})
    if isinstance(section, dict):
        section[path[1]] = _number(value) if path[1] == "workers" else value


T = TypeVar("T")


def _nearest(path: Path, known: Mapping[Path, T]) -> T | None:
    """What is known of ``path``, or of the innermost table around it."""
    lengths = range(len(path), 0, -1)
    return next((known[path[:length]] for length in lengths if path[:length] in known), None)


def _in_order(
    found: Sequence[rules.Finding], problem: Callable[[Path, str, str | None], Problem]
) -> list[Problem]:
    problems = [problem(*finding) for finding in found[:MOST_PROBLEMS]]
    problems.sort(key=lambda problem: (problem.line or 0, problem.column or 0))
    if more := len(found) - len(problems):
        problems.append(Problem(problems[0].file, None, None, "", f"and {more} more problems"))
    return problems


_STAND_INS: Final = {"bind": "127.0.0.1:0", "address": "127.0.0.1:1"}


def _beyond(values: dict[str, Any], found: Sequence[rules.Finding]) -> list[rules.Finding]:
    """The mistakes that remain with every wrong value left out, or replaced where it must be there."""
    pools = values.get("pools")
    stand_in = next(iter(pools), "?") if isinstance(pools, dict) else "?"
    try:
        repaired = copy.deepcopy(values)
        for number, (path, _, _) in enumerate(found):
            table: Any = repaired
            for part in path[:-1]:
                table = table[part]
            table.pop(path[-1], None)
            if path[-1] == "name":
                table["name"] = f"? {number}"
            elif path[-1] == "pool":
                table["pool"] = stand_in
            elif path[-1] in _STAND_INS:
                table[path[-1]] = _STAND_INS[str(path[-1])]
        further = rules.mistakes(Config.model_validate(repaired))
        unknown_pools = ("pools",) in (path for path, _, _ in found)
        return [finding for finding in further if not (unknown_pools and finding[0][-1:] == ("pool",))]
    except (ValidationError, LookupError, TypeError, AttributeError, RecursionError):
        # Broken in a way that no stand-in mends: then what was found has to do.
        return []


def _syntax(name: str, text: str, message: str) -> Problem:
    match = re.fullmatch(r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if not match:
        return Problem(name, None, None, "", message)
    line = int(match[2]) if match[2] else text.count("\n") + 1
    column = int(match[3]) if match[3] else len(text) - text.rfind("\n")
    said = match[1][:1].lower() + match[1][1:]
    return Problem(name, line, column, "", f"not TOML: {said}")


_QUOTED: Final = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|#.*")


def _deepest(text: str) -> Iterator[int]:
    """The lines with keys of more parts than any of ours: parsing them takes quadratic time and memory."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_PARTS:
            keys = re.split(r"[,={}\[\]]", _QUOTED.sub("", line))
            if any(key.count(".") > MOST_PARTS for key in keys):
                yield number
