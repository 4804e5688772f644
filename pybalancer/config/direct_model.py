"""``[pools.NAME.direct]``: a part of the one definition, ``pybalancer/config/model.py``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr

from pybalancer.config.section import Section
from pybalancer.config.values import Duration, File, PublicUrl, Truth, Whole


def _ticket_secret(value: Any) -> Any:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or len(text) != 64 or not all(c in "0123456789abcdefABCDEF" for c in text):
        raise ValueError("it is 64 hexadecimal digits, as `openssl rand -hex 32` prints them")
    return SecretStr(text)


class DirectConfig(Section):
    """What clients are told that are sent to its backends themselves: by a directory, or by a redirect."""

    expires_in: Annotated[Duration, Field(ge=1, le=86400)] = Field(
        30.0,
        description="How long an answer is good for, and a ticket. As long the client counts as load of the "
        "backend, less and less.",
    )
    alternatives: Annotated[Whole, Field(ge=0, le=8)] = Field(
        2, description="How many other backends are named, in the order in which they would be picked."
    )
    fallback: PublicUrl | None = Field(
        None,
        description="Where clients connect to that cannot reach the directory: a listener that relays. It "
        "gets the same path and query.",
        examples=["wss://www.example.com"],
    )
    retry_min: Duration = Field(0.0, description="Least pause of a client before it connects again.")
    retry_max: Annotated[Duration, Field(ge=0.1)] = Field(30.0, description="Longest one.")
    retry_base: Annotated[Duration, Field(ge=0.01)] = Field(
        0.5, description="Longest one after the first failure; doubled with each, up to `retry_max`."
    )
    stable: Duration = Field(
        10.0, description="How long a connection must have stood before its end counts as a first failure."
    )
    window: Duration = Field(
        5.0,
        description="Time over which clients come back whom a Close 1012 or 1013 told to go.",
    )
    ticket: Truth = Field(
        False, description="Add a signed parameter `ticket` to the URLs, which backends can verify."
    )
    ticket_secret: Annotated[SecretStr | None, BeforeValidator(_ticket_secret)] = Field(
        None,
        description="What tickets are signed with, 64 hexadecimal digits. By default it is derived from the "
        "balancer's secret and the name of the pool. Better kept in `ticket_secret_file`.",
    )
    ticket_secret_file: File | None = Field(
        None,
        description="File with it, readable by its owner only.",
        examples=["/etc/pybalancer/tickets"],
    )
    ticket_address: Truth = Field(
        True,
        description="A ticket is good for the client's IP address only. Not where clients come from another "
        "address to the backends than to the balancer.",
    )
