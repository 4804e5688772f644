"""The statistics as Prometheus wants them: ``render``.

A collector of its own, because the counters already exist: they are read when somebody asks, and
nothing is counted twice. Counters of a backend come from its newest entry, so that one that moves
to another address starts again from zero, which Prometheus takes for the restart that it is; live
tunnels are summed over its addresses.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from pybalancer import _core
from pybalancer.packet.report import PacketStatus
from pybalancer.stats.reader import CLOSES, Entry, Stats
from pybalancer.status import KINDS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of what ``render`` returns."""


class Health(Protocol):
    """What is known of a backend's health (``policy.health.BackendHealth`` fits)."""

    @property
    def up(self) -> bool: ...
    @property
    def ramp(self) -> float: ...


_WORKER_COUNTERS = (
    ("wakeups", "wakeups", "Returns of epoll_wait"),
    ("events", "events", "Socket events handled"),
    ("connections_accepted", "accepted", "Connections accepted"),
    ("tunnels_opened", "opened", "Tunnels established"),
    ("accept_pauses", "accept_pauses", "Times accepting paused for want of descriptors or memory"),
    ("restarts", "restarts", "Times the worker was started again after a panic"),
    ("log_records_dropped", "log_dropped", "Connection records dropped because nobody read them"),
)
_WORKER_GAUGES = (
    ("tunnels", "tunnels", "Tunnels open now"),
    ("connections_waiting", "waiting", "Connections accepted and not yet relayed"),
    ("descriptors", "descriptors", "Descriptors in use by sockets and pipes"),
    ("pipes", "pipes", "Pipes in use or pooled"),
    ("plan_generation", "generation", "Plan that the worker runs"),
)
_LISTENER_COUNTERS = (
    ("connections_accepted", "accepted", "Connections accepted"),
    ("connections_queued", "queued", "Connections and handshakes that had to wait for their turn"),
    ("tunnels_opened", "opened", "Tunnels established"),
    ("received_bytes", "bytes_in", "Bytes from clients"),
    ("sent_bytes", "bytes_out", "Bytes to clients"),
    ("requests", "requests", "Plain HTTP requests that were routed"),
    ("handshakes", "handshakes", "WebSocket handshakes that were routed"),
    ("messages_received", "messages_in", "WebSocket messages of clients, counted when a tunnel ends"),
    ("messages_sent", "messages_out", "WebSocket messages of backends, likewise"),
    ("pings", "pings", "Pings sent to quiet clients"),
    ("reattached", "reattached", "Times that a tunnel went on at another backend"),
    ("reattach_failed", "reattach_failed", "Tunnels that should have, and were ended instead"),
    ("directed", "directed", "Clients that a directory told where to connect to"),
    ("redirected", "redirected", "Clients that were redirected to their backend"),
    ("put_off", "put_off", "Clients of a directory or redirect that were told to come again later"),
)
_REFUSALS = (
    ("full", "refused_full"),
    ("source", "refused_source"),
    ("rate", "refused_rate"),
    ("proxy", "refused_proxy"),
    ("no-backend", "refused_no_backend"),
    ("request", "refused_request"),
)
_BACKEND_COUNTERS = (
    ("connects", "connects", "Attempts to connect"),
    ("connect_failures", "connect_failures", "Attempts that were refused, unreachable or too slow"),
    ("ports_exhausted", "ports_exhausted", "Attempts that found no free outgoing port"),
    ("tunnels_opened", "opened", "Tunnels established"),
    ("resets", "resets", "Tunnels that the backend ended with an error"),
    ("bad_answers", "bad_answers", "Responses that were none, or did not come at all"),
    ("clients_sent", "sent", "Clients that a directory or a redirect sent here"),
    ("fallbacks", "fallbacks", "Tunnels that came here because an earlier choice could not take them"),
    ("received_bytes", "bytes_to_client", "Bytes from the backend"),
    ("sent_bytes", "bytes_to_backend", "Bytes to the backend"),
)


_PACKET_COUNTERS = {
    "packets": "Packets for the listener's address",
    "bytes": "Their bytes, as they came",
    "flows": "Connections begun (SYN)",
    "errors": "ICMP errors about its packets, passed on to whom they concern",
}
_MACHINE_COUNTERS = {
    "packets": "Packets sent on to a backend's machine",
    "bytes": "Their bytes, as they came",
    "flows": "Connections begun there (SYN)",
    "second_hops": "Packets sent there because this machine had no such connection",
}


