"""``pybalancer reload``."""

from pybalancer.cli import exits
from pybalancer.cli.options import Admin, ConfigFile, Json, print_json
from pybalancer.errors import ConfigError, Problem


def reload(*, admin: Admin = None, config: ConfigFile = None, json: Json = False) -> int:
    """Make the running balancer read its configuration file again.

    If anything is wrong with the file, nothing changes and every problem is printed.

    For example:

    * `pybalancer reload --config pybalancer.toml`
    """
    from pybalancer.admin.client import Refused, find

    try:
        result = find(admin, config).post("/reload")
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
    print(f"reloaded: generation {result['generation']}")
    for change in result.get("changes", ()):
        print(f"  {change}")
    for key in result.get("ignored", ()):
        print(f"  not changed before a restart: {key}")
    return exits.FINE
