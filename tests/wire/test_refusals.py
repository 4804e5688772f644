"""Who is turned away, how fast, and that nobody else notices."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import Any

import pytest

from pybalancer._core import EngineError, PlanError

from .net import Server, connect, payload, proxy, read_all, read_exactly, refused, reset, server, until

V2 = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return V2 + bytes([command, family]) + struct.pack("!H", len(body)) + body


def works(address: str, **options: Any) -> bool:
    with connect(address, **options) as client:
        client.sendall(b"ping")
        return read_exactly(client, 4) == b"ping"


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET", v2(0x20, 0, b""), V2])
def test_64_a_proxy_header_nobody_expects(header: bytes) -> None:
    with server() as backend, proxy([backend]) as balancer:
        assert refused(balancer.address, header)
        assert until(balancer.reasons) == ["proxy-unexpected"]
        # What only begins like one passes, whole or in pieces.
        for text in (b"PROXIMA", b"\r\n\r\n\0\r\nQUIX"):
            with connect(balancer.address) as client:
                for byte in text:
                    client.sendall(bytes([byte]))
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == text


def test_64_first_bytes_that_never_get_clear_are_let_through() -> None:
    with server() as backend, proxy([backend], listener={"proxy_timeout": 0.2}) as balancer:
        with connect(balancer.address) as client:
            client.sendall(b"PROX")
            assert read_exactly(client, 4) == b"PROX"


def trusting(**more: Any) -> dict[str, Any]:
    return {"accept_proxy": "any", "trusted": ["127.0.0.1"], **more}


def test_65_local_without_address_and_lying_lengths() -> None:
    bad = [
        v2(0x21, 0x11, bytes(12) + b"\x04\xff\xff\0"),
        v2(0x21, 0x11, bytes(3)),
        v2(0x21, 0x77, bytes(12)),
        V2 + b"\x21\x11\xff\xff" + bytes(5000),
        b"PROXY TCP4 1.2.3.4\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ]
    with server() as backend, proxy([backend], listener=trusting()) as balancer:
        assert refused(balancer.address, v2(0x20, 0x00, b""))
        for header in bad:
            assert refused(balancer.address, header), header
        reasons = until(lambda: len(balancer.reasons()) == 1 + len(bad) and balancer.reasons())
        assert reasons == ["proxy-local"] + ["proxy-invalid"] * len(bad)
        assert backend.served == 0


def test_65_local_may_be_served() -> None:
    with server() as backend, proxy([backend], listener=trusting(proxy_local="serve")) as balancer:
        with connect(balancer.address) as client:
            client.sendall(v2(0x20, 0x00, b"") + b"ping")
            assert read_exactly(client, 4) == b"ping"


@pytest.mark.parametrize("split", [1, 5, 1000])
def test_a_proxy_header_names_the_client(split: int) -> None:
    header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n"
    with server() as backend, proxy([backend], listener=trusting(), pool={"send_proxy": "v2"}) as balancer:
        with connect(balancer.address) as client:
            for at in range(0, len(header), split):
                client.sendall(header[at : at + split])
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            addresses = socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1")
            assert read_all(client) == v2(0x21, 0x11, addresses + struct.pack("!HH", 4711, 80)) + b"hello"
        line = until(balancer.log)[0]
        assert line["client"] == "192.0.2.7:4711"
        assert line["proxied_by"].startswith("127.0.0.1:")


def test_a_proxy_header_is_sent_as_v1() -> None:
    with server() as backend, proxy([backend], pool={"send_proxy": "v1"}) as balancer:
        with connect(balancer.address) as client:
            client.shutdown(socket.SHUT_WR)
            port, front = client.getsockname()[1], balancer.address.rpartition(":")[2]
            assert read_all(client) == f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {front}\r\n".encode()


def test_an_untrusted_header_is_refused_and_a_plain_client_served() -> None:
    listener = {"accept_proxy": "any", "trusted": ["10.0.0.0/8"]}
    with server() as backend, proxy([backend], listener=listener) as balancer:
        assert refused(balancer.address, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        assert until(balancer.reasons) == ["proxy-untrusted"]
        assert works(balancer.address)


def test_a_header_that_does_not_come() -> None:
    with server() as backend, proxy([backend], listener=trusting(proxy_timeout=0.2)) as balancer:
        assert refused(balancer.address, b"PROXY TCP4")
        assert until(balancer.reasons) == ["proxy-timeout"]


def test_max_connections_refuses_fast_and_recovers() -> None:
    with server() as backend, proxy([backend], workers=2, listener={"max_connections": 5}) as balancer:
        held = [connect(balancer.address) for _ in range(5)]
        for client in held:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert all(refused(balancer.address) for _ in range(10))
        assert until(lambda: len(balancer.reasons()) == 10 and balancer.reasons()) == ["listener-full"] * 10
        held.pop().close()
        until(lambda: balancer.engine.active() == 4)
        assert works(balancer.address)


def test_max_connections_per_source() -> None:
    with server() as backend, proxy([backend], listener={"max_connections_per_source": 2}) as balancer:
        held = [connect(balancer.address) for _ in range(2)]
        until(lambda: balancer.engine.active() == 2)
        assert refused(balancer.address)
        assert works(balancer.address, source="127.0.0.9")
        held.pop().close()
        until(lambda: balancer.engine.active() == 1)
        assert works(balancer.address)


def test_max_connections_per_source_counts_announced_clients() -> None:
    listener = trusting(max_connections_per_source=1)

    def announce(address: str, host: str) -> socket.socket:
        client = connect(address)
        client.sendall(f"PROXY TCP4 {host} 192.0.2.2 1 2\r\nx".encode())
        return client

    with server() as backend, proxy([backend], listener=listener) as balancer:
        first = announce(balancer.address, "192.0.2.50")
        assert first.recv(1) == b"x"
        assert announce(balancer.address, "192.0.2.51").recv(1) == b"x"
        with pytest.raises(ConnectionResetError):
            announce(balancer.address, "192.0.2.50").recv(1)
        assert "source-full" in until(balancer.reasons)


def test_the_accept_rate_has_a_burst_a_queue_and_an_end() -> None:
    listener = {"accept_rate": 5.0, "accept_burst": 2, "accept_queue": 3, "queue_timeout": 10.0}
    with server() as backend, proxy([backend], listener=listener) as balancer:
        started = time.monotonic()
        answers: list[bytes] = []

        def ask() -> None:
            try:
                with connect(balancer.address) as client:
                    client.sendall(b"x")
                    answers.append(client.recv(1))
            except ConnectionError:
                answers.append(b"")

        clients = [threading.Thread(target=ask) for _ in range(7)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        # Two at once, three in turn, two too many.
        assert answers.count(b"x") == 5
        assert time.monotonic() - started > 0.5
        refusals = until(lambda: len(balancer.reasons()) == 7 and balancer.reasons())
        assert refusals.count("rate-limited") == 2


def test_a_place_in_the_queue_expires() -> None:
    listener = {"accept_rate": 0.01, "accept_burst": 1, "accept_queue": 5, "queue_timeout": 0.2}
    with server() as backend, proxy([backend], listener=listener) as balancer:
        assert works(balancer.address)
        assert refused(balancer.address)
        assert "rate-limited" in until(balancer.reasons)


def test_no_backend_is_a_fast_refusal() -> None:
    with server() as backend, proxy([backend]) as balancer:
        balancer.apply(b0="down")
        assert refused(balancer.address)
        assert until(balancer.reasons) == ["no-backend"]
        balancer.apply()
        assert works(balancer.address)


def test_dead_backends_are_tried_in_turn_and_then_given_up() -> None:
    dead = [Server() for _ in range(5)]
    for backend in dead:
        backend.close()
    with proxy([backend.address for backend in dead], pool={"tries": 3}) as balancer:
        assert refused(balancer.address)
        line = until(balancer.log)[0]
        assert (line["reason"], line["tries"]) == ("connect-failed", 3)


def test_a_connect_that_hangs_has_a_deadline() -> None:
    # A full accept queue drops SYNs: the connect neither succeeds nor fails.
    stuck = socket.create_server(("127.0.0.1", 0), backlog=0)
    address = f"127.0.0.1:{stuck.getsockname()[1]}"
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(stuck.getsockname())
        fillers.append(filler)
    with server() as backend, proxy([address, backend], pool={"connect_timeout": 0.3}) as balancer:
        for _ in range(8):
            assert works(balancer.address)
        events = until(lambda: balancer.events("connect-failed"))
        assert "timed out" in (events[0].message or "")
    for filler in fillers:
        filler.close()
    stuck.close()


def test_draining_takes_nothing_new_and_keeps_what_it_has() -> None:
    with server() as one, server() as two, proxy([one, two]) as balancer:
        clients = [connect(balancer.address) for _ in range(20)]
        until(lambda: one.served + two.served == 20)
        before = one.served
        balancer.apply(b0="draining")
        for _ in range(20):
            assert works(balancer.address)
        assert one.served == before
        for client in clients:
            client.sendall(b"still")
            assert read_exactly(client, 5) == b"still"


@pytest.mark.parametrize("on_down", ["keep", "close"])
def test_live_tunnels_of_a_backend_that_goes_down(on_down: str) -> None:
    with server() as backend, server() as other:
        with proxy([backend, other], pool={"on_down": on_down}) as balancer:
            clients = [connect(balancer.address) for _ in range(12)]
            until(lambda: backend.served + other.served == 12)
            balancer.apply(b0="down")
            lost = 0
            for client in clients:
                try:
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
                except ConnectionError:
                    lost += 1
            assert lost == (backend.served if on_down == "close" else 0)
            assert balancer.reasons() == ["backend-down"] * lost


def test_live_tunnels_of_a_removed_backend() -> None:
    with server() as backend, server() as other:
        with proxy([backend, other], pool={"on_remove": "close"}) as balancer:
            clients = [connect(balancer.address) for _ in range(12)]
            until(lambda: backend.served + other.served == 12)
            # Names go by place: the second server is b0 now, under a new address; b1 is gone.
            balancer.backends = [other]
            balancer.apply()
            reasons = until(lambda: len(balancer.reasons()) == 12 and balancer.reasons())
            assert set(reasons) == {"backend-removed"}
            for client in clients:
                client.close()
            assert works(balancer.address)


def test_84_source_ports_chosen_by_the_client_do_not_aim() -> None:
    """Without the secret, a fixed pattern of ports spreads as anything else does."""
    backends = [Server() for _ in range(4)]
    with proxy(backends) as balancer:
        clients = []
        base = 0
        for step in range(400):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.settimeout(10)
            # An arithmetic progression outside the ephemeral range, skipping what is taken.
            while True:
                try:
                    client.bind(("127.0.0.77", 1024 + (4 * step + base) % 31000))
                    break
                except OSError:
                    base += 1
            host, port = balancer.address.split(":")
            client.connect((host, int(port)))
            clients.append(client)
        until(lambda: sum(backend.served for backend in backends) == 400)
        # 100 each on average; five standard deviations are 43.
        assert all(57 <= backend.served <= 143 for backend in backends)
        for client in clients:
            reset(client)


def test_policies_share_in_their_way() -> None:
    backends = [Server() for _ in range(3)]
    for policy, bound in (("round-robin", 0), ("least-connections", 0), ("random-two", 12)):
        before = [backend.served for backend in backends]
        with proxy(backends, pool={"policy": policy}) as balancer:
            clients = []
            for _ in range(60):
                client = connect(balancer.address)
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                clients.append(client)
            counts = [now.served - then for now, then in zip(backends, before, strict=True)]
            assert max(counts) - min(counts) <= bound, (policy, counts)


def test_max_skew_passes_the_surplus_on() -> None:
    backends = [Server() for _ in range(3)]
    with proxy(backends, pool={"max_skew": 1.1, "key": "source-ip"}) as balancer:
        # One key: without the bound all would go to one backend.
        clients = [connect(balancer.address) for _ in range(60)]
        until(lambda: sum(backend.served for backend in backends) == 60)
        assert max(backend.served for backend in backends) <= 23
        assert len(clients) == 60


def test_least_connections_counts_survive_a_reload() -> None:
    one, two = Server(), Server()
    with proxy([one], pool={"policy": "least-connections"}) as balancer:
        held = [connect(balancer.address) for _ in range(10)]
        until(lambda: one.served == 10)
        balancer.backends = [one, two]
        balancer.apply()
        held += [connect(balancer.address) for _ in range(10)]
        until(lambda: one.served + two.served == 20)
        assert (one.served, two.served) == (10, 10)


def test_an_address_in_use_is_said_and_changes_nothing() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with server() as backend, proxy([backend]) as balancer:
        good = balancer.bind
        balancer.bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="in use") as raised:
            balancer.apply()
        assert raised.value.filename == balancer.bind
        balancer.bind = good
        assert works(balancer.address)


def test_an_engine_that_is_closed_says_so() -> None:
    with server() as backend, proxy([backend]) as balancer:
        plan = balancer.plan()
        assert balancer.engine.close() == 0
        assert balancer.engine.close() == 0
        with pytest.raises(EngineError, match="closed"):
            balancer.engine.apply(plan)


def test_plans_that_contradict_themselves() -> None:
    with server() as backend, proxy([backend]) as balancer:
        balancer.pool = {"table_size": 1000}
        with pytest.raises(PlanError, match="prime"):
            balancer.plan()
        balancer.pool = {"max_skew": 0.5}
        with pytest.raises(PlanError, match="max_skew"):
            balancer.plan()


def test_closing_waits_for_tunnels_and_aborts_the_rest() -> None:
    with server() as backend, proxy([backend]) as balancer:
        quick, slow = connect(balancer.address), connect(balancer.address)
        until(lambda: balancer.engine.active() == 2)
        results: list[int] = []
        closing = threading.Thread(target=lambda: results.append(balancer.engine.close(1.0)))
        closing.start()
        quick.sendall(payload(1000))
        assert read_exactly(quick, 1000) == payload(1000)
        quick.close()
        closing.join(15)
        assert results == [1]
        with pytest.raises(ConnectionResetError):
            read_all(slow)
