"""Where in a TOML text each key stands.

``tomllib`` gives values without places. This walks the same text, which is known to be valid by
then, and notes line and column of every key: so an error about a value can point at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

Path = tuple[str | int, ...]
Place = tuple[int, int]

_BARE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_ESCAPES: Final = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}


class _Walker:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places: dict[Path, Place] = {}
        self.arrays: dict[Path, int] = {}
        self._lines = [0]
        self._lines += [index + 1 for index, character in enumerate(text) if character == "\n"]

    def peek(self, count: int = 1) -> str:
        return self.text[self.at : self.at + count]

    def place(self, at: int) -> Place:
        import bisect

        line = bisect.bisect_right(self._lines, at)
        return line, at - self._lines[line - 1] + 1

    def skip(self, newlines: bool) -> None:
        """Spaces and comments; with ``newlines`` also line ends."""
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif character in " \t" or (newlines and character in "\r\n"):
                self.at += 1
            else:
                return

    def string(self) -> str:
        quote = self.peek()
        multi = self.peek(3) == quote * 3
        fence = quote * 3 if multi else quote
        self.at += len(fence)
        parts = []
        while self.at < len(self.text):
            if self.text.startswith(fence, self.at):
                self.at += len(fence)
                # Up to two quotes may stand before the closing fence of a multi-line string.
                while multi and self.peek() == quote:
                    self.at += 1
                break
            character = self.text[self.at]
            if character == "\\" and quote == '"':
                follower = self.text[self.at + 1 : self.at + 2]
                digits = {"u": 4, "U": 8, "x": 2}.get(follower, 0)
                code = self.text[self.at + 2 : self.at + 2 + digits]
                parts.append(chr(int(code, 16)) if digits else _ESCAPES.get(follower, ""))
                self.at += 2 + digits
            else:
                parts.append(character)
                self.at += 1
        return "".join(parts)

    def keys(self) -> Iterator[tuple[str, int]]:
        """The parts of a dotted key, each with where it begins."""
        while True:
            self.skip(newlines=False)
            start = self.at
            if self.peek() in ('"', "'"):
                yield self.string(), start
            else:
                while self.peek() in _BARE and self.at < len(self.text):
                    self.at += 1
                yield self.text[start : self.at], start
            self.skip(newlines=False)
            if self.peek() != ".":
                return
            self.at += 1

    def note(self, path: Path, at: int) -> None:
        self.places.setdefault(path, self.place(at))

    def inside(self, path: Path) -> Path:
        """``path`` with the newest element of every array of tables on the way."""
        result: Path = ()
        for part in path:
            result = (*result, part)
            if result in self.arrays:
                result = (*result, self.arrays[result])
        return result

    def value(self, path: Path) -> None:
        character = self.peek()
        if character in ('"', "'"):
            self.string()
        elif character == "[":
            self.at += 1
            index = 0
            while True:
                self.skip(newlines=True)
                if self.peek() in ("]", ""):
                    self.at += 1
                    return
                self.note((*path, index), self.at)
                self.value((*path, index))
                self.skip(newlines=True)
                if self.peek() == ",":
                    self.at += 1
                index += 1
        elif character == "{":
            self.at += 1
            while True:
                self.skip(newlines=True)
                if self.peek() in ("}", ""):
                    self.at += 1
                    return
                self.pair(path)
                self.skip(newlines=True)
                if self.peek() == ",":
                    self.at += 1
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\r\n":
                self.at += 1

    def pair(self, table: Path) -> None:
        path = table
        for part, at in self.keys():
            path = (*path, part)
            self.note(path, at)
        self.skip(newlines=False)
        self.at += 1  # The equals sign.
        self.skip(newlines=False)
        self.value(path)

    def header(self) -> Path:
        start = self.at
        array = self.peek(2) == "[["
        self.at += 2 if array else 1
        names: Path = ()
        for part, _ in self.keys():
            names = (*names, part)
            self.note(self.inside(names), start)
        self.at += 2 if array else 1
        if not array:
            return self.inside(names)
        path = (*self.inside(names[:-1]), names[-1])
        self.arrays[path] = self.arrays.get(path, -1) + 1
        element = (*path, self.arrays[path])
        self.note(element, start)
        return element

    def walk(self) -> dict[Path, Place]:
        table: Path = ()
        while True:
            self.skip(newlines=True)
            if self.at >= len(self.text):
                return self.places
            before = self.at
            if self.peek() == "[":
                table = self.header()
            else:
                self.pair(table)
            if self.at == before:
                return self.places


def positions(text: str) -> dict[Path, Place]:
    """Line and column (from 1) of every key and array element of a valid TOML text, by its path."""
    return _Walker(text).walk()