class Drain(Protocol):
    """A drain or shed (``status.DrainStatus`` fits)."""

    @property
    def kind(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def left(self) -> int: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Drained:
    """What is drained: backends that take nothing new, drains under way, and (kind, how) to all tunnels."""

    backends: Collection[tuple[str, str]] = ()
    drains: Collection[Drain] = ()
    totals: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)


class StatsCollector(Collector):
    """Reads ``stats`` at each scrape; ``health`` and ``ports`` are by (pool, backend).

    ``ports`` gives (outgoing ports in use, ports there are).
    """

    def __init__(
        self,
        stats: Stats,
        health: Mapping[tuple[str, str], Health] | None = None,
        ports: Mapping[tuple[str, str], tuple[int, int]] | None = None,
        drained: Drained | None = None,
        packet: PacketStatus | None = None,
    ) -> None:
        self._stats = stats
        self._packet = packet
        self._health = health or {}
        self._ports = ports or {}
        self._drained = drained or Drained()

    def collect(self) -> Iterator[Metric]:
        """One family after the other, as prometheus_client asks for them."""
        yield InfoMetricFamily("pybalancer_build", "Version that runs", value={"version": _core.__version__})
        started = "Start of the engine in seconds since 1970"
        yield GaugeMetricFamily("pybalancer_start_time_seconds", started, value=self._stats.started)
        generation = "Newest plan that every worker runs"
        yield GaugeMetricFamily("pybalancer_plan_generation", generation, value=self._stats.generation)
        yield from self._collect_workers()
        entries = sorted(self._stats.entries(), key=lambda entry: entry.generation)
        yield from self._collect_listeners([entry for entry in entries if entry.kind == "listener"])
        yield from self._collect_backends([entry for entry in entries if entry.kind == "backend"])
        yield from self._collect_health()
        yield from self._collect_drains()
        yield from self._collect_packets()

    def _collect_workers(self) -> Iterator[Metric]:
        workers = list(enumerate(self._stats.workers()))
        for name, field, text in _WORKER_COUNTERS:
            family: Metric = CounterMetricFamily(f"pybalancer_worker_{name}", text, labels=["worker"])
            for index, worker in workers:
                _add(family, [str(index)], getattr(worker, field))
            yield family
        for name, field, text in _WORKER_GAUGES:
            family = GaugeMetricFamily(f"pybalancer_worker_{name}", text, labels=["worker"])
            for index, worker in workers:
                _add(family, [str(index)], getattr(worker, field))
            yield family
        text = "Bytes relayed, through user space (copy) or through a pipe (splice)"
        family = CounterMetricFamily("pybalancer_worker_relayed_bytes", text, labels=["worker", "how"])
        for index, worker in workers:
            _add(family, [str(index), "copy"], worker.bytes_copied)
            _add(family, [str(index), "splice"], worker.bytes_spliced)
        yield family

    def _collect_listeners(self, entries: list[Entry]) -> Iterator[Metric]:
        newest = {entry.name: entry for entry in entries}
        counters = {name: self._stats.listener_at(entry.index) for name, entry in newest.items()}
        for name, field, text in _LISTENER_COUNTERS:
            family: Metric = CounterMetricFamily(f"pybalancer_listener_{name}", text, labels=["listener"])
            for listener, values in counters.items():
                _add(family, [listener], getattr(values, field))
            yield family
        text = "Connections refused, by reason"
        family = CounterMetricFamily(
            "pybalancer_listener_connections_refused", text, labels=["listener", "reason"]
        )
        for listener, values in counters.items():
            for reason, field in _REFUSALS:
                _add(family, [listener, reason], getattr(values, field))
        yield family
        text = "WebSockets that ended, by the code of their Close"
        family = CounterMetricFamily("pybalancer_listener_closes", text, labels=["listener", "code"])
        for listener, values in counters.items():
            for code, count in zip(CLOSES, values.closes, strict=True):
                _add(family, [listener, code], count)
        yield family
        active = dict.fromkeys(newest, 0)
        for entry in entries:
            active[entry.name] += entry.active
        family = GaugeMetricFamily("pybalancer_listener_tunnels", "Tunnels open now", labels=["listener"])
        for listener, count in active.items():
            _add(family, [listener], count)
        yield family

    def _collect_backends(self, entries: list[Entry]) -> Iterator[Metric]:
        labels = ["pool", "backend"]
        newest = {(entry.pool, entry.name): entry for entry in entries}
        counters = {key: self._stats.backend_at(entry.index) for key, entry in newest.items()}
        for name, field, text in _BACKEND_COUNTERS:
            family: Metric = CounterMetricFamily(f"pybalancer_backend_{name}", text, labels=labels)
            for key, values in counters.items():
                _add(family, list(key), getattr(values, field))
            yield family
        text = "Time spent in connects that succeeded"
        family = CounterMetricFamily("pybalancer_backend_connect_seconds", text, labels=labels)
        for key, values in counters.items():
            _add(family, list(key), values.connect_ns / 1e9)
        yield family
        active = dict.fromkeys(newest, 0)
        for entry in entries:
            active[entry.pool, entry.name] += entry.active
        family = GaugeMetricFamily("pybalancer_backend_tunnels", "Tunnels open now", labels=labels)
        for key, count in active.items():
            _add(family, list(key), count)
        yield family

    def _collect_health(self) -> Iterator[Metric]:
        labels = ["pool", "backend"]
        up = GaugeMetricFamily("pybalancer_backend_up", "1 while it takes new tunnels, else 0", labels=labels)
        ramp = GaugeMetricFamily(
            "pybalancer_backend_ramp_ratio", "Share of its keys that it takes in slow start", labels=labels
        )
        for key, health in self._health.items():
            _add(up, list(key), int(health.up))
            _add(ramp, list(key), health.ramp)
        used = GaugeMetricFamily("pybalancer_backend_ports_used", "Outgoing ports in use", labels=labels)
        total = GaugeMetricFamily("pybalancer_backend_ports", "Outgoing ports there are", labels=labels)
        for key, (in_use, there_are) in self._ports.items():
            _add(used, list(key), in_use)
            _add(total, list(key), there_are)
        yield from (up, ramp, used, total)

    def _collect_drains(self) -> Iterator[Metric]:
        text = "1 while it is drained: it takes no new tunnels, whether it is up or not"
        family: Metric = GaugeMetricFamily("pybalancer_backend_draining", text, labels=["pool", "backend"])
        for key in self._health:
            _add(family, list(key), int(key in self._drained.backends))
        yield family
        text = "Drains and sheds under way"
        running = GaugeMetricFamily("pybalancer_drains_running", text, labels=["kind"])
        text = "Tunnels that drains and sheds under way have yet to end"
        left = GaugeMetricFamily("pybalancer_drain_tunnels_left", text, labels=["kind"])
        for kind in KINDS:
            mine = [each for each in self._drained.drains if (each.kind, each.state) == (kind, "running")]
            _add(running, [kind], len(mine))
            _add(left, [kind], sum(each.left for each in mine))
        yield from (running, left)
        text = "Tunnels that drains and sheds have closed in time, cut at a deadline, or moved elsewhere"
        family = CounterMetricFamily("pybalancer_drained_tunnels", text, labels=["kind", "how"])
        for (kind, how), count in self._drained.totals.items():
            _add(family, [kind, how], count)
        yield family

    def _collect_packets(self) -> Iterator[Metric]:
        packet = self._packet
        for name, text in _PACKET_COUNTERS.items():
            family = CounterMetricFamily(f"pybalancer_packet_{name}", text, labels=["listener"])
            for service in packet.services if packet else ():
                _add(family, [service.name], getattr(service, name))
            yield family
        for name, text in _MACHINE_COUNTERS.items():
            family = CounterMetricFamily(f"pybalancer_packet_machine_{name}", text, labels=["machine"])
            for machine in packet.machines if packet else ():
                _add(family, [machine.address], getattr(machine, name))
            yield family
        reachable = GaugeMetricFamily(
            "pybalancer_packet_machine_reachable", "1 while its next hop is known", labels=["machine"]
        )
        for machine in packet.machines if packet else ():
            _add(reachable, [machine.address], int(not machine.problem))
        yield reachable
        text = "Packets by what became of them, on interfaces of mode packet"
        family = CounterMetricFamily("pybalancer_packet_verdicts", text, labels=["reason"])
        for reason, count in packet.reasons.items() if packet else ():
            _add(family, [reason], count)
        yield family


def render(
    stats: Stats,
    health: Mapping[tuple[str, str], Health] | None = None,
    ports: Mapping[tuple[str, str], tuple[int, int]] | None = None,
    drained: Drained | None = None,
    packet: PacketStatus | None = None,
) -> str:
    """All metrics in the Prometheus text format (``CONTENT_TYPE``); arguments as ``StatsCollector``."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatsCollector(stats, health, ports, drained, packet))
    return generate_latest(registry).decode("utf-8")


def _add(family: Metric, labels: list[str], value: float) -> None:
    assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
    family.add_metric(labels, value)
