"""Asking the directory: one GET over HTTP, in the calling thread."""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

MOST_BYTES: Final = 64 * 1024
"""Of an answer. What is longer is none."""
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
    """Ask, for at most ``timeout`` seconds. Never raises for what a directory or the way to it does.

    Redirects are followed, but not from https: to http:. Proxies of the environment are used.
    """
    timeout = min(timeout, _LONGEST)
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers={"Accept": "application/json", **headers})  # noqa: S310 - see _Redirects
    try:
        with _opener(context).open(request, timeout=timeout) as response:
            return _read(response, deadline)
    except urllib.error.HTTPError as error:
        # An answer too, with another status than 2xx.
        with error:
            try:
                return _read(error, deadline)
            except (OSError, http.client.HTTPException):
                return Reply(0)
    except (OSError, http.client.HTTPException, ValueError):
        # ValueError: a redirect to something that is no URL.
        return Reply(0)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        to = urllib.parse.urlsplit(newurl).scheme
        if to != "https" and (to != "http" or req.type == "https"):
            raise urllib.error.URLError(f"a redirect from {req.type}: to {to}:")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(context: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """Of all that urllib can open, http: and https: only."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _read(response: Any, deadline: float) -> Reply:
    data = bytearray()
    while piece := response.read1(_PIECE):
        data += piece
        if len(data) > MOST_BYTES or time.monotonic() > deadline:
            return Reply(0)
    if getattr(response, "length", None):
        # It was cut off; `read1` does not say so.
        return Reply(0)
    text = data.decode("utf-8", "replace")
    return Reply(response.status, text, response.headers.get("Retry-After"))
