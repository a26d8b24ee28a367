"""The configuration service: the only writer of the store and of the published document."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable

import msgspec

from firmware import clock, daemon, paths
from firmware.config.protocol import MAX_LINE, Reply, Request
from firmware.config.schema import Desired
from firmware.config.service import Service
from firmware.config.store import Store
from firmware.status import Reporter, write_atomic

log = logging.getLogger(__name__)

REQUEST_S = 10.0
"""A client that sends nothing for this long is let go."""


async def body(ready: Callable[[], None]) -> None:
    now = clock.now()
    store = Store(
        paths.CONFIG,
        first=(paths.CONFIG / "provisioned.toml", paths.FACTORY),
        now_wall_s=now.wall_us // 1_000_000,
    )
    for note in store.notes:
        log.warning("%s", note)
    service = Service(store, publish)
    reporter = Reporter("config")
    changed = asyncio.Event()
    one_at_a_time = asyncio.Lock()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply = await answer(service, reader, one_at_a_time)
        with contextlib.suppress(ConnectionError):
            writer.write(msgspec.json.encode(reply) + b"\n")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        changed.set()

    paths.CONFIG_SOCKET.parent.mkdir(parents=True, exist_ok=True)
    paths.CONFIG_SOCKET.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(client, paths.CONFIG_SOCKET, limit=MAX_LINE)
    paths.CONFIG_SOCKET.chmod(0o660)
    async with server:
        ready()
        while True:
            async with one_at_a_time:
                service.tick(clock.now())
                state, summary, detail = service.status()
            reporter.report(state, summary, **detail)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), service.seconds_left(clock.now()))
            changed.clear()


async def answer(service: Service, reader: asyncio.StreamReader, one_at_a_time: asyncio.Lock) -> Reply:
    try:
        line = await asyncio.wait_for(reader.readline(), REQUEST_S)
        request = msgspec.json.decode(line, type=Request)
    except TimeoutError:
        return Reply(ok=False, message=f"no request within {REQUEST_S:.0f} s")
    except (ValueError, ConnectionError) as error:  # too long a line, not JSON, not a request
        return Reply(ok=False, message=f"not a request: {error}")
    try:
        async with one_at_a_time:
            # In a thread: a large document takes its time, and the watchdog wants to be fed.
            reply = await asyncio.to_thread(service.handle, request, clock.now())
    except OSError as error:
        log.exception("%s failed", request.op)
        return Reply(ok=False, message=f"{request.op} failed: {error}")
    if request.op in ("set", "confirm", "rollback"):
        log.info("%s by %s: %s", request.op, request.origin or "?", reply.message)
    return reply


def publish(desired: Desired) -> None:
    """Readable by group `sallyport`, which is the folder's (set-group-id)."""
    paths.DESIRED.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(paths.DESIRED, msgspec.json.encode(desired), mode=0o640)


if __name__ == "__main__":
    sys.exit(daemon.run("config", body))
