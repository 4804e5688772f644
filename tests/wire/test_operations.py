"""Drain, undrain, shed and diff by a ``Balancer`` in the test: real servers and clients, mode "tcp"."""

from __future__ import annotations

import contextlib
import copy
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trio

from pybalancer import Balancer
from pybalancer.errors import DrainError, TargetError
from pybalancer.status import DrainResult

from .balancing import Tunnel, backends_of, configuration, picks, states, until
from .net import refused

LONG = 1000.0
SLOW = {"over": LONG, "deadline": 2 * LONG}
"""Nobody is told soon."""
AT_ONCE = {"over": 0.0, "deadline": LONG}


class Guest:
    """A client that goes when it is told, and comes back if it ``returns``."""

    def __init__(self, address: str, *, returns: bool = False) -> None:
        self._address, self._returns = address, returns
        self.tunnel: Tunnel | None = Tunnel(address)
        self.told = 0
        self.cut = 0
        self._closed = False
        self._thread = threading.Thread(target=self._stay, daemon=True)
        self._thread.start()

    @property
    def backend(self) -> str | None:
        tunnel = self.tunnel
        return tunnel.backend if tunnel else None

    def _stay(self) -> None:
        while self.tunnel is not None:
            try:
                while self.tunnel.socket.recv(1 << 16):
                    pass
                self.told += 1
            except OSError:
                self.cut += 1
            self.tunnel.close()
            self.tunnel = None
            if self._returns and not self._closed:
                with contextlib.suppress(OSError, AssertionError):  # The balancer may have ended.
                    self.tunnel = Tunnel(self._address)

    def close(self) -> None:
        self._closed = True
        if (tunnel := self.tunnel) is not None:
            try:
                tunnel.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                tunnel.close()
        self._thread.join()


Guests = Callable[..., list[Guest]]


@pytest.fixture
def guests() -> Iterator[Guests]:
    with ExitStack() as stack:

        def come(balancer: Balancer, count: int = 24, listener: str = "public", **how: bool) -> list[Guest]:
            came = [Guest(balancer.bound[listener], **how) for _ in range(count)]
            for guest in came:
                stack.callback(guest.close)
            return came

        yield come


def at(guests: list[Guest]) -> Counter[str | None]:
    return Counter(guest.backend for guest in guests)


def evenly(backends: dict[str, str], **more: Any) -> dict[str, Any]:
    return configuration(backends, policy="least-connections", **more)


async def active(balancer: Balancer, **expected: int) -> None:
    """Wait until backends have so many tunnels."""
    wanted = {name.replace("_", "-"): count for name, count in expected.items()}

    def found() -> bool:
        now = {name: backend.active for name, backend in backends_of(balancer).items()}
        return all(now[name] == count for name, count in wanted.items())

    await until(found, f"{wanted}")


# Drain.


async def test_a_drained_backend_loses_its_tunnels_and_gets_none(
    three: dict[str, str], guests: Guests
) -> None:
    async with Balancer(evenly(three)) as balancer:
        there = guests(balancer, 24)
        result = await balancer.drain("app-1", **AT_ONCE)
        (status,) = result.drains
        assert (result.what, result.warnings) == ("chat/app-1", [])
        assert (status.kind, status.what, status.state) == ("drain", "chat/app-1", "done")
        assert (status.total, status.closed, status.cut, status.left) == (8, 8, 0, 0)
        await until(lambda: at(there) == {"app-2": 8, "app-3": 8, None: 8})
        assert [guest.told for guest in there if guest.backend is None] == [1] * 8
        assert all(guest.told == guest.cut == 0 for guest in there if guest.backend)
        guests(balancer, 12)
        await active(balancer, app_1=0, app_2=14, app_3=14)
        found = backends_of(balancer)
        assert [backend.draining for backend in found.values()] == [True, False, False]
        assert states(balancer) == "up up up", "being drained is no sickness"


async def test_keys_of_the_others_stay_where_they_are(three: dict[str, str]) -> None:
    async with Balancer(configuration(three)) as balancer:

        def where() -> list[str]:
            return [balancer.explain(f"10.1.{number}.1:1000")["backend"] for number in range(200)]

        before = where()
        await balancer.drain("app-2", **AT_ONCE)
        drained = where()
        assert "app-2" not in drained
        assert all(new == old for old, new in zip(before, drained, strict=True) if old != "app-2")
        await balancer.undrain("app-2")
        assert where() == before


