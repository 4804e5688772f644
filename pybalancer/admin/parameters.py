"""The parameters of a request to the admin interface, read strictly: ``Parameters``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import QueryParams

MOST_BYTES: Final = 16 * 1024
"""Of all of them together: as much as most requests have."""

_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Parameters:
    """What stands behind the ``?``. ``names`` may be given once each, ``several`` any number of times.

    One that is misspelt must not pass for one that was left out, so all others are refused. One without a
    value is as if it were not there. Everything here raises ValueError, with words for people.
    """

    def __init__(self, text: str, names: Sequence[str] = (), several: Sequence[str] = ()) -> None:
        if len(text) > MOST_BYTES:
            raise ValueError(f"a question has at most {MOST_BYTES} bytes")
        self._given = QueryParams(text)
        known = (*names, *several)
        for name in self._given:
            if name not in known:
                there = f"there are: {', '.join(known)}" if known else "there is none"
                raise ValueError(f"there is no parameter {name!r}; {there}")
            if name in names and len(self._given.getlist(name)) > 1:
                raise ValueError(f"parameter {name!r} is given more than once")

    def text(self, name: str) -> str | None:
        """As it stands."""
        return self._given.get(name) or None

    def texts(self, name: str) -> list[str]:
        """All that there are of it."""
        return self._given.getlist(name)

    def needed(self, name: str, example: str) -> str:
        """One that may not be left out."""
        if (text := self.text(name)) is None:
            raise ValueError(f"give ?{name}={example}")
        return text

    def number(self, name: str) -> float | None:
        """From 0, with digits and a point only: no sign, no exponent, no infinity."""
        if (text := self.text(name)) is None:
            return None
        if _NUMBER.fullmatch(text) is None:
            raise ValueError(f"{name} is a number from 0 to 999999999, not {text!r}")
        return float(text)

    def whole(self, name: str) -> int | None:
        """A whole number from 0."""
        number = self.number(name)
        if number is not None and not number.is_integer():
            raise ValueError(f"{name} is a whole number, not {self.text(name)!r}")
        return None if number is None else int(number)

    def truth(self, name: str) -> bool:
        """``1`` or ``0``; not given is 0."""
        if (text := self.text(name)) not in (None, "0", "1"):
            raise ValueError(f"{name} is 1 or 0, not {text!r}")
        return text == "1"
