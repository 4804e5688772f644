"""What clients lived through, told message by message: who was cut, with what code, what never came back.

Every client numbers its messages from 0. A backend notes each number that reaches it, and the client
each that comes back, so lost and doubled are counted at both ends and not supposed. The time is told
in chapters (coming, a roll, a reload), and what happens belongs to the chapter in which it began.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

Reached = Mapping[tuple[int, int], int]
"""Client and number of a message: how many times it reached a backend."""


@dataclass(slots=True)
class Chapter:
    """What happened between two moments."""

    name: str
    began: float
    ended: float = 0.0
    tried: list[float] = field(default_factory=list)
    """When a client that had lost its connection tried to get one again."""
    returned: list[float] = field(default_factory=list)
    """When it got it."""
    away: list[float] = field(default_factory=list)
    """Seconds that it had none."""
    cut: Counter[int] = field(default_factory=Counter)
    """By client: connections that ended under it."""
    codes: Counter[int] = field(default_factory=Counter)
    """Close codes that clients saw. 1006: none came."""
    refused: Counter[str] = field(default_factory=Counter)
    """Attempts that got no connection, by what was said."""


@dataclass(frozen=True, slots=True)
class Messages:
    """Fate of the messages that were sent in a chapter."""

    sent: int = 0
    lost: int = 0
    """The client never got the answer."""
    unheard: int = 0
    """Of those, the ones that no backend got either."""
    doubled: int = 0
    """Reached a backend, or came back, more than once."""


class Ledger:
    """Kept by the clients as they go. Times are those of one clock, in seconds."""

    def __init__(self, clients: int, now: float, first: str = "coming") -> None:
        self.chapters = [Chapter(first, now)]
        self.backend: list[str | None] = [None] * clients
        """By client: who answered last on its present connection."""
        self.connected: set[int] = set()
        self._sent: list[list[Chapter]] = [[] for _ in range(clients)]
        self._answers = [bytearray() for _ in range(clients)]
        self._lost_at: dict[int, float] = {}

    @property
    def chapter(self) -> Chapter:
        """The one that is being written."""
        return self.chapters[-1]

    def begin(self, name: str, now: float) -> Chapter:
        """A new chapter; the last one ends."""
        self.chapter.ended = now
        self.chapters.append(Chapter(name, now))
        return self.chapter

    def tries(self, client: int, now: float) -> None:
        """It asks for a connection. Counted from its second one on: the first is no reconnect."""
        if client in self._lost_at:
            self.chapter.tried.append(now)

    def refuses(self, why: str) -> None:
        """It did not get one."""
        self.chapter.refused[why] += 1

    def opens(self, client: int, now: float) -> None:
        """It got one."""
        self.connected.add(client)
        if client in self._lost_at:
            self.chapter.returned.append(now)
            self.chapter.away.append(now - self._lost_at[client])

    def loses(self, client: int, code: int, now: float) -> None:
        """Its connection ended, and not by its own wish."""
        self.leaves(client)
        self._lost_at[client] = now
        self.chapter.cut[client] += 1
        self.chapter.codes[code] += 1

    def leaves(self, client: int) -> None:
        """It went by its own wish."""
        self.connected.discard(client)
        self.backend[client] = None

    def sends(self, client: int) -> int:
        """It sends a message; the message's number."""
        self._sent[client].append(self.chapter)
        self._answers[client].append(0)
        return len(self._sent[client]) - 1

    def answered(self, client: int, number: int, backend: str) -> None:
        """It got an answer."""
        self.backend[client] = backend
        answers = self._answers[client]
        answers[number] = min(255, answers[number] + 1)

    @property
    def waiting(self) -> int:
        """Messages of connected clients that have had no answer; of each client, its latest at most."""
        return sum(not self._answers[client][-1] for client in self.connected if self._answers[client])

    def messages(self, chapter: Chapter, reached: Reached) -> Messages:
        """What became of those that were sent in it, as both ends saw it."""
        sent = lost = unheard = doubled = 0
        for client, chapters in enumerate(self._sent):
            for number, (sent_in, answers) in enumerate(zip(chapters, self._answers[client], strict=True)):
                if sent_in is not chapter:
                    continue
                sent += 1
                arrived = reached.get((client, number), 0)
                lost += not answers
                unheard += not answers and not arrived
                doubled += max(answers, arrived) > 1
        return Messages(sent, lost, unheard, doubled)

    def spread(self, backends: Collection[str]) -> dict[str, int]:
        """Connected clients by the backend that answered them last."""
        counts = Counter(self.backend[client] for client in self.connected)
        return {name: counts[name] for name in backends}


def peak(times: Sequence[float], window: float = 1.0) -> int:
    """The most that happened within any ``window`` seconds."""
    ordered = sorted(times)
    most = first = 0
    for last, time in enumerate(ordered):
        while ordered[first] <= time - window:
            first += 1
        most = max(most, last - first + 1)
    return most


def skew(spread: Mapping[str, int]) -> float:
    """The fullest backend's load, as a multiple of the mean."""
    total = sum(spread.values())
    return max(spread.values()) * len(spread) / total if total else 0.0


def middle(values: Sequence[float]) -> float:
    """The median, 0 of nothing."""
    return median(values) if values else 0.0
