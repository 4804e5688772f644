"""A ripple restart three times over: nobody told, rolled, and rolled with ``reattach``.

The same backends, each a process, are restarted one after the other under the same clients. What the
clients and the backends saw of it is counted by both and compared.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import trio

from pybalancer.balancer import Balancer
from pybalancer.demo.backends import DemoBackend, run_backends
from pybalancer.demo.ledger import Ledger, Messages, peak, skew
from pybalancer.demo.news import log_to
from pybalancer.demo.talkers import Talkers
from pybalancer.errors import PybalancerError

POOL: Final = "chat"
CODE: Final = 1012
EVERY: Final = 1.0
"""Seconds between two messages of a client, on average."""
ARRIVALS: Final = 400.0
"""Clients that come in a second, to begin with."""
FULLEST: Final = 1.10
"""How full the fullest backend may be in the end, as a multiple of the mean."""
SHED_TO: Final = 1.04
SLOW_START: Final = 1.0
PACE: Final = 0.8
"""Closes in a second, as a share of the reconnects that there may be: clients do not come back in the very
rhythm in which they were sent."""
PATIENCE: Final = 60.0
LAST_ANSWERS: Final = 10.0
"""Seconds that answers may take after the last message."""

Way = Literal["restart", "roll", "reattach"]
WAYS: Final[dict[Way, str]] = {
    "restart": "restart, nobody told",
    "roll": "roll",
    "reattach": "roll, with reattach",
}


@dataclass(frozen=True, slots=True)
class Act:
    """What became of the clients in one of the three ways."""

    way: Way
    clients: int
    cap: float
    """Reconnects in a second that there may be. Closes are paced for it."""
    seconds: float
    cut: int
    """Clients whose connection ended under them."""
    missing: int
    """Clients that were not back in the end."""
    codes: dict[int, int]
    tried: int
    """Most attempts to come back in any second."""
    returned: int
    """Most that succeeded in any second."""
    messages: Messages
    spread: dict[str, int]

    @property
    def skew(self) -> float:
        return skew(self.spread)

    @property
    def broken(self) -> list[str]:
        """Which of the promises did not hold: none is made for backends that are just restarted."""
        wrong = []
        if self.way == "roll":
            if others := {code: count for code, count in self.codes.items() if code != CODE}:
                wrong.append(f"clients saw {_codes(others)} instead of {CODE}")
            if self.returned > self.cap:
                wrong.append(f"{self.returned} came back within a second, the cap is {self.cap:g}")
        if self.way == "reattach":
            if self.cut:
                wrong.append(f"{self.cut} clients saw a disconnect")
            if self.messages.lost:
                wrong.append(f"{self.messages.lost} messages were lost")
        if self.way != "restart":
            if self.missing:
                wrong.append(f"{self.missing} clients did not come back")
            if self.messages.doubled:
                wrong.append(f"{self.messages.doubled} messages were doubled")
            if self.skew > FULLEST:
                wrong.append(f"the fullest backend has {self.skew:.2f} of the mean")
        return wrong

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "way": self.way,
            "clients": self.clients,
            "cap_per_second": self.cap,
            "seconds": round(self.seconds, 1),
            "clients_cut": self.cut,
            "clients_missing": self.missing,
            "close_codes": {str(code): count for code, count in self.codes.items()},
            "most_attempts_in_a_second": self.tried,
            "most_reconnects_in_a_second": self.returned,
            "messages": self.messages.sent,
            "lost": self.messages.lost,
            "doubled": self.messages.doubled,
            "tunnels_by_backend": self.spread,
            "fullest_over_mean": round(self.skew, 3),
            "broken_promises": self.broken,
        }


async def play(*, backends: int, clients: int, ways: Sequence[Way], tell: Callable[[str], None]) -> list[Act]:
    """Each way in turn, with backends, balancer and clients of its own."""
    acts = []
    with log_to(lambda line: tell(f"        {line}")):
        for way in ways:
            tell(f"{WAYS[way]}: {backends} backends, {clients} clients")
            act = await _act(way, backends, clients, tell)
            lost = f"{act.messages.lost} messages lost"
            tell(f"{WAYS[way]}: {act.cut} clients cut ({_codes(act.codes)}), {lost}")
            acts.append(act)
    return acts


async def _act(way: Way, count: int, clients: int, tell: Callable[[str], None]) -> Act:
    cap = max(20.0, clients / 5)
    with tempfile.TemporaryDirectory(prefix="pybalancer-demo-") as folder:
        notes = Path(folder) / "notes"
        async with (
            run_backends(count, notes) as servers,
            Balancer(_configuration(way, servers, clients, cap), admin=False) as balancer,
            trio.open_nursery() as nursery,
        ):
            ledger = Ledger(clients, trio.current_time())
            talkers = Talkers(clients, balancer.bound["public"], ledger, EVERY)
            nursery.start_soon(talkers.run, min(ARRIVALS, 0.9 * cap * 4))
            if await _missing(ledger):
                raise PybalancerError(f"the clients did not get in: {dict(ledger.chapter.refused)}")
            if way != "restart":
                # From now on who comes in comes back: no faster than this, however they bunch.
                await balancer.reload(_configuration(way, servers, clients, cap, handshakes=cap))
            chapter = ledger.begin(way, trio.current_time())
            await _restart_all(way, balancer, servers, cap, tell)
            seconds = trio.current_time() - chapter.began
            # Who was carried over knows its new backend by the next answer only.
            await trio.sleep(2 * EVERY)
            missing = await _missing(ledger)
            spread = ledger.spread([server.name for server in servers])
            talkers.talking = False
            with trio.move_on_after(LAST_ANSWERS):
                while ledger.waiting:  # noqa: ASYNC110 - asked a few times in all
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        reached = Counter((int(client), int(number)) for client, number in map(str.split, _lines(notes)))
        return Act(
            way=way,
            clients=clients,
            cap=cap,
            seconds=seconds,
            cut=len(chapter.cut),
            missing=missing,
            codes=dict(sorted(chapter.codes.items())),
            tried=peak(chapter.tried),
            returned=peak(chapter.returned),
            messages=ledger.messages(chapter, reached),
            spread=spread,
        )


async def _restart_all(
    way: Way, balancer: Balancer, servers: list[DemoBackend], cap: float, tell: Callable[[str], None]
) -> None:
    if way == "restart":
        for server in servers:
            await server.restart()
            tell(f"        restarted {server.name}")
            # Its check has seen by then that it is back.
            await trio.sleep(1.0)
        return
    by_name = {server.name: server for server in servers}

    async def restart(name: str) -> None:
        await by_name[name].restart()
        tell(f"        restarted {name}")

    await balancer.roll(POOL, restart)
    # Until then the last one takes a part of its share only, and who is shed comes back to where it was.
    await trio.sleep(SLOW_START)
    await balancer.shed(POOL, SHED_TO, rate=PACE * cap)


def _configuration(
    way: Way, servers: list[DemoBackend], clients: int, cap: float, *, handshakes: float = 0.0
) -> dict[str, Any]:
    rate = PACE * cap
    share = clients / len(servers)
    return {
        "balancer": {"workers": 1},
        "log": {"connections": False},
        "listeners": [
            {
                "name": "public",
                "bind": "127.0.0.1:0",
                "mode": "websocket",
                "pool": POOL,
                **({"reattach": "replay"} if way == "reattach" else {}),
                **({"handshakes": f"{handshakes:g}/s", "handshakes_burst": 1} if handshakes else {}),
            }
        ],
        "pools": {
            POOL: {
                "policy": "least-connections",
                "slow_start": f"{SLOW_START:g}s",
                "backends": [{"name": server.name, "address": server.address} for server in servers],
                "drain": {
                    "over": f"{max(1000, int(1000 * share / rate))}ms",
                    "deadline": f"{max(5000, int(3000 * share / rate))}ms",
                    "code": CODE,
                    "rate": f"{rate:g}/s",
                },
                "health": {
                    "kind": "websocket",
                    "interval": "250ms",
                    "timeout": "1s",
                    "rise": 1,
                    "fall": 2,
                },
            }
        },
    }


async def _missing(ledger: Ledger) -> int:
    """Wait until every client is connected, and has heard a backend on this connection; how many have not,
    for all the waiting."""
    with trio.move_on_after(PATIENCE):
        while not all(ledger.backend):  # noqa: ASYNC110 - asked a few times in all
            await trio.sleep(0.05)
    return ledger.backend.count(None)


def _lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


def _codes(codes: dict[int, int]) -> str:
    return ", ".join(f"{code} × {count}" for code, count in codes.items()) or "none"


def table(acts: Sequence[Act]) -> list[str]:
    """For people: a way in each column, so that it fits into 80."""
    rows = [
        ("", [WAYS[act.way] for act in acts]),
        ("clients cut", [f"{act.cut} of {act.clients}" for act in acts]),
        ("close codes seen", [_codes(act.codes) for act in acts]),
        ("messages lost", [f"{act.messages.lost} of {act.messages.sent}" for act in acts]),
        ("messages doubled", [str(act.messages.doubled) for act in acts]),
        (
            "most reconnects/s",
            [
                f"{act.returned} (cap {act.cap:g})" if act.way != "restart" else str(act.returned)
                for act in acts
            ],
        ),
        ("fullest / mean", [f"{act.skew:.2f}" for act in acts]),
        ("took", [f"{act.seconds:.0f} s" for act in acts]),
    ]
    first = max(len(name) for name, _ in rows)
    widths = [max(len(cells[place]) for _, cells in rows) for place in range(len(acts))]
    lines = [
        f"{name.ljust(first)}  "
        + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        for name, cells in rows
    ]
    return lines + [f"{WAYS[act.way]}: {wrong}" for act in acts for wrong in act.broken]
