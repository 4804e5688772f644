"""Packets per second."""

from pybalancer.packet.report import Speed


def test_a_speed_is_from_one_look_to_the_next() -> None:
    speed = Speed()
    assert speed.of("a") == 0
    speed.observe(10, {"a": 1000})
    assert speed.of("a") == 0
    speed.observe(12, {"a": 1500, "b": 7})
    assert (speed.of("a"), speed.of("b")) == (250, 0)
    speed.observe(13, {"a": 1500, "b": 8})
    assert (speed.of("a"), speed.of("b")) == (0, 1)


def test_counts_that_begin_anew_began_at_0() -> None:
    speed = Speed()
    speed.observe(0, {"a": 1000})
    speed.observe(1, {"a": 10})
    assert speed.of("a") == 10
    speed.observe(2, {"a": 30})
    assert speed.of("a") == 20


def test_what_is_gone_is_forgotten() -> None:
    speed = Speed()
    speed.observe(0, {"a": 0})
    speed.observe(1, {"a": 5})
    speed.observe(2, {})
    assert speed.of("a") == 0
    speed.observe(3, {"a": 1000})
    assert speed.of("a") == 0
