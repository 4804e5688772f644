"""From a configuration to services, and which machine this is."""

from __future__ import annotations

import pytest

from pybalancer.config.load import load_mapping
from pybalancer.config.model import Config
from pybalancer.errors import PybalancerError
from pybalancer.packet.generations import History, Member, generation
from pybalancer.packet.services import digest_of, find_me, services

SECRET = bytes(range(16))


def config(*weights: int, **packet: object) -> Config:
    backends = [
        {"name": f"app-{number}", "address": f"10.0.0.{number}:443", "weight": weight}
        for number, weight in enumerate(weights, 1)
    ]
    vip = {"mode": "packet", "pool": "chat"}
    return load_mapping(
        {
            "balancer": {"secret": SECRET.hex()},
            "listeners": [
                {"name": "vip", "bind": "203.0.113.10:443", **vip},
                {"name": "datagrams", "bind": "203.0.113.10:443", "protocol": "udp", **vip},
                {"name": "public", "bind": ":8080", "pool": "other"},
            ],
            "packet": {"interfaces": ["eth0"], **packet},
            "pools": {
                "chat": {"backends": backends},
                "other": {"backends": [{"name": "app-1", "address": "10.0.0.1:80"}]},
            },
        }
    )


def found(given: Config, takes: set[tuple[str, str]]) -> list[tuple[str, list[str], int, bool]]:
    addresses = {
        (pool, one.name): one.address for pool, section in given.pools.items() for one in section.backends
    }
    return [
        (one.name, [member.name for member in one.newest], len(one.all), one.checked)
        for one in services(given, addresses, takes)
    ]


def test_services_are_listeners_of_mode_packet_with_those_that_take_new_flows() -> None:
    given = config(1, 0, 1)
    everyone = {("chat", f"app-{number}") for number in (1, 2, 3)}
    assert found(given, everyone) == [
        ("vip", ["app-1", "app-3"], 3, True),
        ("datagrams", ["app-1", "app-3"], 3, False),
    ]
    assert found(given, {("chat", "app-3"), ("other", "app-1")})[0] == ("vip", ["app-3"], 3, True)


def test_the_digest_of_a_file_knows_who_takes_new_flows() -> None:
    assert digest_of(config(1, 1, 0), "chat", SECRET) == digest_of(config(1, 1), "chat", SECRET)
    assert digest_of(config(1, 1), "chat", SECRET) != digest_of(config(1, 2), "chat", SECRET)
    by_rules = digest_of(config(1, 1, engine="nftables"), "chat", SECRET)
    assert by_rules != digest_of(config(1, 1), "chat", SECRET)


def test_a_backend_finds_itself_by_its_address_or_its_name() -> None:
    given = config(1, 1)
    addresses = {("chat", "app-1"): "10.0.0.1:443", ("chat", "app-2"): "10.0.0.2:443"}
    met = services(given, addresses, set())
    assert find_me(None, met, (), {"192.0.2.1", "10.0.0.2"}) == "10.0.0.2"
    assert find_me("app-1", met, (), {"192.0.2.1"}) == "10.0.0.1"
    # One that is not in the file any more still has connections.
    before = History((generation([Member("app-9", 1, "10.0.0.9")]),))
    assert find_me(None, met, [before], {"10.0.0.9"}) == "10.0.0.9"
    assert find_me("app-9", met, [before], set()) == "10.0.0.9"
    with pytest.raises(PybalancerError, match=r"an address of this machine \(192\.0\.2\.1\)"):
        find_me(None, met, (), {"192.0.2.1", "fe80::1"})
    with pytest.raises(PybalancerError, match=r"has the addresses of backends: 10\.0\.0\.1, 10\.0\.0\.2"):
        find_me(None, met, (), {"10.0.0.1", "10.0.0.2"})
    with pytest.raises(PybalancerError, match="no backend is named 'app-7'"):
        find_me("app-7", met, (), {"10.0.0.1"})
