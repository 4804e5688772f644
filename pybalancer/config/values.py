"""Values as people write them: ``30s``, ``2000/s``, ``:8080``."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Strict, WithJsonSchema

UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST: Final = 400 * 86400.0
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)/(s|m|h)")
_SIZE: Final = re.compile(r"([0-9]+)(B|KiB|MiB)")
SIZES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
MOST_PATH: Final = 107
"""Bytes of a Unix socket's path: ``sun_path`` has room for one more, its end."""


def duration(value: Any) -> float:
    """Seconds of ``"250ms"``, ``"30s"``, ``"1h30m"``, ``"0"``.

    Raises ValueError where the unit is missing: 30 what?
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('a time is text such as "30s"')
    if not isinstance(value, str):
        if value == 0:
            return 0.0
        raise ValueError(f'a time needs its unit: "{value}s"? (ms, s, m, h, d)')
    if value == "0":
        return 0.0
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError(f'{value!r} is not a time such as "250ms", "30s", "5m" or "1h30m"')
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if seconds > LONGEST:
        raise ValueError(f"{value!r} is longer than 400 days")
    return float(seconds)


def rate(value: Any) -> float:
    """Events per second of ``"2000/s"``, ``"100/m"``."""
    if isinstance(value, str) and (match := _RATE.fullmatch(value)):
        per_second = float(match[1]) / UNITS[match[2]]
        if 1e-6 <= per_second <= 1e9:
            return per_second
    raise ValueError(f'{value!r} is not a rate such as "2000/s" or "100/m"')


def size(value: Any) -> int:
    """Bytes of ``"64KiB"``, ``"1MiB"``, or of a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        return int(match[1]) * SIZES[match[2]]
    raise ValueError(f'{value!r} is not a size such as "64KiB" or "1MiB"')


def port(text: str, *, zero: bool = False) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise ValueError(f"{text!r} is not a port")
    number = int(text)
    if number > 65535 or (number == 0 and not zero):
        raise ValueError(f"ports go from {0 if zero else 1} to 65535, not {number}")
    return number


def _unix(value: str, *, abstract: bool = True) -> str:
    path = value.removeprefix("unix:")
    if path in ("", "@") or "\0" in path:
        raise ValueError(f"{value!r} names no Unix socket")
    if not path.startswith(("/", "@") if abstract else "/"):
        raise ValueError(f"a Unix socket is given by its full path, not {path!r}")
    if len(path.encode()) > MOST_PATH:
        raise ValueError(f"the path of a Unix socket has at most {MOST_PATH} bytes")
    return value


def split(value: str, *, zero: bool = False) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``."""
    if "://" in value:
        raise ValueError(f"{value!r} is a URL; an address is only HOST:PORT")
    if value.startswith("/"):
        raise ValueError(f'{value!r} is a path; a Unix socket is "unix:{value}"')
    host, colon, last = value.rpartition(":")
    if not colon:
        meant = f":{value}" if value.isdigit() else f"{value}:8080"
        raise ValueError(f'{value!r} is not an address with a port; write "{meant}"')
    if host.startswith("["):
        if not host.endswith("]"):
            raise ValueError(f"{value!r} is not [IPv6]:PORT")
        return _ipv6(host[1:-1]), port(last, zero=zero)
    if ":" in host:
        raise ValueError(f"an IPv6 address goes into brackets: [{host}]:{last}")
    return host, port(last, zero=zero)


def join(host: str, port: str | int) -> str:
    """The other way round."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ipv6(text: str) -> str:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 address") from None
    zone = address.scope_id
    if zone is not None and not (zone.isascii() and zone.isdigit()):
        # The kernel takes the number; a name may stand for another one after the next boot.
        bare = text.partition("%")[0]
        raise ValueError(f"an interface is given by its number (`ip link`): [{bare}%2], not [{text}]")
    return str(address)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("an address is text")
    return value


