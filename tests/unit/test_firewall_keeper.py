"""The keeper's decisions, on a kernel of ours that can refuse."""

from __future__ import annotations

from firmware.status import State
from services.firewall.keeper import Keeper
from services.firewall.kernel import KernelError


class FakeKernel:
    def __init__(self, rules: str = "") -> None:
        self.rules = rules
        self.refuse = ""
        self.foreign: list[str] = []
        self.flushed = 0

    def apply(self, text: str) -> None:
        if self.refuse:
            raise KernelError(self.refuse)
        self.rules = text

    def listing(self) -> str:
        return self.rules

    def foreign_tables(self) -> list[str]:
        return self.foreign

    def refused(self) -> dict[str, int]:
        return {}

    def forget_flows(self) -> None:
        self.flushed += 1


def test_where_nothing_is_loaded_the_closed_set_is() -> None:
    kernel = FakeKernel()
    keeper = Keeper(kernel, "closed")
    assert kernel.rules == "closed"
    assert keeper.status()[0] is State.STARTING


def test_a_restart_does_not_disturb_rules_that_are_there() -> None:
    kernel = FakeKernel("open")
    keeper = Keeper(kernel, "closed")
    keeper.check()
    assert kernel.rules == "open"
    keeper.want("open")
    assert keeper.status()[0] is State.OK


def test_refused_rules_leave_the_ones_before_and_are_tried_again() -> None:
    """Shows: X68."""
    kernel = FakeKernel()
    keeper = Keeper(kernel, "closed")
    keeper.want("open")
    kernel.refuse = "out of memory"
    keeper.want("other")
    assert kernel.rules == "open"
    state, summary, _ = keeper.status()
    assert state is State.FAILED
    assert "out of memory" in summary
    keeper.check()
    assert kernel.rules == "open"
    kernel.refuse = ""
    keeper.check()
    assert kernel.rules == "other"
    assert keeper.status()[0] is State.OK


def test_a_kernel_that_refuses_from_the_start_is_told() -> None:
    kernel = FakeKernel()
    kernel.refuse = "operation not permitted"
    keeper = Keeper(kernel, "closed")
    assert keeper.status()[0] is State.FAILED


def test_flows_are_forgotten_with_each_change_and_only_then() -> None:
    kernel = FakeKernel()
    keeper = Keeper(kernel, "closed")
    keeper.want("open")
    before = kernel.flushed
    keeper.want("open")
    keeper.check()
    assert kernel.flushed == before
    keeper.want("other")
    assert kernel.flushed == before + 1


def test_what_someone_else_changed_is_restored_and_counted() -> None:
    kernel = FakeKernel()
    keeper = Keeper(kernel, "closed")
    keeper.want("open")
    kernel.rules = "hole"
    keeper.check()
    assert kernel.rules == "open"
    assert keeper.status()[2]["restored"] == 1
    kernel.rules = ""
    keeper.check()
    assert kernel.rules == "open"
    assert "restored 2 times" in keeper.status()[1]


def test_tables_of_others_are_told() -> None:
    kernel = FakeKernel()
    keeper = Keeper(kernel, "closed")
    keeper.want("open")
    kernel.foreign = ["ip nat"]
    state, summary, _ = keeper.status()
    assert state is State.DEGRADED
    assert "ip nat" in summary
