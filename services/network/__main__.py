"""The network service: keeps networkd's files as the configuration says, reports what came of it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from firmware import daemon, paths
from firmware.config.schema import Desired
from firmware.status import Reporter
from hal import boards
from services.network import core, files, observe, rtnetlink

log = logging.getLogger(__name__)

FOLDER = paths.ROOT / "run/systemd/network"
RESOLV_CONF = paths.ROOT / "run/systemd/resolve/resolv.conf"
"""The servers in use, kept by systemd-resolved(8) for readers such as us."""
CHECK_S = 30.0
SETTLE_S = 0.2
"""One change makes many netlink messages; they are looked at together."""


async def body(ready: Callable[[], None]) -> None:
    board = boards.load(paths.BOARD)
    service = Service(board)
    watch = rtnetlink.Watch()
    changed = asyncio.Event()

    def news() -> None:
        watch.drain()
        changed.set()

    asyncio.get_running_loop().add_reader(watch.socket, news)

    async def follow() -> None:
        async for desired in daemon.desired_documents():
            await service.apply(desired)
            changed.set()

    async def look() -> None:
        while True:
            service.report()
            try:
                await asyncio.wait_for(changed.wait(), CHECK_S)
                await asyncio.sleep(SETTLE_S)
                changed.clear()
            except TimeoutError:
                await service.retry()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        tasks.create_task(look())
        ready()


class Service:
    def __init__(self, board: boards.Board, folder: Path = FOLDER) -> None:
        self._board = board
        self._folder = folder
        self._desired: Desired | None = None
        self._loaded = False
        """Whether networkd has read our files as they are."""
        self._failure = ""
        self._reporter = Reporter("network")

    async def apply(self, desired: Desired) -> None:
        self._desired = desired
        try:
            changed = files.write_changed(self._folder, core.render(desired, self._board))
            if changed or not self._loaded:
                self._loaded = False
                await files.reload()
                log.info("networkd has read %s", ", ".join(changed) or "its files")
            self._loaded, self._failure = True, ""
        except (OSError, ValueError, files.ReloadError) as error:
            self._failure = str(error)
            log.error("the network settings can't be applied: %s", error)  # noqa: TRY400  no traceback needed

    async def retry(self) -> None:
        """Also puts back files that someone removed or changed."""
        if self._desired:
            await self.apply(self._desired)

    def report(self) -> None:
        try:
            ports = rtnetlink.ports()
        except OSError as error:
            log.warning("the kernel does not tell about ports: %s", error)
            return
        seen = observe.observe(self._desired, self._board, ports, _servers(), self._failure)
        self._reporter.report(seen.state, seen.summary, **seen.detail)


def _servers() -> list[str]:
    try:
        lines = RESOLV_CONF.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.split()[1] for line in lines if line.startswith("nameserver ")]


if __name__ == "__main__":
    sys.exit(daemon.run("network", body))
