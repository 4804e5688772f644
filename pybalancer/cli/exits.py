"""Exit codes, the same for every command."""

from typing import Final

FINE: Final = 0
FAILED: Final = 1
"""It failed, or what was checked is invalid."""
USAGE: Final = 2
"""The command line makes no sense."""
NOT_STARTED: Final = 3
"""``serve`` could not start: an address is taken, a file cannot be made."""
INTERRUPTED: Final = 130
"""Ctrl-C in a command that has no other meaning for it (128 + SIGINT, as shells say it)."""


class UsageError(Exception):
    """The command line makes no sense; the message says what would."""
