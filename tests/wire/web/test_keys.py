"""What binds a client to a backend: keys of all kinds, and the balancer's own cookie."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from .messages import handshake, request
from .site import Client, Site
from .site import site as running

KEYS = {
    "source.test": "source",
    "ip.test": "source-ip",
    "path.test": "path",
    "header.test": "header:X-User",
    "cookie.test": "cookie:session",
    "query.test": "query:room",
}
NAMES = ["one", "two", "three", "four"]

CONFIG = """
[balancer]
admin = "none"
[log]
connections = false
[[listeners]]
name = "main"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "spread"
"""
CONFIG += "".join(
    f'[[listeners.routes]]\nhost = "{host}"\npool = "spread"\nkey = "{key}"\n' for host, key in KEYS.items()
)
CONFIG += """
[[listeners.routes]]
host = "*.hosts.test"
pool = "spread"
key = "host"
[[listeners.routes]]
host = "sticky.test"
pool = "sticky"
[[listeners.routes]]
host = "other.test"
pool = "sticky2"
[[listeners.routes]]
host = "robin.test"
pool = "robin"
[pools.spread]
key = "source"
[pools.sticky]
key = "sticky"
[pools.sticky2]
key = "sticky"
[pools.robin]
key = "sticky"
policy = "round-robin"
"""
CONFIG += "".join(
    f'[[pools.{pool}.backends]]\nname = "{name}"\naddress = "@{name}@"\n'
    for pool in ("spread", "sticky", "sticky2", "robin")
    for name in NAMES
)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("keys"), CONFIG, *NAMES) as site:
        yield site


def backend(site: Site, data: bytes, source: str | None = None) -> str:
    """Which one a fresh connection gets."""
    with site.client(data, source=source) as client:
        return str(client.answer().told()["backend"])


def places(site: Site, make: object, count: int = 40) -> list[str]:
    """Where 40 keys go, asked twice: the same both times, and not all to one."""
    first, second = ([backend(site, make(number)) for number in range(count)] for _ in range(2))  # type: ignore[operator]
    assert first == second
    assert len(set(first)) == len(NAMES)
    return first


def test_by_path(keyed: Site) -> None:
    plain = places(keyed, lambda n: request(line=f"GET /rooms/{n} HTTP/1.1", host="path.test"))
    asked = places(keyed, lambda n: request(line=f"POST /rooms/{n}?x={n % 7} HTTP/1.1", host="path.test"))
    # The query is no part of it, nor is the method.
    assert plain == asked
    for number in range(10):
        with keyed.client(handshake(line=f"GET /rooms/{number} HTTP/1.1", host="path.test")) as client:
            assert client.answer().status == 101
            talks = [talk for recorder in keyed.recorders.values() for talk in recorder.talks]
            [found] = [
                talk
                for talk in talks
                if talk.ended is None and talk.heads and "upgrade" in talk.heads[-1].names
            ]
            assert found.recorder.name == plain[number]
        found.recorder.ended()


def test_by_field(keyed: Site) -> None:
    plain = places(keyed, lambda n: request(f"X-User: {n}", host="header.test"))
    again = places(keyed, lambda n: request(f"x-user:\t{n} ", "X-User: x", host="header.test"))
    assert plain == again


def test_by_cookie(keyed: Site) -> None:
    plain = places(keyed, lambda n: request(f"Cookie: session={n}", host="cookie.test"))
    again = places(
        keyed, lambda n: request("Cookie: a=b", f"Cookie: c ; session={n};d=e", host="cookie.test")
    )
    assert plain == again


def test_by_parameter(keyed: Site) -> None:
    plain = places(keyed, lambda n: request(line=f"GET /?room={n:02} HTTP/1.1", host="query.test"))
    again = places(
        keyed,
        lambda n: request(line=f"GET /x?a&r%6fom=%3{n // 10}{n % 10}&room=x HTTP/1.1", host="query.test"),
    )
    assert plain == again


def test_by_host(keyed: Site) -> None:
    plain = places(keyed, lambda n: request(host=f"h{n}.hosts.test"))
    again = places(keyed, lambda n: request(host=f"H{n}.Hosts.TEST.:81"))
    assert plain == again


def test_by_source_address(keyed: Site) -> None:
    data = request(host="ip.test")
    found = {
        source: {backend(keyed, data, source) for _ in range(5)}
        for source in (f"127.0.1.{n}" for n in range(1, 30))
    }
    assert all(len(one) == 1 for one in found.values())
    assert len(set.union(*found.values())) == len(NAMES)


@pytest.mark.parametrize(
    "host", ["source.test", "header.test", "cookie.test", "query.test", "elsewhere.test"]
)
def test_without_the_key_the_source_counts(keyed: Site, host: str) -> None:
    """Address and port: connections of one client spread, and requests of one connection stay."""
    found = set()
    for _ in range(40):
        with keyed.client() as client:
            same = {str(client.ask(request(host=host)).told()["backend"]) for _ in range(3)}
            assert len(same) == 1
            found |= same
    assert len(found) == len(NAMES)


def test_requests_of_one_connection_go_where_their_keys_say(keyed: Site) -> None:
    alone = {n: backend(keyed, request(line=f"GET /{n} HTTP/1.1", host="path.test")) for n in range(20)}
    with keyed.client() as client:
        for number in [*range(20), *range(20)]:
            told = client.ask(request(line=f"GET /{number} HTTP/1.1", host="path.test")).told()
            assert told["backend"] == alone[number]


COOKIE = re.compile(r"(pybalancer-[0-9a-f]{8})=([A-Za-z0-9_-]{22}); Path=/; HttpOnly; SameSite=Lax")


def bound(site: Site, host: str) -> tuple[str, str, str]:
    """What a new client gets: the cookie's name and value, and its backend."""
    with site.client(request(host=host)) as client:
        answer = client.answer()
    [cookie] = answer.head.all("set-cookie")
    match = COOKIE.fullmatch(cookie)
    assert match, cookie
    return match[1], match[2], str(answer.told()["backend"])


