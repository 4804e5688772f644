"""How an engine starts in a host that lacks something: standard streams, room for files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from .hosts import ROOT, Host
from .net import PATIENCE

WITHOUT_STREAMS = """
import json, os, select, sys, traceback
said = int(sys.argv[1])
try:
    from pybalancer._core import probe
    from tests.wire.net import proxy, served, server, until
    with server() as backend, proxy([backend], workers=2) as balancer:
        engine = balancer.engine
        told = {"event_fd": engine.event_fd, "stats_fd": engine.stats_fd, "served": served(balancer.address)}
        probe.panic_worker(engine, 0)
        kinds, woken = [], 0
        while "worker-restarted" not in kinds and select.select([engine.event_fd], [], [], 10)[0]:
            woken += 1
            kinds += [event.kind for event in engine.take_events()]
        told |= {"woken": woken > 0, "kinds": kinds}
except BaseException:
    told = {"error": traceback.format_exc()}
os.write(said, json.dumps(told).encode())
"""


@pytest.fixture(scope="module")
def without_streams() -> dict[str, Any]:
    """What an engine in a program with closed standard streams tells: everything that it opens gets the
    lowest free number."""
    reading, writing = os.pipe()
    with open(reading, "rb") as told:
        try:
            closing = 'exec "$@" <&- >&- 2>&-'
            program = [sys.executable, "-c", WITHOUT_STREAMS, str(writing)]
            subprocess.run(
                ["sh", "-c", closing, "sh", *program],
                cwd=ROOT,
                pass_fds=[writing],
                timeout=PATIENCE,
                check=True,
            )
        finally:
            os.close(writing)
        found: dict[str, Any] = json.loads(told.read())
        return found


def test_without_standard_streams_it_serves_and_wakes_its_host(without_streams: dict[str, Any]) -> None:
    assert without_streams.get("served"), without_streams
    assert without_streams["event_fd"] > 2
    assert without_streams["woken"]
    assert without_streams["kinds"] == ["worker-died", "worker-restarted"]


def test_without_standard_streams_the_statistics_take_no_streams_place(
    without_streams: dict[str, Any],
) -> None:
    assert without_streams["stats_fd"] > 2


def test_workers_that_there_is_no_room_for_are_not_waited_for() -> None:
    source = """
    import resource
    from pybalancer._core import Engine
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    began = time.monotonic()
    try:
        Engine(workers=64)
    except OSError as error:
        say(error.errno, time.monotonic() - began < 5.0)
    until(lambda: not left())
    say("none left")
    """
    with Host(source) as host:
        assert host.line() == "24 True"
        assert host.line() == "none left"
        assert host.wait() == 0
