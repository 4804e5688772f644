"""Values as people write them, each with what it means or what is wrong with it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybalancer.config import values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("1d", 86400),
        ("0", 0),
        (0, 0),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    assert values.duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "30", 30, 0.5, "30 s", "-1s", "1e3s", "\u0663s", "30S", "401d", True, None, []]
)
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match=r"time|unit|days"):
        values.duration(text)


@given(st.integers(1, 10**6), st.sampled_from(list(values.UNITS)))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    if number * values.UNITS[unit] <= values.LONGEST:
        assert values.duration(f"{number}{unit}") == pytest.approx(number * values.UNITS[unit])


@pytest.mark.parametrize(
    ("text", "per_second"), [("2000/s", 2000), ("120/m", 2), ("1.5/s", 1.5), ("36/h", 0.01)]
)
def test_rates(text: str, per_second: float) -> None:
    assert values.rate(text) == pytest.approx(per_second)


@pytest.mark.parametrize("text", ["", "2000", 2000, "0/s", "-1/s", "/s", "1/d", "1/s ", "9" * 400 + "/s"])
def test_what_is_no_rate(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        values.rate(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (":8080", "[::]:8080"),
        ("*:8080", "[::]:8080"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("localhost:80", "127.0.0.1:80"),
        ("[2001:DB8:0:0::1]:80", "[2001:db8::1]:80"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:@x", "unix:@x"),
        ("unix:/" + "x" * 106, "unix:/" + "x" * 106),
    ],
)
def test_binds(text: str, meant: str) -> None:
    assert values.bind(text) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10.0.0.11:9001", "10.0.0.11:9001"),
        ("app-1:9001", "app-1:9001"),
        ("app_1.internal.:9001", "app_1.internal.:9001"),
        ("[::1]:9001", "[::1]:9001"),
        ("[fe80::1%2]:9001", "[fe80::1%2]:9001"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
    ],
)
def test_targets(text: str, meant: str) -> None:
    assert values.target(text) == meant


NO_ADDRESSES = [
    "", ":", "x", "1:2:3", "[::1", "[::1]", "[::1]80", "[1.2.3.4]:80", "::1", "a:65536", "a:-1", "a:\uff11",
    "a: 1", "a:0x1", "a:100000", "/run/x", "http://a:1", "unix:", "unix:@", "unix:x", "unix:/\0",
    "unix:/" + "x" * 107, "[fe80::1%eth0]:1", "\udcff:1", "unix:/\udcff", 8080, None,
]  # fmt: skip


@pytest.mark.parametrize("parse", [values.bind, values.target, values.admin])
@pytest.mark.parametrize("text", NO_ADDRESSES, ids=ascii)
def test_what_is_no_address(parse: Callable[[Any], str], text: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own words; tests/config/invalid has them.
        parse(text)


@pytest.mark.parametrize(
    "host", ["-a", "a-", "a..b", "a b", "ä", "1.2.3", "1.2.3.4.5", "a" * 64, "a." * 127 + "a", "a/b"]
)
def test_what_is_no_host_name(host: str) -> None:
    with pytest.raises(ValueError, match="neither an IP address nor a host name"):
        values.target(f"{host}:80")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("none", "none"),
        (":9000", "127.0.0.1:9000"),
        ("localhost:9000", "127.0.0.1:9000"),
        ("unix:/x", "unix:/x"),
    ],
)
def test_admin_addresses_stay_on_loopback_unless_told(text: str, meant: str) -> None:
    assert values.admin(text) == meant


def test_admin_socket_is_a_file_because_only_files_have_permissions() -> None:
    with pytest.raises(ValueError, match="full path"):
        values.admin("unix:@pybalancer")


@pytest.mark.parametrize("text", ["a", "x" * 63, "ä" * 31, "サーバー 1", "<script>"])
def test_names(text: str) -> None:
    assert values.name(text) == text


@pytest.mark.parametrize(
    "text", ["", "x" * 64, "ä" * 32, "a\n", "a\0", "\x1b[2J", "a\u202eb", "a\udcff", 5, None]
)
def test_what_is_no_name(text: Any) -> None:
    with pytest.raises(ValueError, match="name"):
        values.name(text)


@pytest.mark.parametrize(
    ("given_", "ranges"),
    [("200", ((200, 200),)), (204, ((204, 204),)), (["200-299", 304], ((200, 299), (304, 304)))],
)
def test_statuses(given_: Any, ranges: tuple[tuple[int, int], ...]) -> None:
    assert values.statuses(given_) == ranges


@pytest.mark.parametrize("text", ["", "99", "600", "299-200", "2xx", True, [], ["200", "x"], "200-299\n"])
def test_what_are_no_statuses(text: Any) -> None:
    with pytest.raises(ValueError, match="status"):
        values.statuses(text)


@pytest.mark.parametrize(("text", "bits"), [("0660", 0o660), ("600", 0o600), (0o666, 0o666)])
def test_permissions(text: Any, bits: int) -> None:
    assert values.mode(text) == bits


@pytest.mark.parametrize("text", ["0999", "01777", "rw-", -1, 0o1000, True, None])
def test_what_are_no_permissions(text: Any) -> None:
    with pytest.raises(ValueError, match="permission"):
        values.mode(text)


@pytest.mark.parametrize("text", ["fe80::1%2", "0.0.0.0", "::", "224.0.0.1", "10.0.0.5/32", "eth0", "", 5])
def test_what_is_no_source(text: Any) -> None:
    with pytest.raises(ValueError, match="address"):
        values.source(text)


@pytest.mark.parametrize(
    "text", ["https://a", "http://localhost:3000", "https://[::1]:80", "https://[::443]"]
)
def test_origins(text: str) -> None:
    assert values.origin(text) == text


@pytest.mark.parametrize(
    "text", ["", "*", "null", "a", "https://A", "https://a/", "https://a:b", "ftp://a", 5]
)
def test_what_is_no_origin(text: Any) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        values.origin(text)


@pytest.mark.parametrize("text", ["https://a:443", "http://a:80", "https://[::1]:443"])
def test_no_browser_sends_the_usual_port(text: str) -> None:
    with pytest.raises(ValueError, match=rf'write "{re.escape(text.rpartition(":")[0])}"'):
        values.origin(text)
    other = text.replace("https", "http") if "https" in text else text.replace("http", "https")
    assert values.origin(other) == other


@pytest.mark.parametrize("text", ["a\r\nb", "a\nb", "\0", " a", "a ", "ä", 5])
def test_what_is_no_field_value(text: Any) -> None:
    with pytest.raises(ValueError, match="ASCII text in one line"):
        values.field_value(text)


@pytest.mark.parametrize("text", ["X-User", "x", "!#$%&'*+.^_`|~09"])
def test_names_of_headers_and_cookies(text: str) -> None:
    assert values.field_name(text) == values.cookie_name(text) == text


@pytest.mark.parametrize("text", ["", "a b", "a:", "a\n", "a=b", "a;b", "ä", "(a)", 5, None])
def test_what_is_no_name_of_a_header_or_cookie(text: Any) -> None:
    with pytest.raises(ValueError, match="is not the name of a header"):
        values.field_name(text)
    with pytest.raises(ValueError, match="is not the name of a cookie"):
        values.cookie_name(text)


@pytest.mark.parametrize("wanted", [values.wanted_field, values.wanted_cookie, values.wanted_parameter])
def test_a_route_asks_for_a_text_or_for_anything(wanted: Callable[[Any], str | None]) -> None:
    assert [wanted(text) for text in ("", "a", 'a "b" c', True)] == ["", "a", 'a "b" c', None]
    for text in (False, 1, 1.5, None, ["a"], {"a": True}):
        with pytest.raises(ValueError, match="is the text that it must be, or true for any"):
            wanted(text)


def test_what_headers_cookies_and_parameters_can_hold() -> None:
    """A value that nobody can send would be a route that never matches."""
    for text, header, cookie, parameter in [
        ("a;b", True, False, True),
        (" a", False, False, True),
        ("a\r\nb", False, False, True),
        ("größe", False, False, True),
        ("\udcff", False, False, False),
    ]:
        takers = (values.wanted_field, values.wanted_cookie, values.wanted_parameter)
        for take, taken in zip(takers, (header, cookie, parameter), strict=True):
            if taken:
                assert take(text) == text
            else:
                with pytest.raises(ValueError, match="the value of a"):
                    take(text)


@pytest.mark.parametrize("text", ["/", "/chat", "/chat/", "/a/b%20c"])
def test_prefixes(text: str) -> None:
    assert values.prefix(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a path begins with a slash"),
        ("chat", "a path begins with a slash"),
        ("/chat/*", r'write "/chat"'),
        ("/*", r'write "/"'),
        ("/a/{b}/c", r'write "/a"'),
        ("/a?b", "no query"),
        ("/a/../b", "dot segments"),
        (5, "a prefix is text"),
    ],
)
def test_what_is_no_prefix(text: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        values.prefix(text)
