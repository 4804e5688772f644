"""Which backend a client gets, and why: what ``explain`` answers."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybalancer._core import Choice
    from pybalancer.config.model import Config


def choose_pool(config: Config, pool: str | None) -> str:
    """The pool that is meant. Raises LookupError."""
    if pool is None:
        if len(config.pools) == 1:
            return next(iter(config.pools))
        raise LookupError(f"there are several pools, name one: {', '.join(config.pools)}")
    if pool not in config.pools:
        raise LookupError(f"there is no pool {pool!r}; there are: {', '.join(config.pools)}")
    return pool


def client_address(source: str) -> str:
    """``ip:port`` of what a person writes. Raises ValueError."""
    try:
        address = ipaddress.ip_address(source.strip("[]"))
    except ValueError:
        pass
    else:
        return f"[{address}]:0" if address.version == 6 else f"{address}:0"
    host, _, port = source.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise ValueError(f"{source!r} is not a client's address: IP:PORT or [IPv6]:PORT") from None
    if not 0 <= number <= 65535 or not port.isascii():
        raise ValueError(f"{port} is not a port")
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


def explanation(config: Config, pool: str, source: str, order: list[Choice]) -> dict[str, Any]:
    """What ``explain`` answers."""
    picked = next((choice.backend for choice in order if choice.verdict == "picked"), None)
    return {
        "source": source,
        "pool": pool,
        "policy": config.pools[pool].policy,
        "key": config.pools[pool].key,
        "backend": picked,
        "choices": [
            {
                "backend": choice.backend,
                "address": choice.address,
                "state": choice.state,
                "active": choice.active,
                "verdict": choice.verdict,
            }
            for choice in order
        ],
    }
