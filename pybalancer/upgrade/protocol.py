"""What the old process and the new one say to each other: one table, and what follows from it.

::

    who   says       when it is in  and then it is
    ----  ---------  -------------  --------------
    old   hello      begun          greeted
    new   hello      greeted        agreed
    old   offer      agreed         offered
    new   prepared   offered        prepared
    old   sent       prepared       sent
    new   received   sent           received
    old   commit     received       decided
    new   committed  decided        committed
    new   serving    committed      serving
    new   settled    serving        settled

Besides, the new one may say ``failed``, and the old one ``abort``, as long as nothing is decided: then it is
``ended``. Who says anything else is not spoken to any more.

A tunnel belongs to the old process until the new one has said ``committed``, and is touched by neither from
``prepared`` on until then. That word is said before the first of them is touched: when the new process dies,
whether it has been said tells whose the tunnels were. Listening sockets are the old process's, too, until
the new one is ``serving``.
"""

from __future__ import annotations

from typing import Final, Literal

from pybalancer.errors import UpgradeError

Side = Literal["old", "new"]

TRANSITIONS: Final[dict[tuple[str, Side, str], str]] = {
    ("begun", "old", "hello"): "greeted",
    ("greeted", "new", "hello"): "agreed",
    ("agreed", "old", "offer"): "offered",
    ("offered", "new", "prepared"): "prepared",
    ("prepared", "old", "sent"): "sent",
    ("sent", "new", "received"): "received",
    ("received", "old", "commit"): "decided",
    ("decided", "new", "committed"): "committed",
    ("committed", "new", "serving"): "serving",
    ("serving", "new", "settled"): "settled",
}
"""State, who speaks, what is said: the next state."""

_UNDECIDED: Final = ("begun", "greeted", "agreed", "offered", "prepared", "sent", "received", "decided")

TRANSITIONS.update({(state, "new", "failed"): "ended" for state in _UNDECIDED})
TRANSITIONS.update({(state, "old", "abort"): "ended" for state in _UNDECIDED[:-1]})

Remedy = Literal["thaw", "bury"]

_REMEDIES: Final[dict[str, Remedy]] = {"committed": "bury", "serving": "bury", "settled": "bury"}


class Conversation:
    """How far it is. Both sides keep one and tell it of every word."""

    def __init__(self) -> None:
        self.state = "begun"

    def note(self, who: Side, word: str) -> str:
        """Somebody said it; the new state. Raises UpgradeError where that makes no sense."""
        following = TRANSITIONS.get((self.state, who, word))
        if following is None:
            raise UpgradeError(f"the {who} process said {word!r} when it was {self.state}")
        self.state = following
        return following

    @property
    def remedy(self) -> Remedy:
        """What the old process does with what is frozen if the new one dies now.

        ``thaw``: go on with it. ``bury``: it was the new one's, and is lost with it.
        """
        return _REMEDIES.get(self.state, "thaw")


def disagreement(ours: int, theirs: object, version: str, their_version: object) -> str | None:
    """Why two processes cannot understand each other, if so."""
    if theirs == ours:
        return None
    return (
        f"pybalancer {version} and {their_version} hand over in different ways (format {ours} and {theirs}): "
        "restart it instead"
    )