async def test_it_goes_on_by_itself_and_undrain_stops_it_at_once(
    three: dict[str, str], guests: Guests
) -> None:
    async with Balancer(evenly(three)) as balancer:
        there = guests(balancer, 24)
        begun = await balancer.drain("app-1", wait=False, **SLOW)
        (status,) = begun.drains
        assert (status.state, status.total, status.left) == ("running", 8, 8)
        assert 0 < status.seconds_left <= LONG
        assert balancer.hindrance() == "a drain of chat is under way"
        assert balancer.status().drains[-1].id == status.id
        stopped = await balancer.undrain("app-1")
        (status,) = stopped.drains
        assert (status.state, status.left) == ("cancelled", 8)
        assert balancer.hindrance() is None
        assert not any(guest.told or guest.cut for guest in there)
        assert not any(backend.draining for backend in backends_of(balancer).values())


async def test_cancelled_it_goes_on_by_itself(three: dict[str, str], guests: Guests) -> None:
    async with Balancer(evenly(three)) as balancer:
        guests(balancer, 3)
        with trio.move_on_after(0.2):
            await balancer.drain("app-1", **SLOW)
        assert balancer.status().drains[-1].state == "running"


async def test_who_asks_again_waits_for_the_same_or_gives_new_terms(
    three: dict[str, str], guests: Guests
) -> None:
    async with Balancer(evenly(three)) as balancer:
        guests(balancer, 24)
        first = (await balancer.drain("app-1", wait=False, **SLOW)).drains[0]
        again = (await balancer.drain("app-1", wait=False)).drains[0]
        assert again.id == first.id
        other = (await balancer.drain("app-1", wait=False, over=LONG, deadline=LONG)).drains[0]
        assert other.id != first.id
        assert [each.state for each in balancer.status().drains] == ["cancelled", "running"]
        last = (await balancer.drain("app-1", **AT_ONCE)).drains[0]
        assert (last.state, last.closed) == ("done", 8)
        assert not [each for each in balancer.status().drains if each.state == "running"]


async def test_at_the_deadline_the_rest_is_cut(three: dict[str, str], guests: Guests) -> None:
    async with Balancer(evenly(three)) as balancer:
        there = guests(balancer, 24)
        result = await balancer.drain("app-1", over=0.2, deadline=0.2, rate=1.0)
        (status,) = result.drains
        assert (status.state, status.left) == ("done", 0)
        assert status.cut >= 7
        assert result.warnings == ["8 of 8 will be cut: 1/s for 0.2 s"]
        await until(lambda: at(there)["app-1"] == 0)
        assert sum(guest.cut for guest in there) == status.cut


async def test_the_last_one_that_takes_tunnels_is_drained_by_force_only(
    three: dict[str, str], guests: Guests
) -> None:
    async with Balancer(evenly(three)) as balancer:
        guests(balancer, 3)
        await balancer.drain("app-1", **AT_ONCE)
        await balancer.drain("app-2", **AT_ONCE)
        with pytest.raises(
            DrainError, match="chat/app-3 is not drained: no other backend of pool chat takes"
        ):
            await balancer.drain("app-3", **AT_ONCE)
        assert not backends_of(balancer)["app-3"].draining
        assert not refused(balancer.bound["public"])
        forced = await balancer.drain("app-3", force=True, **AT_ONCE)
        assert forced.warnings == ["no other backend of pool chat takes new tunnels: clients get 503"]
        assert refused(balancer.bound["public"])
        await balancer.undrain(pool="chat")
        assert not refused(balancer.bound["public"])


async def test_one_that_is_down_takes_nobody(three: dict[str, str]) -> None:
    health = {"kind": "tcp", "interval": "50ms", "rise": 1, "fall": 1}
    three["app-3"] = "127.0.0.1:1"
    async with Balancer(evenly(three, health=health)) as balancer:
        await until(lambda: states(balancer) == "up up down")
        await balancer.drain("app-2", **AT_ONCE)
        with pytest.raises(DrainError):
            await balancer.drain("app-1", **AT_ONCE)
        # So it may be drained itself.
        assert (await balancer.drain("app-3", **AT_ONCE)).warnings == []


async def test_a_whole_pool_is_drained_with_a_warning(three: dict[str, str], guests: Guests) -> None:
    async with Balancer(evenly(three)) as balancer:
        there = guests(balancer, 24)
        result = await balancer.drain(pool="chat", **AT_ONCE)
        (status,) = result.drains
        assert (status.what, status.closed) == ("pool chat", 24)
        assert {(part.backend, part.total, part.left) for part in status.parts} == {
            (name, 8, 0) for name in three
        }
        assert "clients get 503" in result.warnings[0]
        await until(lambda: at(there) == {None: 24})
        # One of them may be taken back alone.
        await balancer.undrain("app-2")
        assert picks(balancer) == {"app-2": 200}


