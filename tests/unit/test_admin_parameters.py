"""What stands behind the ``?`` is read strictly."""

from __future__ import annotations

import pytest

from pybalancer.admin.parameters import MOST_BYTES, Parameters


def given(text: str) -> Parameters:
    return Parameters(text, ("pool", "over", "force"), ("header",))


def test_what_is_given_is_read() -> None:
    found = given("pool=chat%2Fone&over=1.5&force=1&header=a&header=b")
    assert found.text("pool") == found.needed("pool", "NAME") == "chat/one"
    assert found.number("over") == 1.5
    assert found.truth("force")
    assert found.texts("header") == ["a", "b"]


def test_what_is_not_given_is_nothing() -> None:
    for text in ("", "pool=&over=&force="):
        found = given(text)
        assert (found.text("pool"), found.number("over"), found.whole("over")) == (None, None, None)
        assert not found.truth("force")
        assert found.texts("header") == []
        with pytest.raises(ValueError, match=r"give \?pool=NAME"):
            found.needed("pool", "NAME")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pol=chat", "there is no parameter 'pol'; there are: pool, over, force, header"),
        ("pool=a&pool=b", "'pool' is given more than once"),
        ("pool=" + "a" * MOST_BYTES, f"at most {MOST_BYTES} bytes"),
    ],
)
def test_what_is_no_question_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("?", r"\?")):
        given(text)


def test_where_nothing_may_be_given() -> None:
    with pytest.raises(ValueError, match="there is none"):
        Parameters("pool=chat")


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "%2B1",
        "1e3",
        "nan",
        "inf",
        "Infinity",
        "0x10",
        "1_000",
        "1.",
        ".5",
        "1234567890",
        "%D9%A1",
        "1%20",
    ],
)
def test_numbers_are_digits_and_a_point(text: str) -> None:
    with pytest.raises(ValueError, match="over is a number from 0"):
        given(f"over={text}").number("over")


def test_whole_numbers_and_truths() -> None:
    assert given("over=12").whole("over") == given("over=12.0").whole("over") == 12
    with pytest.raises(ValueError, match="over is a whole number"):
        given("over=1.5").whole("over")
    assert not given("force=0").truth("force")
    for text in ("yes", "true", "2"):
        with pytest.raises(ValueError, match="force is 1 or 0"):
            given(f"force={text}").truth("force")
