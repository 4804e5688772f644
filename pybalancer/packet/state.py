"""What mode "packet" remembers over restarts, in a file of the state directory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pybalancer.packet.generations import MOST_NUMBERS, History, Numbers

_log = logging.getLogger("pybalancer")

VERSION: Final = 2
NAME: Final = "packet.json"


@dataclass(frozen=True, slots=True)
class State:
    """Histories by ``Service.key``, the numbers of machines, and what was set up here and is to be undone."""

    histories: Mapping[str, History] = field(default_factory=dict)
    numbers: Numbers = field(default_factory=lambda: Numbers({}))
    added: tuple[str, ...] = ()
    """Addresses on ``lo`` that are ours to remove."""
    silent: frozenset[str] = frozenset()
    """Machines that did not answer."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings under /proc/sys/net that we have changed, and what they were."""

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "histories": {name: history.to_json() for name, history in sorted(self.histories.items())},
            "joined": {
                name: history.joined_to_json()
                for name, history in sorted(self.histories.items())
                if history.joined
            },
            "numbers": dict(sorted(self.numbers.by_host.items())),
            "added": list(self.added),
            "silent": sorted(self.silent),
            "settings": dict(self.settings),
        }

    @staticmethod
    def from_json(given: Any) -> State:
        """Raises ValueError for what is none."""
        try:
            if given["version"] != VERSION:
                raise ValueError(f"version {given['version']}, not {VERSION}")
            numbers = {str(host): int(number) for host, number in given["numbers"].items()}
            if len(set(numbers.values())) < len(numbers):
                raise ValueError("two machines have one number")
            if not all(1 <= number <= MOST_NUMBERS for number in numbers.values()):
                raise ValueError("a number is out of range")
            # Whoever wrote it before there was such a thing has supposed nothing.
            joined = given.get("joined", {})
            return State(
                {
                    str(name): History.from_json(each, joined.get(name, ()))
                    for name, each in given["histories"].items()
                },
                Numbers(numbers),
                tuple(map(str, given["added"])),
                frozenset(map(str, given.get("silent", ()))),
                {str(name): str(value) for name, value in given["settings"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no state of mode packet: {error!r}") from None


def load(directory: Path) -> State:
    """What was saved; nothing if there is nothing, or nothing that makes sense."""
    path = directory / NAME
    try:
        return State.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        _log.warning(
            "%s is not used: %s; connections of backends that were removed before may be lost", path, error
        )
    return State()


def save(state: State, directory: Path) -> None:
    """Whole or not at all. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f"{NAME}.", dir=directory)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(state.to_json(), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, directory / NAME)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
