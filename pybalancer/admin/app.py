"""What the admin interface answers: ``make_app``.

GET  /livez    200 while the process runs.
GET  /readyz   200 when a plan is applied and every listener is open, else 503 with the reasons.
               Backends that are down do not make it unready: taking the balancer out of service
               would not bring them back, and every other balancer sees the same.
GET  /status   everything that ``pybalancer status`` shows.
GET  /metrics  Prometheus text.
GET  /explain  ?source=IP:PORT[&pool=NAME]: which backend a client gets, and why; of a request
               ?source=IP:PORT&listener=NAME&host=HOST&path=PATH&header=NAME:VALUE&header=...
POST /reload   read the file again and apply it: 200; 422 with every problem, and nothing changed.
POST /upgrade  ?timeout=SECONDS: let a new process take over: 200 once it serves; 409 with the reason, or 422
               with what is wrong with its file, and nothing changed.

What is done to backends and their tunnels is in ``operations``.
"""

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pybalancer.admin import operations
from pybalancer.admin.guard import Guard, Policy
from pybalancer.admin.parameters import Parameters
from pybalancer.admin.replies import JSONReply, TextReply
from pybalancer.errors import ConfigError, PybalancerError, UpgradeError
from pybalancer.explanation import parse_header

BODY_LIMIT = 64 * 1024
"""Bytes of request body that are read at all; most requests need none."""
CONFIG_LIMIT = 16 * 1024 * 1024
"""The same where the body is a configuration: a file has 4 MiB, and JSON may be longer than TOML."""
BODY_SECONDS = 5.0
"""Time for a request's body to arrive."""
ANSWER_SECONDS = 30.0
"""Time for an answer; a reload that resolves names takes longest."""
UPGRADE_SECONDS = 600.0
"""The same for an upgrade, which has deadlines of its own."""

_log = logging.getLogger("pybalancer.admin")


class Reportable(Protocol):
    """Something that can say what it is as JSON."""

    def to_dict(self) -> dict[str, Any]: ...


