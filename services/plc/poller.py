"""One device: connect, poll on time, log what changed, connect again."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from firmware.config.schema import Plc, Tag
from firmware.wire.block import Event, Quality, Sample
from services.plc import core
from services.plc.modbus import DeviceError, LinkError

log = logging.getLogger(__name__)

SPLITS = 256
"""Requests that one poll may add in search of an address that the device refuses."""
REPLAN_US = 300 * 1_000_000
"""After this time, requests that were split or refused are tried in full again."""
IDLE_US = 15 * 1_000_000
"""A connection that was silent for longer is opened anew: many devices drop it without a word."""


class LinkLike(Protocol):
    """As `modbus.Link`."""

    @property
    def connected(self) -> bool: ...
    async def connect(self) -> None: ...
    async def read(self, table: str, address: int, count: int) -> Sequence[int]: ...
    def close(self) -> None: ...


class Poller:
    """Reads one PLC for as long as `run` runs; hands samples and events to its owner.

    `now_us` is the clock of the samples (monotonic of this boot).
    """

    def __init__(
        self,
        plc: Plc,
        link: LinkLike,
        *,
        samples: Callable[[list[Sample]], None],
        event: Callable[[Event], None],
        now_us: Callable[[], int],
    ) -> None:
        self._plc, self._link, self._now_us = plc, link, now_us
        self._samples, self._event = samples, event
        self._changes = core.Changes()
        self._groups: list[core.Group] = []
        self._planned_us = 0
        self._answered_us = 0
        self._hopeless: set[core.Request] = set()
        """Requests of several tags of which no part was answered: not split again before the next plan."""
        self._splits_left = 0
        self._refused: dict[str, str] = {}
        self.state = "connecting"
        """connecting, connected or lost."""
        self.error = ""
        self.polls = self.logged = self.missed = self.failures = 0

    def observed(self) -> dict[str, Any]:
        """For the status document."""
        return {
            "state": self.state,
            "error": self.error,
            "polls": self.polls,
            "missed_polls": self.missed,
            "samples": self.logged,
            "requests_per_round": sum(len(g.requests) for g in self._groups),
            "registers_per_request": [r.length for g in self._groups for r in g.requests][:50],
            "refused_tags": dict(sorted(self._refused.items())[:20]),
        }

    async def run(self) -> None:
        """Until cancelled. Nothing that a device does ends it."""
        try:
            while True:
                try:
                    await self._link.connect()
                    self._connected()
                    await self._poll_until_lost()
                except LinkError as error:
                    self._lost(str(error))
                await asyncio.sleep(core.backoff_s(self.failures, random.random()))  # noqa: S311 - jitter
        finally:
            self._link.close()

    def _connected(self) -> None:
        now = self._now_us()
        self._answered_us = now
        self._replan(now)

    def _replan(self, now_us: int) -> None:
        """All requests in full, and due at once."""
        self._groups = core.plan(self._plc, now_us)
        self._planned_us = now_us
        self._hopeless.clear()

    async def _poll_until_lost(self) -> None:
        """Raises LinkError."""
        while self._groups:
            due_us = min(g.due_us for g in self._groups)
            wait_us = due_us - self._now_us()
            if wait_us > 0:
                await asyncio.sleep(wait_us / 1e6)
            if self._now_us() - self._planned_us > REPLAN_US and (self._refused or self._hopeless):
                due = [g.due_us for g in self._groups]
                self._replan(self._now_us())
                for group, kept_us in zip(self._groups, due, strict=True):
                    group.due_us = kept_us
            self._splits_left = SPLITS
            for group in [g for g in self._groups if g.due_us <= self._now_us()]:
                before = group.missed
                await self._poll(group)
                group.done(self._now_us())
                self.missed += group.missed - before
        await asyncio.Event().wait()  # no tags: stay connected

    async def _poll(self, group: core.Group) -> None:
        if self._now_us() - self._answered_us > IDLE_US or not self._link.connected:
            await self._link.connect()
        refused_before = set(self._refused)
        requests: list[core.Request] = []
        for request in group.requests:
            requests += await self._read(request)
        group.requests = requests
        self.polls += 1
        new = sorted(set(self._refused) - refused_before)
        if new:
            text = f"{new[0]}: {self._refused[new[0]]}"
            log.warning("%s: %d tags refused, %s", self._plc.name, len(new), text)
            self._tell("device_error", "warning", tags=len(new), first=text)
        self.error = f"{len(self._refused)} tags refused" if self._refused else ""

    async def _read(self, request: core.Request) -> list[core.Request]:
        """Read and log one request. Returns it, or the parts that replace it. Raises LinkError."""
        try:
            words, time_us = await self._answer(request)
        except DeviceError as error:
            if (
                len(request.tags) > 1
                and error.may_be_one_address
                and request not in self._hopeless
                and self._splits_left >= 2
            ):
                return await self._split(request)
            self._refuse(request.tags, error)
            return [request]
        self._log(self._changes.value(tag, time_us, value) for tag, value in request.values(words))
        for tag in request.tags if self._refused else ():
            self._refused.pop(tag.name, None)
        return [request]

    async def _split(self, request: core.Request) -> list[core.Request]:
        """Search the part that is refused by halving, within this poll's budget."""
        full_budget = self._splits_left == SPLITS
        self._splits_left -= 2
        parts: list[core.Request] = []
        for half in request.halves():
            parts += await self._read(half)
        if all(tag.name in self._refused for tag in request.tags):
            if full_budget or self._splits_left >= 2:
                self._hopeless.add(request)  # one request a poll is enough to learn that this changed
            return [request]
        return parts

    async def _answer(self, request: core.Request) -> tuple[Sequence[int], int]:
        """Answer and the time of the values: the middle between question and answer.

        One try more on a new connection: a dropped one is often noticed only by using it.
        """
        for attempt in (1, 2):
            asked_us = self._now_us()
            try:
                words = await self._link.read(request.table, request.address, request.length)
            except LinkError:
                if attempt == 2:
                    raise
                await self._link.connect()
            else:
                self._answered_us = self._now_us()
                self._alive()
                return words, (asked_us + self._answered_us) // 2
        raise AssertionError

    def _alive(self) -> None:
        """The device is there once it has answered; a connection alone says nothing."""
        self.failures = 0
        if self.state != "connected":
            self.state, self.error = "connected", ""
            log.info("%s: connected", self._plc.name)
            self._tell("connected", "info")

    def _refuse(self, tags: Sequence[Tag], error: DeviceError) -> None:
        self._answered_us = now = self._now_us()
        self._alive()
        for tag in tags:
            self._refused[tag.name] = str(error)
        self._log(self._changes.bad(tag, now, Quality.DEVICE_ERROR) for tag in tags)

    def _lost(self, reason: str) -> None:
        now = self._now_us()
        self.failures += 1
        if self.state != "lost":
            log.warning("%s: %s", self._plc.name, reason)
            self._tell("lost", "warning", reason=reason)
        self.state, self.error = "lost", reason
        self._refused.clear()
        self._log(self._changes.bad(tag, now, Quality.NO_CONNECTION) for tag in self._plc.tags)

    def _log(self, samples: Any) -> None:
        kept = [s for s in samples if s is not None]
        if kept:
            self.logged += len(kept)
            self._samples(kept)

    def _tell(self, name: str, severity: str, **data: bool | int | float | str) -> None:
        self._event(Event(self._now_us(), name, severity, {"plc": self._plc.name, **data}))
