"""What operators do to packet mode, and what they are told."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pybalancer.admin.client import Refused
from tests.wire.namespace import namespace, needs_namespaces
from tests.wire.net import PATIENCE, until
from tests.wire.serving import environment_in

from .conftest import Start
from .fleet import Fleet, Plan
from .topology import VIP, VIP6, site

pytestmark = needs_namespaces

PR_CAPBSET_DROP, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 24, 12, 21, 38, 39


def test_a_backend_is_drained_and_taken_back_by_command(start: Start) -> None:
    _, fleet, talking = start(directors=2, backends=3)
    talking.open(VIP, 60)
    talking.open(VIP6, 60)
    digest = fleet.directors["d1"].packet()["services"][0]["digest"]
    for serving in fleet.directors.values():
        done = serving.ask("drain", "b1", "--json")
        assert done.returncode == 0, done.stderr
        assert "end when they end" in json.loads(done.stdout)["warnings"][0]
    assert talking.lost(talking.conversations) == []
    new = talking.open(VIP, 40)
    assert "b1" not in {one.server for one in new}
    digests = {serving.ask("table", "--digest").stdout for serving in fleet.directors.values()}
    assert len(digests) == 1
    assert digest not in digests.pop()
    compared = compare(fleet)
    assert (compared.returncode, compared.stdout.count("the same")) == (0, 1), compared.stderr
    # What began meanwhile is found by the backend that takes over its slots, though nobody has told it.
    for serving in fleet.directors.values():
        done = serving.ask("undrain", "b1")
        assert done.returncode == 0, done.stderr
        compared = compare(fleet)
        last = serving is fleet.directors["d2"]
        assert compared.returncode == (0 if last else 1)
        assert ("secret, weights or health differ" in compared.stdout) != last
    assert talking.lost(talking.conversations) == []
    assert "b1" in {one.server for one in talking.open(VIP, 40)}
    assert fleet.directors["d1"].packet()["services"][0]["digest"] == digest
    of_file = fleet.directors["d1"].ask("table", fleet.directors["d1"].file, "--digest")
    assert of_file.stdout.split()[0] == digest


def compare(fleet: Fleet) -> subprocess.CompletedProcess[str]:
    """The tables of two directors."""
    one, two = fleet.directors["d1"], fleet.directors["d2"]
    return one.ask("table", "--digest", "--compare", f"unix:{two.folder / 'run' / 'admin.sock'}")


def test_explain_status_and_metrics_tell_of_packets(start: Start) -> None:
    _, fleet, talking = start(directors=1, backends=3)
    opened = talking.open(VIP, 20) + talking.open(VIP6, 20)
    director = fleet.directors["d1"]
    for one in opened:
        listener = "vip6" if one.source.count(":") > 1 else "vip"
        said = director.client.get("/explain", source=one.source, listener=listener)
        assert said["backend"] == one.server
        assert said["packet"]["listener"] == listener
        assert 0 <= said["packet"]["slot"] < 65537
    shown = director.ask("explain", opened[0].source)
    assert f"→ {opened[0].server}" in shown.stdout
    status = director.ask("status")
    assert "packet mode · director · eth0 (native) · forward by l2" in status.stdout
    until(lambda: director.packet()["services"][0]["packets_per_second"] > 0, "packets per second")
    packet = director.packet()
    # A SYN that is repeated counts again.
    assert sum(one["flows"] for one in packet["machines"]) >= len(opened)
    assert packet["reasons"]["forwarded"] >= sum(one["flows"] for one in packet["services"])
    with director.machine.space.inside():
        metrics = subprocess.run(
            [
                "curl",
                "-s",
                "--unix-socket",
                str(director.folder / "run" / "admin.sock"),
                "http://localhost/metrics",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    flows = re.search(r'pybalancer_packet_flows_total\{listener="vip"\} ([0-9.]+)', metrics)
    assert flows is not None
    assert float(flows[1]) >= 20
    assert 'pybalancer_packet_machine_reachable{machine="10.0.0.11"} 1.0' in metrics


@pytest.mark.parametrize("engine", ["xdp", "nftables"])
def test_clients_are_found_as_servers_have_them_in_their_logs(start: Start, engine: str) -> None:
    _, fleet, talking = start(directors=1, backends=3, engine=engine)
    director = fleet.directors["d1"]
    for one in talking.open(VIP, 20):
        address, _, port = one.source.rpartition(":")
        for options in ({}, {"listener": "vip"}):
            said = director.client.get("/explain", source=f"[::ffff:{address}]:{port}", **options)
            assert (said["backend"], said["packet"]["listener"]) == (one.server, "vip")
    with pytest.raises(Refused, match=f"no packet for {VIP} .* comes from fd00::2"):
        director.client.get("/explain", source="[fd00::2]:5000", listener="vip")


def test_a_neighbour_that_does_not_answer_is_shown(start: Start) -> None:
    _, fleet, _ = start(directors=1, backends=2, present=2)
    director = fleet.directors["d1"]
    fleet.agents["b2"].machine.off()
    # ARP entries go stale when nobody confirms them: the kernel is told to forget.
    director.machine.space.ip("neigh flush dev eth0")
    director.line(r"packets: 10\.0\.0\.12: 10\.0\.0\.12 does not answer on eth0")
    problems = {one["address"]: one["problem"] for one in director.packet()["machines"]}
    assert problems["10.0.0.11"] == ""
    assert "does not answer" in problems["10.0.0.12"]
    assert not any("10.0.0.11: " in line for line in director.lines)
    fleet.agents["b2"].machine.on()
    director.line(r"packets: 10\.0\.0\.12: it works again")


def without(*capabilities: int) -> None:
    """Of the process that is about to be started."""
    libc = ctypes.CDLL(None)
    for capability in capabilities:
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        ([CAP_BPF, CAP_SYS_ADMIN], "CAP_BPF is missing"),
        ([CAP_PERFMON, CAP_SYS_ADMIN], "CAP_PERFMON is missing"),
        ([CAP_NET_ADMIN], "CAP_NET_ADMIN is missing"),
    ],
)
def test_what_is_not_permitted_is_said(capabilities: list[int], said: str, tmp_path: Path) -> None:
    with site(directors=1, backends=1) as made:
        file = tmp_path / "pybalancer.toml"
        file.write_text(Plan(backends=made.backends).text())
        with made.directors[0].space.inside():
            done = subprocess.run(
                [sys.executable, "-m", "pybalancer", "serve", str(file)],
                env=environment_in(tmp_path),
                preexec_fn=partial(without, *capabilities),
                capture_output=True,
                text=True,
                check=False,
            )
    assert done.returncode == 3
    assert said in done.stderr
    assert 'engine = "nftables"' in done.stderr


def test_an_interface_that_is_not_there_is_said(tmp_path: Path) -> None:
    with site(directors=1, backends=1) as made, namespace() as alone:
        file = tmp_path / "pybalancer.toml"
        file.write_text(Plan(backends=made.backends).text())
        with alone.inside():
            done = subprocess.run(
                [sys.executable, "-m", "pybalancer", "serve", str(file)],
                env=environment_in(tmp_path),
                capture_output=True,
                text=True,
                check=False,
            )
    assert done.returncode == 3
    assert 'interface "eth0"' in done.stderr
    assert "nftables" not in done.stderr


@pytest.mark.parametrize("engine", ["xdp", "nftables"])
def test_another_name_of_an_interface_is_said(tmp_path: Path, engine: str) -> None:
    """The kernel takes it where it is asked for the interface's number, and nowhere else."""
    with site(directors=1, backends=1) as made:
        file = tmp_path / "pybalancer.toml"
        file.write_text(Plan(backends=made.backends, interfaces=("enp3s0",), engine=engine).text())
        made.directors[0].space.ip("link property add dev eth0 altname enp3s0")
        with made.directors[0].space.inside():
            done = subprocess.run(
                [sys.executable, "-m", "pybalancer", "serve", str(file)],
                env=environment_in(tmp_path),
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
    assert done.returncode == 3
    assert 'interface "enp3s0" is called "eth0": write that' in done.stderr


def test_a_machine_that_is_no_backend_is_said(tmp_path: Path) -> None:
    with site(directors=1, backends=1) as made:
        file = tmp_path / "pybalancer.toml"
        file.write_text(Plan(backends=made.backends).text())
        with made.directors[0].space.inside():
            done = subprocess.run(
                [sys.executable, "-m", "pybalancer", "serve", str(file)],
                env={**environment_in(tmp_path), "PYBALANCER_PACKET_ROLE": "backend"},
                capture_output=True,
                text=True,
                check=False,
            )
    assert done.returncode == 3
    assert "an address of this machine (10.0.0.1, fd00::1)" in done.stderr