class Operable(operations.Operable, Protocol):
    """What the admin interface needs of a running balancer (``pybalancer.Balancer``)."""

    def explain(
        self,
        source: str,
        pool: str | None = None,
        *,
        listener: str | None = None,
        host: str | None = None,
        path: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Mapping[str, Any]: ...
    def metrics(self) -> str: ...
    async def refresh(self) -> None: ...
    async def reload(self) -> Any: ...
    async def upgrade(self, patience: float | None = None) -> Reportable: ...
    def upgrade_told(self) -> None: ...


_Endpoint = Callable[[Operable, Request], Awaitable[Response]]


def make_app(balancer: Operable, policy: Policy) -> Guard:
    """The ASGI application, behind its guard."""

    def route(
        path: str,
        endpoint: _Endpoint,
        method: str = "GET",
        *,
        seconds: float = ANSWER_SECONDS,
        body: int = BODY_LIMIT,
    ) -> Route:
        return Route(path, functools.partial(_answer, balancer, endpoint, seconds, body), methods=[method])

    app = Starlette(
        routes=[
            route("/livez", _livez),
            route("/readyz", _readyz),
            route("/status", _status),
            route("/metrics", _metrics),
            route("/explain", _explain),
            route("/reload", _reload, "POST"),
            route("/upgrade", _upgrade, "POST", seconds=UPGRADE_SECONDS),
            route("/drains", operations.drains),
            route("/drain", operations.drain, "POST"),
            route("/undrain", operations.undrain, "POST"),
            route("/shed", operations.shed, "POST"),
            route("/recheck", operations.recheck, "POST"),
            route("/diff", operations.diff, "POST", body=CONFIG_LIMIT),
        ],
        exception_handlers={HTTPException: _http_error},
    )
    return Guard(app, policy)


async def _answer(
    balancer: Operable, endpoint: _Endpoint, seconds: float, limit: int, request: Request
) -> Response:
    try:
        request.state.body = await _body(request, limit)
        with trio.fail_after(seconds):
            return await endpoint(balancer, request)
    except HTTPException:
        raise
    except ConfigError as error:
        return JSONReply(
            {"error": str(error), "problems": [problem.to_dict() for problem in error.problems]},
            status_code=422,
        )
    except trio.TooSlowError:
        return JSONReply({"error": f"no answer within {seconds:g} s"}, status_code=503)
    except UpgradeError as error:
        return JSONReply({"error": str(error)}, status_code=409)
    except PybalancerError as error:
        return JSONReply({"error": str(error)}, status_code=503)
    except Exception:
        # Never let one request end the server, nor tell a client what is inside.
        _log.exception("admin: %s failed", request.url.path)
        return JSONReply({"error": "internal error; the log of the balancer says more"}, status_code=500)


async def _livez(_balancer: Operable, _request: Request) -> Response:
    return JSONReply({"live": True})


async def _readyz(balancer: Operable, _request: Request) -> Response:
    status = balancer.status().to_dict()
    reasons = []
    if not status["generation"]:
        reasons.append("no plan is applied yet")
    reasons += [
        f"listener {listener['name']} is not open"
        for listener in status["listeners"]
        if not listener["bound"]
    ]
    down = [
        pool["name"]
        for pool in status["pools"]
        if not any(backend["state"] == "up" for backend in pool["backends"])
    ]
    content = {"ready": not reasons, "reasons": reasons, "pools_down": down}
    return JSONReply(content, status_code=503 if reasons else 200)


async def _status(balancer: Operable, _request: Request) -> Response:
    await balancer.refresh()
    return JSONReply(balancer.status().to_dict())


async def _metrics(balancer: Operable, _request: Request) -> Response:
    from pybalancer.stats.collector import CONTENT_TYPE

    await balancer.refresh()
    return TextReply(balancer.metrics(), CONTENT_TYPE)


async def _explain(balancer: Operable, request: Request) -> Response:
    try:
        asked = _explained(request.url.query)
        await balancer.refresh()
        return JSONReply(balancer.explain(**asked))
    except (LookupError, ValueError) as error:
        return JSONReply({"error": str(error.args[0]) if error.args else str(error)}, status_code=400)


def _explained(text: str) -> dict[str, Any]:
    """What ``explain`` is asked. Raises ValueError for what is no question."""
    once = ("source", "pool", "listener", "host", "path")
    given = Parameters(text, once, several=("header",))
    if not given.text("source"):
        raise ValueError("give ?source=IP:PORT, and &pool=NAME where there are several")
    headers = [parse_header(text) for text in given.texts("header")]
    return {**{name: given.text(name) for name in once}, "headers": headers}


async def _reload(balancer: Operable, _request: Request) -> Response:
    result = await balancer.reload()
    return JSONReply(result.to_dict())


async def _upgrade(balancer: Operable, request: Request) -> Response:
    most = UPGRADE_SECONDS / 2
    try:
        patience = Parameters(request.url.query, ("timeout",)).number("timeout")
    except ValueError as error:
        return JSONReply({"error": str(error)}, status_code=400)
    if patience is not None and not 0 < patience <= most:
        return JSONReply({"error": f"timeout is a number of seconds up to {most:g}"}, status_code=400)
    result = await balancer.upgrade(patience)

    async def told() -> None:
        balancer.upgrade_told()

    return JSONReply(result.to_dict(), background=BackgroundTask(told))


async def _body(request: Request, limit: int) -> bytes:
    """All of it, wanted or not. Unread, it would be taken for the next request on a kept connection."""
    body = bytearray()
    with trio.move_on_after(BODY_SECONDS) as scope:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise HTTPException(413, f"more than {limit} bytes of body")
    if scope.cancelled_caught:
        raise HTTPException(408, f"the body took longer than {BODY_SECONDS:g} s")
    return bytes(body)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code in (408, 413):
        headers["connection"] = "close"
    return JSONReply({"error": error.detail}, status_code=error.status_code, headers=headers)