def bind(value: Any) -> str:
    """Where to listen, as the engine wants it: ``:8080`` is every address of both families."""
    value = _text(value)
    if value.startswith("unix:"):
        return _unix(value)
    host, number = split(value, zero=True)
    if host in ("", "*"):
        return f"[::]:{number}"
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{host!r} is not an IP address of this machine; "
            f'write "127.0.0.1:{number}", or ":{number}" for all addresses'
        ) from None
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def admin(value: Any) -> str:
    """Where the admin interface is: ``unix:/path``, an address, or ``none``."""
    value = _text(value)
    if value == "none" or value.startswith("unix:"):
        return value if value == "none" else _unix(value, abstract=False)
    return bind(f"127.0.0.1{value}" if value.startswith(":") else value)


def target(value: Any) -> str:
    """Where a backend is: an address, or a name that is looked up at start and reload."""
    value = _text(value)
    if value.startswith("unix:"):
        return _unix(value)
    host, number = split(value)
    if not host:
        raise ValueError(f'{value!r} has no host; write "127.0.0.1:{number}"')
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.rstrip(".").split(".")
        if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
            raise ValueError(f"{host!r} is neither an IP address nor a host name") from None
        return f"{host}:{number}"
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


def network(value: Any) -> str:
    """``10.0.0.0/8``, ``2001:db8::/32``, or one address."""
    try:
        return str(ipaddress.ip_network(_text(value), strict=True))
    except ValueError as error:
        raise ValueError(f'{value!r} is not a network such as "10.0.0.0/8" ({error})') from None


def source(value: Any) -> str:
    """One of this machine's addresses."""
    try:
        address = ipaddress.ip_address(_text(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address") from None
    if address.is_unspecified or address.is_multicast or "%" in str(address):
        raise ValueError(f"{value!r} is not an address that a connection can come from")
    return str(address)


def file(value: Any) -> str:
    """A path of a file."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a file is given by its path, as text")
    return value


_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def origin(value: Any) -> str:
    """What browsers send as Origin (RFC 6454 section 6.1): lower case, no path, not even a slash."""
    if not isinstance(value, str) or not _ORIGIN.fullmatch(value):
        raise ValueError(f'{value!r} is not an origin such as "https://ops.example.com"')
    usual = ":443" if value.startswith("https:") else ":80"
    if value.endswith(usual):
        short = value.removesuffix(usual)
        raise ValueError(f'browsers leave the usual port out, so none sends {value!r}; write "{short}"')
    return value


_FIELD_VALUE = re.compile(r"(?:[!-~](?:[ \t!-~]*[!-~])?)?")


def field_value(value: Any) -> str:
    """Of a header: nothing that ends the line (RFC 9110 section 5.5)."""
    if not isinstance(value, str) or not _FIELD_VALUE.fullmatch(value):
        raise ValueError("the value of a header is ASCII text in one line, without spaces around it")
    return value


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def field_name(value: Any) -> str:
    """The name of a header: a token (RFC 9110 section 5.6.2)."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a header: letters, digits and hyphens")
    return value


def cookie_name(value: Any) -> str:
    """The name of a cookie: a token too (RFC 6265 section 4.1.1)."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a cookie: letters, digits, hyphens and underscores")
    return value


def query_name(value: Any) -> str:
    """The name of a query parameter, decoded."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{value!r} is not the name of a query parameter")
    return value


def _wanted(value: Any) -> str | None:
    """What a route asks of a value: exactly this text, or with ``true`` that there is one."""
    if value is not True and not isinstance(value, str):
        raise ValueError("is the text that it must be, or true for any")
    return None if value is True else value


def wanted_field(value: Any) -> str | None:
    """Of a header."""
    text = _wanted(value)
    return text if text is None else field_value(text)


def wanted_cookie(value: Any) -> str | None:
    """Of a cookie: as it is sent, quotes and all."""
    text = _wanted(value)
    if text is not None and (not _FIELD_VALUE.fullmatch(text) or ";" in text):
        raise ValueError(
            "the value of a cookie is ASCII text without semicolons and without spaces around it"
        )
    return text


def wanted_parameter(value: Any) -> str | None:
    """Of a query parameter: decoded, so it may be any text that UTF-8 can hold."""
    text = _wanted(value)
    if text is not None and text.encode("utf-8", "replace").decode() != text:
        raise ValueError("the value of a query parameter is text that UTF-8 can hold")
    return text


