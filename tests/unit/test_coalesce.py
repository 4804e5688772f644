"""Many requests, few actions: the coalescer on a clock that jumps."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from pybalancer.policy.coalesce import Coalescer


class Recorder:
    """An action that takes a while, and when it began."""

    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes
        self.begun: list[float] = []

    async def __call__(self) -> None:
        self.begun.append(trio.current_time())
        await trio.sleep(self.takes)


async def play(action: Recorder, requests: list[float], interval: float, until: float) -> None:
    """Ask at these times (seconds from now)."""
    coalescer, start = Coalescer(action, interval), trio.current_time()
    with trio.move_on_at(start + until):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(coalescer.run)
            for time in sorted(requests):
                await trio.sleep_until(start + time)
                coalescer.request()
    action.begun = [time - start for time in action.begun]


async def test_one_request_is_served_at_once(autojump_clock: trio.testing.MockClock) -> None:
    action = Recorder()
    await play(action, [5.0], 0.1, 10.0)
    assert action.begun == [pytest.approx(5.0)]


async def test_without_a_request_nothing_is_done(autojump_clock: trio.testing.MockClock) -> None:
    action = Recorder()
    await play(action, [], 0.1, 1000.0)
    assert action.begun == []


async def test_a_burst_is_two_actions(autojump_clock: trio.testing.MockClock) -> None:
    action = Recorder()
    await play(action, [1.0 + number / 1000 for number in range(90)], 0.1, 10.0)
    assert action.begun == [pytest.approx(1.0), pytest.approx(1.1)]


async def test_a_request_while_it_acts_is_not_lost(autojump_clock: trio.testing.MockClock) -> None:
    action = Recorder(takes=3.0)
    await play(action, [1.0, 2.0], 0.1, 100.0)
    assert action.begun == [pytest.approx(1.0), pytest.approx(4.0)]


async def test_it_may_be_asked_before_it_runs(autojump_clock: trio.testing.MockClock) -> None:
    action = Recorder()
    coalescer = Coalescer(action)
    coalescer.request()
    with trio.move_on_after(1.0):
        await coalescer.run()
    assert len(action.begun) == 1


async def test_an_error_is_the_callers(autojump_clock: trio.testing.MockClock) -> None:
    async def fail() -> None:
        raise OSError("no")

    coalescer = Coalescer(fail)
    coalescer.request()
    with pytest.raises(OSError, match="no"):
        await coalescer.run()


@given(st.lists(st.floats(0.0, 3.0), max_size=50), st.floats(0.0, 0.5), st.floats(0.01, 1.0))
def test_no_request_is_lost_and_none_is_too_soon(
    requests: list[float], takes: float, interval: float
) -> None:
    action = Recorder(takes)
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(play, action, requests, interval, 10.0, clock=clock)
    pairs = zip(action.begun, action.begun[1:], strict=False)
    assert all(later - earlier >= max(interval, takes) - 1e-6 for earlier, later in pairs)
    for request in requests:
        after = min((time for time in action.begun if time >= request - 1e-6), default=None)
        assert after is not None
        # It had to wait for one that was under way, and for its interval.
        assert after - request <= max(interval, takes) + 1e-6
