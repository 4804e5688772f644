"""The side of the process that goes: start a new one, hand everything over, or go on as before."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from pybalancer import _core
from pybalancer.errors import ConfigError, Problem, UpgradeError
from pybalancer.upgrade.line import Line, Message
from pybalancer.upgrade.protocol import Conversation, disagreement

_log = logging.getLogger("pybalancer")

VARIABLE: Final = "PYBALANCER_UPGRADE"
"""Names the descriptor of the line, for the new process."""

READY_SECONDS: Final = 30.0
"""How long the new process may take until it is prepared, where nobody says otherwise."""
FREEZE_SECONDS: Final = 10.0
"""How long tunnels may stand still before they are thawed."""
COMMIT_SECONDS: Final = 5.0
"""How long the new process may take to say that it has heard the word."""
SERVE_SECONDS: Final = 20.0
"""How long it may take from there until it serves, and until it has settled."""
ABORT_SECONDS: Final = 1.0
"""How long it may take to clean up behind itself."""


@dataclass(frozen=True, slots=True)
class Command:
    """How this process was started."""

    arguments: tuple[str, ...] = field(default_factory=lambda: (sys.executable, *sys.orig_argv[1:]))
    directory: str = field(default_factory=os.getcwd)


@dataclass(frozen=True, slots=True)
class Offer:
    """What the old process gives: things to say, and the descriptors that go with them."""

    body: Mapping[str, Any]
    admin: int | None
    """The admin interface's listening TCP socket."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The new process serves."""

    pid: int
    version: str
    tunnels: int
    frozen_seconds: float
    taken: list[int]
    """Numbers of the listening sockets that it uses."""


