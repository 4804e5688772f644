"""bench/RESULTS.md: who measures something writes its own section, and leaves the others alone."""

from __future__ import annotations

import re
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"

_SECOND = re.compile(r"^(?=## )", re.MULTILINE)


def replaced(text: str, section: str) -> str:
    """``text`` with ``section`` in place of the one that has its heading (its first line), or behind."""
    heading = section.split("\n", 1)[0]
    parts = _SECOND.split(text or "# Measured costs\n")
    kept = [part.rstrip("\n") + "\n" for part in parts]
    new = section.rstrip("\n") + "\n"
    places = [index for index, part in enumerate(kept) if part.startswith(f"{heading}\n")]
    if places:
        kept[places[0]] = new
    else:
        kept.append(new)
    return "\n".join(kept)


def part_replaced(text: str, heading: str, part: str) -> str:
    """``text`` with ``part`` in place of the part of the section ``heading`` that has its heading."""
    own = next(each for each in _SECOND.split(text) if each.startswith(f"{heading}\n"))
    first = part.split("\n", 1)[0]
    before, _, rest = own.partition(f"{first}\n")
    _, mark, behind = rest.partition("\n### ")
    return text.replace(own, before + part.rstrip("\n") + "\n" + mark + behind)


def write(section: str) -> None:
    RESULTS.write_text(replaced(RESULTS.read_text() if RESULTS.exists() else "", section))


def behind(text: str, own: str) -> str:
    """The sections whose headings do not begin with ``own``."""
    kept = [part for part in _SECOND.split(text)[1:] if not part.startswith(own)]
    return "\n".join(part.rstrip("\n") + "\n" for part in kept)
