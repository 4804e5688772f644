"""``pybalancer demo``."""

from typing import Annotated

from cyclopts import Parameter

from pybalancer.cli import exits
from pybalancer.cli.options import Json, print_json

MOST_BACKENDS, MOST_CLIENTS = 64, 10_000


def demo(
    *,
    duration: Annotated[str | None, Parameter(name="--for")] = None,
    backends: int = 3,
    clients: int = 300,
    json: Json = False,
) -> int:
    """Show a balancer at work, with servers that die and come back.

    WebSocket servers, the balancer and clients that talk: all on this machine's loopback, and gone at
    the end.

    For example:

    * `pybalancer demo --for 30s`

    Parameters
    ----------
    duration
        How long, such as 10s or 5m; by default until Ctrl-C.
    backends
        WebSocket servers, each a process.
    clients
        WebSocket clients.
    """
    from pybalancer.config.values import duration as seconds_of

    try:
        seconds = None if duration is None else seconds_of(duration)
    except ValueError as error:
        raise exits.UsageError(f"--for: {error}") from None
    if not 1 <= backends <= MOST_BACKENDS or not 1 <= clients <= MOST_CLIENTS:
        raise exits.UsageError(f"--backends goes from 1 to {MOST_BACKENDS}, --clients to {MOST_CLIENTS}")
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