def key(value: Any) -> str:
    """What is hashed. The words are the core's; it reads them too."""
    from pybalancer import _core

    if not isinstance(value, str):
        raise ValueError('a key is text such as "source"')
    if not value.isprintable():
        raise ValueError(f"a key has printable characters only, {value!r} has others")
    _core.check_key(value)
    return value


def path(value: Any) -> str:
    """A route's path. What it may be is the core's to say."""
    from pybalancer import _core

    if not isinstance(value, str):
        raise ValueError('a path is text such as "/rooms/*"')
    _core.check_path(value)
    return value


def prefix(value: Any) -> str:
    """What is taken off the beginning of paths: a path without anything that stands for something else."""
    if not isinstance(value, str):
        raise ValueError('a prefix is text such as "/chat"')
    text = path(value)
    if "*" in text or "{" in text:
        bare = re.split(r"/[*{]", text)[0] or "/"
        raise ValueError(f'{text!r} is taken off as it stands here: write "{bare}"')
    return text


_PLACE = re.compile(r"/[!$-;=@-\[\]-~]*")


def place(value: Any) -> str:
    """The path of a URL, as it is written there: no query, nothing that would have to be encoded."""
    if not isinstance(value, str) or not _PLACE.fullmatch(value):
        raise ValueError(f'{value!r} is not the path of a URL such as "/chat"; a query is kept as it comes')
    return value


def public_url(value: Any) -> str:
    """Where clients reach a backend themselves: scheme, host, perhaps a port, and nothing behind it."""
    from pybalancer import _core

    if not isinstance(value, str):
        raise ValueError('a URL is text such as "wss://www34.example.com"')
    if "://" not in value:
        raise ValueError(f'{value!r} has no scheme; write "wss://{value}"')
    if value.endswith("/") and value.count("/") == 3:
        raise ValueError(f'{value!r} is followed by the path that clients ask for; write "{value[:-1]}"')
    _core.check_url(value)
    return value


def host_pattern(value: Any) -> str:
    """A route's host."""
    from pybalancer import _core

    if not isinstance(value, str):
        raise ValueError('a host is text such as "chat.example.com"')
    if "://" in value:
        raise ValueError(f"{value!r} is a URL; a host is only its name")
    if value == "*":
        raise ValueError("every host is what a route without host matches")
    _core.check_host(value)
    return value


def name(value: Any) -> str:
    """Names are labels in metrics and fixed-size fields in shared memory: 1 to 63 bytes."""
    if not isinstance(value, str):
        raise ValueError("a name is text")
    if not 1 <= len(value.encode("utf-8", "replace")) <= 63:
        raise ValueError(
            f"a name has 1 to 63 bytes, {value[:80]!r} has {len(value.encode('utf-8', 'replace'))}"
        )
    if not value.isprintable():
        raise ValueError(f"a name has printable characters only, {value!r} has others")
    return value


_INTERFACE = re.compile(r"[!-.0-9;-~]{1,15}")


def interface(value: Any) -> str:
    """The name of a network interface, as the kernel allows it: 1 to 15 bytes without ``/`` and ``:``."""
    if not isinstance(value, str) or not _INTERFACE.fullmatch(value) or value in (".", ".."):
        raise ValueError(f'{value!r} is not the name of a network interface such as "eth0"')
    return value


def mode(value: Any) -> int:
    """Permissions: ``"0660"`` or 0o660."""
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value):
        return int(value, 8)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777:
        return value
    raise ValueError(f'{value!r} is not a permission such as "0660"')


def statuses(value: Any) -> tuple[tuple[int, int], ...]:
    """``"200-399"``, ``200``, or a list of such: inclusive ranges of HTTP statuses."""
    ranges = []
    for item in value if isinstance(value, list | tuple) else [value]:
        match = re.fullmatch(r"([1-5][0-9][0-9])(?:-([1-5][0-9][0-9]))?", str(item))
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f'{item!r} is not a status or a range such as "200-399"')
        ranges.append((int(match[1]), int(match[2] or match[1])))
    if not ranges:
        raise ValueError("no status at all would count as healthy")
    return tuple(ranges)


