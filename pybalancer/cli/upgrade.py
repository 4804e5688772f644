"""``pybalancer upgrade``."""

from pybalancer.cli import exits
from pybalancer.cli.options import Admin, ConfigFile, Json, print_json
from pybalancer.errors import ConfigError, Problem

SLACK = 60.0
"""Seconds that the balancer's own deadlines may take beside that of the new process."""


def upgrade(
    *, admin: Admin = None, config: ConfigFile = None, timeout: float = 30.0, json: Json = False
) -> int:
    """Let a new process take over from the running one: listeners, and every live tunnel.

    The new process is started as the running one was, with the code and the configuration that are
    there now. Tunnels go on where they are; the old process ends within seconds. If the new one
    does not come up, nothing changes.

    For example:

    * `pip install --upgrade pybalancer && pybalancer upgrade`

    Parameters
    ----------
    timeout
        Seconds that the new process has to get ready.
    """
    from pybalancer.admin.client import Refused, find

    if not 0 < timeout <= 300:
        raise exits.UsageError("--timeout: a number of seconds up to 300")
    try:
        result = find(admin, config, timeout=timeout + SLACK).post(f"/upgrade?timeout={timeout:g}")
    except Refused as error:
        if json:
            print_json(error.content)
            return exits.FAILED
        problems = error.content.get("problems")
        if problems:
            raise ConfigError([Problem(**problem) for problem in problems]) from None
        raise
    if json:
        print_json(result)
        return exits.FINE
    tunnels, frozen = result["tunnels"], result["frozen_seconds"] * 1000
    print(
        f"upgraded: pid {result['old_pid']} → {result['new_pid']}, "
        f"{tunnels:,} {'tunnel' if tunnels == 1 else 'tunnels'}, frozen for {frozen:,.0f} ms"
    )
    if result["old_version"] != result["new_version"]:
        print(f"  version {result['old_version']} → {result['new_version']}")
    return exits.FINE
