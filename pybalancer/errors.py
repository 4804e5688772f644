"""What pybalancer raises, by whose fault it is. (``PlanError`` and ``EngineError`` are the core's.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybalancer.status import RollResult


class PybalancerError(Exception):
    """What all errors of pybalancer's Python side have in common."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration, and where. Line and column count from 1."""

    file: str
    line: int | None
    column: int | None
    key: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}:{self.column or 1}"
        what = f"{self.key}: {self.message}" if self.key else self.message
        return _shown(f"{place}: {what}" + (f"; {self.suggestion}" if self.suggestion else ""))

    def to_dict(self) -> dict[str, Any]:
        """For ``--json`` and the admin socket."""
        return {name: getattr(self, name) for name in self.__slots__}


def _shown(text: str) -> str:
    """In one line and safe on a terminal: values are quoted as they were given, whatever they hold."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class ConfigError(PybalancerError, ValueError):
    """The configuration is wrong: nothing of it was applied. ``problems`` has all that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = list(problems)


class StartError(PybalancerError, OSError):
    """The balancer cannot start here: an address is taken, a file cannot be made."""


class ConnectionEnded(PybalancerError):
    """A client's connection has ended for good, and coming back is of no use. ``code`` is the Close code, or
    below 1000 the status of an HTTP answer."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class AdminError(PybalancerError):
    """The running balancer cannot be asked: it does not answer, or it refused."""


class UpgradeError(PybalancerError):
    """No new process took this one's place: it goes on as if nothing had been."""


class TargetError(PybalancerError, LookupError):
    """There is no backend, pool or listener of that name, or several: the message lists what to say."""


class DrainError(PybalancerError):
    """It cannot be drained, undrained or shed now; nothing was begun."""


class RollError(PybalancerError):
    """A roll has not come to its end; ``result``, if it began, says how far it came."""

    def __init__(self, message: str, result: RollResult | None = None) -> None:
        super().__init__(message)
        self.result = result


def plain(error: BaseException) -> BaseException:
    """The one error inside of nested groups, or the group that has several.

    Nurseries wrap what passes through them; of those in here a host need not know.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def leaves(error: BaseException) -> list[int]:
    """The errors of nested groups, by identity: trio makes groups anew that it has looked through."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [id(error)]


def __getattr__(name: str) -> Any:
    """``PlanError`` and ``EngineError``, which the compiled core defines: loaded when first asked for."""
    if name not in ("EngineError", "PlanError"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pybalancer import _core

    return getattr(_core, name)
