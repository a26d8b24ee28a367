"""What every daemon shares: readiness and watchdog towards systemd, logs, ending on a signal.

A daemon is `async def body(ready)`: it calls `ready()` once it does its work, and is cancelled on SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from firmware import paths
from firmware.config.schema import Desired, load_published

log = logging.getLogger(__name__)

POLL_S = 0.5
"""How often a daemon looks whether the desired document was replaced: one stat call."""


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)): "READY=1", "WATCHDOG=1", "STATUS=...". Nothing without systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.connect(address)
        sock.sendall(state.encode())


def run(name: str, body: Callable[[Callable[[], None]], Awaitable[None]]) -> int:
    """Run a daemon until SIGTERM or SIGINT. Returns the exit status."""
    _log_to_journal(name)
    try:
        asyncio.run(_main(body))
    except asyncio.CancelledError:
        pass
    except Exception:
        log.exception("%s ended by an error; systemd starts it again", name)
        return 1
    return 0


async def _main(body: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
    task = asyncio.current_task()
    assert task
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    heart = asyncio.create_task(_heartbeat())
    try:
        await body(lambda: notify("READY=1"))
    finally:
        notify("STOPPING=1")
        heart.cancel()


async def _heartbeat() -> None:
    """A loop that hangs stops this too, and systemd restarts the daemon."""
    usec = int(os.environ.get("WATCHDOG_USEC", "0"))
    while usec:
        notify("WATCHDOG=1")
        await asyncio.sleep(usec / 3e6)


async def desired_documents(path: Path | None = None) -> AsyncIterator[Desired]:
    """The desired document now, and again each time it is replaced. Waits while there is none."""
    path = path or paths.DESIRED
    seen = None
    while True:
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            mark = (stat.st_ino, stat.st_mtime_ns)
            if mark != seen:
                seen = mark
                yield load_published(path)
        await asyncio.sleep(POLL_S)


def _log_to_journal(name: str) -> None:
    """One line per message on stderr; under systemd with the level as journald's `<n>` prefix."""
    prefixes = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = super().format(record).replace("\n", "\n ")
            return f"<{prefixes.get(record.levelno, 5)}>{text}" if "JOURNAL_STREAM" in os.environ else text

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(f"{name}: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
