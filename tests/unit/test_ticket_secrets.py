"""Where the secret of a pool's tickets comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pybalancer.config.load import load_mapping
from pybalancer.config.model import Config
from pybalancer.config.secret import read_ticket_keys
from pybalancer.errors import ConfigError

HEX = "0123456789abcdef" * 4


def config(**direct: Any) -> Config:
    backend = {"name": "a", "address": "127.0.0.1:1", "public_url": "wss://a.example.com"}
    pool = {"backends": [backend], "health": {}, "direct": {"ticket": True, **direct}}
    listener = {"name": "told", "bind": "127.0.0.1:0", "mode": "directory", "pool": "chat"}
    return load_mapping({"listeners": [listener], "pools": {"chat": pool}})


def test_without_one_none_is_read() -> None:
    assert read_ticket_keys(config()) == {}


def test_in_the_open() -> None:
    made = config(ticket_secret=HEX)
    assert read_ticket_keys(made) == {"chat": bytes.fromhex(HEX)}
    assert HEX not in repr(made)
    assert HEX not in str(made.model_dump_json())


def test_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tickets"
    file.write_text(HEX.upper() + "\n")
    file.chmod(0o600)
    assert read_ticket_keys(config(ticket_secret_file=str(file))) == {"chat": bytes.fromhex(HEX)}


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        (HEX, 0o644, "others may use it"),
        (HEX[1:], 0o600, "holds no secret of 64 hexadecimal digits"),
        (HEX + "00", 0o600, "holds no secret of 64 hexadecimal digits"),
        (" ".join(HEX), 0o600, "holds no secret of 64 hexadecimal digits"),
        ("z" * 64, 0o600, "holds no secret of 64 hexadecimal digits"),
        ("", 0o600, "holds no secret of 64 hexadecimal digits"),
        (None, 0o600, "No such file or directory"),
    ],
)
def test_a_file_that_is_none_is_said_with_its_key(
    text: str | None, mode: int, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "tickets"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(ConfigError, match=why) as caught:
        read_ticket_keys(config(ticket_secret_file=str(file)))
    assert "pools.chat.direct.ticket_secret_file" in str(caught.value)
    assert HEX not in str(caught.value)
