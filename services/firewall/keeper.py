"""Keeps the kernel's rule set what it should be, and says what it saw."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from firmware.status import State
from services.firewall.kernel import KernelError

log = logging.getLogger(__name__)


class Kernel(Protocol):
    def apply(self, text: str) -> None: ...
    def listing(self) -> str: ...
    def foreign_tables(self) -> list[str]: ...
    def refused(self) -> dict[str, int]: ...
    def forget_flows(self) -> None: ...


class Keeper:
    """`want` a rule set, then `check` now and then. Neither raises: a failure is in `status`."""

    def __init__(self, kernel: Kernel, closed: str) -> None:
        """A set that is there is left alone (a restart must not cut connections); where there is none, the
        closed one is loaded."""
        self._kernel = kernel
        self._wanted = self._closed = closed
        self._in_force = ""
        """The text that the kernel took last."""
        self._expected = kernel.listing()
        self._failure = ""
        self.restored = 0
        """How often someone else's change was undone."""
        if not self._expected:
            self._apply(closed)

    def want(self, text: str) -> None:
        self._wanted = text
        if text != self._in_force:
            self._apply(text)

    def check(self) -> None:
        """Look at the kernel: what is not ours is replaced, what failed is tried again."""
        if self._failure:
            self._apply(self._wanted)
        elif self._kernel.listing() != self._expected:
            log.warning("the rule set was changed by someone else and is restored")
            self.restored += 1
            self._apply(self._wanted)

    def status(self) -> tuple[State, str, dict[str, Any]]:
        """State, summary and detail of the observed document."""
        try:
            detail: dict[str, Any] = {
                "refused": self._kernel.refused(),
                "foreign_tables": self._kernel.foreign_tables(),
                "restored": self.restored,
            }
        except KernelError as error:
            return State.FAILED, f"the kernel's rule set can't be read: {error}", {}
        if self._failure:
            return State.FAILED, f"the new rules are refused, the ones before hold: {self._failure}", detail
        if self._wanted == self._closed:
            return State.STARTING, "no new permission until the configuration is there", detail
        notes = []
        if detail["foreign_tables"]:
            notes.append(f"tables that are not ours: {', '.join(detail['foreign_tables'])}")
        if self.restored:
            notes.append(f"changed by someone else and restored {self.restored} times")
        summary = "closed both ways"
        state = State.DEGRADED if detail["foreign_tables"] else State.OK
        return state, "; ".join([summary, *notes]), detail

    def _apply(self, text: str) -> None:
        failure = self._try(text)
        if failure and failure != self._failure:
            log.error("the rules can't be applied, the ones before hold: %s", failure)
        self._failure = failure

    def _try(self, text: str) -> str:
        """Why it failed; empty if it did not."""
        try:
            self._kernel.apply(text)
            self._in_force = text
            self._expected = self._kernel.listing()
            self._kernel.forget_flows()
        except KernelError as error:
            return str(error)
        return "" if self._expected else "the rules are gone as soon as they are loaded"
