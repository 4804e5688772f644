"""Bodies in every framing, and a backend that sends and receives them as its requests say."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

from ..net import PATIENCE, payload
from .messages import Stream, chunked, request
from .recorder import Talk

REQUESTS = ("length", "chunked")
"""How a request's body may be framed; a response's may also end with its connection."""
RESPONSES = ("length", "chunked", "close")


def pieces(data: bytes, seed: int = 1) -> Iterator[bytes]:
    """Cut as a sender might cut it: small, large, and single bytes."""
    sizes = (1, 17, 4000, 65_536, 300_000, 5)
    at = 0
    while at < len(data):
        size = sizes[seed % len(sizes)]
        yield data[at : at + size]
        at, seed = at + size, seed + 1


def framed(data: bytes, framing: str) -> tuple[list[str], bytes]:
    """Fields, and what follows the head."""
    if framing == "length":
        return [f"Content-Length: {len(data)}"], data
    if framing == "chunked":
        return ["Transfer-Encoding: chunked"], chunked(*pieces(data))
    return ["Connection: close"], data


def posted(data: bytes, framing: str, target: str) -> bytes:
    fields, body = framed(data, framing)
    return request(*fields, line=f"POST {target} HTTP/1.1", body=body)


def wanted(framing: str, size: int, seed: int = 0) -> str:
    """The target that makes ``giver`` answer with ``payload(size, seed)``, framed so."""
    return f"/{framing}/{size}/{seed}"


def answered(data: bytes, framing: str) -> bytes:
    """A whole response."""
    fields, body = framed(data, framing)
    return "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *fields, "")).encode() + body


def giver(talk: Talk) -> None:
    """Read a request and its body, then answer with what its target asks for; ``X-Sha`` tells what came."""
    while (head := talk.head()) is not None:
        _, digest = talk.digest(head)
        _, framing, size, seed = head.target.split("/")
        fields, body = framed(payload(int(size), int(seed)), framing)
        talk.send(
            "".join(f"{field}\r\n" for field in ("HTTP/1.1 200 OK", f"X-Sha: {digest}", *fields, "")), body
        )
        if framing == "close":
            # Orderly: an end, and not before all has been taken.
            talk.socket.shutdown(socket.SHUT_WR)
            return


def mirror(talk: Talk) -> None:
    """Send a request's body back while it is still coming."""
    head = talk.head()
    if head is None:
        return
    talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for part in talk.parts(head):
        talk.send(b"%x\r\n%b\r\n" % (len(part), part))
    talk.send("0\r\n\r\n")


def writing(stream: Stream, data: bytes, write: Callable[[bytes], None] | None = None) -> threading.Thread:
    """A thread that sends this; ``finish`` waits for its end."""
    thread = threading.Thread(target=write or stream.socket.sendall, args=(data,), daemon=True)
    thread.start()
    return thread


def finish(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
