"""What a roll has to remember, should its process end in the middle: ``Journal``."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter, ValidationError

from pybalancer.config.secret import state_directory
from pybalancer.errors import RollError
from pybalancer.policy.roll import Step

MOST_BYTES: Final = 4 << 20
"""A roll of ten thousand backends has a tenth of it."""


@dataclass(frozen=True, slots=True)
class Page:
    """A roll: what it was asked for, and how far it has come. Times in seconds; None: as the pool says."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012 - pydantic wants a plain dict

    command: str
    shell: bool = False
    max_down: int = 1
    timeout: float = 60.0
    over: float | None = None
    deadline: float | None = None
    code: int | None = None
    rate: float | None = None
    slow_start: float | None = None
    force: bool = False
    steps: Mapping[str, Step] = field(default_factory=dict)
    """Of each backend, in the order in which they are rolled."""
    version: Literal[1] = 1
    """Of what is in the file."""

    @property
    def told(self) -> str:
        """``2 of 4 done``."""
        done = sum(step == "done" for step in self.steps.values())
        return f"{done} of {len(self.steps)} done"


class Journal:
    """The file of the roll of one pool, in the state directory of whoever rolls it.

    Held by one process at a time. Its command is run again on ``--resume``, so nobody else may write it:
    it is of mode 0600, in a directory of mode 0700. All methods raise RollError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextlib.contextmanager
    def of(cls, admin: str, pool: str) -> Iterator[Journal]:
        """That of this pool of the balancer at this address. RollError if somebody rolls it just now."""
        digest = hashlib.sha256(f"{admin}\n{pool}".encode()).hexdigest()[:16]
        with _telling("keep a journal"):
            folder = state_directory() / "rolls"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Pools may be named as they like.
            path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', pool)[:60]}-{digest}.json"
            lock = os.open(
                path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RollError(f"pool {pool} is being rolled already, by another process") from None
            yield cls(path)
        finally:
            os.close(lock)

    def read(self) -> Page | None:
        """What an earlier roll has left behind, if any has."""
        with _telling("read the journal"):
            try:
                with self.path.open("rb") as file:
                    if os.fstat(file.fileno()).st_uid not in (os.geteuid(), 0):
                        raise RollError(f"the journal {self.path} is somebody else's: remove it")
                    content = file.read(MOST_BYTES)
            except FileNotFoundError:
                return None
        try:
            return TypeAdapter(Page).validate_json(content)
        except ValidationError:
            raise RollError(f"{self.path} is no journal of this version: begin with --anew") from None

    def write(self, page: Page) -> None:
        """Keep it, whole or not at all."""
        with _telling("keep the journal", self.path):
            descriptor, temporary = tempfile.mkstemp(prefix="roll.", dir=self.path.parent)  # Of mode 0600.
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(dataclasses.asdict(page), file)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise

    def remove(self) -> None:
        """There is nothing to go on with."""
        with _telling("remove the journal"):
            self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def _telling(what: str, path: Path | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # A full disk names no file.
        name = error.filename or path
        where = f"{name}: " if name else ""
        raise RollError(
            f"cannot {what}: {where}{error.strerror or error}; STATE_DIRECTORY names another place"
        ) from error
