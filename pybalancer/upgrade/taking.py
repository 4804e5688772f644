"""The side of the process that comes: take over what the old one hands over."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Any, Final

import trio

from pybalancer import _core
from pybalancer.errors import ConfigError, PybalancerError, UpgradeError
from pybalancer.upgrade.handing import FREEZE_SECONDS, VARIABLE
from pybalancer.upgrade.line import Line, Message, encode
from pybalancer.upgrade.protocol import Conversation, disagreement

SLICE: Final = 0.5
"""Seconds after which a thread that waits for tunnels looks if it is still wanted."""


class Predecessor:
    """The process that this one replaces.

    ``meet`` before the engine is used, ``take_over`` once its plan is applied; ``settle`` at last. What comes
    with the offer is there in between: ``secret``, ``state``, ``admin``.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._line: Line | None = None
        self._talk = Conversation()
        self._manifest = b""
        self._channels = 1
        self.pid = 0
        self.secret: bytes | None = None
        """What it uses where the configuration names none."""
        self.state: Mapping[str, Any] = {}
        """What its policy wants to be remembered."""
        self.admin: socket.socket | None = None
        """The listening socket of its admin interface, if that is TCP."""

    @classmethod
    def find(cls) -> Predecessor | None:
        """The process that has started this one to be replaced by it, if that is how it began."""
        number = os.environ.pop(VARIABLE, None)
        if number is None:
            return None
        try:
            end = socket.socket(fileno=int(number))
        except (ValueError, OSError) as error:
            raise UpgradeError(f"{VARIABLE}={number}: this is set by `pybalancer upgrade` only") from error
        os.set_inheritable(end.fileno(), False)
        return cls(end)

    def tell_failure(self, error: BaseException) -> None:
        """This process will not replace it, and why. Nothing happens once that is decided."""
        if self._talk.state in ("committed", "serving", "settled", "ended"):
            return
        text = str(error) if isinstance(error, PybalancerError) else repr(error)
        body: dict[str, Any] = {"error": text}
        if isinstance(error, ConfigError):
            body["problems"] = [problem.to_dict() for problem in error.problems]
        with contextlib.suppress(OSError):
            if self._line is None:
                self._end.sendall(encode("failed", body))
            else:
                os.write(self._end.fileno(), encode("failed", body))

    async def meet(self, engine: _core.Engine) -> None:
        """See that the two understand each other, and take the offer."""
        self._line = Line(self._end)
        hello = (await self._hear("hello")).body
        self.pid = int(hello.get("pid", 0))
        ours = {"format": _core.HandOver.FORMAT, "version": _core.__version__, "pid": os.getpid()}
        await self._say("hello", ours)
        why = disagreement(
            _core.HandOver.FORMAT, hello.get("format"), _core.__version__, hello.get("version")
        )
        if why is not None:
            raise UpgradeError(why)
        self._take(await self._hear("offer"), engine)

    def _take(self, offer: Message, engine: _core.Engine) -> None:
        descriptors = iter(offer.descriptors)
        lent = []
        for each in offer.body["listeners"]:
            file = each["file"]
            lent.append(
                _core.Lent(
                    number=each["number"],
                    bind=each["bind"],
                    chosen_for=each["chosen_for"],
                    address=each["address"],
                    file=None if file is None else (file[0], file[1]),
                    descriptors=[next(descriptors) for _ in range(each["sockets"])],
                )
            )
        if offer.body.get("admin"):
            self.admin = socket.socket(fileno=next(descriptors))
        # Each worker of either side has one at least.
        self._channels = max(int(offer.body["workers"]), engine.workers)
        self._manifest = bytes.fromhex(offer.body["manifest"])
        secret = offer.body.get("secret")
        self.secret = None if secret is None else bytes.fromhex(secret)
        self.state = offer.body.get("state", {})
        _core.HandOver(engine).inherit(lent)

    async def take_over(self, engine: _core.Engine) -> int:
        """Get the tunnels, and serve them once they are ours; how many."""
        hand = _core.HandOver(engine)
        pairs = [socket.socketpair() for _ in range(self._channels)]
        try:
            await trio.to_thread.run_sync(hand.receive, self._manifest, [ours.detach() for ours, _ in pairs])
            theirs = [theirs.fileno() for _, theirs in pairs]
            await self._say("prepared", {"unwanted": hand.unwanted()}, theirs)
        finally:
            for pair in pairs:
                for end in pair:
                    end.close()
        await self._hear("sent")
        tunnels = await self._wait_received(hand)
        try:
            await self._say("received", {"tunnels": tunnels})
            await self._hear("commit")
            # Before the first of them is touched: who finds this word knows whose they are.
            await self._say("committed", {})
        except UpgradeError:
            # It has died in this moment. All that it had is here, and nobody else is left to serve it.
            if self._talk.state == "ended" or not await self._is_orphaned():
                raise
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(hand.activate)
        # Or this is what it would be if the old process were still there.
        self._talk.state = "committed"
        with contextlib.suppress(UpgradeError):
            await self._say("serving", {})
        return tunnels

    async def _is_orphaned(self) -> bool:
        """Whether the old process, which has started this one, has died. Its files are closed just before."""
        for _ in range(50):
            if os.getppid() != self.pid:
                return True
            await trio.sleep(0.01)
        return False

    async def settle(self) -> None:
        """All is done that the old process may wait for."""
        if self._line is None:
            return
        with contextlib.suppress(UpgradeError):
            await self._say("settled", {})
        self._line.close()

    async def _wait_received(self, hand: _core.HandOver) -> int:
        with trio.move_on_after(FREEZE_SECONDS):
            while True:
                tunnels = await trio.to_thread.run_sync(hand.wait_received, SLICE)
                if tunnels is not None:
                    return tunnels
        raise UpgradeError("the tunnels did not come in time")

    async def _say(self, word: str, body: Mapping[str, Any], descriptors: list[int] | None = None) -> None:
        assert self._line is not None
        self._talk.note("new", word)
        await self._line.send(word, body, descriptors or ())

    async def _hear(self, word: str) -> Message:
        assert self._line is not None
        message = await self._line.receive()
        if message is None:
            raise UpgradeError("the old process is gone")
        self._talk.note("old", message.word)
        if message.word != word:
            message.close()
            raise UpgradeError("the old process does not want to be replaced any more")
        return message
