"""``pybalancer`` and ``python -m pybalancer``.

The first page of help is a file made from the commands (``cli/help_page.py``): the library that reads
command lines takes longer to import than people wait for help.
"""

import sys
from pathlib import Path


def main() -> None:
    """Run the command that the command line names; exits with its code."""
    arguments = sys.argv[1:]
    if arguments in ([], ["-h"], ["--help"]):
        sys.stdout.write(Path(__file__).with_name("cli").joinpath("help.txt").read_text(encoding="utf-8"))
        return
    from pybalancer.cli.app import run

    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