async def test_undraining_one_of_a_pool_goes_on_with_the_others(
    three: dict[str, str], guests: Guests
) -> None:
    async with Balancer(evenly(three)) as balancer:
        guests(balancer, 24)
        await balancer.drain(pool="chat", wait=False, **SLOW)
        await balancer.undrain("app-2")
        (running,) = [each for each in balancer.status().drains if each.state == "running"]
        assert {(part.backend, part.left) for part in running.parts} == {("app-1", 8), ("app-3", 8)}
        assert LONG - 60 < running.over_seconds <= LONG
        found = backends_of(balancer)
        assert [found[name].draining for name in three] == [True, False, True]


TWO_LISTENERS = [{"name": name, "bind": "127.0.0.1:0", "pool": "chat"} for name in ("public", "inner")]


async def test_a_listener_is_drained_and_the_other_serves(three: dict[str, str], guests: Guests) -> None:
    async with Balancer(evenly(three, listeners=TWO_LISTENERS)) as balancer:
        there, inside = guests(balancer, 6), guests(balancer, 6, "inner")
        result = await balancer.drain(listener="public", **AT_ONCE)
        assert result.drains[0].closed == 6
        await until(lambda: at(there) == {None: 6})
        assert None not in at(inside)
        assert refused(balancer.bound["public"])
        assert not refused(balancer.bound["inner"])
        assert [each.draining for each in balancer.status().listeners] == [True, False]
        await balancer.undrain("public")
        assert not refused(balancer.bound["public"])


async def test_everything_is_drained_and_taken_back(three: dict[str, str], guests: Guests) -> None:
    async with Balancer(evenly(three, listeners=TWO_LISTENERS)) as balancer:
        there = [*guests(balancer, 6), *guests(balancer, 6, "inner")]
        result = await balancer.drain(everything=True, **AT_ONCE)
        assert (result.what, result.drains[0].closed) == ("everything", 12)
        await until(lambda: at(there) == {None: 12})
        assert all(refused(balancer.bound[name]) for name in ("public", "inner"))
        # A pool is not what keeps them away.
        assert (await balancer.undrain(pool="chat")).warnings == [
            "pool chat was not drained",
            "still drained: listener inner, public",
        ]
        await balancer.undrain(everything=True)
        assert not any(refused(balancer.bound[name]) for name in ("public", "inner"))


async def test_what_makes_no_sense_changes_nothing(three: dict[str, str], guests: Guests) -> None:
    async with Balancer(evenly(three)) as balancer:
        there = guests(balancer, 6)
        before = balancer.status().generation
        wrong: list[tuple[type[Exception], dict[str, Any]]] = [
            (TargetError, {"name": "app-9"}),
            (ValueError, {}),
            (ValueError, {"name": "app-1", "over": 2.0, "deadline": 1.0}),
            (ValueError, {"name": "app-1", "over": -1.0}),
            (ValueError, {"name": "app-1", "code": 1005}),
            (ValueError, {"name": "app-1", "rate": -1.0}),
        ]
        for error, given in wrong:
            with pytest.raises(error):
                await balancer.drain(**given)
        with pytest.raises(TargetError):
            await balancer.undrain("app-9")
        with pytest.raises(ValueError, match="slow_start"):
            await balancer.undrain("app-1", slow_start=-1.0)
        assert balancer.status().generation == before
        assert balancer.status().drains == []
        assert None not in at(there)


async def test_what_was_not_drained_is_taken_back_with_a_word(three: dict[str, str]) -> None:
    async with Balancer(evenly(three)) as balancer:
        assert (await balancer.undrain("app-1")).warnings == ["chat/app-1 was not drained"]


async def test_it_stays_drained_over_reloads_until_its_name_goes(three: dict[str, str]) -> None:
    given = evenly(three)
    async with Balancer(given) as balancer:
        await balancer.drain("app-1", **AT_ONCE)
        other = copy.deepcopy(given)
        other["pools"]["chat"]["backends"][1]["weight"] = 5
        await balancer.reload(other)
        assert "app-1" not in picks(balancer)
        without = copy.deepcopy(given)
        del without["pools"]["chat"]["backends"][0]
        await balancer.reload(without)
        await balancer.reload(given)
        assert set(picks(balancer)) == set(three), "who comes again is another one"


