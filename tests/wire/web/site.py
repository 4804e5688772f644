"""A serving process in front of recorders, and the oracle of all bad input."""

from __future__ import annotations

import contextlib
import re
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

from ..net import PATIENCE, connect, until
from ..serving import Serving, environment_in
from .messages import Answer, Stream, request
from .recorder import Recorder

LISTENING = re.compile(r"listening on (\S+)")
ERROR = re.compile(r"\S+ (error|critical) |Traceback|thread .* panicked")


class Client(Stream):
    """A client's connection."""

    def __init__(self, address: str, data: bytes = b"", source: str | None = None) -> None:
        super().__init__(connect(address, source))
        # Two small writes shall be two segments, at once.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if data:
            self.send(data)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes, to: str = "GET") -> Answer:
        self.send(data)
        return self.answer(to)

    def ended(self) -> bool:
        """Whether the other side has closed it."""
        self.socket.setblocking(False)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class Site:
    """``pybalancer serve`` with a configuration in which ``{name}`` is the address of a recorder."""

    def __init__(self, directory: Path, config: str, *names: str) -> None:
        self.recorders = {name: Recorder(name) for name in names}
        file = directory / "site.toml"
        for name, recorder in self.recorders.items():
            config = config.replace(f"@{name}@", recorder.address)
        file.write_text(config)
        self.serving = Serving(environment_in(directory), file)
        self.listeners = [listener["name"] for listener in tomllib.loads(config)["listeners"]]
        self._addresses: list[str] = []
        self._beat: Client | None = None

    def address(self, listener: str = "main") -> str:
        """Where a listener listens. They are announced in the order in which they are configured, each once
        for every pool that it leads to."""
        if not self._addresses:

            def found() -> list[str]:
                told = [match[1] for line in list(self.serving.lines) if (match := LISTENING.search(line))]
                told = list(dict.fromkeys(told))
                return told if len(told) == len(self.listeners) else []

            self._addresses = until(found, f"listeners in {self.serving.lines}")
        return self._addresses[self.listeners.index(listener)]

    @property
    def recorder(self) -> Recorder:
        return self.recorders["main"]

    def client(self, data: bytes = b"", listener: str = "main", source: str | None = None) -> Client:
        return Client(self.address(listener), data, source)

    def beat(self) -> None:
        """Return when the worker has dealt with all that was sent to it before: its events come in their
        order. There is one worker, and a round trip to another backend is two of its turns."""
        if self._beat is None or self._beat.ended():
            # The first time, or after `keepalive_timeout`.
            self._beat = self.client()
        for _ in range(2):
            assert self._beat.ask(request(host="beat.test")).status == 200

    def fresh(self, listener: str = "main") -> int:
        """See that a fresh connection is served; the number that it has at the recorder."""
        with self.client(listener=listener) as client:
            told = client.ask(request(line="GET /fresh HTTP/1.1")).told()
        assert told["line"] == "GET /fresh HTTP/1.1"
        return int(told["talk"])

    def untouched(self, listener: str = "main") -> None:
        """Since the last ``forget`` the recorder got nothing but the fresh request that is served now."""
        number = self.fresh(listener)
        got = [bytes(talk.seen) for talk in self.recorder.ended(but=number) if talk.seen]
        assert not got, f"this reached the backend: {got}"

    def refuses(self, data: bytes, status: int = 400, listener: str = "main", to: str = "GET") -> Answer:
        """The oracle: the client gets this status and the end of the connection. See ``untouched``."""
        with self.client(data, listener) as client:
            answer = client.answer(to)
            assert answer.status == status, f"{answer} to {data!r}"
            assert "close" in answer.head.options(), answer
            assert client.rest() == b"", data
        return answer

    def refuses_all(self, cases: Iterator[tuple[bytes, int]] | list[tuple[bytes, int]]) -> None:
        """The same of many: that a fresh connection is served is seen now and then."""
        self.recorder.forget()
        for index, (data, status) in enumerate(cases):
            self.refuses(data, status)
            if index % 50 == 49:
                self.untouched()
                self.recorder.forget()
        self.untouched()

    def errors(self) -> list[str]:
        """Lines of the log that tell of a defect: a worker that failed, say."""
        return [line for line in list(self.serving.lines) if ERROR.match(line)]

    def close(self) -> None:
        if self._beat is not None:
            self._beat.socket.close()
        self.serving.close()
        for recorder in self.recorders.values():
            recorder.close()


@contextlib.contextmanager
def site(directory: Path, config: str, *names: str) -> Iterator[Site]:
    running = Site(directory, config, *names)
    try:
        yield running
    finally:
        running.close()