def _written(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


# Strict: in a file, "4" is no number and "no" is not false.
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Truth = Annotated[bool, Strict()]
Duration = Annotated[
    float, BeforeValidator(duration), _written(r"^(0|([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+)$", "30s")
]
Rate = Annotated[float, BeforeValidator(rate), _written(r"^[0-9]+(\.[0-9]+)?/(s|m|h)$", "2000/s")]
Size = Annotated[
    int,
    BeforeValidator(size),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^[0-9]+(B|KiB|MiB)$", "examples": ["64KiB"]}),
]
Bind = Annotated[str, BeforeValidator(bind), WithJsonSchema({"type": "string", "examples": ["0.0.0.0:8080"]})]
Target = Annotated[
    str, BeforeValidator(target), WithJsonSchema({"type": "string", "examples": ["10.0.0.11:9001"]})
]
Network = Annotated[
    str, BeforeValidator(network), WithJsonSchema({"type": "string", "examples": ["10.0.0.0/8"]})
]
Source = Annotated[str, BeforeValidator(source), WithJsonSchema({"type": "string", "examples": ["10.0.0.5"]})]
Admin = Annotated[str, BeforeValidator(admin), WithJsonSchema({"type": "string"})]
File = Annotated[str, BeforeValidator(file), WithJsonSchema({"type": "string", "minLength": 1})]
Origin = Annotated[str, BeforeValidator(origin), _written(f"^{_ORIGIN.pattern}$", "https://ops.example.com")]
FieldName = Annotated[str, BeforeValidator(field_name), _written(f"^{_TOKEN.pattern}$", "X-User")]
CookieName = Annotated[str, BeforeValidator(cookie_name), _written(f"^{_TOKEN.pattern}$", "user")]
QueryName = Annotated[str, BeforeValidator(query_name), WithJsonSchema({"type": "string", "minLength": 1})]
# `true` for any value, never `false`: a route cannot ask that something is not there.
_TEXT_OR_TRUE: Final = {"anyOf": [{"type": "string"}, {"const": True}]}
WantedField = Annotated[str | None, BeforeValidator(wanted_field), WithJsonSchema(_TEXT_OR_TRUE)]
WantedCookie = Annotated[str | None, BeforeValidator(wanted_cookie), WithJsonSchema(_TEXT_OR_TRUE)]
WantedParameter = Annotated[str | None, BeforeValidator(wanted_parameter), WithJsonSchema(_TEXT_OR_TRUE)]
Key = Annotated[
    str,
    BeforeValidator(key),
    _written(r"^(source|source-ip|path|host|sticky|(header|cookie|query):.+)$", "source"),
]
Path = Annotated[str, BeforeValidator(path), _written(r"^/", "/rooms/*")]
Prefix = Annotated[str, BeforeValidator(prefix), _written(r"^/[^*{]*$", "/chat")]
Place = Annotated[str, BeforeValidator(place), _written(r"^/", "/chat")]
PublicUrl = Annotated[
    str, BeforeValidator(public_url), _written(r"^(wss|ws|https|http)://[^/]+$", "wss://www34.example.com")
]
HostPattern = Annotated[
    str, BeforeValidator(host_pattern), WithJsonSchema({"type": "string", "examples": ["*.example.com"]})
]
FieldValue = Annotated[str, BeforeValidator(field_value), WithJsonSchema({"type": "string"})]
Name = Annotated[
    str, BeforeValidator(name), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 63})
]
Interface = Annotated[
    str,
    BeforeValidator(interface),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 15, "examples": ["eth0"]}),
]
Mode = Annotated[int, BeforeValidator(mode), _written(r"^0?[0-7]{3}$", "0660")]
Statuses = Annotated[
    tuple[tuple[int, int], ...],
    BeforeValidator(statuses),
    WithJsonSchema({"type": ["string", "integer", "array"], "examples": ["200-399"]}),
]
