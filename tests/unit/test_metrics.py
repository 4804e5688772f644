"""The Prometheus text, from statistics laid out by hand."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pybalancer.stats import Stats
from pybalancer.stats.collector import render
from pybalancer.stats.reader import CLOSES
from tests.unit.test_stats import ENTRIES, Layout


@dataclass(frozen=True)
class Health:
    up: bool
    ramp: float


@pytest.fixture
def stats(tmp_path: Path) -> Iterator[Stats]:
    layout = Layout()
    layout.describe(0, "", "public", active=5)
    layout.describe(1, "chat", 'app "1"\\\n<script>', active=2, generation=1)
    layout.describe(2, "chat", 'app "1"\\\n<script>', active=3, generation=2)
    layout.listeners[0].refused_rate = 4
    layout.listeners[0].refused_request, layout.listeners[0].requests = 5, 60
    layout.listeners[0].handshakes, layout.listeners[ENTRIES].handshakes = 7, 8
    layout.listeners[0].messages_in, layout.listeners[0].messages_out = 9, 10
    layout.listeners[0].pings = 11
    layout.listeners[0].reattached, layout.listeners[ENTRIES].reattached = 16, 4
    layout.listeners[0].reattach_failed = 17
    layout.listeners[0].closes[CLOSES.index("1001")] = 12
    layout.listeners[0].closes[CLOSES.index("4xxx")], layout.listeners[ENTRIES].closes[17] = 13, 14
    layout.backends[2].bad_answers = 15
    layout.backends[1].opened = 100
    layout.backends[2].opened, layout.backends[ENTRIES + 2].opened = 7, 8
    layout.backends[2].connect_ns = 1_500_000_000
    layout.workers[1].bytes_spliced = 9
    with Stats(path=layout.write(tmp_path / "stats")) as stats:
        yield stats


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


BACKEND = (("backend", 'app "1"\\\n<script>'), ("pool", "chat"))


def test_counters_come_with_their_labels(stats: Stats) -> None:
    found = samples(render(stats))
    refused = (("listener", "public"), ("reason", "rate"))
    assert found["pybalancer_listener_connections_refused_total", refused] == 4
    assert found["pybalancer_worker_relayed_bytes_total", (("how", "splice"), ("worker", "1"))] == 9
    assert found["pybalancer_plan_generation", ()] == 3
    assert found["pybalancer_start_time_seconds", ()] == 1.5


def test_what_mode_websocket_counts(stats: Stats) -> None:
    found = samples(render(stats))
    listener = ("listener", "public")
    for name, value in {
        "requests": 60,
        "handshakes": 15,
        "messages_received": 9,
        "messages_sent": 10,
        "pings": 11,
        "reattached": 20,
        "reattach_failed": 17,
    }.items():
        assert found[f"pybalancer_listener_{name}_total", (listener,)] == value, name
    refused = (listener, ("reason", "request"))
    assert found["pybalancer_listener_connections_refused_total", refused] == 5
    assert found["pybalancer_backend_bad_answers_total", BACKEND] == 15
    closes = {
        dict(labels)["code"]: value
        for (name, labels), value in found.items()
        if name == "pybalancer_listener_closes_total"
    }
    assert set(closes) == set(CLOSES)
    assert {code: count for code, count in closes.items() if count} == {"1001": 12, "4xxx": 27}


def test_a_backend_that_moved_counts_from_zero_and_its_tunnels_are_summed(stats: Stats) -> None:
    found = samples(render(stats))
    assert found["pybalancer_backend_tunnels_opened_total", BACKEND] == 15
    assert found["pybalancer_backend_tunnels", BACKEND] == 5
    assert found["pybalancer_backend_connect_seconds_total", BACKEND] == 1.5


def test_health_and_ports_are_gauges(stats: Stats) -> None:
    key = ("chat", 'app "1"\\\n<script>')
    found = samples(render(stats, {key: Health(up=False, ramp=0.5)}, {key: (12, 28232)}))
    assert found["pybalancer_backend_up", BACKEND] == 0
    assert found["pybalancer_backend_ramp_ratio", BACKEND] == 0.5
    assert found["pybalancer_backend_ports_used", BACKEND] == 12
    assert found["pybalancer_backend_ports", BACKEND] == 28232


def test_112_a_hostile_name_stays_inside_its_label(stats: Stats) -> None:
    """A quote, a backslash and a newline in a name must not start a sample of their own."""
    for line in render(stats).splitlines():
        assert line.startswith(("# HELP pybalancer_", "# TYPE pybalancer_", "pybalancer_"))


def test_every_metric_is_explained_and_named_alike(stats: Stats) -> None:
    families = list(text_string_to_metric_families(render(stats)))
    assert len(families) == len({family.name for family in families}) > 30
    for family in families:
        assert family.documentation
        assert family.name.startswith("pybalancer_")
