"""Directory, redirect and balancer name the same backend, whatever the key is taken from."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .messages import handshake, request
from .site import Site
from .site import site as running

# Not in order: what stands in the file need not be what the table was made from.
NAMES = ["app-3", "app-1", "app-4", "app-2"]
KEYS = ["path", "query:room", "header:X-User", "cookie:user", "source-ip", "host", "sticky"]
KEYED = "".join(
    f"""
[[listeners.routes]]
host = "{key.partition(":")[0]}.test"
path = "{path}/*"
key = "{key}"
pool = "chat"
strip_prefix = "{path}"
action = "{action}"
"""
    for key in KEYS
    for path, action in (("/connect", "directory"), ("/go", "redirect"))
) + "".join(
    f'[[listeners.routes]]\nhost = "{key.partition(":")[0]}.test"\nkey = "{key}"\npool = "chat"\n'
    for key in KEYS
)
CONFIG = f"""
[balancer]
admin = "none"
secret = "00112233445566778899aabbccddeeff"
[[listeners]]
name = "main"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "chat"
{KEYED}
[pools.chat]
""" + "".join(
    f'[[pools.chat.backends]]\nname = "{name}"\naddress = "@{name}@"\npublic_url = "wss://{name}.example.com"\n'
    for name in NAMES
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("agrees"), CONFIG, *NAMES) as site:
        yield site


@pytest.mark.parametrize("key", KEYS)
def test_all_three_name_the_same(told: Site, key: str) -> None:
    found = set()
    for number in range(60):
        host = f"{key.partition(':')[0]}.test"
        fields = [f"X-User: {number}", f"Cookie: a=b; user={number}"]
        target = f"/rooms/{number}%2f?x=1&room={number}%20"
        if key == "sticky":
            # Bound by the directory, and from then on the same everywhere.
            with told.client(request(line=f"GET /connect{target} HTTP/1.1", host=host)) as client:
                cookie = (client.answer().head.get("set-cookie") or "").partition(";")[0]
            fields = [f"Cookie: {cookie}"]
        with told.client(request(*fields, line=f"GET {target} HTTP/1.1", host=host)) as client:
            relayed = client.answer().told()["backend"]
        with told.client(request(*fields, line=f"GET /connect{target} HTTP/1.1", host=host)) as client:
            where = json.loads(client.answer().body)
        with told.client(request(*fields, line=f"GET /go{target} HTTP/1.1", host=host)) as client:
            page = client.answer().head.get("location")
        with told.client(handshake(*fields, line=f"GET /go{target} HTTP/1.1", host=host)) as client:
            opened = client.answer().head.get("location")
        assert where["backend"] == relayed, number
        assert (where["url"], page) == (opened, f"https://{relayed}.example.com{target}")
        found.add(relayed)
    assert len(found) == (1 if key in ("source-ip", "host") else 4)
