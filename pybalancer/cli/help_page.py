"""Makes ``help.txt``, the first page of help: ``python -m pybalancer.cli.help_page``.

A test checks that it is current.
"""

import contextlib
import io
from pathlib import Path

from pybalancer.cli.app import COMMANDS, make_app

PAGE = Path(__file__).with_name("help.txt")
WIDTH = 88


def generate() -> str:
    """The page as the commands have it."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        app = make_app(WIDTH)
        for name in COMMANDS:
            app[name].help  # noqa: B018 - imports the command, else its line would be empty
        app(["--help"], exit_on_error=False, result_action="return_value")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(generate(), encoding="utf-8")
