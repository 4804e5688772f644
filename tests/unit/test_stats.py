"""The reader of the shared-memory statistics, against files laid out by hand and against Rust's layout."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pybalancer.stats import Stats, StatsError, _ffi_build
from pybalancer.stats._ffi import ffi
from pybalancer.stats.reader import CLOSES

WORKERS, ENTRIES = 2, 8
STRUCTS = ("header", "entry", "worker", "listener", "backend")


class Layout:
    """A statistics file in the making: structs that can be changed, then written."""

    def __init__(self) -> None:
        size = {name: ffi.sizeof(f"pb_{name}") for name in STRUCTS}
        slots = WORKERS * ENTRIES
        offset = {"entries": size["header"]}
        offset["workers"] = offset["entries"] + ENTRIES * size["entry"]
        offset["listeners"] = offset["workers"] + WORKERS * size["worker"]
        offset["backends"] = offset["listeners"] + slots * size["listener"]
        total = offset["backends"] + slots * size["backend"]
        self.memory = bytearray(total)
        self.header = ffi.from_buffer("pb_header *", self.memory)
        self.header.magic = ffi.integer_const("PB_MAGIC")
        self.header.version = ffi.integer_const("PB_VERSION")
        for name in STRUCTS:
            setattr(self.header, f"{name}_size", size[name])
        self.header.workers, self.header.entries = WORKERS, ENTRIES
        for name, value in offset.items():
            setattr(self.header, f"{name}_offset", value)
        self.header.total_size = total
        self.header.pid = 4242
        self.header.started_unix_ns = 1_500_000_000
        self.header.generation = 3
        self.entries = self._array("pb_entry", offset["entries"])
        self.workers = self._array("pb_worker", offset["workers"])
        self.listeners = self._array("pb_listener", offset["listeners"])
        self.backends = self._array("pb_backend", offset["backends"])

    def _array(self, struct: str, offset: int) -> object:
        return ffi.from_buffer(f"{struct}[]", memoryview(self.memory)[offset:])

    def describe(self, index: int, pool: str, name: str, *, active: int = 0, generation: int = 1) -> None:
        entry = self.entries[index]
        entry.kind = ffi.integer_const("PB_BACKEND" if pool else "PB_LISTENER")
        entry.pool, entry.name = pool.encode()[:63], name.encode()[:63]
        entry.address = b"127.0.0.1:9001"
        entry.active, entry.generation = active, generation

    def write(self, path: Path) -> Path:
        path.write_bytes(self.memory)
        return path


@pytest.fixture
def layout() -> Layout:
    layout = Layout()
    layout.describe(0, "", "public", active=2)
    layout.describe(5, "chat", "app-1", active=2)
    layout.workers[0].wakeups, layout.workers[1].wakeups = 10, 20
    layout.workers[1].opened, layout.workers[1].closed = 7, 5
    layout.listeners[0].accepted, layout.listeners[ENTRIES].accepted = 3, 4
    layout.listeners[0].refused_full, layout.listeners[ENTRIES].refused_rate = 1, 2
    layout.listeners[0].refused_request, layout.listeners[0].requests = 4, 50
    layout.listeners[0].handshakes, layout.listeners[ENTRIES].handshakes = 6, 5
    layout.listeners[0].messages_in, layout.listeners[ENTRIES].messages_out = 8, 9
    layout.listeners[ENTRIES].pings = 2
    layout.listeners[0].closes[0], layout.listeners[ENTRIES].closes[0] = 3, 4
    layout.listeners[ENTRIES].closes[CLOSES.index("1009")] = 1
    layout.listeners[0].closes[CLOSES.index("none")] = 2
    layout.backends[ENTRIES + 5].bad_answers = 3
    layout.backends[5].opened, layout.backends[ENTRIES + 5].opened = 30, 12
    layout.backends[5].bytes_to_client = 2**64 - 1
    return layout


def test_the_generated_module_is_current() -> None:
    assert _ffi_build.GENERATED.read_text(encoding="utf-8") == _ffi_build.generate()


def test_counters_are_summed_over_workers(layout: Layout, tmp_path: Path) -> None:
    with Stats(path=layout.write(tmp_path / "stats")) as stats:
        assert [worker.wakeups for worker in stats.workers()] == [10, 20]
        assert stats.workers()[1].tunnels == 2
        listener = stats.listener("public")
        assert (listener.accepted, listener.refused) == (7, 7)
        assert (listener.requests, listener.handshakes, listener.refused_request) == (50, 11, 4)
        assert (listener.messages_in, listener.messages_out, listener.pings) == (8, 9, 2)
        assert stats.backend("chat", "app-1").bad_answers == 3
        assert stats.backend("chat", "app-1").opened == 42
        assert stats.backend("chat", "app-1").bytes_to_client == 2**64 - 1
        assert stats.active("chat", "app-1") == stats.active("", "public") == 2
        assert (stats.pid, stats.started, stats.generation) == (4242, 1.5, 3)


def test_closes_are_counted_by_code(layout: Layout, tmp_path: Path) -> None:
    with Stats(path=layout.write(tmp_path / "stats")) as stats:
        closes = stats.listener("public").closes
    assert len(closes) == len(CLOSES) == len(layout.listeners[0].closes)
    counted = {code: count for code, count in zip(CLOSES, closes, strict=True) if count}
    assert counted == {"1000": 7, "1009": 1, "none": 2}


def test_entries_name_what_the_slots_are_about(layout: Layout, tmp_path: Path) -> None:
    with Stats(path=layout.write(tmp_path / "stats")) as stats:
        entries = stats.entries()
    assert [(entry.index, entry.kind, entry.pool, entry.name) for entry in entries] == [
        (0, "listener", "", "public"),
        (5, "backend", "chat", "app-1"),
    ]
    assert entries[1].address == "127.0.0.1:9001"


def test_nothing_is_copied_a_change_is_seen_at_once(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path / "stats")
    with Stats(path=path) as stats, path.open("r+b") as file:
        assert stats.backend("chat", "app-1").opened == 42
        layout.backends[5].opened = 31
        file.write(layout.memory)
        file.flush()
        assert stats.backend("chat", "app-1").opened == 43


def test_a_reused_slot_is_found_again_under_its_new_name(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path / "stats")
    with Stats(path=path) as stats, path.open("r+b") as file:
        assert stats.backend("chat", "app-1").opened == 42
        layout.describe(5, "chat", "app-2")
        file.write(layout.memory)
        file.flush()
        assert stats.backend("chat", "app-2").opened == 42
        with pytest.raises(KeyError):
            stats.backend("chat", "app-1")


def test_the_newest_of_two_entries_of_one_name_counts(layout: Layout, tmp_path: Path) -> None:
    layout.describe(2, "chat", "app-1", generation=2)
    layout.backends[2].opened = 1
    with Stats(path=layout.write(tmp_path / "stats")) as stats:
        assert stats.backend("chat", "app-1").opened == 1


def test_a_name_longer_than_its_slot_is_found(layout: Layout, tmp_path: Path) -> None:
    layout.describe(3, "chat", "n" * 80)
    layout.backends[3].opened = 9
    with Stats(path=layout.write(tmp_path / "stats")) as stats:
        assert stats.backend("chat", "n" * 80).opened == 9


def test_a_descriptor_stays_open_and_is_usable_again(layout: Layout, tmp_path: Path) -> None:
    fd = os.open(layout.write(tmp_path / "stats"), os.O_RDONLY)
    try:
        for _ in range(2):
            with Stats(fd=fd) as stats:
                assert stats.generation == 3
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("magic", 1, "not a pybalancer statistics file"),
        ("version", 99, "statistics of version 99"),
        ("entry_size", 100, "pb_entry has 100 bytes"),
        ("backend_size", 64, "pb_backend has 64 bytes"),
        ("total_size", 2**40, "cut short"),
        ("workers", 2**32 - 1, "corrupt, the worker slots lie outside"),
        ("entries", 2**32 - 1, "corrupt, the entry slots lie outside"),
        ("backends_offset", 2**64 - 8, "corrupt, the backend slots lie outside"),
        ("workers_offset", 4, "corrupt, the worker slots lie outside"),
        ("listeners_offset", 1001, "corrupt, the listener slots lie outside"),
    ],
)
def test_a_header_that_lies_is_refused(
    layout: Layout, tmp_path: Path, field: str, value: int, says: str
) -> None:
    setattr(layout.header, field, value)
    with pytest.raises(StatsError, match=says):
        Stats(path=layout.write(tmp_path / "stats"))


def test_a_truncated_file_is_refused_at_every_length(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path / "stats")
    whole = len(layout.memory)
    for size in [*range(200), *range(200, whole, 97), whole - 1]:
        path.write_bytes(layout.memory[:size])
        with pytest.raises(StatsError):
            Stats(path=path)


def test_noise_never_crashes_the_reader(layout: Layout, tmp_path: Path) -> None:
    """In a process of its own, because the failure would be a SIGBUS or SIGSEGV."""
    seed = random.randrange(2**32)
    path = layout.write(tmp_path / "stats")
    script = f"""
