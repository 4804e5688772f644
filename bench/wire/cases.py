"""What is measured, and what is to be reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Targets = dict[str, dict[str, float]]
"""By mode: peer to the highest ratio of pybalancer's cost to that peer's. "peer" is the cheapest of
HAProxy and nginx."""


@dataclass
class Case:
    """One measurement. ``divisor`` makes the unit's figure of nanoseconds of processor time."""

    name: str
    title: str
    arguments: list[str]
    messages: int
    unit: str
    divisor: Callable[[int], float]
    targets: Targets = field(default_factory=dict)
    memory: bool = False


def echo(size: int, connections: int, busy: int) -> list[str]:
    return ["--mode", "echo", "--size", str(size), "--connections", str(connections), "--busy", str(busy)]


def per_message(messages: int) -> float:
    return messages * 1000.0


CASES = [
    Case(
        "small",
        "64 B echo, 100 busy of 200",
        echo(64, 200, 100),
        300_000,
        "µs of CPU per message",
        per_message,
        {"tcp": {"floor": 1.05}, "websocket": {"floor": 1.05}},
    ),
    Case(
        "crowd",
        "64 B echo, 4,000 busy of 8,000",
        echo(64, 8000, 4000),
        300_000,
        "µs of CPU per message",
        per_message,
        {"tcp": {"floor": 1.05, "peer": 1.0}, "websocket": {"floor": 1.05, "peer": 0.92}},
    ),
    Case(
        "medium",
        "4 KiB echo, 100 busy of 200",
        echo(4096, 200, 100),
        200_000,
        "µs of CPU per message",
        per_message,
        {"websocket": {"peer": 0.80}},
    ),
    Case(
        "large",
        "1 MB echo, 10 busy of 10",
        echo(1_000_000, 10, 10),
        3000,
        "s of CPU per GB",
        lambda messages: 2 * messages * 1e6,
        {"tcp": {"floor": 0.8, "haproxy-splice": 1.0}, "websocket": {"peer": 0.45}},
    ),
    Case(
        "churn",
        "open, handshake, one echo, close; 100 at a time",
        ["--mode", "churn", "--size", "64", "--busy", "100"],
        20_000,
        "µs of CPU per connection",
        per_message,
        {"tcp": {"peer": 1.0}, "websocket": {"peer": 0.80}},
    ),
    Case(
        "idle",
        "8,000 idle tunnels, each of which has echoed once",
        ["--mode", "hold", "--connections", "8000", "--size", "64"],
        8000,
        "bytes of user-space memory per tunnel",
        float,
        {"websocket": {"peer": 0.05}},
        True,
    ),
]
