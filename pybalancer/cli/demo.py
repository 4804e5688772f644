"""``pybalancer demo``."""

from typing import Annotated

from cyclopts import Parameter

from pybalancer.cli import exits
from pybalancer.cli.options import Json, print_json

MOST_BACKENDS, MOST_CLIENTS = 64, 10_000


def demo(
    *,
    duration: Annotated[str | None, Parameter(name="--for")] = None,
    backends: int | None = None,
    clients: int = 300,
    ripple: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """Show a balancer at work, with servers that die and come back.

    WebSocket servers, the balancer and clients that talk: all on this machine's loopback, and gone at
    the end.

    For example:

    * `pybalancer demo --for 30s`
    * `pybalancer demo --ripple`

    Parameters
    ----------
    duration
        How long, such as 10s or 5m; by default until Ctrl-C.
    backends
        WebSocket servers, each a process; 3 by default, or 4 with --ripple.
    clients
        WebSocket clients.
    ripple
        Restart all servers one after the other, in three ways: nobody told, with `roll`, and with
        `reattach`. Shows what clients saw of each, and fails if a promise was broken.
    """
    from pybalancer.config.values import duration as seconds_of

    try:
        seconds = None if duration is None else seconds_of(duration)
    except ValueError as error:
        raise exits.UsageError(f"--for: {error}") from None
    if ripple and duration is not None:
        raise exits.UsageError("--ripple ends by itself, so it takes no --for")
    backends = backends if backends is not None else 4 if ripple else 3
    if not (2 if ripple else 1) <= backends <= MOST_BACKENDS or not 1 <= clients <= MOST_CLIENTS:
        least = "2 with --ripple" if ripple else "1"
        raise exits.UsageError(
            f"--backends goes from {least} to {MOST_BACKENDS}, --clients to {MOST_CLIENTS}"
        )
    if ripple:
        return _ripple(backends, clients, json=json)
    import functools

    import trio

    from pybalancer.demo.scene import play
    from pybalancer.demo.view import open_view

    with open_view(json=json) as view:
        tally = trio.run(
            functools.partial(play, backends=backends, clients=clients, duration=seconds, view=view)
        )
    if json:
        print_json(tally.to_dict())
    else:
        print(*tally.lines(), sep="\n")
    return exits.FINE if tally.fine else exits.FAILED


def _ripple(backends: int, clients: int, *, json: bool) -> int:
    import functools

    import trio

    from pybalancer.cli.serve import raise_descriptor_limit
    from pybalancer.demo import ripple

    def tell(line: str) -> None:
        if not json:
            print(line, flush=True)

    raise_descriptor_limit()
    run = functools.partial(
        ripple.play, backends=backends, clients=clients, ways=list(ripple.WAYS), tell=tell
    )
    acts = trio.run(run)
    if json:
        print_json([act.to_dict() for act in acts])
    else:
        print("", *ripple.table(acts), sep="\n")
    return exits.FAILED if any(act.broken for act in acts) else exits.FINE
