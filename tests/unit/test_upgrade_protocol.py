"""What two processes say to each other in an upgrade, and the line that carries it."""

from __future__ import annotations

import os
import random
import re
import socket
import struct
from pathlib import Path

import pytest
import trio

from pybalancer.errors import UpgradeError
from pybalancer.upgrade import protocol
from pybalancer.upgrade.line import Line, encode
from pybalancer.upgrade.protocol import TRANSITIONS, Conversation, disagreement
from pybalancer.upgrade.served import container_of

ROOT = Path(__file__).parents[2]
WAY = [(who, word) for (_, who, word), state in TRANSITIONS.items() if state != "ended"]
"""Everything that is said if all goes well, in its order."""


def drawn(text: str) -> list[tuple[str, ...]]:
    rows = re.findall(r"^ *(old|new) +(\w+) +(\w+) +(\w+)$", text, re.MULTILINE)
    assert rows
    return rows


def test_the_tables_in_words_are_the_table() -> None:
    table = [(who, word, state, end) for (state, who, word), end in TRANSITIONS.items() if end != "ended"]
    assert drawn(protocol.__doc__ or "") == table
    assert drawn((ROOT / "docs/architecture.md").read_text()) == table


def test_a_word_decides_whose_the_tunnels_are() -> None:
    talk = Conversation()
    remedies = []
    for who, word in WAY:
        remedies.append(talk.remedy)
        talk.note(who, word)
    assert talk.state == "settled"
    decided = WAY.index(("new", "committed"))
    assert remedies == ["thaw"] * (decided + 1) + ["bury"] * (len(WAY) - decided - 1)


@pytest.mark.parametrize("seed", range(20))
def test_who_says_anything_else_is_not_believed(seed: int) -> None:
    dice = random.Random(seed)
    words = [*WAY, ("new", "failed"), ("old", "abort"), ("new", "hello "), ("old", "settled")]
    talk = Conversation()
    for _ in range(200):
        who, word = dice.choice(words)
        before = talk.state
        if (before, who, word) in TRANSITIONS:
            assert talk.note(who, word) == TRANSITIONS[before, who, word]
            continue
        with pytest.raises(UpgradeError, match=f"said '{word}' when it was {before}"):
            talk.note(who, word)
        assert talk.state == before


def test_it_can_be_called_off_until_it_is_decided() -> None:
    for end, who, word in ((8, "new", "failed"), (7, "old", "abort")):
        for said in range(len(WAY)):
            talk = Conversation()
            for each in WAY[:said]:
                talk.note(*each)
            if said < end:
                assert talk.note(who, word) == "ended"
            else:
                with pytest.raises(UpgradeError):
                    talk.note(who, word)


def test_processes_of_different_formats_part() -> None:
    assert disagreement(1, 1, "1.0", "2.0") is None
    for theirs in (2, None, "1"):
        assert "restart it instead" in str(disagreement(1, theirs, "1.0", "2.0"))


async def test_messages_bring_their_descriptors() -> None:
    here, there = socket.socketpair()
    sender, receiver = Line(here), Line(there)
    read, write = os.pipe()
    inode = os.fstat(read).st_ino
    for count in (0, 1, 250, 251, 700):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, "offer", {"number": count, "text": "x" * 300_000}, [read] * count)
            message = await receiver.receive()
        assert message is not None
        assert (message.word, message.body["number"], len(message.descriptors)) == ("offer", count, count)
        assert all(os.fstat(each).st_ino == inode for each in message.descriptors)
        assert not any(os.get_inheritable(each) for each in message.descriptors)
        message.close()
    sender.close()
    assert await receiver.receive() is None
    with pytest.raises(UpgradeError, match="gone"):
        await receiver.send("hello", {})
    receiver.close()
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack("<II", 1 << 30, 0),
        struct.pack("<II", 4, 1 << 30),
        struct.pack("<II", 4, 0) + b"what",
        struct.pack("<II", 2, 0) + b"[]",
        struct.pack("<II", 2, 0) + b"{}",
        struct.pack("<II", 2, 0) + b"\xff\xff",
    ],
)
async def test_nonsense_is_refused(nonsense: bytes) -> None:
    here, there = socket.socketpair()
    here.sendall(nonsense)
    line = Line(there)
    with pytest.raises(UpgradeError, match="nonsense"):
        await line.receive()
    line.close()
    here.close()


async def test_missing_descriptors_are_noticed() -> None:
    here, there = socket.socketpair()
    here.sendall(struct.pack("<II", 2, 1) + b"+{}")
    line = Line(there)
    with pytest.raises(UpgradeError, match="open files are used up"):
        await line.receive()
    line.close()
    here.close()


async def test_a_message_that_is_cut_off_is_none() -> None:
    here, there = socket.socketpair()
    here.sendall(encode("hello", {"format": 1})[:-1])
    here.close()
    line = Line(there)
    assert await line.receive() is None
    line.close()


def test_a_container_that_would_end_is_noticed(tmp_path: Path) -> None:
    first = tmp_path / "comm"
    for name, pid, parent, refused in (
        ("pybalancer", 1, 0, True),
        ("tini", 7, 1, True),
        ("docker-init", 7, 1, True),
        ("tini", 9, 7, False),
        ("systemd", 812, 1, False),
        ("bash", 7, 1, False),
    ):
        first.write_text(f"{name}\n")
        assert (container_of(pid, parent, first) is not None) == refused, name
    assert container_of(7, 1, tmp_path / "nothing") is None
