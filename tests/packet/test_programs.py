"""The programs, run by the kernel on the vectors' packets (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybalancer import _core
from tests.wire.namespace import Namespace

FILE = json.loads((Path(__file__).parents[1] / "vectors" / "packet.json").read_text())
WORLD, PACKETS = FILE["world"], FILE["packets"]
SHORTEST = 14
"""The kernel runs programs on whole Ethernet headers only."""


def host(role: str, me: int) -> _core.PacketPath:
    """The vectors' host, in a namespace with its interfaces."""
    secret, size = bytes.fromhex(WORLD["secret"]), WORLD["size"]
    path = _core.PacketPath(role, secret=secret, size=size)  # type: ignore[arg-type]
    for way in WORLD["backends"]:
        path.set_backend(
            way["id"],
            address=way["address"],
            mac=bytes.fromhex(way["mac"]) if way["mac"] else None,
            interface=way["interface"],
            encapsulate=way["source"] is not None,
            source=way["source"],
        )
    for number, service in enumerate(WORLD["services"]):
        generations = [[(name, weight, id) for name, weight, id in one] for one in service["generations"]]
        rows = _core.PacketRows(generations, secret=secret, size=size)
        path.set_service(
            number, service["address"], service["port"], service["protocol"], rows, mtu=WORLD["mtu"]
        )
    if role == "agent":
        path.set_me(me)
    path.attach("here")
    return path


@pytest.fixture(params=sorted({(packet["role"], packet["me"]) for packet in PACKETS}), ids=str)
def role(request: pytest.FixtureRequest, place: Namespace) -> Iterator[tuple[_core.PacketPath, str, int]]:
    name, me = request.param
    with place.inside():
        path = host(name, me)
        try:
            yield path, name, me
        finally:
            path.close(keep=False)


def test_the_kernel_does_what_the_vectors_say(role: tuple[_core.PacketPath, str, int]) -> None:
    path, name, me = role
    wrong, run = [], 0
    before = path.counters()
    for packet in PACKETS:
        data = bytes.fromhex(packet["packet"])
        if (packet["role"], packet["me"]) != (name, me) or len(data) < SHORTEST:
            continue
        run += 1
        verdict, after, _ = path.test_run(data, interface="here")
        now = path.counters()
        reasons = [reason for reason in now if now[reason] != before[reason]]
        before = now
        expected = data if packet["after"] is None else bytes.fromhex(packet["after"])
        said = (verdict, reasons, after.hex())
        if said != (packet["verdict"], [packet["reason"]], expected.hex()):
            wrong.append(f"{packet['name']}: {said}, not {packet}")
    assert wrong == []
    assert run >= 60


def test_counts_are_of_backends_and_services(place: Namespace) -> None:
    with place.inside():
        path = host("director", 0)
        try:
            chosen = {8001: (1, False), 8003: (3, False)}
            for packet in PACKETS:
                flow = packet["flow"]
                if packet["role"] == "director" and packet["verdict"] == "tx" and flow and flow[3] in chosen:
                    path.test_run(bytes.fromhex(packet["packet"]), interface="here")
            for port, (backend, _) in chosen.items():
                taken = [
                    packet
                    for packet in PACKETS
                    if packet["role"] == "director" and packet["verdict"] == "tx" and packet["flow"]
                    and packet["flow"][3] == port
                ]  # fmt: skip
                counted = path.backend_counters(backend)
                assert counted["packets"] == len(taken)
                assert counted["bytes"] == sum(len(packet["packet"]) // 2 for packet in taken)
                assert counted["flows"] == sum(" S to" in packet["name"] for packet in taken) > 0
                assert counted["second_hops"] == 0
                numbers = [number for number, key in path.services().items() if key[1] == port]
                of_services = [path.service_counters(number) for number in numbers]
                assert sum(one["packets"] for one in of_services) == len(taken)
                errors = sum(packet["reason"] == "forwarded_error" for packet in taken)
                assert sum(one["errors"] for one in of_services) == errors > 0
            path.drop_backend(1)
            assert path.backend_counters(1)["packets"] == 0
        finally:
            path.close(keep=False)


def test_the_kernel_has_the_rows_of_the_vectors(place: Namespace) -> None:
    """What ``explain`` asks is what decides."""
    with place.inside():
        path = host("director", 0)
        try:
            services = {(address, port, proto): n for n, (address, port, proto) in path.services().items()}
            assert len(services) == len(WORLD["services"])
            for packet in PACKETS:
                if packet["role"] != "director" or packet["verdict"] != "redirect":
                    continue
                client, port, address, service, protocol = packet["flow"]
                number = services[address, service, {6: "tcp", 17: "udp"}[protocol]]
                _, row = path.slot(number, client, port)
                mac = bytes.fromhex(packet["after"])[:6].hex()
                assert [way["mac"] for way in WORLD["backends"] if way["id"] == row[0]] == [mac]
        finally:
            path.close(keep=False)
