"""Where keys stand, compared with what ``tomllib`` reads from the same text."""

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from pybalancer.config.positions import Path, positions

CASES: list[tuple[str, dict[Path, tuple[int, int]]]] = [
    ("", {}),
    ("a = 1", {("a",): (1, 1)}),
    ("\n  a = 1 # b = 2\n# c = 3\n\td = 4", {("a",): (2, 3), ("d",): (4, 2)}),
    ("a.b . 'c' = 1", {("a",): (1, 1), ("a", "b"): (1, 3), ("a", "b", "c"): (1, 7)}),
    ('"a.b" = 1', {("a.b",): (1, 1)}),
    (r'"\u0061\"\\\t" = 1', {('a"\\\t',): (1, 1)}),
    (
        "[t]\na = 1\n[t.u]\nb = 2",
        {("t",): (1, 1), ("t", "a"): (2, 1), ("t", "u"): (3, 1), ("t", "u", "b"): (4, 1)},
    ),
    (
        "[[t]]\na = 1\n[[t]]\na = 2\n[t.u]\nb = 3",
        {
            ("t",): (1, 1),
            ("t", 0): (1, 1),
            ("t", 0, "a"): (2, 1),
            ("t", 1): (3, 1),
            ("t", 1, "a"): (4, 1),
            ("t", 1, "u"): (5, 1),
            ("t", 1, "u", "b"): (6, 1),
        },
    ),
    (
        "a = [1, # ]\n  [2], { b = 3 },\n]\nc = 4",
        {
            ("a",): (1, 1),
            ("a", 0): (1, 6),
            ("a", 1): (2, 3),
            ("a", 1, 0): (2, 4),
            ("a", 2): (2, 8),
            ("a", 2, "b"): (2, 10),
            ("c",): (4, 1),
        },
    ),
    ('a = """\nb = 1\n"" \\""" """""\nc = 2', {("a",): (1, 1), ("c",): (4, 1)}),
    ("a = '''\nb = 1\n\\'''''\nc = 2", {("a",): (1, 1), ("c",): (4, 1)}),
    (
        "a = 'x # y'\nb = \"]\"\nc = 1979-05-27 07:32:00\r\nd = -1_0.5e+1",
        {("a",): (1, 1), ("b",): (2, 1), ("c",): (3, 1), ("d",): (4, 1)},
    ),
    ('"ä" = 1\n"ключ" = 2', {("ä",): (1, 1), ("ключ",): (2, 1)}),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=lambda value: None)
def test_places(text: str, expected: dict[Path, tuple[int, int]]) -> None:
    tomllib.loads(text)  # Or the case itself is wrong.
    assert positions(text) == expected


KEYS = st.sampled_from(["a", "b", "c", "a.b", "b.c.a", '"a"', "'b'", '"x\\u0020y"', "'#'", '"]"', 'c . "="'])
SCALARS = st.sampled_from(
    [
        "1",
        "-0.5e3",
        "true",
        "1979-05-27 07:32:00",
        '"text"',
        "'# = ['",
        '"\\"]"',
        '""',
        "''",
        '"""\nb = 1\n"x\\""""',
        "'''[a]\n'''''",
        '"""a\\\n  b"""',
    ]
)
SPACE = st.sampled_from(["", " ", "\t", "  "])


def arrays(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def written(elements: list[str], gap: str, last: str) -> str:
        return f"[{gap}" + f",{gap}".join(elements) + (last if elements else "") + f"{gap}]"

    gaps = st.sampled_from(["", " ", "\n", " # ] }\n "])
    return st.builds(written, st.lists(children, max_size=3), gaps, st.sampled_from(["", ","]))


def tables(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.dictionaries(st.sampled_from(["a", "b", '"c d"', "'e'.f"]), children, max_size=3)
    return pairs.map(
        lambda drawn: "{ " + ", ".join(f"{key} = {value}" for key, value in drawn.items()) + " }"
    )


VALUES = st.recursive(SCALARS, lambda children: arrays(children) | tables(children), max_leaves=6)
LINES = st.one_of(
    st.builds("{0}{1} ={0}{2}{3}".format, SPACE, KEYS, VALUES, st.sampled_from(["", " # a = 1"])),
    st.builds("{0}[{0}{1}{0}]".format, SPACE, KEYS),
    st.builds("{0}[[{0}{1}{0}]]".format, SPACE, KEYS),
    st.sampled_from(["", "# a = 1", "\t"]),
)


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every key and element in ``value``."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_every_key_and_element_has_its_place_and_nothing_else_has_one(lines: list[str], end: str) -> None:
    text = end.join(lines)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        event("not TOML")
        return
    places = positions(text)
    assert set(places) == set(paths(values))
    source = text.split("\n")
    for path, (line, column) in places.items():
        there = source[line - 1][column - 1 :]
        key = path[-1]
        if isinstance(key, str) and key.isalnum() and not there.startswith(("[", '"', "'")):
            assert there.startswith(key)