async def test_taken_back_after_a_drain_it_fills_slowly_if_asked_to(three: dict[str, str]) -> None:
    async with Balancer(configuration(three)) as balancer:
        await balancer.drain("app-1", **AT_ONCE)
        await balancer.undrain("app-1", slow_start=3600.0)
        assert backends_of(balancer)["app-1"].ramp <= 0.2
        assert 0 < picks(balancer)["app-1"] < 200 / 3 / 2


# What the next process goes on with.


async def test_a_drain_goes_on_in_the_process_that_takes_over(three: dict[str, str], guests: Guests) -> None:
    given = evenly(three, listeners=TWO_LISTENERS)
    async with Balancer(given) as balancer:
        guests(balancer, 24)
        await balancer.drain("app-1", wait=False, **SLOW)
        await balancer.drain(listener="inner", **AT_ONCE)
        snapshot = balancer.snapshot()
    successor = Balancer(given)
    successor.restore(snapshot)
    async with successor:
        assert backends_of(successor)["app-1"].draining
        assert "app-1" not in picks(successor)
        assert refused(successor.bound["inner"])
        # Here no tunnels were handed over with it, so it has nothing to do.
        (gone_on_with,) = successor.status().drains
        assert (gone_on_with.what, gone_on_with.code) == ("chat/app-1", 1012)
        assert LONG - 60 < gone_on_with.over_seconds < LONG
        await successor.undrain(everything=True)
        assert set(picks(successor)) == set(three)
        assert not refused(successor.bound["inner"])


async def test_a_snapshot_that_is_none_is_refused(three: dict[str, str]) -> None:
    balancer = Balancer(evenly(three))
    for given in ({}, {"version": 99, "backends": [], "listeners": []}, {"version": 1, "backends": 3}):
        with pytest.raises(ValueError, match="draining states"):
            balancer.restore(given)


# Shed.


async def crowded(balancer: Balancer, guests: Guests, count: int = 24) -> list[Guest]:
    """All of them at app-1 and app-2, since app-3 came later."""
    await balancer.drain("app-3", **AT_ONCE)
    there = guests(balancer, count, returns=True)
    await balancer.undrain("app-3", slow_start=0.0)
    return there


async def test_the_surplus_goes_to_where_there_is_room(three: dict[str, str], guests: Guests) -> None:
    async with Balancer(evenly(three)) as balancer:
        there = await crowded(balancer, guests)
        assert at(there) == {"app-1": 12, "app-2": 12}
        result = await balancer.shed("chat", 1.0, rate=LONG)
        assert (result.dry_run, result.skew, result.to_skew) == (False, 1.5, 1.0)
        # One more than its share is nobody's surplus.
        assert result.surplus == {"app-1": 3, "app-2": 3}
        assert result.drain is not None
        assert (result.drain.kind, result.drain.state, result.drain.closed) == ("shed", "done", 6)
        await until(lambda: at(there) == {"app-1": 9, "app-2": 9, "app-3": 6})
        assert sum(guest.told for guest in there) == 6, "nobody but the surplus"
        nothing = await balancer.shed("chat", 1.0)
        assert (nothing.skew, nothing.surplus, nothing.drain) == (1.125, {}, None)


async def test_a_dry_run_counts_and_closes_nobody(three: dict[str, str], guests: Guests) -> None:
    async with Balancer(evenly(three)) as balancer:
        there = await crowded(balancer, guests)
        result = await balancer.shed("chat", 1.25, dry_run=True)
        assert result.dry_run
        assert result.surplus == {"app-1": 2, "app-2": 2}
        assert result.drain is not None
        assert {part.backend: part.total for part in result.drain.parts} == result.surplus
        assert at(there) == {"app-1": 12, "app-2": 12}
        assert sum(guest.told for guest in there) == 0


async def test_a_pool_that_hashes_sheds_only_whom_the_table_would_send_elsewhere(
    three: dict[str, str], guests: Guests
) -> None:
    async with Balancer(configuration(three)) as balancer:
        there = guests(balancer, 48, returns=False)
        # All are where the table has them: however skewed that is, closing them would change nothing.
        even = await balancer.shed("chat", 1.0, rate=LONG)
        assert even.drain is None or (even.drain.total, even.drain.closed) == (0, 0)
        assert None not in at(there)
        # Those of app-3 went elsewhere while it was drained; now the table would have them back.
        await balancer.drain("app-3", **AT_ONCE)
        await until(lambda: at(there)["app-3"] == 0)
        more = guests(balancer, 48)
        await balancer.undrain("app-3", slow_start=0.0)
        keys = [guest.tunnel.socket.getsockname() for guest in more if guest.tunnel]
        strangers = sum(balancer.explain(f"{host}:{port}")["backend"] == "app-3" for host, port in keys)
        result = await balancer.shed("chat", 1.0, rate=LONG)
        assert result.drain is not None
        assert 0 < result.drain.closed <= strangers


