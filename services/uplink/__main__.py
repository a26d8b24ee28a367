"""The uplink daemon: while the owner allows it, be connected, and send what the log holds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firmware import clock, daemon, paths, status
from firmware.config.schema import Cloud
from firmware.identity import IdentityError
from firmware.status import State
from firmware.wire import messages, topics
from firmware.wire.block import Event
from firmware.wire.messages import Ack, MessageError, Nack, Ping, Pong, Status, TimeReply
from services.flashlog import AckBook, Reader, Writer
from services.uplink import identity as identities
from services.uplink import trouble
from services.uplink.core import Backoff, Key, Outbox, StatusPace, TimeExchange
from services.uplink.identity import Identity
from services.uplink.session import Connected, Ended, Message, News, Session
from services.uplink.source import Source
from services.uplink.trouble import Trouble

log = logging.getLogger(__name__)

SERVICE = "uplink"
LOOK_S = 0.25
"""How often the log is looked at for new blocks."""
SAVE_ACKS_S = 1.0
SEAL_S = 5.0
ANSWER_S = 45.0
"""A connection that brought no answer by then is given up: name, TCP and TLS have deadlines of their own before."""
FAULT_S = 5.0
STEADY_S = 30.0
"""A connection that lasted this long was a good one: the next pause is short."""


@dataclass
class Uplink:
    """The parts that live as long as the process, and one connection at a time."""

    root: Path = field(default_factory=lambda: paths.ROOT)
    now: Callable[[], clock.Instant] = clock.now
    boot: bytes = field(default_factory=clock.boot_id)
    port: int | None = None
    """Another port than the configured one; for tests."""

    def __post_init__(self) -> None:
        self.reporter = status.Reporter(SERVICE, self.root / "run/sallyport/status")
        self.acks = AckBook(self.root / "flash/acks")
        self.outbox = Outbox(1)
        self.source = Source(Reader(self.root / "flash/log"), self.acks, self.outbox.__contains__)
        self.pace = StatusPace()
        self.events: Writer | None = None
        self.talk: Conversation | None = None
        """The last one that came about."""
        self._saved_s = 0.0
        self._sealed_s = 0.0
        # All that touches the flash and the outbox: one thread, beside the event loop, so a slow flash stops nothing.
        self._flash = ThreadPoolExecutor(1, "flash")

    async def run(self, ready: Callable[[], None], documents: AsyncIterator[Cloud]) -> None:
        """Follow the desired documents until cancelled."""
        self.reporter.report(State.STARTING, "waiting for the configuration")
        ready()
        task: asyncio.Task[None] | None = None
        try:
            async for cloud in documents:
                if task:
                    await _cancel(task)
                task = asyncio.create_task(self._guard(cloud))
        finally:
            if task:
                await _cancel(task)
            await self.on_flash(self._close_events, seal=True)
            self._flash.shutdown()

    async def _guard(self, cloud: Cloud) -> None:
        """A fault of ours ends a connection, never the uplink."""
        while True:
            try:
                await self._follow(cloud)
            except Exception:
                log.exception("a fault of this program; begins again")
                self.reporter.report(
                    State.DEGRADED, "fault of this program: see the journal", connected=False
                )
                await asyncio.sleep(FAULT_S)

    async def _follow(self, cloud: Cloud) -> None:
        if not cloud.enabled:
            self.note("disabled")
            self.reporter.report(State.OK, "off: cloud.enabled is false", connected=False)
            while True:
                await self.on_flash()
                await asyncio.sleep(SEAL_S)
        self.outbox.set_rate(cloud.backfill_kib_s * 1024)
        backoff = Backoff()
        self.reporter.report(State.STARTING, f"connecting to {cloud.host}", connected=False)
        while True:
            started_s = time.monotonic()
            why = await self._attempt(cloud)
            if time.monotonic() - started_s > STEADY_S:
                backoff.reset()
            pause_s = backoff.next_s()
            log.warning("%s (next attempt in %.1f s)", why.text, pause_s)
            self.reporter.report(State.DEGRADED, why.text, connected=False, trouble=why.code)
            await self.on_flash()
            await asyncio.sleep(pause_s)

    async def _attempt(self, cloud: Cloud) -> Trouble:
        """Connect, and work until the connection ends. Returns why it did, or why it never came to be."""
        try:
            identity = identities.load(self.root / "data/identity")
            context = identity.context()
        except IdentityError as error:
            return Trouble("identity", str(error))
        self._open_events(identity)
        news: asyncio.Queue[News] = asyncio.Queue()
        session = Session(
            cloud.host,
            self.port or cloud.port,
            identity.device,
            context,
            will=(topics.up(identity.device, "status"), messages.encode(self.status(online=False))),
            on_news=news.put_nowait,
        )
        try:
            try:
                async with asyncio.timeout(ANSWER_S):
                    first: News = await news.get()
            except TimeoutError:
                first = Ended(trouble.mute(f"{cloud.host}:{self.port or cloud.port}"))
            if isinstance(first, Connected):
                return await self._converse(session, identity.device, cloud, first, news)
            assert isinstance(first, Ended)
            self.note("refused", "warning", code=first.trouble.code, reason=first.trouble.text)
            return first.trouble
        finally:
            await session.close(messages.encode(self.status(online=False)))

    async def _converse(
        self, session: Session, device: str, cloud: Cloud, connected: Connected, news: asyncio.Queue[News]
    ) -> Trouble:
        log.info("connected to %s (%s, %s)", cloud.host, connected.address, connected.tls)
        self.note("connected", host=cloud.host, address=connected.address)
        link = {"connected": True, "host": cloud.host, "address": connected.address, "tls": connected.tls}
        self.talk = talk = Conversation(self, session, device, link)
        pumping = asyncio.create_task(talk.pump())
        pumping.add_done_callback(lambda task: news.put_nowait(Ended(_fault(task))))
        try:
            while True:
                match await news.get():
                    case Ended(why):
                        self.note("lost", "warning", code=why.code, reason=why.text)
                        return why
                    case Message(topic, payload):
                        talk.receive(topic, payload)
        finally:
            await _cancel(pumping)
            await self.on_flash(self.outbox.disconnected)

    def status(self, *, online: bool) -> Status:
        observed = {
            name: {
                "state": str(o.state),
                "summary": o.summary,
                "since_us": o.since_us,
                "updated_us": o.updated_us,
                "detail": o.detail,
            }
            for name, o in status.read_all(self.root / "run/sallyport/status").items()
        }
        return Status(online, _version(self.root), self.boot.hex(), observed if online else {})

    def _open_events(self, identity: Identity) -> None:
        if self.events is None:
            self.events = Writer(
                self.root / "flash/log",
                f"events-{SERVICE}",
                identity.device,
                self.boot,
                acks=AckBook(self.root / "flash/acks"),
                clock=self.now,
            )

    def _close_events(self) -> None:
        if self.events:
            self.events.close()
            self.events = None

    def note(self, name: str, severity: str = "info", **data: bool | int | float | str) -> None:
        if self.events:
            self.events.append_event(Event(self.now().monotonic_us, name, severity, data))

    async def on_flash(self, work: Callable[[], None] | None = None, *, seal: bool = False) -> None:
        """Do work in the flash thread; events are sealed and acknowledgements saved there when it is time to."""
        await asyncio.get_running_loop().run_in_executor(self._flash, self._on_flash, work, seal)

    def _on_flash(self, work: Callable[[], None] | None, seal: bool) -> None:
        if work:
            work()
        now_s = time.monotonic()
        if self.events and (seal or now_s - self._sealed_s >= SEAL_S):
            self._sealed_s = now_s
            self.events.seal()
        if seal or now_s - self._saved_s >= SAVE_ACKS_S:
            self._saved_s = now_s
            try:
                self.acks.save()
            except OSError as error:
                log.warning("acknowledgements can't be saved (%s); blocks may be sent twice", error)


class Conversation:
    """What is said on one connection."""

    def __init__(self, uplink: Uplink, session: Session, device: str, link: dict[str, Any]) -> None:
        self._uplink = uplink
        self._session = session
        self._device = device
        self._link = link
        self._time = TimeExchange(uplink.boot.hex())
        self._verdicts: list[Ack | Nack] = []
        self._wake = asyncio.Event()
        self._reported_s = 0.0
        self._error_us: int | None = None

    def receive(self, topic: str, payload: bytes) -> None:
        """A message from the cloud. One that can't be understood is logged and changes nothing."""
        try:
            match topic.removeprefix(topics.down(self._device, "")):
                case "ack":
                    self._verdicts.append(messages.decode(payload, Ack))
                    self._wake.set()
                case "nack":
                    self._verdicts.append(messages.decode(payload, Nack))
                    self._wake.set()
                case "time":
                    self._answered(messages.decode(payload, TimeReply))
                case "ping":
                    ping = messages.decode(payload, Ping)
                    pong = Pong(ping.nonce, self._uplink.boot.hex(), self._uplink.now().monotonic_us)
                    self._session.publish(topics.up(self._device, "pong"), messages.encode(pong))
        except (MessageError, ValueError) as error:
            log.warning("message on %s can't be understood: %s", topic, error)

    def _answered(self, reply: TimeReply) -> None:
        report = self._time.answer(time.monotonic(), self._uplink.now(), reply)
        if report:
            self._error_us = report.error_us
            self._link["wall_error_us"] = report.wall_error_us
            self._session.publish(topics.up(self._device, "clock"), messages.encode(report))
            self._wake.set()

    async def pump(self) -> None:
        """Time, status, acknowledgements and blocks, until cancelled."""
        uplink = self._uplink
        self._time.connected(time.monotonic())
        uplink.pace.connected()
        await uplink.on_flash(lambda: uplink.source.connected(uplink.boot))
        while True:
            now_s = time.monotonic()
            request = self._time.ask(now_s, uplink.now())
            if request:
                self._session.publish(topics.up(self._device, "time"), messages.encode(request), qos=0)
            await uplink.on_flash(self._flash_work)
            self._report(now_s)
            self._send_status(now_s)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):  # wait_for of Python 3.11 can swallow a cancellation
                    await self._wake.wait()

    def _flash_work(self) -> None:
        """In the flash thread."""
        verdicts, self._verdicts = self._verdicts, []
        for verdict in verdicts:
            try:
                self._judged(verdict)
            except ValueError as error:
                log.warning("acknowledgement can't be understood: %s", error)
        for flight in self._uplink.outbox.due(time.monotonic()):
            self._send(flight.key, flight.lane, flight.data)
        if self._time.blocks_may_go(time.monotonic()):
            self._uplink.source.fill(self)

    def _judged(self, verdict: Ack | Nack) -> None:
        uplink = self._uplink
        if isinstance(verdict, Ack):
            for key in uplink.outbox.acknowledged(verdict):
                uplink.acks.add(key.stream, key.boot, key.seq, key.seq)
        elif uplink.outbox.refused(Key(verdict.stream, bytes.fromhex(verdict.boot), verdict.seq)):
            log.error("the cloud refuses block %d of %s: %s", verdict.seq, verdict.stream, verdict.reason)
            uplink.note(
                "block-refused", "error", stream=verdict.stream, seq=verdict.seq, reason=verdict.reason
            )

    # `source.Room`:

    def live(self) -> bool:
        return self._uplink.outbox.live_room()

    def history(self) -> bool:
        return self._uplink.outbox.history_room(time.monotonic())

    def take(self, key: Key, lane: str, data: bytes) -> None:
        self._uplink.outbox.sent(time.monotonic(), key, lane, data, history=lane == topics.BACKFILL)
        self._send(key, lane, data)

    def _send(self, key: Key, lane: str, data: bytes) -> None:
        topic = topics.block(self._device, lane, key.stream)
        self._session.publish(topic, data, reference=messages.block_ref(key.boot, key.seq))

    def _report(self, now_s: float) -> None:
        if now_s - self._reported_s < 1:
            return
        self._reported_s = now_s
        counts = self._uplink.outbox.counts
        self._uplink.reporter.report(
            State.OK,
            f"connected to {self._link['host']}",
            **self._link,
            clock_error_us=self._error_us,
            sent=counts.sent,
            acknowledged=counts.acknowledged,
            sent_again=counts.sent_again,
            refused=counts.refused,
            in_flight=len(self._uplink.outbox),
            history_left=self._uplink.source.history_left,
        )

    def _send_status(self, now_s: float) -> None:
        now = self._uplink.status(online=True)
        important = {name: (o["state"], o["summary"]) for name, o in now.observed.items()}
        if self._uplink.pace.due(now_s, important, now):
            topic = topics.up(self._device, "status")
            self._session.publish(topic, messages.encode(now), retain=True)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _fault(task: asyncio.Task[None]) -> Trouble:
    """Why a task ended that should not; nobody asks when it was cancelled."""
    error = None if task.cancelled() else task.exception()
    if error:
        log.error("a fault of this program ended the connection", exc_info=error)
    return Trouble("fault", f"fault of this program: {error!r}; see the journal")


def _version(root: Path) -> str:
    """Version of the image, from os-release(5)."""
    with contextlib.suppress(OSError):
        for line in (root / "etc/os-release").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name == "IMAGE_VERSION":
                return value.strip("\"'")
    return ""


async def clouds() -> AsyncIterator[Cloud]:
    """The cloud section, now and whenever it changes."""
    last = None
    async for desired in daemon.desired_documents():
        if desired.cloud != last:
            last = desired.cloud
            yield desired.cloud


async def body(ready: Callable[[], None]) -> None:
    await Uplink().run(ready, clouds())


if __name__ == "__main__":
    sys.exit(daemon.run(SERVICE, body))