import random
from pybalancer.stats import Stats, StatsError
dice, good = random.Random({seed}), open({str(path)!r}, "rb").read()
for _ in range(300):
    noisy = bytearray(good)
    for _ in range(dice.randrange(1, 20)):
        noisy[dice.randrange({len(layout.memory)} if dice.random() < 0.5 else 128)] = dice.randrange(256)
    open({str(path)!r}, "wb").write(noisy)
    try:
        with Stats(path={str(path)!r}) as stats:
            stats.workers()
            for entry in stats.entries():
                stats.listener_at(entry.index), stats.backend_at(entry.index)
    except StatsError:
        pass
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"seed {seed}: {result.stderr}"


def test_the_layout_is_the_one_that_rust_writes() -> None:
    from pybalancer import _core

    rust = _core.probe.stats_layout()
    assert set(rust) == {f"pb_{name}" for name in STRUCTS}
    for struct, fields in rust.items():
        for field, (offset, size) in fields.items():
            if not field:
                assert (offset, size) == (0, ffi.sizeof(struct))
                continue
            assert offset == ffi.offsetof(struct, field), f"{struct}.{field}"
            kind = dict(ffi.typeof(struct).fields)[field].type
            assert size == ffi.sizeof(kind), f"{struct}.{field}"
        assert set(fields) - {""} == {name for name, _ in ffi.typeof(struct).fields}
