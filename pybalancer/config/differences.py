"""What a reload changes, for people."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from pybalancer.config.routes import named

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pybalancer.config.model import Config

FIXED: Final = (
    "workers",
    "stats",
    "admin",
    "admin_token",
    "admin_token_file",
    "admin_origins",
    "pid_file",
    "watch",
)
"""Keys of [balancer] that are read at the start only."""


def changes(before: Config, after: Config) -> list[str]:
    """What differs between two configurations and takes effect; without the secret, which may be a file's."""
    found = [f"log.{key} changed" for key in _differing(before.log, after.log)]
    silent = (*FIXED, "secret", "secret_file")
    found += [f"balancer.{key} changed" for key in _differing(before.balancer, after.balancer, silent)]
    found += [f"packet.{key} changed" for key in _differing(before.packet, after.packet)]
    old_listeners = {listener.name: listener for listener in before.listeners}
    new_listeners = {listener.name: listener for listener in after.listeners}
    found += _differences("listener", old_listeners, new_listeners)
    for name, listener in new_listeners.items():
        if name in old_listeners:
            found += _differences(f"route {name}:", named(old_listeners[name]), named(listener))
    found += _differences("pool", before.pools, after.pools)
    for name in after.pools:
        if name not in before.pools:
            continue
        old = {backend.name: backend for backend in before.pools[name].backends}
        new = {backend.name: backend for backend in after.pools[name].backends}
        found += _differences(f"backend {name}/", old, new)
    return found


def _differences(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    gap = "" if kind.endswith("/") else " "  # "route public: /rooms/*"
    found = [f"{kind}{gap}{name} added" for name in new if name not in old]
    found += [f"{kind}{gap}{name} removed" for name in old if name not in new]
    return found + [f"{kind}{gap}{name} changed" for name in new if name in old and new[name] != old[name]]


def _differing(before: BaseModel, after: BaseModel, without: Collection[str] = ()) -> list[str]:
    fields = type(after).model_fields
    return [key for key in fields if key not in without and getattr(before, key) != getattr(after, key)]


def ignored(before: Config, after: Config) -> list[str]:
    """Keys that differ and take effect at the next start only."""
    return [f"balancer.{key}" for key in _differing(before.balancer, after.balancer) if key in FIXED]
