"""A load balancer made for WebSockets.

Under trio::

    async with pybalancer.Balancer("pybalancer.toml") as lb:
        ...

and from asyncio or plain threads::

    with pybalancer.run_in_thread("pybalancer.toml") as lb:
        ...

Importing this has no side effects; what is heavy is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybalancer._core import EngineError, PlanError
    from pybalancer.balancer import Balancer
    from pybalancer.config.model import Config
    from pybalancer.errors import (
        AdminError,
        ConfigError,
        DrainError,
        Problem,
        PybalancerError,
        RollError,
        StartError,
        TargetError,
        UpgradeError,
    )
    from pybalancer.tasks.commands import Command
    from pybalancer.thread import run_in_thread

__all__ = [
    "AdminError",
    "Balancer",
    "Command",
    "Config",
    "ConfigError",
    "DrainError",
    "EngineError",
    "PlanError",
    "Problem",
    "PybalancerError",
    "RollError",
    "StartError",
    "TargetError",
    "UpgradeError",
    "run_in_thread",
]

_HOMES = {
    "AdminError": "pybalancer.errors",
    "Balancer": "pybalancer.balancer",
    "Command": "pybalancer.tasks.commands",
    "Config": "pybalancer.config.model",
    "ConfigError": "pybalancer.errors",
    "DrainError": "pybalancer.errors",
    "EngineError": "pybalancer._core",
    "PlanError": "pybalancer._core",
    "Problem": "pybalancer.errors",
    "PybalancerError": "pybalancer.errors",
    "RollError": "pybalancer.errors",
    "StartError": "pybalancer.errors",
    "TargetError": "pybalancer.errors",
    "UpgradeError": "pybalancer.errors",
    "__version__": "pybalancer._core",
    "run_in_thread": "pybalancer.thread",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
