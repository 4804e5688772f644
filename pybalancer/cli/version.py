"""``pybalancer version``."""

import platform

from pybalancer.cli.options import Json, print_json


def version(*, json: Json = False) -> None:
    """Print the version of pybalancer and of what it runs on."""
    from pybalancer import _core

    if json:
        print_json(
            {
                "version": _core.__version__,
                "python": platform.python_version(),
                "kernel": platform.release(),
                "machine": platform.machine(),
            }
        )
    else:
        print(
            f"pybalancer {_core.__version__} "
            f"(Python {platform.python_version()}, Linux {platform.release()}, {platform.machine()})"
        )
