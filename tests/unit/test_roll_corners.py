"""Rolls in which something goes wrong while an action is under way."""

from __future__ import annotations

import pytest

from pybalancer.policy.roll import Order, Picture, Roll, Seen, Settings

UP = Seen(up=True, draining=False, tunnels=0)


@pytest.mark.parametrize("error", [None, "exit code 1"])
def test_an_action_that_ends_after_its_backend_has_failed_changes_nothing(error: str | None) -> None:
    """Another process answers now, and does not want to drain it: the command runs on all the same."""
    roll = Roll(["a", "b"], Settings(), 0.0)
    (drain,) = roll.look(Picture("1", {"a": UP, "b": UP}), 0.0)
    roll.obeyed(drain, 0.0)
    drained = Seen(up=True, draining=True, tunnels=0)
    (act,) = roll.look(Picture("1", {"a": drained, "b": UP}), 1.0)
    roll.obeyed(act, 1.0)
    again = roll.look(Picture("2", {"a": UP, "b": Seen(up=False, draining=False, tunnels=0)}), 2.0)
    assert again == [Order("drain", "a")]
    roll.refused(again[0], "no other backend takes new tunnels", 2.0)
    roll.acted("a", 3.0, error)
    assert (roll.outcome, roll.steps["a"]) == ("failed", "failed")
    assert roll.problem == "a: cannot drain it: no other backend takes new tunnels"
