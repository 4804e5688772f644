"""Where the 128-bit secret comes from that keys every hash."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import stat
import tempfile
from pathlib import Path
from typing import Final

from pybalancer.config.model import BalancerConfig, Config
from pybalancer.errors import ConfigError, Problem

_log = logging.getLogger("pybalancer")


SECRETS: Final = ("secret", "admin_token")
"""Keys of [balancer] whose values nobody else may see."""


def secret_digest(secret: bytes) -> str:
    """What tells whether two secrets are the same, and nothing else: nobody guesses 128 bits."""
    return hashlib.sha256(b"pybalancer secret " + secret).hexdigest()


def ticket_digest(secret: str) -> str:
    """The same of a ``ticket_secret``. It has the form of one, so it may stand in its place."""
    return hashlib.sha256(b"pybalancer ticket secret " + bytes.fromhex(secret)).hexdigest()


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


def read_ticket_keys(config: Config) -> dict[str, bytes]:
    """32 bytes for each pool whose tickets have a secret of their own. Raises ConfigError."""
    keys: dict[str, bytes] = {}
    for name, pool in config.pools.items():
        direct = pool.direct
        if direct.ticket_secret is not None:
            keys[name] = bytes.fromhex(direct.ticket_secret.get_secret_value())
        elif direct.ticket_secret_file is not None:
            key = f"pools.{name}.direct.ticket_secret_file"
            text = read_private(direct.ticket_secret_file, key).strip()
            try:
                keys[name] = bytes.fromhex(text)
            except ValueError:
                keys[name] = b""
            if len(keys[name]) != 32 or len(text) != 64:
                hint = f"openssl rand -hex 32 > {shlex.quote(direct.ticket_secret_file)}"
                why = "holds no secret of 64 hexadecimal digits"
                raise _problem(direct.ticket_secret_file, key, why, hint)
    return keys


def read_private(path: str, key: str) -> str:
    """The text of a small file that nobody else may read. Raises ConfigError."""
    try:
        return _read(Path(path), key)
    except OSError as error:
        raise _problem(path, key, error.strerror or str(error)) from None


def _read(path: Path, key: str) -> str:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise _problem(
                str(path), key, f"others may use it (mode {mode:04o})", f"chmod 600 {shlex.quote(str(path))}"
            )
        return file.read(4096).decode("ascii", "replace")


def _problem(path: str, key: str, message: str, suggestion: str | None = None) -> ConfigError:
    return ConfigError([Problem(path, None, None, key, message, suggestion)])


def _parse(text: str, path: str) -> bytes:
    text = text.strip()
    if len(text) != 32 or not all(character in "0123456789abcdefABCDEF" for character in text):
        hint = f"openssl rand -hex 16 > {shlex.quote(path)}"
        raise _problem(path, "balancer.secret_file", "holds no secret of 32 hexadecimal digits", hint)
    return bytes.fromhex(text)


def _kept() -> bytes:
    """The secret of earlier runs, or a new one. A balancer that cannot keep it still starts."""
    try:
        path = state_directory() / "secret"
        try:
            text = _read(path, "balancer.secret_file")
        except FileNotFoundError:
            text = _keep(os.urandom(16).hex(), path)
        return _parse(text, str(path))
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home directory.
        _log.warning(
            "the secret is not kept (%s): after a restart clients go to other backends; set secret_file",
            error,
        )
        return _ephemeral()


_unkept: list[bytes] = []
"""The secret of a process that cannot keep one."""


def remember(secret: bytes) -> None:
    """Go on with the secret of the process that this one replaces, should it not have been kept."""
    _unkept[:] = [secret]


def _ephemeral() -> bytes:
    """Made once per process: a reload must not shuffle the table."""
    if not _unkept:
        _unkept.append(os.urandom(16))
    return _unkept[0]


def _keep(secret: str, path: Path) -> str:
    """Write the secret, whole or not at all; the one that is kept: another process may have been first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix="secret.", dir=path.parent)  # With mode 0600.
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: of two that start at once both use the first one's.
        os.link(temporary, path)
    except FileExistsError:
        return _read(path, "balancer.secret_file")
    finally:
        os.unlink(temporary)
    return secret
