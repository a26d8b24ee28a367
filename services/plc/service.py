"""The daemon's body: one task and one stream per PLC of the desired document; seals and reports on time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from firmware import clock, paths
from firmware.config.schema import Desired, Log, Plc
from firmware.status import Reporter, State
from services.flashlog import AckBook, Quota, Writer, samples_quota
from services.plc.modbus import Link
from services.plc.poller import Poller

log = logging.getLogger(__name__)
T = TypeVar("T")

EVENTS = "events-plc"
REPORT_S = 2.0
CANCEL_S = 5.0


def stream_of(plc: str) -> str:
    return f"plc-{plc}"


@dataclass
class Running:
    """A PLC at work."""

    plc: Plc
    poller: Poller
    writer: Writer
    task: asyncio.Task[None]


class Service:
    """Runs until cancelled, and seals what it has before it ends.

    All that touches the flash is done by one thread, so that a slow flash delays no poll.
    """

    def __init__(
        self,
        device: str,
        *,
        log_root: Path | None = None,
        acks: Path | None = None,
        status: Path | None = None,
    ) -> None:
        self._device = device
        self._root = log_root or paths.LOG
        self._acks = AckBook(acks)
        self._reporter = Reporter("plc", status)
        self._flash = ThreadPoolExecutor(1, thread_name_prefix="flash")
        self._quota = Quota(samples_quota(Log().quota_mib << 20))
        self._sync_s = Log().sync_s
        self._running: dict[str, Running] = {}
        self._events: Writer | None = None
        self._full = asyncio.Event()

    async def run(self, documents: AsyncIterator[Desired], ready: Callable[[], None] = lambda: None) -> None:
        """Follow the documents. `ready` is called when the first one is at work."""
        self._events = await self._on_flash(lambda: Writer(self._root, EVENTS, self._device, acks=self._acks))
        helpers = [asyncio.create_task(self._seal_on_time()), asyncio.create_task(self._report_on_time())]
        following = asyncio.create_task(self._follow(documents, ready))
        try:
            # Whichever ends, ends by an error: then the daemon ends too, and systemd starts it again.
            done, _ = await asyncio.wait([following, *helpers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (following, *helpers):
                task.cancel()
            await asyncio.gather(following, *helpers, return_exceptions=True)
            await self._stop(list(self._running))
            await self._on_flash(self._events.close)
            self._report()
            self._flash.shutdown()

    async def _follow(self, documents: AsyncIterator[Desired], ready: Callable[[], None]) -> None:
        async for desired in documents:
            await self._apply(desired)
            self._report()
            ready()

    async def _apply(self, desired: Desired) -> None:
        """Stop what is gone or changed, start what is new or changed, leave the rest at work."""
        wanted = {plc.name: plc for plc in desired.plc}
        self._sync_s = desired.log.sync_s
        await self._on_flash(self._set_quota, samples_quota(desired.log.quota_mib << 20))
        await self._stop([name for name, r in self._running.items() if wanted.get(name) != r.plc])
        await self._on_flash(self._adopt_orphans, {stream_of(name) for name in wanted})
        for name, plc in wanted.items():
            if name not in self._running:
                self._running[name] = await self._start(plc)

    def _set_quota(self, limit_bytes: int) -> None:
        self._quota.limit_bytes = limit_bytes

    def _adopt_orphans(self, wanted: set[str]) -> None:
        """Streams of PLCs that are no more make room and are sent like all others."""
        with contextlib.suppress(OSError):
            for path in sorted(self._root.glob(stream_of("*") + "/")):
                if path.name not in wanted:
                    self._quota.adopt(path, self._acks)

    async def _start(self, plc: Plc) -> Running:
        writer = await self._on_flash(
            lambda: Writer(self._root, stream_of(plc.name), self._device, quota=self._quota, acks=self._acks)
        )
        events = self._events
        assert events

        def keep(samples: list[Any]) -> None:
            writer.extend(samples)
            if writer.full:
                self._full.set()

        poller = Poller(
            plc,
            Link(plc.host, plc.port, plc.unit, plc.timeout_ms / 1000),
            samples=keep,
            event=events.append_event,
            now_us=lambda: clock.now().monotonic_us,
        )
        return Running(plc, poller, writer, asyncio.create_task(self._guard(plc.name, poller)))

    async def _guard(self, name: str, poller: Poller) -> None:
        """A fault of ours in one PLC's task must not take the others along."""
        while True:
            try:
                await poller.run()
            except Exception:
                log.exception("%s: polling failed by a fault of this program; begins again", name)
                poller.state, poller.error = "lost", "fault of this program: see the journal"
            await asyncio.sleep(1)

    async def _stop(self, names: list[str]) -> None:
        stopped = [self._running.pop(name) for name in names]
        for running in stopped:
            running.task.cancel()
        if stopped:
            await asyncio.wait([r.task for r in stopped], timeout=CANCEL_S)
        for running in stopped:
            await self._on_flash(running.writer.close)

    async def _seal_on_time(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._sync_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._full.wait()
            self._full.clear()
            for writer in self._writers():
                await self._on_flash(writer.seal)
            await self._on_flash(self._quota.drop_acknowledged)
            now = loop.time()
            if now >= due:
                due = max(due + self._sync_s, now)
            due = min(due, now + self._sync_s)  # the interval may have been made shorter

    async def _report_on_time(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._report()

    def _writers(self) -> list[Writer]:
        assert self._events
        return [*(r.writer for r in self._running.values()), self._events]

    def _report(self) -> None:
        plcs = {
            name: {**r.poller.observed(), "log": msgspec.to_builtins(r.writer.stats)}
            for name, r in sorted(self._running.items())
        }
        errors = [error for w in self._writers() if (error := w.stats.error)]
        away = [f"{n}: {r.poller.error}" for n, r in self._running.items() if r.poller.error]
        connected = sum(r.poller.state == "connected" for r in self._running.values())
        summary = f"{connected} of {len(plcs)} PLCs connected"
        state = State.OK
        if errors:
            state, summary = State.FAILED, f"samples are not safe: {errors[0]}"
        elif away:
            state, summary = State.DEGRADED, f"{summary}; {away[0]}"
        try:
            self._reporter.report(
                state, summary, plcs=plcs, log_bytes=self._quota.used_bytes, log_quota=self._quota.limit_bytes
            )
        except OSError as error:
            log.warning("status can't be written: %s", error)

    async def _on_flash(self, function: Callable[..., T], *args: Any) -> T:
        """In the flash thread. A cancellation waits for it: what has begun is finished."""
        future: Awaitable[T] = asyncio.get_running_loop().run_in_executor(self._flash, function, *args)
        task = asyncio.ensure_future(future)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise
