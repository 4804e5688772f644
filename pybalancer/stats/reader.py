"""Reads the statistics of a running pybalancer: ``Stats``.

The memory is mapped read-only and never copied: a C struct view (cffi) points into it, and each
counter is one aligned 64-bit load. Workers neither know nor wait.

A mapping that reaches past the end of its file kills the reader with SIGBUS at the first touch, so
the header's idea of the size is compared with the file's before any other offset is believed. A
file that shrinks *afterwards* would still do it; that is why the engine replaces its statistics
file and never truncates it.
"""

import mmap
import os
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

from pybalancer.errors import PybalancerError
from pybalancer.stats._ffi import ffi

_MAGIC: int = ffi.integer_const("PB_MAGIC")
_VERSION: int = ffi.integer_const("PB_VERSION")
_KINDS: dict[int, Literal["listener", "backend"]] = {
    ffi.integer_const("PB_LISTENER"): "listener",
    ffi.integer_const("PB_BACKEND"): "backend",
}
CLOSES: Final = (*(str(code) for code in range(1000, 1016)), "3xxx", "4xxx", "other", "none")
"""What ``Listener.closes`` counts: codes of RFC 6455 section 7.4; "none" ended without a Close."""
_HEADER_SIZE: int = ffi.sizeof("pb_header")


class StatsError(PybalancerError):
    """This is no statistics file that this version of pybalancer can read; the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the directory: which listener or backend the counters at ``index`` are about."""

    index: int
    kind: Literal["listener", "backend"]
    pool: str
    name: str
    address: str
    active: int
    """Live tunnels, over all workers."""
    generation: int
    """The plan that created the entry."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Counters of one worker; meanings and units as in ``pb_worker``."""

    wakeups: int
    events: int
    accepted: int
    opened: int
    closed: int
    bytes_copied: int
    bytes_spliced: int
    accept_pauses: int
    restarts: int
    descriptors: int
    pipes: int
    log_dropped: int
    generation: int
    waiting: int

    @property
    def tunnels(self) -> int:
        """Tunnels that this worker holds now."""
        return self.opened - self.closed


@dataclass(frozen=True, slots=True)
class Listener:
    """Counters of one listener, summed over the workers; meanings and units as in ``pb_listener``."""

    accepted: int
    opened: int
    closed: int
    refused_full: int
    refused_source: int
    refused_rate: int
    refused_proxy: int
    refused_no_backend: int
    queued: int
    bytes_in: int
    bytes_out: int
    requests: int
    handshakes: int
    refused_request: int
    messages_in: int
    messages_out: int
    pings: int
    closes: tuple[int, ...]
    """Ended WebSockets by the code of their Close, in the order of ``CLOSES``."""
    reattached: int
    reattach_failed: int
    directed: int
    redirected: int
    put_off: int

    @property
    def refused(self) -> int:
        """All refusals, whatever the reason."""
        return (
            self.refused_full
            + self.refused_source
            + self.refused_rate
            + self.refused_proxy
            + self.refused_no_backend
            + self.refused_request
        )


@dataclass(frozen=True, slots=True)
class Backend:
    """Counters of one backend, summed over the workers; meanings and units as in ``pb_backend``."""

    connects: int
    connect_failures: int
    ports_exhausted: int
    opened: int
    closed: int
    resets: int
    bytes_to_backend: int
    bytes_to_client: int
    connect_ns: int
    fallbacks: int
    bad_answers: int
    sent: int


_Counters = TypeVar("_Counters", Worker, Listener, Backend)


class Stats:
    """The statistics in an open file (``fd``, which stays yours) or in the file at ``path``.

    Raises ``StatsError`` for a file that is not one, is of another version, or is shorter than it
    says; ``OSError`` if it cannot be opened. Counters only grow; they start from zero when an entry
    is created. Names come from the configuration: escape them where that matters.
    """

    def __init__(self, *, fd: int | None = None, path: str | os.PathLike[str] | None = None) -> None:
        if (fd is None) == (path is None):
            raise TypeError("give either fd or path")
        if fd is not None:
            self._source = f"descriptor {fd}"
            self._map = _map(fd, self._source)
        else:
            assert path is not None
            self._source = os.fspath(path)
            with Path(path).open("rb") as file:
                self._map = _map(file.fileno(), self._source)
        self._header = _view("pb_header", self._map, 0)
        try:
            self._check()
        except StatsError:
            self.close()
            raise
        header = self._header
        self._entries = _view("pb_entry", self._map, header.entries_offset, header.entries)
        self._workers = _view("pb_worker", self._map, header.workers_offset, header.workers)
        slots = header.workers * header.entries
        self._listeners = _view("pb_listener", self._map, header.listeners_offset, slots)
        self._backends = _view("pb_backend", self._map, header.backends_offset, slots)
        self._index: dict[tuple[str, str, str], int] = {}
        self._index_generation = -1

    def _check(self) -> None:
        header = self._header
        if header.magic != _MAGIC:
            raise StatsError(f"{self._source}: not a pybalancer statistics file")
        if header.version != _VERSION:
            raise StatsError(
                f"{self._source}: statistics of version {header.version}, this pybalancer reads {_VERSION}"
            )
        for kind in ("header", "entry", "worker", "listener", "backend"):
            said, ours = getattr(header, f"{kind}_size"), ffi.sizeof(f"pb_{kind}")
            if said != ours:
                raise StatsError(f"{self._source}: pb_{kind} has {said} bytes, this pybalancer reads {ours}")
        if header.total_size > len(self._map):
            raise StatsError(
                f"{self._source}: cut short, {len(self._map)} bytes of {header.total_size} are there"
            )
        slots = header.workers * header.entries
        for kind, offset, count in (
            ("entry", header.entries_offset, header.entries),
            ("worker", header.workers_offset, header.workers),
            ("listener", header.listeners_offset, slots),
            ("backend", header.backends_offset, slots),
        ):
            end = offset + count * ffi.sizeof(f"pb_{kind}")
            if offset < _HEADER_SIZE or offset % 8 or end > header.total_size:
                raise StatsError(f"{self._source}: corrupt, the {kind} slots lie outside the file")

    @property
    def pid(self) -> int:
        """Process that writes these counters."""
        return int(self._header.pid)

    @property
    def started(self) -> float:
        """When the engine started, in seconds since 1970."""
        return float(self._header.started_unix_ns) / 1e9

    @property
    def generation(self) -> int:
        """Newest plan that every worker runs; 0 before the first."""
        return int(self._header.generation)

    def workers(self) -> list[Worker]:
        """Counters of each worker, by its index."""
        return [_sum(Worker, [self._workers[index]]) for index in range(self._header.workers)]

    def entries(self) -> list[Entry]:
        """What there are counters for, in no particular order."""
        found = []
        for index, slot in enumerate(self._entries):
            kind = _KINDS.get(slot.kind)
            if kind is None:
                continue
            entry = Entry(
                index=index,
                kind=kind,
                pool=_text(slot.pool),
                name=_text(slot.name),
                address=_text(slot.address),
                active=slot.active,
                generation=slot.generation,
            )
            # The engine writes the kind last; a slot whose kind moved under us was being rewritten.
            if _KINDS.get(slot.kind) is kind:
                found.append(entry)
        return found

    def listener(self, name: str) -> Listener:
        """Counters of a listener; KeyError if there is none of that name."""
        return self.listener_at(self._find("listener", "", name))

    def backend(self, pool: str, name: str) -> Backend:
        """Counters of a pool's backend; KeyError if there is none.

        While tunnels live on at an address that the backend had before, this is about the new one.
        """
        return self.backend_at(self._find("backend", pool, name))

    def active(self, pool: str, name: str) -> int:
        """Live tunnels of a pool's backend, or of a listener (``pool`` is then ""); else KeyError."""
        return int(self._entries[self._find("backend" if pool else "listener", pool, name)].active)

    def listener_at(self, index: int) -> Listener:
        """Counters of the listener of an ``Entry.index``."""
        return _sum(Listener, self._slots(self._listeners, index))

    def backend_at(self, index: int) -> Backend:
        """Counters of the backend of an ``Entry.index``."""
        return _sum(Backend, self._slots(self._backends, index))

    def _slots(self, array: Any, index: int) -> list[Any]:
        return [array[worker * self._header.entries + index] for worker in range(self._header.workers)]

    def _find(self, kind: str, pool: str, name: str) -> int:
        # Names are cut as the engine cuts them, so that a long one still finds its slot.
        key = (kind, _cut(pool), _cut(name))
        index = self._index.get(key)
        if index is None or self._index_generation != self.generation or not self._still(index, key):
            self._index_generation = self.generation
            found = sorted(self.entries(), key=lambda entry: entry.generation)
            self._index = {(entry.kind, entry.pool, entry.name): entry.index for entry in found}
            index = self._index[key]
        return index

    def _still(self, index: int, key: tuple[str, str, str]) -> bool:
        slot = self._entries[index]
        return (_KINDS.get(slot.kind), _text(slot.pool), _text(slot.name)) == key

    def close(self) -> None:
        """Let go of the memory; idempotent."""
        for view in ("_header", "_entries", "_workers", "_listeners", "_backends"):
            if hasattr(self, view):
                ffi.release(getattr(self, view))
                delattr(self, view)
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _map(fd: int, source: str) -> mmap.mmap:
    size = os.fstat(fd).st_size
    if size < _HEADER_SIZE:
        raise StatsError(f"{source}: not a pybalancer statistics file ({size} bytes)")
    return mmap.mmap(fd, size, prot=mmap.PROT_READ)


def _view(struct: str, memory: mmap.mmap, offset: int, count: int | None = None) -> Any:
    """A view of one struct, or of an array of ``count``; cffi keeps the mapping alive behind it."""
    size = ffi.sizeof(struct) * (1 if count is None else count)
    with memoryview(memory) as whole:
        part = whole[offset : offset + size]
        return ffi.from_buffer(f"{struct} *" if count is None else f"{struct}[]", part)


def _sum(kind: type[_Counters], slots: list[Any]) -> _Counters:
    def total(name: str) -> Any:
        values = [getattr(slot, name) for slot in slots]
        if name == "closes":
            return tuple(map(sum, zip(*values, strict=True))) if values else (0,) * len(CLOSES)
        return sum(values)

    return kind(**{field.name: total(field.name) for field in fields(kind)})


def _text(array: Any) -> str:
    return bytes(ffi.string(array)).decode("utf-8", "replace")


def _cut(text: str) -> str:
    return text.encode("utf-8", "surrogateescape")[:63].decode("utf-8", "replace")
