"""Commands of whoever calls: what a roll does to a backend, outside of the balancer's process."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from pybalancer.errors import plain

MOST_OUTPUT: Final = 64 * 1024
"""Bytes of a command's output that are kept, its last ones."""

MERCY: Final = 5.0
"""Seconds that a command has to end after TERM."""

LAST_WORDS: Final = 0.5
"""Seconds in which what it said last is read."""

WORDS: Final = ("name", "pool", "address")
"""What may stand in braces."""

_BRACES: Final = re.compile(r"(\$?)\{(\w+)\}")


class CommandError(Exception):
    """A command has failed, or cannot be run; ``output`` is what it said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True, slots=True)
class Command:
    """A command line with ``{name}``, ``{pool}`` and ``{address}`` in it.

    It is split into arguments first and filled in then, so that no name can add an argument. With
    ``shell`` it goes to ``/bin/sh``, what is filled in quoted.
    """

    line: str
    shell: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be split, and for unknown words in braces."""
        if not self.arguments(dict.fromkeys(WORDS, "x")):
            raise ValueError("the command is empty")
        for dollar, word in _BRACES.findall(self.line):
            if not dollar and word not in WORDS:
                known = ", ".join(f"{{{one}}}" for one in WORDS)
                raise ValueError(f"{{{word}}} means nothing in a command; there are {known}")
            if dollar and word in WORDS:
                # Whichever of both was meant, a guess might restart something else.
                why = f"is a variable of the shell: write {{{word}}} to have it filled in"
                raise ValueError(f"${{{word}}} {why}, or give the variable another name")

    def arguments(self, values: Mapping[str, str]) -> list[str]:
        """What is run."""
        if self.shell:
            quoted = {key: shlex.quote(value) for key, value in values.items()}
            return ["/bin/sh", "-c", _filled(self.line, quoted)] if self.line.strip() else []
        try:
            parts = shlex.split(self.line)
        except ValueError as error:
            raise ValueError(f"{self.line!r} cannot be split into arguments: {error}") from None
        return [_filled(part, values) for part in parts]

    def missing(self, values: Mapping[str, str]) -> str | None:
        """Why it cannot be run, if that can be seen beforehand: it would cost a drain to find out."""
        program = self.arguments(values)[0]
        if shutil.which(program) is not None:
            return None
        if "/" not in program:
            return f"there is no program {program!r} on the PATH; what only a shell knows needs --shell"
        return f"{program!r} " + ("cannot be run" if os.path.exists(program) else "is not there")

    async def run(self, values: Mapping[str, str], timeout: float) -> str:  # noqa: ASYNC109
        """Run it and return what it said, on both of its outputs.

        Raises CommandError if it fails, cannot be found, or takes longer than ``timeout`` seconds; then
        it is ended, with all that it has started. So it is when this is cancelled.
        """
        arguments = self.arguments(values)
        environment = {**os.environ, **{f"PYBALANCER_{key.upper()}": value for key, value in values.items()}}
        output = _Tail()
        try:
            with trio.move_on_after(timeout) as scope:
                code = await _run(arguments, environment, output)
        except BaseExceptionGroup as group:
            error = plain(group)
            if not isinstance(error, OSError):
                raise
            raise CommandError(f"{shlex.join(arguments)}: {error.strerror or error}") from error
        if scope.cancelled_caught:
            raise CommandError(f"{shlex.join(arguments)}: ended, for it took over {timeout:g} s", output.text)
        if code:
            how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            raise CommandError(f"{shlex.join(arguments)}: {how}", output.text)
        return output.text


class _Tail:
    """The last bytes of a stream."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._lost = 0

    def take(self, data: bytes) -> None:
        self._kept += data
        self._lost += max(0, len(self._kept) - MOST_OUTPUT)
        del self._kept[:-MOST_OUTPUT]

    @property
    def text(self) -> str:
        text = self._kept.decode("utf-8", "replace")
        return f"({self._lost:,} bytes before this are not kept)\n{text}" if self._lost else text


async def _run(arguments: Sequence[str], environment: Mapping[str, str], output: _Tail) -> int:
    async with trio.open_nursery() as nursery:
        # A session of its own: Ctrl-C is for us to judge, and what asks for a password fails at once.
        start = partial(
            trio.run_process,
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
            start_new_session=True,
            deliver_cancel=_end_all,
        )
        process: trio.Process = await nursery.start(start)
        assert process.stdout is not None
        ended = trio.Event()
        nursery.start_soon(_read, process.stdout, output, ended)
        code = await process.wait()
        # The pipe may outlive it, in the hands of a daemon that it has started.
        with trio.move_on_after(LAST_WORDS):
            await ended.wait()
        nursery.cancel_scope.cancel()
    return code


async def _read(stream: trio.abc.ReceiveStream, output: _Tail, ended: trio.Event) -> None:
    with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
        async for data in stream:
            output.take(bytes(data))
    ended.set()


async def _end_all(process: trio.Process) -> None:
    """TERM to its whole session, and KILL to what is left of it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with trio.move_on_after(MERCY):
            await process.wait()
        os.killpg(process.pid, signal.SIGKILL)


def _filled(text: str, values: Mapping[str, str]) -> str:
    # At once, so that a name with braces in it is not filled in itself.
    return _BRACES.sub(lambda found: found[0] if found[1] else values.get(found[2], found[0]), text)
