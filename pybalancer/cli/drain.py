"""``pybalancer drain``."""

from typing import Any

from pybalancer.cli import exits
from pybalancer.cli.options import (
    Admin,
    Code,
    ConfigFile,
    Flag,
    Json,
    OfAll,
    OfBackend,
    OfListener,
    OfPool,
    option,
    per_second,
    print_json,
    seconds,
    to_type,
    usage,
    whom,
)


def drain(
    name: str | None = None,
    /,
    *,
    pool: OfPool = None,
    backend: OfBackend = None,
    listener: OfListener = None,
    everything: OfAll = False,
    over: str | None = None,
    deadline: str | None = None,
    code: Code = None,
    rate: str | None = None,
    force: Flag = False,
    no_wait: Flag = False,
    admin: Admin = None,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Give a backend no new tunnels, and close its live ones over a time.

    WebSockets get a Close between two frames, spread evenly; what is left at the deadline is cut. It stays
    drained until `pybalancer undrain`. Ctrl-C ends the waiting, not the drain.

    For example:

    * `pybalancer drain app-1`
    * `pybalancer drain app-1 --over 5m --deadline 10m`
    * `pybalancer drain --pool chat --no-wait`

    Parameters
    ----------
    name
        A backend, pool or listener; pool/backend where several have the name.
    over
        Time over which they are told to go, such as 30s; by default as the pool's [drain] says.
    deadline
        Time after which those that are left are cut; likewise.
    rate
        How many are told at most, such as 100/s; 0: any number. Likewise.
    force
        Also if no other backend of the pool takes new tunnels: clients get 503 then.
    no_wait
        Do not wait for its end.
    """
    from pybalancer.admin.client import find
    from pybalancer.cli.progress import outcome, warn

    target = whom(name, pool, backend, listener, everything)
    client = find(admin, config)
    terms = {
        "over": seconds("--over", over),
        "deadline": seconds("--deadline", deadline),
        "code": code,
        "rate": per_second("--rate", rate),
    }
    with usage():
        answer = client.post("/drain", **target, **terms, force=force)
    warn(answer["warnings"])
    begun = {**answer, "drain": answer["drains"][0]}
    if not no_wait:
        given = [*option("--pool", pool), *option("--backend", backend), *option("--listener", listener)]
        undrain = to_type("undrain", name, [*given, *(["--all"] if everything else [])], admin, config)
        begun["drain"] = _wait(client, begun, undrain, quiet=json)
    done: dict[str, Any] = begun["drain"]
    if json:
        print_json(
            {
                key: value
                for key, value in {**answer, "drains": [done]}.items()
                if key not in ("pid", "started")
            }
        )
    elif no_wait and done["state"] == "running":
        print(f"draining {answer['what']}: {_plan(done)}")
    elif done["state"] == "cancelled":
        print(f"the drain of {answer['what']} was stopped by somebody: {outcome(done)}")
    else:
        print(f"drained {answer['what']}: {outcome(done)}")
    return exits.FAILED if done["state"] == "cancelled" else exits.FINE


def _wait(client: Any, begun: dict[str, Any], undrain: str, *, quiet: bool) -> dict[str, Any]:
    import sys

    from pybalancer.cli.progress import watch

    try:
        return watch(client, begun, quiet=quiet)
    except KeyboardInterrupt:
        print(f"it goes on by itself: `{undrain}` stops it", file=sys.stderr)
        raise


def _plan(drain: dict[str, Any]) -> str:
    from pybalancer.cli.progress import count

    rate = f", at most {drain['rate']:g}/s" if drain["rate"] else ""
    return (
        f"{count(drain['total'], 'tunnel')} over {drain['over_seconds']:g} s{rate}, "
        f"cut after {drain['deadline_seconds']:g} s"
    )
