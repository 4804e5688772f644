"""All commands, and what becomes of their errors: ``run``."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from pybalancer.cli import exits
from pybalancer.errors import ConfigError, PybalancerError, StartError

COMMANDS = (
    "serve",
    "check",
    "diff",
    "reload",
    "upgrade",
    "drain",
    "undrain",
    "roll",
    "shed",
    "status",
    "explain",
    "table",
    "demo",
    "version",
)

HELP = """A load balancer made for WebSockets: deterministic spread, restarts without a ripple.

* Start in one line: `pybalancer serve --listen :8080 --to app1:9001 --to app2:9001`
* See it at work: `pybalancer demo`
"""

EPILOGUE = """Each command has its own --help. They find the running balancer by --admin, else
PYBALANCER_ADMIN, else the file given with --config, else at the default socket.

Exit codes: 0 fine, 1 failed or invalid, 2 usage, 3 could not start.
"""


def make_app(width: int | None = None) -> App:
    """The commands, not yet imported; ``width`` of help in columns, by default the terminal's."""
    from rich.console import Console

    app = App(
        name="pybalancer",
        help=HELP,
        help_epilogue=EPILOGUE,
        help_format="markdown",
        version_flags=(),
        console=Console(width=width, markup=False, highlight=False, emoji=False),
    )
    for position, name in enumerate(COMMANDS):
        app.command(f"pybalancer.cli.{name}:{name}", name=name, sort_key=position, help_epilogue="")
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Messages go to standard error, and suggest what to do."""
    if list(arguments) == ["--version"]:
        arguments = ["version"]
    try:
        result = _invoke(list(arguments))
    except CycloptsError as error:
        command = next((word for word in arguments[:1] if word in COMMANDS), None)
        _complain(str(error))
        _complain(f"see: pybalancer {command + ' ' if command else ''}--help")
        return exits.USAGE
    except exits.UsageError as error:
        _complain(str(error))
        return exits.USAGE
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return exits.FAILED
    except StartError as error:
        _complain(str(error))
        return exits.NOT_STARTED
    except PybalancerError as error:
        _complain(str(error))
        return exits.FAILED
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough. What is still buffered has to go somewhere,
        # or the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILED
    return result if isinstance(result, int) else exits.FINE


def _invoke(arguments: list[str]) -> object:
    try:
        result = make_app()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BaseExceptionGroup as group:
        # Nurseries wrap what passes through them; one error inside is that error.
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
    return result


def _complain(message: str) -> None:
    print(f"pybalancer: {message}", file=sys.stderr)
