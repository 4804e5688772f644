"""Where the 128-bit secret comes from that keys every hash."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from pybalancer.config.model import BalancerConfig, Config
from pybalancer.errors import ConfigError, Problem

_log = logging.getLogger("pybalancer")


def state_directory() -> Path:
    """Where a balancer keeps what shall outlive it."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    system = Path("/var/lib/pybalancer")
    if os.geteuid() == 0:
        return system
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "pybalancer"


def read_secret(config: Config) -> bytes:
    """16 bytes: from ``secret``, ``secret_file``, or one made here once and kept.

    Raises ConfigError if the file cannot be read, can be read by others, or holds something else.
    """
    section = config.balancer
    if section.secret is not None:
        return bytes.fromhex(section.secret.get_secret_value())
    if section.secret_file is not None:
        return _parse(read_private(section.secret_file, "balancer.secret_file"), section.secret_file)
    return _kept()


def read_token(section: BalancerConfig) -> str | None:
    """The token that a TCP admin address asks for; None if there is none."""
    if section.admin_token is not None:
        return section.admin_token.get_secret_value()
    if section.admin_token_file is None:
        return None
    token = read_private(section.admin_token_file, "balancer.admin_token_file").strip()
    if len(token) < 16:
        raise _problem(section.admin_token_file, "balancer.admin_token_file", "is shorter than 16 characters")
    return token


def read_private(path: str, key: str) -> str:
    """The text of a small file that nobody else may read. Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise _problem(path, key, f"others may read it (mode {mode:04o})", f"chmod 600 {path}")
            return file.read(4096).decode("ascii", "replace")
    except OSError as error:
        raise _problem(path, key, error.strerror or str(error)) from None


def _problem(path: str, key: str, message: str, suggestion: str | None = None) -> ConfigError:
    return ConfigError([Problem(path, None, None, key, message, suggestion)])


def _parse(text: str, path: str) -> bytes:
    text = text.strip()
    if len(text) != 32 or not all(character in "0123456789abcdefABCDEF" for character in text):
        hint = f"openssl rand -hex 16 > {path}"
        raise _problem(path, "balancer.secret_file", "holds no secret of 32 hexadecimal digits", hint)
    return bytes.fromhex(text)


def _kept() -> bytes:
    """The secret of earlier runs, or a new one. A balancer that cannot keep it still starts."""
    path = state_directory() / "secret"
    try:
        return _parse(read_private(str(path), "secret"), str(path))
    except ConfigError:
        if path.exists():
            raise
    secret = os.urandom(16)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f"secret.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secret.hex() + "\n")
        try:
            # A link, not a rename: of two that start at once both use the first one's.
            os.link(temporary, path)
        except FileExistsError:
            return _parse(read_private(str(path), "secret"), str(path))
        finally:
            temporary.unlink()
    except OSError as error:
        _log.warning(
            "the secret is not kept (%s): after a restart clients go to other backends; set secret_file",
            error,
        )
    return secret
