"""``pybalancer undrain``."""

from pybalancer.cli import exits
from pybalancer.cli.options import (
    Admin,
    ConfigFile,
    Json,
    OfAll,
    OfBackend,
    OfListener,
    OfPool,
    print_json,
    seconds,
    usage,
    whom,
)


def undrain(
    name: str | None = None,
    /,
    *,
    pool: OfPool = None,
    backend: OfBackend = None,
    listener: OfListener = None,
    everything: OfAll = False,
    slow_start: str | None = None,
    admin: Admin = None,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Take a backend back: its drain stops at once, and it gets new tunnels again.

    For example:

    * `pybalancer undrain app-1`
    * `pybalancer undrain --all`

    Parameters
    ----------
    name
        A backend, pool or listener, named as for `drain`.
    slow_start
        Time in which it is brought to its full share, such as 30s; by default as the file says.
    """
    from pybalancer.admin.client import find
    from pybalancer.cli.progress import outcome, warn

    target = whom(name, pool, backend, listener, everything)
    with usage():
        answer = find(admin, config).post(
            "/undrain", **target, slow_start=seconds("--slow-start", slow_start)
        )
    warn(answer["warnings"])
    if json:
        print_json(answer)
        return exits.FINE
    # What a warning says is not said otherwise here.
    print(f"undrained {answer['what']}" + ("" if answer["warnings"] else ": it takes new tunnels"))
    for drain in answer["drains"]:
        print(f"  stopped: {outcome(drain)}")
    return exits.FINE
