"""Asking the directory: one GET over HTTP, in the calling thread."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Final

MOST_BYTES: Final = 64 * 1024
"""Of an answer. What is longer is none."""
_JSON: Final = "application/json"
_PIECE: Final = 16 * 1024
_LONGEST: Final = 86_400.0
"""Seconds: a socket takes no timeout without end."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came. ``status`` 0: the directory cannot be reached, or does not answer in time."""

    status: int
    text: str = ""
    retry_after: str | None = None


Look = Callable[[str, float, Mapping[str, str], ssl.SSLContext | None], Reply]
"""URL, seconds, header fields, TLS context."""


def look(url: str, timeout: float, headers: Mapping[str, str], context: ssl.SSLContext | None) -> Reply:
    """Ask, for at most ``timeout`` seconds; of a name with several addresses each may take as long to connect
    to, and the system's look-up of names has its own time. Never raises for what a directory or the way to
    it does.

    Redirects are followed, but not from https: to http:, and to another origin without ``headers``. Proxies
    of the environment are used.
    """
    timeout = min(timeout, _LONGEST)
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers={"Accept": _JSON, **headers})  # noqa: S310 - see _Redirects
    try:
        with _opener(context, deadline).open(request, timeout=timeout) as response:
            return _read(response)
    except urllib.error.HTTPError as error:
        # An answer too, with another status than 2xx.
        with error:
            try:
                return _read(error)
            except (OSError, http.client.HTTPException):
                return Reply(0)
    except (OSError, http.client.HTTPException, ValueError):
        # ValueError: a redirect to something that is no URL.
        return Reply(0)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        here, there = (urllib.parse.urlsplit(url) for url in (req.full_url, newurl))
        if there.scheme != "https" and (there.scheme != "http" or here.scheme == "https"):
            raise urllib.error.URLError(f"a redirect from {here.scheme}: to {there.scheme}:")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (here.scheme, here.netloc) != (there.scheme, there.netloc):
            # Tokens and cookies are for the directory that was named.
            request.headers = {"Accept": _JSON}
        return request


class _Timely(io.RawIOBase):
    """What a socket receives until the deadline. The socket's own timeout begins anew with each byte."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = connection, deadline
        self._file = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_left(self._deadline))
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, connection: socket.socket, *more: Any, deadline: float, **named: Any) -> None:
        super().__init__(connection, *more, **named)
        self.fp.close()
        self.fp = io.BufferedReader(_Timely(connection, deadline))


class _Plain(http.client.HTTPConnection):
    def __init__(self, *more: Any, deadline: float, **named: Any) -> None:
        super().__init__(*more, **named)
        self._deadline = deadline
        self.response_class = partial(_Response, deadline=deadline)  # type: ignore[assignment]

    def connect(self) -> None:
        self.timeout = _left(self._deadline)
        super().connect()


class _Secure(_Plain, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.AbstractHTTPHandler):
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, context: ssl.SSLContext | None, deadline: float) -> None:
        super().__init__()
        self._plain = partial(_Plain, deadline=deadline)
        self._secure = partial(_Secure, deadline=deadline, context=context)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._plain, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._secure, req)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _opener(context: ssl.SSLContext | None, deadline: float) -> urllib.request.OpenerDirector:
    """Of all that urllib can open, http: and https: only."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(context, deadline),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _read(response: Any) -> Reply:
    data = bytearray()
    while piece := response.read1(_PIECE):
        data += piece
        if len(data) > MOST_BYTES:
            return Reply(0)
    if getattr(response, "length", None):
        # It was cut off; `read1` does not say so.
        return Reply(0)
    text = data.decode("utf-8", "replace")
    return Reply(response.status, text, response.headers.get("Retry-After"))
