"""``pybalancer serve``."""

import logging
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pybalancer.cli import exits

if TYPE_CHECKING:
    from pybalancer.config.model import Config
    from pybalancer.upgrade.taking import Predecessor

Overrides = Mapping[tuple[str, str], Any]

_log = logging.getLogger("pybalancer")

EXAMPLES = (
    "for example: pybalancer serve pybalancer.toml, "
    "or: pybalancer serve --listen :8080 --to 127.0.0.1:9001 --to 127.0.0.1:9002"
)


def serve(
    file: Path | None = None,
    /,
    *,
    listen: Annotated[list[str] | None, Parameter(negative=())] = None,
    to: Annotated[list[str] | None, Parameter(negative=())] = None,
    policy: Literal["maglev", "least-connections", "round-robin", "random-two"] | None = None,
    key: Literal["source", "source-ip"] | None = None,
    health: Literal["tcp", "http", "websocket"] | None = None,
    max_connections: int | None = None,
    idle_timeout: str | None = None,
    workers: int | None = None,
    admin: str | None = None,
    grace: str | None = None,
    secret_file: str | None = None,
    pid_file: str | None = None,
    watch: bool | None = None,
    log_format: Literal["human", "json"] | None = None,
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    log_connections: bool | None = None,
) -> int:
    """Balance, as a file says or as --listen and --to do.

    TERM or Ctrl-C ends it: tunnels have some time to end by themselves (--grace), unless it comes
    twice. HUP reads the file again; a file that is wrong is reported and changes nothing. USR2 lets a
    new process take over, as `pybalancer upgrade` does.

    For example:

    * `pybalancer serve pybalancer.toml`
    * `pybalancer serve --listen :8080 --to 127.0.0.1:9001 --to 127.0.0.1:9002`

    Parameters
    ----------
    file
        The configuration file; see docs/config.md.
    listen
        Listen here: :8080, 127.0.0.1:8080, [::1]:8080 or unix:/path. May be repeated.
    to
        A backend: host:port or unix:/path, with ,weight=3 if you like. May be repeated.
    policy
        How a backend is picked (with --listen); maglev by default.
    key
        What of a client is hashed (with --listen); source, its address and port, by default.
    health
        How backends are checked (with --listen); by default by the connections themselves.
    max_connections
        Most connections that each listener holds (with --listen); no limit by default.
    idle_timeout
        End tunnels that were quiet for so long, such as 1h (with --listen); never by default.
    workers
        Threads; by default one per core.
    admin
        Admin address: unix:/path, host:port, or none.
    grace
        Time that TERM gives tunnels to end, such as 30s; 10s by default.
    secret_file
        File with the secret that keys the hash.
    pid_file
        File that tells the process id once it serves.
    watch
        Reload when the file changes.
    log_format
        Lines for people, or JSON.
    log_level
        Least level that is logged.
    log_connections
        Write a record for each connection that ended.
    """
    pool = {"policy": policy, "key": key, "health": health, "idle_timeout": idle_timeout}
    overrides = {
        ("balancer", "workers"): workers,
        ("balancer", "admin"): admin,
        ("balancer", "grace"): grace,
        ("balancer", "secret_file"): secret_file,
        ("balancer", "pid_file"): pid_file,
        ("balancer", "watch"): watch,
        ("log", "format"): log_format,
        ("log", "level"): log_level,
        ("log", "connections"): log_connections,
    }
    given = {path: value for path, value in overrides.items() if value is not None}

    def configure() -> "Config":
        if file is None:
            return _from_flags(listen or [], to or [], pool, max_connections, given)
        return _from_file(file, given)

    if file is None and not listen and not to:
        raise exits.UsageError(f"serve what? {EXAMPLES}")
    if file is not None:
        if listen or to:
            raise exits.UsageError(f"either a file, or --listen and --to; {EXAMPLES}")
        for name, value in {**pool, "max_connections": max_connections}.items():
            if value is not None:
                flag = "--" + name.replace("_", "-")
                raise exits.UsageError(f"{flag} goes with --listen and --to; with a file, write it there")
    return _serve(configure, file, given)


def _from_flags(
    listen: list[str],
    to: list[str],
    pool: Mapping[str, str | None],
    max_connections: int | None,
    overrides: Overrides,
) -> "Config":
    from pybalancer.config.load import from_flags

    given = {name: value for name, value in pool.items() if value is not None}
    config = from_flags(listen, to, env=os.environ, overrides=overrides, **given)
    if max_connections is None:
        return config
    if max_connections < 0:
        raise exits.UsageError("--max-connections: 0 or more; 0 means no limit")
    limited = [
        listener.model_copy(update={"max_connections": max_connections}) for listener in config.listeners
    ]
    return config.model_copy(update={"listeners": type(config.listeners)(limited)})


def _from_file(file: Path, overrides: Overrides) -> "Config":
    from pybalancer.config.load import load_file

    return load_file(file, os.environ, overrides)


def _serve(configure: Callable[[], "Config"], file: Path | None, overrides: Overrides) -> int:
    from pybalancer.errors import plain
    from pybalancer.upgrade.taking import Predecessor

    predecessor = Predecessor.find()
    try:
        return _run(configure(), file, overrides, predecessor)
    except BaseException as error:
        if predecessor is not None:
            predecessor.tell_failure(plain(error))
        raise


def _run(config: "Config", file: Path | None, overrides: Overrides, predecessor: "Predecessor | None") -> int:
    import trio

    from pybalancer.cli.daemon import refuse_second, run
    from pybalancer.tasks.logs import configure_logging

    configure_logging(config.log.format, config.log.level)
    for warning in config.warnings:
        _log.warning("%s", warning)
    raise_descriptor_limit()
    if file is not None and predecessor is None:
        refuse_second(config)
    return trio.run(run, config, file, overrides, sys.stderr.buffer, predecessor)


def raise_descriptor_limit() -> None:
    """Use all descriptors that we may have: the soft limit is low for the sake of select(2), not ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            _log.warning("the limit of open files stays at %d: %s", soft, error)
