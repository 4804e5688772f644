"""What the kernel refused once is tried again: packets must not go on to a backend that is down."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from pybalancer import Balancer, StartError, _core
from pybalancer.config.load import load_mapping
from pybalancer.config.model import Config
from pybalancer.packet.arrangement import Arrangement
from pybalancer.packet.control import PacketControl
from pybalancer.packet.running import Running, close
from pybalancer.packet.state import State, load

from ..wire.balancing import configuration, until
from ..wire.net import server


async def test_a_change_of_health_that_packets_did_not_follow_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with server() as stays:
        with server() as goes:
            backends = {"app-1": stays.address, "app-2": goes.address}
            health = {"kind": "tcp", "interval": "50ms", "timeout": "1s", "rise": 1, "fall": 1}
            balancer = Balancer(configuration(backends, health=health), admin=False)
            await balancer.__aenter__()
        asked: list[set[str]] = []

        async def apply(
            _config: Any, _addresses: Any, takers: Collection[tuple[str, str]], _secret: bytes
        ) -> None:
            asked.append({name for _, name in takers})
            if len(asked) == 1:
                raise StartError("no buffer space available")

        try:
            monkeypatch.setattr("pybalancer.config.packet.pools", lambda _config: {"chat"})
            monkeypatch.setattr(balancer._packet, "apply", apply)
            balancer._packets_wanted = True
            await until(lambda: asked[1:], "a second try")
            assert asked[:2] == [{"app-1"}, {"app-1"}]
        finally:
            balancer._packets_wanted = False
            await balancer.__aexit__(None, None, None)


async def test_what_cannot_even_be_as_before_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another engine failed, and then the one before could not be set up again: packets are nobody's."""
    with server() as one:
        given = configuration({"app-1": one.address})
        async with Balancer(given, admin=False) as balancer:
            asked: list[int] = []

            async def apply(config: Any, *_given: Any) -> None:
                asked.append(len(config.pools["chat"].backends))
                if len(asked) <= 2:
                    raise StartError("no buffer space available")

            monkeypatch.setattr("pybalancer.plans.RETRY", 0.01)
            monkeypatch.setattr(
                "pybalancer.plans.packet", SimpleNamespace(listeners=lambda _config: ("vip",))
            )
            monkeypatch.setattr(balancer._packet, "apply", apply)
            balancer._packets_wanted = True
            with pytest.raises(StartError, match="no buffer space"):
                await balancer.reload(configuration({"app-1": one.address, "app-2": one.address}))
            await until(lambda: len(asked) == 3, "a second try")
            assert asked == [2, 1, 1], "of the configuration that is in force"
            balancer._packets_wanted = False


def config() -> Config:
    return load_mapping(
        {
            "listeners": [{"name": "vip", "mode": "packet", "bind": "203.0.113.10:443", "pool": "chat"}],
            "packet": {"interfaces": ["eth0"]},
            "pools": {"chat": {"backends": [{"name": "app-1", "address": "10.0.0.1:443"}]}},
        }
    )


def addresses() -> dict[tuple[str, str], str]:
    return {("chat", "app-1"): "10.0.0.1:443"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NetlinkError(105, "No buffer space available"), "packets are not forwarded: NetlinkError"),
        (OSError(28, "No space left on device"), "packets are not forwarded: No space left on device"),
        (
            OSError(30, "Read-only file system", "/proc/sys/net/ipv4/conf/all/arp_ignore"),
            "packets are not forwarded: /proc/sys/net/ipv4/conf/all/arp_ignore: Read-only file system",
        ),
        (_core.PacketError("a map is full"), "packets are not forwarded: a map is full"),
    ],
)
async def test_who_asks_for_a_change_is_told_whatever_goes_wrong(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def start(*_given: Any) -> None:
        raise error

    monkeypatch.setattr("pybalancer.packet.control.start", start)
    with pytest.raises(StartError, match=said):
        await PacketControl().apply(config(), addresses(), (), bytes(16))


def test_nothing_is_settled_while_another_process_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    arranged, control = [], PacketControl()
    running: Any = SimpleNamespace(settled=False, arrangement="what is to be")
    monkeypatch.setattr("pybalancer.packet.control.arrange", lambda *given: arranged.append(given))
    control.still = True
    control._settle(running)
    assert arranged == []
    control.still = False
    control._settle(running)
    assert arranged == [(running, "what is to be")]


def test_one_trouble_does_not_keep_a_look_from_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looked, control = [], PacketControl()

    def trouble(_running: Any) -> None:
        raise NetlinkError(105, "No buffer space available")

    for name in ("follow_links", "set_ways", "look_at_vips", "look_at_tags", "save_late"):
        monkeypatch.setattr(f"pybalancer.packet.control.{name}", looked.append)
    monkeypatch.setattr("pybalancer.packet.control.follow_hops", trouble)
    for name in ("_settle", "_count", "_tell_problems"):
        monkeypatch.setattr(control, name, looked.append)
    for _ in range(2):
        control._look("running")  # type: ignore[arg-type]
    assert looked == ["running"] * 16
    assert [one.getMessage() for one in caplog.records] == [
        "packets: NetlinkError(105, 'No buffer space available')"
    ]


def test_what_cannot_be_removed_does_not_keep_the_rest_from_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Else a process that ends leaves the service's addresses behind."""
    removed: list[str] = []

    class Forwarder:
        def close(self, *, keep: bool) -> None:
            raise _core.PacketError("nft has not ended within 30 s")

    def refuse() -> None:
        raise NetlinkError(2, "No such file or directory")

    monkeypatch.setattr("pybalancer.packet.running.Ways.clean", staticmethod(refuse))
    monkeypatch.setattr("pybalancer.packet.running.vip.remove", removed.extend)
    arrangement = Arrangement.of(config().packet, (), None, {})
    ending = Running(
        Forwarder(),
        arrangement,
        bytes(16),
        65537,
        tmp_path,
        State(added=("203.0.113.10",)),  # type: ignore[arg-type]
    )
    close(ending, False)
    assert removed == ["203.0.113.10"]
    assert load(tmp_path).added == ()
    assert [one.getMessage() for one in caplog.records] == [
        "packets: not all is cleaned up: nft has not ended within 30 s",
        "packets: not all is cleaned up: (2, 'No such file or directory')",
    ]
