"""What the admin interface does for an operator: drain, undrain, shed, and the question what would change.

GET  /drains   drains and sheds that run, and those that ended within the last minute: how far they are.
POST /drain    ?name=NAME, or ?pool=NAME, &backend=NAME, ?listener=NAME, ?all=1; &over=SECONDS,
               &deadline=SECONDS, &code=CODE, &rate=PER SECOND, &force=1
POST /undrain  named alike; &slow_start=SECONDS
POST /shed     ?pool=NAME, &to_skew=NUMBER, &rate=PER SECOND, &code=CODE, &dry_run=1
POST /recheck  ?pool=NAME&backend=NAME: what its check has found is forgotten, and it is asked anew.
POST /diff     what a reload with a configuration would change. The body is a JSON object: ``config`` is
               what the file would parse to, with stand-ins for secrets; ``secret`` the digest of its
               secret, or null.

What they begin goes on by itself: the answer does not wait for its end, which /drains shows. Errors: 400 says
what is wrong with the question, 404 that what it names is not there, 409 that it cannot be done now, 422
what is wrong with the configuration.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from pybalancer.admin.parameters import Parameters
from pybalancer.admin.replies import JSONReply
from pybalancer.errors import DrainError, PybalancerError, TargetError

NAMES: Final = ("name", "pool", "backend", "listener", "all")
"""What says whom it is about."""

EXAMPLE: Final = "NAME"


class Reportable(Protocol):
    """Something that can say what it is as JSON."""

    def to_dict(self) -> dict[str, Any]: ...


class Operable(Protocol):
    """What is needed of a running balancer (``pybalancer.Balancer``)."""

    def status(self) -> Reportable: ...
    async def drain(
        self,
        name: str | None = None,
        *,
        pool: str | None = None,
        backend: str | None = None,
        listener: str | None = None,
        everything: bool = False,
        over: float | None = None,
        deadline: float | None = None,
        code: int | None = None,
        rate: float | None = None,
        force: bool = False,
        wait: bool = True,
    ) -> Reportable: ...
    async def undrain(
        self,
        name: str | None = None,
        *,
        pool: str | None = None,
        backend: str | None = None,
        listener: str | None = None,
        everything: bool = False,
        slow_start: float | None = None,
    ) -> Reportable: ...
    async def shed(
        self,
        pool: str,
        to_skew: float = 1.05,
        *,
        rate: float | None = None,
        code: int | None = None,
        dry_run: bool = False,
        wait: bool = True,
    ) -> Reportable: ...
    async def recheck(self, pool: str, backend: str) -> None: ...
    async def diff_without_secrets(self, config: Mapping[str, Any], digest: str | None) -> Reportable: ...


_Answer = Callable[[Operable, Request], Awaitable[Any]]


def _replying(answer: _Answer) -> Callable[[Operable, Request], Awaitable[Response]]:
    """The endpoint that answers with what ``answer`` gives, and with the right status where it fails."""

    async def reply(balancer: Operable, request: Request) -> Response:
        try:
            return JSONReply(await answer(balancer, request))
        except TargetError as error:
            return JSONReply({"error": str(error)}, status_code=404)
        except DrainError as error:
            return JSONReply({"error": str(error)}, status_code=409)
        except PybalancerError:
            raise
        except ValueError as error:
            return JSONReply({"error": str(error)}, status_code=400)

    return reply


@_replying
async def drains(balancer: Operable, _request: Request) -> Any:
    """How far they are. ``pid`` and ``started`` tell one process, which numbers them, from the next."""
    status = balancer.status().to_dict()
    return {key: status[key] for key in ("pid", "started", "drains")}


@_replying
async def drain(balancer: Operable, request: Request) -> Any:
    """Begin one."""
    given = Parameters(request.url.query, (*NAMES, "over", "deadline", "code", "rate", "force"))
    result = await balancer.drain(
        **_named(given),
        over=given.number("over"),
        deadline=given.number("deadline"),
        code=given.whole("code"),
        rate=given.number("rate"),
        force=given.truth("force"),
        wait=False,
    )
    return {**_process(balancer), **result.to_dict()}


@_replying
async def undrain(balancer: Operable, request: Request) -> Any:
    """Take it back."""
    given = Parameters(request.url.query, (*NAMES, "slow_start"))
    result = await balancer.undrain(**_named(given), slow_start=given.number("slow_start"))
    return result.to_dict()


@_replying
async def shed(balancer: Operable, request: Request) -> Any:
    """Begin one, or count what one would close."""
    given = Parameters(request.url.query, ("pool", "to_skew", "rate", "code", "dry_run"))
    pool = given.needed("pool", EXAMPLE)
    given.needed("to_skew", "1.05")
    result = await balancer.shed(
        pool,
        given.number("to_skew") or 0.0,
        rate=given.number("rate"),
        code=given.whole("code"),
        dry_run=given.truth("dry_run"),
        wait=False,
    )
    return {**_process(balancer), **result.to_dict()}


@_replying
async def recheck(balancer: Operable, request: Request) -> Any:
    """Ask a backend anew."""
    given = Parameters(request.url.query, ("pool", "backend"))
    pool, backend = given.needed("pool", EXAMPLE), given.needed("backend", EXAMPLE)
    await balancer.recheck(pool, backend)
    return {"pool": pool, "backend": backend}


@_replying
async def diff(balancer: Operable, request: Request) -> Any:
    """What would change."""
    Parameters(request.url.query)
    try:
        given = json.loads(request.state.body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(given, dict) or given.keys() != {"config", "secret"}:
        raise ValueError('the body is an object with "config" and "secret", and nothing else')
    config, digest = given["config"], given["secret"]
    if not isinstance(config, dict) or not isinstance(digest, str | None):
        raise ValueError('"config" is an object, "secret" is text or null')
    if digest is not None and not digest.isascii():
        raise ValueError('"secret" is a digest in hexadecimal digits')
    return (await balancer.diff_without_secrets(config, digest)).to_dict()


def _named(given: Parameters) -> dict[str, Any]:
    return {**{name: given.text(name) for name in NAMES[:-1]}, "everything": given.truth("all")}


def _process(balancer: Operable) -> dict[str, Any]:
    """Whose numbers those of the drains are."""
    status = balancer.status().to_dict()
    return {"pid": status["pid"], "started": status["started"]}
