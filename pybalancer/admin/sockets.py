"""Makes the listening socket of the admin interface, safely.

The Unix socket is the one door that needs no token, so who can open it matters: it is 0600, in a
directory that nobody else can write to. It gets its mode before it gets its name (Linux takes the
mode of an unbound socket's inode at ``bind``), listens before it gets its final name, and takes
that name by ``rename``: no moment exists when a client finds it open to others, or deaf. The
umask is left alone; it belongs to the whole process, which may be somebody's application.
"""

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pybalancer.admin.address import TcpAddress, UnixAddress
from pybalancer.errors import AdminError

BACKLOG = 64


class AlreadyRunning(AdminError):
    """Another pybalancer answers on this socket."""


class Door:
    """What one process leaves to the next: at the same address both listen for a moment.

    A Unix socket's name is taken from the process that has it (``replacing``), a TCP socket is used by both:
    ``inherited`` is the old one's, ``listener`` what the new one will leave.
    """

    def __init__(self, *, replacing: bool = False, inherited: socket.socket | None = None) -> None:
        self.replacing = replacing
        self.inherited = inherited
        self.listener: socket.socket | None = None


@contextmanager
def listen(address: UnixAddress | TcpAddress, door: Door | None = None) -> Iterator[socket.socket]:
    """A socket that listens at ``address``; its name goes when the context ends.

    Raises AlreadyRunning, or AdminError that says what is in the way.
    """
    if isinstance(address, UnixAddress):
        with _listen_unix(address.path, door is not None and door.replacing) as listener:
            yield listener
    elif door is not None and door.inherited is not None and _is_at(door.inherited, address):
        with door.inherited as listener:
            listener.setblocking(False)
            yield listener
    else:
        with _listen_tcp(address) as listener:
            yield listener


def _listen_tcp(address: TcpAddress) -> socket.socket:
    try:
        family, _, _, _, name = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise AdminError(f"admin {address}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(name)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise AdminError(f"admin {address}: {error.strerror or error}") from error
    return listener


def _is_at(listener: socket.socket, address: TcpAddress) -> bool:
    host, port = listener.getsockname()[:2]
    wanted = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return any((host, port if address.port else 0) == where[:2] for *_, where in wanted)


@contextmanager
def _listen_unix(path: Path, replacing: bool) -> Iterator[socket.socket]:
    try:
        directory = _open_directory(path.parent)
    except OSError as error:
        raise AdminError(f"admin unix:{path}: {path.parent}: {error.strerror}") from error
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                identity = _take_name(listener, directory, path, replacing)
            except OSError as error:
                raise AdminError(f"admin unix:{path}: {error.strerror or error}") from error
            listener.setblocking(False)
            try:
                yield listener
            finally:
                # Ours only: a successor may have taken the name since.
                with suppress(OSError):
                    if _identity(path.name, directory) == identity:
                        os.unlink(path.name, dir_fd=directory)
    finally:
        os.close(directory)


def _open_directory(directory: Path) -> int:
    """A descriptor of the directory, made if it was missing; nobody else may write into it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    # With the sticky bit others can add names, not take ours.
    open_to_all = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if found.st_uid not in (0, os.geteuid()) or open_to_all:
        os.close(descriptor)
        raise AdminError(
            f"{directory}: others can write there, so the admin socket would not be safe; "
            "give it to the user that runs pybalancer with mode 0700, or choose another with --admin"
        )
    return descriptor


def _take_name(listener: socket.socket, directory: int, path: Path, replacing: bool) -> tuple[int, int]:
    """Listen under the name ``path``, in place of a socket that nobody answers; device and inode."""
    temporary = f".{path.name}.{os.getpid()}"
    # Two that start at once must not both find the old socket dead: one looks and renames at a time.
    _lock(directory)
    try:
        if not replacing:
            _refuse_if_taken(path, directory)
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(f"/proc/self/fd/{directory}/{temporary}")
        listener.listen(BACKLOG)
        os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        return _identity(path.name, directory)
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)


def _lock(directory: int) -> None:
    """Lock the directory. We hold such a lock for microseconds: who holds it for a second is not us."""
    for _ in range(100):
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return
    raise AdminError("another program holds a lock on the directory of the admin socket")


def _refuse_if_taken(path: Path, directory: int) -> None:
    try:
        found = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise AdminError(f"admin unix:{path}: there is a file of that name that is no socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(f"/proc/self/fd/{directory}/{path.name}")
        except ConnectionRefusedError:
            return  # its owner is gone
        except BlockingIOError:
            pass  # its backlog is full: busy, and alive
    raise AlreadyRunning(
        f"admin unix:{path}: already running: another pybalancer answers there; "
        "stop it, or give this one its own socket with --admin"
    )


def _identity(name: str, directory: int) -> tuple[int, int]:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return found.st_dev, found.st_ino
