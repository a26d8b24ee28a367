"""A real cloud (Mosquitto, ingest, stores) on loopback, and gateways' uplinks against it, for the contract tests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cloudstub import ca
from cloudstub.ingest.buffer import health
from cloudstub.state import State
from cloudstub.stores.platform import PlatformReader
from cloudstub.stores.series import Point, SqliteSeriesReader
from cloudstub.stores.sqlite import connect_readonly
from firmware import clock, status
from firmware.clock import Instant
from firmware.config.schema import Cloud as CloudConfig
from firmware.wire.block import Sample
from services.flashlog import Writer
from services.uplink.__main__ import Uplink

DEVICE = "SP-000001"
BOOT = bytes(range(16))
STREAM = "plc-press"
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def eventually(look: Callable[[], T], within_s: float = 20.0, what: str = "") -> T:
    """The first true thing that `look` returns. For what only shows in files; fails with what was seen last."""
    until = time.monotonic() + within_s
    while True:
        try:
            seen: Any = look()
            if seen:
                return seen  # type: ignore[no-any-return]
        except Exception as error:
            seen = error
        if time.monotonic() > until:
            raise AssertionError(f"{what or look} within {within_s} s; last seen: {seen!r}")
        await asyncio.sleep(0.05)


class Cloud:
    """`python -m cloudstub run` as a process of its own."""

    def __init__(self, folder: Path, mqtt_port: int | None = None) -> None:
        self.state = State(folder)
        self.port = mqtt_port or free_port()
        self.api_port = free_port()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "cloudstub", "run", "--state", str(self.state.root)]
        command += ["--mqtt", f"127.0.0.1:{self.port}", "--api", f"127.0.0.1:{self.api_port}"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=(self.state.root.parent / "group.log").open("ab"),
            text=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line != "ready\n":
            raise AssertionError(f"the cloud said {line!r}; {self.logs()}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.wait(20)
            assert self.process.stdout
            self.process.stdout.close()
            self.process = None

    def logs(self) -> str:
        return "\n".join(f"{p.name}: {p.read_text()[-2000:]}" for p in self.state.logs.glob("*.log"))

    def pids(self) -> dict[str, int]:
        """Process ids of the running children by name."""
        assert self.process
        found = {}
        for name, mark in (
            ("broker", "mosquitto"),
            ("series", "worker series"),
            ("platform", "worker platform"),
            ("ingest", "cloudstub.ingest "),
            ("api", "cloudstub.api"),
        ):
            for child in (
                Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            ):
                try:
                    line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                except FileNotFoundError:  # it has just ended
                    continue
                if mark in line:
                    found[name] = int(child)
        return found

    def kill(self, name: str) -> None:
        os.kill(self.pids()[name], signal.SIGKILL)

    @property
    def authority(self) -> ca.Authority:
        return ca.Authority.open(self.state.ca)

    def points(self, tag: str, device: str = DEVICE, stream: str = STREAM) -> list[Point]:
        with closing(SqliteSeriesReader(self.state.series)) as store:
            return store.read(device, stream, tag, limit=1_000_000)

    def platform(self) -> PlatformReader:
        return PlatformReader(self.state.platform)

    def counters(self) -> dict[str, int]:
        with closing(connect_readonly(self.state.buffer)) as db:
            return health(db)


class Gateway:
    """The files of a gateway below a folder, and its uplink."""

    def __init__(
        self, root: Path, cloud: Cloud, device: str = DEVICE, boot: bytes = BOOT, wall_error_s: float = 0
    ) -> None:
        self.root, self.cloud, self.device, self.boot = root, cloud, device, boot
        self.wall_error_us = round(wall_error_s * 1e6)
        for folder in ("run/sallyport/status", "flash/log", "flash/acks", "data/identity"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self.identity = root / "data/identity"
        if not (self.identity / "device.key").exists():
            ca.issue_device(cloud.authority, device, self.identity)
        self.uplink: Uplink | None = None

    def now(self) -> Instant:
        real = clock.now()
        return Instant(real.monotonic_us, real.wall_us + self.wall_error_us)

    def log(self, blocks: Iterable[list[Sample]], stream: str = STREAM, **options: Any) -> int:
        """Seal blocks on the flash log. Returns how many samples."""
        writer = Writer(
            self.root / "flash/log", stream, self.device, self.boot, quota=64 << 20, clock=self.now, **options
        )
        count = 0
        for samples in blocks:
            writer.extend(samples)
            assert writer.seal(), writer.stats.error
            count += len(samples)
        writer.close()
        return count

    @asynccontextmanager
    async def running(self, *, port: int | None = None, **config: Any) -> AsyncIterator[Uplink]:
        """The uplink, in this process."""
        settings = enabled(**config)
        self.uplink = Uplink(self.root, self.now, self.boot, port or self.cloud.port)
        documents: asyncio.Queue[CloudConfig] = asyncio.Queue()
        documents.put_nowait(settings)
        self.configure = documents.put_nowait

        async def follow() -> AsyncIterator[CloudConfig]:
            while True:
                yield await documents.get()

        task = asyncio.create_task(self.uplink.run(lambda: None, follow()))
        try:
            yield self.uplink
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def observed(self) -> status.Observed:
        return status.read_all(self.root / "run/sallyport/status")["uplink"]

    async def trouble(self, within_s: float = 15) -> str:
        """Code of the trouble that the uplink reports."""
        return await eventually(
            lambda: str(self.observed().detail.get("trouble", "")), within_s, "trouble is reported"
        )

    async def connected(self, within_s: float = 15) -> None:
        await eventually(lambda: self.observed().detail.get("connected"), within_s, "uplink is connected")


START_US = clock.now().monotonic_us - 60_000_000


def counting(blocks: int, per_block: int = 10, *, start: int = 0) -> list[list[Sample]]:
    """Blocks whose tag "n" counts up from `start`; value n was taken n ms after START_US."""
    return [
        [Sample("n", START_US + n * 1000, n, 0, "I") for n in range(first, first + per_block)]
        for first in range(start, start + blocks * per_block, per_block)
    ]


def enabled(**changes: Any) -> CloudConfig:
    """Settings that lead to the cloud of the tests, without a limit on history."""
    return CloudConfig(**{"enabled": True, "host": "localhost", "backfill_kib_s": 100_000, **changes})


def desired(**cloud: Any) -> bytes:
    return msgspec.json.encode({"cloud": cloud})