async def test_who_would_come_back_to_where_he_was_is_not_shed(three: dict[str, str]) -> None:
    given = configuration(
        three,
        listeners=[{"name": "public", "bind": "127.0.0.1:0", "mode": "websocket", "pool": "chat"}],
        key="sticky",
    )
    async with Balancer(given) as balancer:
        with pytest.raises(DrainError, match="pool chat is sticky"):
            await balancer.shed("chat")


async def test_what_makes_no_sense_to_shed(three: dict[str, str]) -> None:
    async with Balancer(evenly(three)) as balancer:
        for skew in (0.99, -1.0, float("nan")):
            with pytest.raises(ValueError, match="a skew is a number from 1"):
                await balancer.shed("chat", skew)
        with pytest.raises(TargetError, match="there is no pool"):
            await balancer.shed("chatt")


async def test_drained_and_light_ones_do_not_count(three: dict[str, str], guests: Guests) -> None:
    given = evenly(three)
    given["pools"]["chat"]["backends"][1]["weight"] = 0
    async with Balancer(given) as balancer:
        guests(balancer, 6)
        assert set(balancer.loads("chat")) == {"app-1", "app-3"}
        assert not balancer.busy("chat")
        await balancer.drain("app-3", **AT_ONCE)
        assert set(balancer.loads("chat")) == {"app-1"}
        assert balancer.busy("chat")


# Diff.


async def test_diff_says_what_a_reload_would_do_to_whom(three: dict[str, str], guests: Guests) -> None:
    given = evenly(three, on_remove="close")
    async with Balancer(given) as balancer:
        there = guests(balancer, 24)
        await active(balancer, app_1=8, app_2=8, app_3=8)
        wanted = copy.deepcopy(given)
        del wanted["pools"]["chat"]["backends"][2]
        diff = await balancer.diff(wanted)
        assert diff.tunnels == {"kept": 0, "drained": 0, "closed": 8}
        (pool,) = diff.pools
        assert [(each.name, each.change, each.tunnels) for each in pool.backends] == [("app-3", "removed", 8)]
        assert "backend chat/app-3 removed" in diff.changes
        # Nothing has happened by asking; and what was said is what happens.
        assert at(there) == dict.fromkeys(three, 8)
        result = await balancer.reload(wanted)
        assert result.changes == diff.changes
        await until(lambda: at(there) == {"app-1": 8, "app-2": 8, None: 8})
        assert (await balancer.diff(wanted)).nothing


async def test_diff_of_a_file_without_its_secrets(three: dict[str, str]) -> None:
    from pybalancer.config.secret import secret_digest

    given = configuration(three)
    async with Balancer(given) as balancer:
        ours = secret_digest(bytes.fromhex(given["balancer"]["secret"]))
        hidden = copy.deepcopy(given)
        hidden["balancer"]["secret"] = "0" * 32
        assert (await balancer.diff_without_secrets(hidden, ours)).nothing
        assert (await balancer.diff_without_secrets(hidden, None)).nothing
        other = await balancer.diff_without_secrets(hidden, secret_digest(bytes(16)))
        assert other.changes == ["secret changed: clients go to other backends than before"]
        assert other.pools[0].moved is not None
        assert other.pools[0].moved > 0.5


async def test_after_its_end_nothing_of_it_is_there(three: dict[str, str]) -> None:
    async with Balancer(evenly(three)) as balancer:
        pass
    calls: list[Callable[[], Any]] = [
        lambda: balancer.drain("app-1"),
        lambda: balancer.undrain("app-1"),
        lambda: balancer.shed("chat"),
        lambda: balancer.recheck("chat", "app-1"),
        lambda: balancer.diff(evenly(three)),
        lambda: balancer.roll("chat", print),
    ]
    for call in calls:
        with pytest.raises(Exception, match="this balancer has ended"):
            await call()


def test_results_are_json() -> None:
    assert DrainResult("chat/app-1", [], ["a"]).to_dict() == {
        "what": "chat/app-1",
        "drains": [],
        "warnings": ["a"],
    }
