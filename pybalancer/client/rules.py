"""How one client comes back: which end is final, how long to wait, where to connect.

Pure: times, chance and answers are given to it. Times are milliseconds here, as they are in the directory's
answers and in ``pybalancer/js/client.js``, which has the same rules; ``tests/vectors/reconnect.json`` is
checked against both.

The wait is full jitter: uniform between ``min_ms`` and a bound that doubles with every loss in a row, from
``base_ms`` to ``max_ms``. Clients that were lost in one moment come back spread over the whole of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from email.utils import parsedate_to_datetime
from typing import Any, Final

LONGEST: Final = 3_600_000.0
"""Nobody is sent away for more than an hour, whatever an answer says."""
MOST_ALTERNATIVES: Final = 16

_LEAST_BOUND: Final = 10.0
"""Of a wait: who may come back at once, always, hammers."""
_MOST_DOUBLINGS: Final = 30
_WAITING: Final = frozenset({200, 408, 425, 429, 503})
"""With a time or a ``retry``, these say: come again later."""
_PLANNED: Final = frozenset({1012, 1013})
_FINAL: Final = frozenset({1000, 1008, 3000, 3003})
_ADDRESS: Final = re.compile(r"wss?://[\w.:\[\]-]+([/?][!\"$-~]*)?", re.ASCII | re.IGNORECASE)
_WINDOW: Final = re.compile(r"\bwindow_ms=([0-9]+)", re.ASCII)

IsFinal = Callable[[int, str, bool], bool]
"""Whether an end is final: its code, its reason, and what ``is_final`` says."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Times in milliseconds. What the directory's answers say goes before these.

    ``min_ms``, ``max_ms``: bounds of a wait. ``base_ms``: bound of the first; each further one may be twice
    as long. ``stable_ms``: after a connection that lasted as long, waits are short again. ``window_ms``:
    bound of the wait after Close 1012 or 1013. ``fallback``: a ws: or wss: URL for when the directory cannot
    be reached.

    Raises ``ValueError`` for a time that is none.
    """

    min_ms: float = 0.0
    max_ms: float = 30_000.0
    base_ms: float = 500.0
    stable_ms: float = 10_000.0
    window_ms: float = 5_000.0
    fallback: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "fallback":
                if value is not None and not _ADDRESS.fullmatch(value):
                    raise ValueError(f"fallback must be a ws: or wss: URL, not {value!r}")
            elif _time(value) is None:
                raise ValueError(f"{field.name} must be a number of milliseconds, 0 or more, not {value!r}")


@dataclass(frozen=True, slots=True)
class Found:
    """Connect to ``url``. ``backend`` is its name, if that is known."""

    url: str
    backend: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """There is nowhere to connect. ``status`` is the answer's, 0 if there was none; ``after`` the
    milliseconds that it asks for."""

    status: int
    after: float | None


def is_final(code: int) -> bool:
    """Whether a Close code, or below 1000 the status of an HTTP answer, says that coming back is of no use.

    Codes: RFC 6455, section 7.4, and IANA's registry: 1000 (done), 1008 (policy), 3000 (unauthorized), 3003
    (forbidden), 4000 to 4999 (the application's own). Statuses: those that blame the client, but 408, 425
    and 429, which pass.
    """
    if code < 1000:
        return 400 <= code < 500 and code not in (408, 425, 429)
    return code in _FINAL or 4000 <= code < 5000


def retry_after(text: str | None, wall: float) -> float | None:
    """Milliseconds that a Retry-After field asks for (RFC 9110, section 10.2.3); None: it asks for none.

    ``wall`` is the time of day, in milliseconds since 1970.
    """
    if text is None:
        return None
    if re.fullmatch("[0-9]+", text):
        return LONGEST if len(text) > 9 else min(int(text) * 1000.0, LONGEST)
    if not text.endswith(" GMT"):
        return None
    try:
        return min(max(parsedate_to_datetime(text).timestamp() * 1000.0 - wall, 0.0), LONGEST)
    except (ValueError, OverflowError):
        return None


class Comeback:
    """One client's way back to ``target``: the directory's http: or https: URL, or a ws: or wss: URL.

    After ``answer`` named an address, tell ``opened`` when it opened, and ask ``wait`` when that has ended
    or did not come about. Raises ``ValueError`` for another kind of URL.
    """

    def __init__(self, target: str, retry: Retry | None = None, final: IsFinal | None = None) -> None:
        if not re.match(r"(http|ws)s?://[^/?#]", target, re.IGNORECASE) or "#" in target:
            raise ValueError(f"not a URL of http:, https:, ws: or wss: {target!r}")
        self.losses = 0
        """Since the last connection that lasted."""
        self._secure = re.match("(http|ws)s:", target, re.IGNORECASE) is not None
        self._settings = retry or Retry()
        if self._settings.fallback is not None and self._usable(self._settings.fallback) is None:
            raise ValueError("a fallback over ws: would take the encryption away: say wss:")
        self._final = final or (lambda code, reason, usual: usual)
        self._url: str | None = None
        self._opened: float | None = None
        self._failed: set[str] = set()
        self._not_before = 0.0

    def answer(
        self, status: int, text: str = "", after: str | None = None, wall: float = 0.0
    ) -> Found | Told:
        """What the directory's answer means: its status (0: there is none), text and Retry-After field.

        An address that did not open the last time is passed over for one of the alternatives.
        """
        body = _object(text)
        hint = body.get("retry")
        self._settings = replace(self._settings, **self._kept(hint))
        if status == 200 and (url := self._usable(body.get("url"))) is not None:
            return self._choose(url, body)
        asked = _time(hint.get("after_ms")) if isinstance(hint, dict) else None
        if asked is None:
            asked = retry_after(after, wall)
        from_it = status in _WAITING and (isinstance(hint, dict | list) or asked is not None)
        if self._settings.fallback is not None and not from_it and not is_final(status):
            return Found(self._settings.fallback, None)
        return Told(status, asked)

    def opened(self, now: float) -> None:
        """A connection has opened."""
        self._opened = now
        self._failed.clear()

    def wait(
        self,
        now: float,
        chance: float,
        code: int,
        reason: str = "",
        after: float | None = None,
        hidden: bool = False,
    ) -> float | None:
        """Milliseconds to wait after an end; None: it is final.

        ``chance`` is uniform in [0, 1). ``code`` is a Close code (1006: none), or the status of an HTTP
        answer, which may ask for a time, ``after``. ``hidden``: there is no hurry, nobody looks.
        """
        settings = self._settings
        if self._opened is None:
            if self._url is not None:
                self._failed.add(_node(self._url))
        elif now - self._opened >= settings.stable_ms:
            self.losses = 0
        self._opened = self._url = None
        if self._final(code, reason, is_final(code)):
            return None
        grown = max(settings.base_ms, _LEAST_BOUND) * 2.0 ** min(self.losses, _MOST_DOUBLINGS)
        self.losses += 1
        longest = settings.max_ms if hidden else min(settings.max_ms, grown)
        top = max(settings.min_ms, longest, _LEAST_BOUND)
        if code in _PLANNED:
            top = max(top, _window(reason, settings.window_ms))
        self._not_before = now + (settings.min_ms if after is None else after)
        if after is not None:
            return after + chance * top
        return settings.min_ms + chance * (top - settings.min_ms)

    def sooner(self, now: float, chance: float, at: float) -> float:
        """When to try instead of ``at``, now that there is hope; never before a time that was asked for."""
        soon = max(self._not_before, now + chance * self._settings.base_ms)
        return min(at, soon) if at > now else soon

    def _choose(self, url: str, body: Mapping[str, Any]) -> Found:
        more = body.get("alternatives")
        others = more[:MOST_ALTERNATIVES] if isinstance(more, list) else []
        urls = [url, *(one for one in others if self._usable(one) is not None)]
        fresh = [one for one in urls if _node(one) not in self._failed]
        if not fresh:
            self._failed.clear()
        self._url = fresh[0] if fresh else url
        backend = body.get("backend")
        return Found(self._url, backend if self._url == url and isinstance(backend, str) else None)

    def _usable(self, url: object) -> str | None:
        """No encryption is given up: what was looked up over https: leads to wss:."""
        if not isinstance(url, str) or not _ADDRESS.fullmatch(url):
            return None
        return None if self._secure and not url.lower().startswith("wss:") else url

    def _kept(self, hint: object) -> dict[str, Any]:
        if not isinstance(hint, dict):
            return {}
        read = {name: _time(hint.get(name)) for name in _NAMES if name != "fallback"}
        found = {**read, "fallback": self._usable(hint.get("fallback"))}
        return {name: value for name, value in found.items() if value is not None}


_NAMES: Final = tuple(field.name for field in fields(Retry))


def _time(value: object) -> float | None:
    # Whole numbers may be larger than any float. NaN is not 0 or more.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        return None
    return float(min(value, LONGEST))


def _window(reason: str, usual: float) -> float:
    found = _WINDOW.search(reason)
    if found is None:
        return usual
    return LONGEST if len(found[1]) > 9 else min(float(found[1]), LONGEST)


def _node(url: str) -> str:
    """Without the query: a ticket in it is another one each time."""
    return url.partition("?")[0]


def _object(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