class Successor:
    """A new process, from its start until it serves or is gone.

    ``offer`` is asked once it is known that the two understand each other. ``applying`` is held while nothing
    may change; ``hindrance`` says what began before that and cannot be gone on with.
    """

    def __init__(
        self,
        engine: _core.Engine,
        offer: Callable[[], Offer],
        applying: trio.Lock,
        hindrance: Callable[[], str | None],
    ) -> None:
        self._engine = engine
        self._hand = _core.HandOver(engine)
        self._offer = offer
        self._applying = applying
        self._hindrance = hindrance
        self._talk = Conversation()
        self._process: trio.Process | None = None
        self._line: Line
        self._version = ""
        self._numbers: list[int] = []

    async def take_over(self, command: Command, patience: float) -> HandedOver:
        """Start it, and hand everything over. Raises UpgradeError, ConfigError; then nothing has changed."""
        process = await self._start(command)
        try:
            try:
                with trio.fail_after(patience):
                    await self._greet()
                    await self._make_offer()
                    prepared = await self._hear("prepared")
            except trio.TooSlowError:
                raise UpgradeError(f"the new process was not ready within {patience:g} s") from None
            # From here on nothing may be left halfway, and everything has its own deadline.
            with trio.CancelScope(shield=True):
                async with self._applying:
                    done = await self._hand_over(prepared)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._end(process)
            self._line.close()
            raise
        return done

    async def wait_settled(self) -> None:
        """Wait until it has taken over the admin interface too, and whoever watches knows it."""
        try:
            with trio.fail_after(SERVE_SECONDS):
                await self._hear("settled")
        except (UpgradeError, trio.TooSlowError) as error:
            _log.warning("the new process serves, but did not say that all is well: %s", error)
        finally:
            self._line.close()

    @property
    def pid(self) -> int:
        """Its process id; 0 if it did not even start."""
        return self._process.pid if self._process is not None else 0

    async def _start(self, command: Command) -> trio.Process:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {**os.environ, VARIABLE: str(theirs.fileno())}
            try:
                self._process = process = await trio.lowlevel.open_process(
                    list(command.arguments),
                    stdin=subprocess.DEVNULL,
                    cwd=command.directory,
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as error:
                ours.close()
                raise UpgradeError(f"the new process does not start: {error}") from error
        self._line = Line(ours)
        return process

    async def _greet(self) -> None:
        ours = _core.HandOver.FORMAT
        hello = {"format": ours, "version": _core.__version__, "pid": os.getpid()}
        await self._say("hello", hello)
        theirs = (await self._hear("hello")).body
        why = disagreement(ours, theirs.get("format"), _core.__version__, theirs.get("version"))
        if why is not None:
            raise UpgradeError(why)
        self._version = str(theirs.get("version"))

    async def _make_offer(self) -> None:
        offer = self._offer()
        lent = await trio.to_thread.run_sync(self._hand.lend)
        try:
            manifest = await trio.to_thread.run_sync(self._hand.manifest)
            self._numbers = [each.number for each in lent]
            body = {
                **offer.body,
                "manifest": manifest.hex(),
                "workers": self._engine.workers,
                "listeners": [_described(each) for each in lent],
                "admin": offer.admin is not None,
            }
            descriptors = [descriptor for each in lent for descriptor in each.descriptors]
            if offer.admin is not None:
                descriptors.append(offer.admin)
            await self._say("offer", body, descriptors)
        finally:
            for each in lent:
                Message("", {}, list(each.descriptors)).close()

    async def _hand_over(self, prepared: Message) -> HandedOver:
        if (why := self._hindrance()) is not None:
            prepared.close()
            raise UpgradeError(f"not now: {why}")
        began = trio.current_time()
        unwanted = {int(number) for number in prepared.body.get("unwanted", ())}
        tunnels = await self._freeze(prepared.descriptors)
        try:
            with trio.fail_after(FREEZE_SECONDS):
                await self._say("sent", {"tunnels": tunnels})
                received = (await self._hear("received")).body.get("tunnels")
            if received != tunnels:
                raise UpgradeError(f"{tunnels} tunnels were sent, and {received} came")
            with trio.fail_after(COMMIT_SECONDS):
                await self._say("commit", {})
                await self._hear("committed")
            with trio.fail_after(SERVE_SECONDS):
                await self._hear("serving")
        except trio.TooSlowError:
            raise UpgradeError("the new process does not answer in time") from None
        return HandedOver(
            pid=self.pid,
            version=self._version,
            tunnels=tunnels,
            frozen_seconds=trio.current_time() - began,
            taken=[number for number in self._numbers if number not in unwanted],
        )

    async def _freeze(self, channels: Sequence[int]) -> int:
        try:
            return await trio.to_thread.run_sync(self._hand.freeze, channels, FREEZE_SECONDS)
        except (_core.EngineError, OSError) as error:
            raise UpgradeError(str(error)) from error

    async def _end(self, process: trio.Process) -> None:
        """The new process is not wanted, or gone: make sure of that, then go on as before."""
        if self._talk.state not in ("decided", "committed", "serving", "settled"):
            # It may have files to remove.
            with trio.move_on_after(ABORT_SECONDS):
                with contextlib.suppress(UpgradeError):
                    await self._say("abort", {})
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        # What it has said before is still on the line. Once it is dead there is nothing more to come.
        with contextlib.suppress(UpgradeError):
            while (message := await self._line.receive()) is not None:
                message.close()
                self._talk.note("new", message.word)
        try:
            # Also where nothing was frozen yet: then it is nothing.
            if self._talk.remedy == "thaw":
                await trio.to_thread.run_sync(self._hand.thaw)
            else:
                lost = await trio.to_thread.run_sync(self._hand.bury)
                _log.error("the new process died with %d tunnels that were its own; accepting again", lost)
        except _core.EngineError as error:
            _log.critical("the hand-over failed, and so did going on without it: %s", error)

    async def _say(self, word: str, body: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        self._talk.note("old", word)
        try:
            await self._line.send(word, body, descriptors)
        except UpgradeError:
            raise UpgradeError(await self._obituary()) from None

    async def _hear(self, word: str) -> Message:
        message = await self._line.receive()
        if message is None:
            raise UpgradeError(await self._obituary())
        try:
            self._talk.note("new", message.word)
        except UpgradeError:
            message.close()
            raise
        if message.word != word:
            message.close()
            problems = [Problem(**problem) for problem in message.body.get("problems", ())]
            why = str(message.body.get("error", f"the new process said {message.word!r} and not {word!r}"))
            raise ConfigError(problems) if problems else UpgradeError(why)
        return message

    async def _obituary(self) -> str:
        assert self._process is not None
        with trio.move_on_after(ABORT_SECONDS):
            await self._process.wait()
        code = self._process.returncode
        if code is None:
            return "the new process does not speak to us"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the new process {how} before it was ready; the log says more"


def _described(lent: _core.Lent) -> dict[str, Any]:
    """Listening sockets, as they are offered."""
    return {
        "number": lent.number,
        "bind": lent.bind,
        "chosen_for": lent.chosen_for,
        "address": lent.address,
        "file": lent.file,
        "sockets": len(lent.descriptors),
    }
