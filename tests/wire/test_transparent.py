"""``transparent = true``: backends see the client's own address (IP_TRANSPARENT), between three machines.

The balancer connects in the client's name, so backends must send their answers through it, and it must
take what comes from them for its own, whatever the address: a routing rule for the interface to them.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .namespace import namespace, needs_namespaces
from .net import Server, connect, echo, echoes, payload, proxy, read_all, refused, server, sha, until
from .serving import Serve

pytestmark = needs_namespaces

MB = 1 << 20


class Town:
    """Client, balancer and backend, each on its machine; the balancer's is the backend's gateway."""

    def __init__(self, stack: ExitStack) -> None:
        self.client, self.balancer, self.backend = (stack.enter_context(namespace()) for _ in range(3))
        self.client.join(self.balancer, "client0", "front0")
        self.backend.join(self.balancer, "backend0", "back0")
        self.client.own("client0", "10.1.0.2/24", "10.1.0.3/24", "fd01::2/64")
        self.balancer.own("front0", "10.1.0.1/24", "fd01::1/64")
        self.balancer.own("back0", "10.2.0.1/24", "fd02::1/64")
        self.backend.own("backend0", "10.2.0.2/24", "fd02::2/64")
        self.backend.ip("route add default via 10.2.0.1", "-6 route add default via fd02::1")
        self.balancer.set("ipv4/conf/all/rp_filter", 0)
        self.balancer.set("ipv4/conf/back0/rp_filter", 0)

    def take_answers(self) -> None:
        """What comes from backends is delivered here, whomever it is for."""
        self.balancer.ip(
            "rule add iif back0 lookup 100",
            "route add local 0.0.0.0/0 dev lo table 100",
            "-6 rule add iif back0 lookup 100",
            "-6 route add local ::/0 dev lo table 100",
        )


@pytest.fixture
def town() -> Iterator[Town]:
    with ExitStack() as stack:
        yield Town(stack)


def tell_peer(connection: socket.socket) -> None:
    """Say who came, then echo."""
    connection.sendall(connection.getpeername()[0].encode() + b"\n")
    echo(connection)


def peer_seen(client: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += client.recv(1)
    return line.decode().strip()


FAMILIES = pytest.mark.parametrize(
    ("front", "back", "client", "balancer"),
    [
        ("10.1.0.1:0", "10.2.0.2:0", "10.1.0.2", "10.2.0.1"),
        ("[fd01::1]:0", "[fd02::2]:0", "fd01::2", "fd02::1"),
    ],
    ids=["ipv4", "ipv6"],
)


@FAMILIES
def test_the_backend_sees_the_clients_address(
    town: Town, front: str, back: str, client: str, balancer: str
) -> None:
    with ExitStack() as stack:
        with town.backend.inside():
            backend = stack.enter_context(server(tell_peer, back))
        with town.balancer.inside():
            plain = stack.enter_context(proxy([backend], bind=front))
            transparent = stack.enter_context(proxy([backend], bind=front, pool={"transparent": True}))
        town.take_answers()
        with town.client.inside():
            with connect(plain.address) as tunnel:
                assert peer_seen(tunnel) == balancer
            with connect(transparent.address) as tunnel:
                assert peer_seen(tunnel) == client
                assert echoes(tunnel)
                assert transparent.engine.active() == 1
        assert not transparent.events()


def test_each_client_has_its_own_address_and_every_byte(town: Town) -> None:
    sent = payload(8 * MB)
    with ExitStack() as stack:
        with town.backend.inside():
            backend = stack.enter_context(server(tell_peer, "10.2.0.2:0"))
        with town.balancer.inside():
            balancer = stack.enter_context(
                proxy([backend], bind="10.1.0.1:0", workers=2, pool={"transparent": True})
            )
        town.take_answers()
        with town.client.inside():
            for source in ("10.1.0.2", "10.1.0.3", "10.1.0.2"):
                tunnel = stack.enter_context(connect(balancer.address, source))
                assert peer_seen(tunnel) == source

                def send(tunnel: socket.socket = tunnel) -> None:
                    tunnel.sendall(sent)
                    tunnel.shutdown(socket.SHUT_WR)

                writer = threading.Thread(target=send)
                writer.start()
                assert sha(read_all(tunnel)) == sha(sent)
                writer.join()


def test_without_the_routes_a_connect_runs_into_its_deadline(town: Town) -> None:
    """What the control looks like: answers are not for us, so the connect fails, and is said to have."""
    with ExitStack() as stack:
        with town.backend.inside():
            backend = stack.enter_context(server(tell_peer, "10.2.0.2:0"))
        with town.balancer.inside():
            pool = {"transparent": True, "connect_timeout": 0.3, "tries": 1}
            balancer = stack.enter_context(proxy([backend], bind="10.1.0.1:0", pool=pool))
        with town.client.inside():
            assert refused(balancer.address)
        event = until(lambda: balancer.events("connect-failed"))[0]
        assert "timed out" in (event.message or "")


def test_a_file_may_ask_for_it(town: Town, serve: Serve, tmp_path: Path) -> None:
    with ExitStack() as stack:
        with town.backend.inside():
            backend: Server = stack.enter_context(server(tell_peer, "10.2.0.2:0"))
        town.take_answers()
        file = tmp_path / "pybalancer.toml"
        file.write_text(f"""
listeners = [{{ name = "public", bind = "10.1.0.1:0", pool = "chat" }}]
[pools.chat]
transparent = true
backends = [{{ name = "app", address = "{backend.address}" }}]
""")
        with town.balancer.inside():
            serving = serve(file)
        with town.client.inside(), connect(serving.address) as tunnel:
            assert peer_seen(tunnel) == "10.1.0.2"
            assert echoes(tunnel)


@contextlib.contextmanager
def without_network_rights() -> Iterator[None]:
    """This thread, and those that it starts, without CAP_NET_ADMIN and CAP_NET_RAW (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)
    before = ctypes.create_string_buffer(24)
    assert libc.capget(header, before) == 0
    effective, *others = struct.unpack("=6I", before.raw)
    assert libc.capset(header, struct.pack("=6I", effective & ~(1 << 12 | 1 << 13), *others)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before.raw) == 0


def test_without_the_right_to_it_the_log_says_so(town: Town) -> None:
    """A worker that may not use foreign addresses (no CAP_NET_ADMIN) says that, and refuses fast."""
    with ExitStack() as stack:
        with town.backend.inside():
            backend = stack.enter_context(server(tell_peer, "10.2.0.2:0"))
        with town.balancer.inside(), without_network_rights():
            balancer = stack.enter_context(proxy([backend], bind="10.1.0.1:0", pool={"transparent": True}))
        with town.client.inside():
            assert refused(balancer.address)
        event = until(lambda: balancer.events("source-failed"))[0]
        assert "10.1.0.2: Operation not permitted" in (event.message or "")
        assert not balancer.events("connect-failed")
        assert not balancer.events("ports-exhausted")