@pytest.mark.parametrize("host", ["sticky.test", "robin.test"])
def test_sticky_clients_stay(keyed: Site, host: str) -> None:
    clients = [bound(keyed, host) for _ in range(30)]
    assert len({name for name, _, _ in clients}) == 1
    assert {chosen for _, _, chosen in clients} == set(NAMES)
    # One value for each backend: it tells nothing of the client.
    assert len({value for _, value, _ in clients}) == len(NAMES)
    for name, value, chosen in clients:
        with keyed.client(request(f"Cookie: x=y; {name}={value}; z", host=host)) as client:
            answer = client.answer()
            assert answer.told()["backend"] == chosen
            # It has it already.
            assert answer.head.all("set-cookie") == []
            # Also a WebSocket goes there, and on the same connection.
        with keyed.client(handshake(f"Cookie: {name}={value}", host=host)) as client:
            assert client.answer().head.all("set-cookie") == []


def test_a_handshake_binds_too(keyed: Site) -> None:
    for recorder in keyed.recorders.values():
        recorder.forget()
    with keyed.client(handshake(host="sticky.test")) as client:
        answer = client.answer()
        assert answer.status == 101
        [chosen] = [recorder.name for recorder in keyed.recorders.values() if recorder.talks]
        [cookie] = answer.head.all("set-cookie")
        match = COOKIE.fullmatch(cookie)
        assert match
    assert backend(keyed, request(f"Cookie: {match[1]}={match[2]}", host="sticky.test")) == chosen


def test_forged_and_foreign_cookies_make_a_new_client(keyed: Site) -> None:
    name, value, _ = bound(keyed, "sticky.test")
    other_name, other_value, _ = bound(keyed, "other.test")
    assert name != other_name
    assert value != other_value
    flipped = ("B" if value[0] != "B" else "C") + value[1:]
    for bad in (
        "",
        "x",
        flipped,
        value[:-1],
        value + "A",
        value + "=",
        other_value,
        f'"{value}"',
        value.swapcase(),
        "A" * 22,
    ):
        with keyed.client(request(f"Cookie: {name}={bad}", host="sticky.test")) as client:
            answer = client.answer()
            assert answer.status == 200
            # It gets a good one in its place.
            [cookie] = answer.head.all("set-cookie")
            assert COOKIE.fullmatch(cookie), bad


def test_a_client_of_two_sticky_pools_has_two_cookies(keyed: Site) -> None:
    one, two = bound(keyed, "sticky.test"), bound(keyed, "other.test")
    both = f"Cookie: {one[0]}={one[1]}; {two[0]}={two[1]}"
    with Client(keyed.address()) as client:
        for host, chosen in (("sticky.test", one[2]), ("other.test", two[2])) * 3:
            answer = client.ask(request(both, host=host))
            assert (answer.told()["backend"], answer.head.all("set-cookie")) == (chosen, [])
