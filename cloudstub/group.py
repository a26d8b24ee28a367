"""The cloud's processes as one supervised group: each alone in its process, started again when it ends (L01).

broker    mosquitto
ingest    broker -> buffer
series    buffer -> machine data
platform  buffer -> gateways and events
api       HTTPS, page
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from cloudstub import broker, ca
from cloudstub.state import State

log = logging.getLogger(__name__)

RESTART_S = (0.5, 10.0)
STEADY_S = 30.0
"""A process that ran this long starts again without having to wait."""
STOP_S = 5.0
_LOG_LIMIT = 8 << 20


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, and the name that its certificate carries."""

    address: str
    port: int
    name: str

    @property
    def reach(self) -> tuple[str, int]:
        """Where the group's own processes find it."""
        address = ip_address(self.address)
        if address.is_unspecified:
            return ("127.0.0.1" if address.version == 4 else "::1"), self.port
        return self.address, self.port

    @classmethod
    def parse(cls, text: str, name: str) -> Endpoint:
        """From "ADDRESS:PORT" ("[::1]:443" for IPv6). Raises ValueError."""
        address, _, port = text.rpartition(":")
        address = address.strip("[]")
        ip_address(address)
        if not 0 < int(port) < 65536:
            raise ValueError(f"port {port} is not within 1 to 65535")
        return cls(address, int(port), name)


@dataclass
class Child:
    """One process of the group."""

    name: str
    command: list[str]
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int = 0
    starts: int = 0


def prepare(state: State, mqtt: Endpoint, api: Endpoint) -> None:
    """CA, certificates and broker configuration; what exists is kept, except servers' certificates."""
    state.root.mkdir(parents=True, exist_ok=True)
    authority = ca.Authority.open(state.ca)
    for stem, endpoint in (("mqtt", mqtt), ("portal", api)):
        names = dict.fromkeys([endpoint.name, endpoint.address, "localhost", "127.0.0.1", "::1"])
        authority.server(*names).write(state.certs, stem)
    for stem, name in (("ingest", ca.INGEST), ("api", ca.API)):
        if not (state.certs / f"{stem}.crt").exists():
            authority.client(name).write(state.certs, stem)
    broker.configure(state, mqtt.address, mqtt.port)


def children(state: State, mqtt: Endpoint, api: Endpoint) -> list[Child]:
    python = [sys.executable, "-m"]
    root, at = str(state.root), [str(part) for part in mqtt.reach]
    return [
        Child("broker", [broker.program(), "-c", str(state.broker / "mosquitto.conf")]),
        Child("ingest", [*python, "cloudstub.ingest", root, *at]),
        Child("series", [*python, "cloudstub.ingest.worker", "series", root]),
        Child("platform", [*python, "cloudstub.ingest.worker", "platform", root]),
        Child("api", [*python, "cloudstub.api", root, api.address, str(api.port), *at]),
    ]


async def run(state: State, mqtt: Endpoint, api: Endpoint, on_ready: Callable[[], None]) -> None:
    """Run the group until cancelled. `on_ready` is called once everything answers."""
    state.ready.unlink(missing_ok=True)
    prepare(state, mqtt, api)
    state.logs.mkdir(exist_ok=True)
    group = children(state, mqtt, api)
    tasks = [asyncio.create_task(_supervise(child, state.logs)) for child in group]
    tasks.append(asyncio.create_task(_watch_broker(group[0], mqtt)))
    tasks.append(asyncio.create_task(_announce(group, state, on_ready)))
    try:
        await asyncio.gather(*tasks)
    finally:
        state.ready.unlink(missing_ok=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _announce(group: list[Child], state: State, on_ready: Callable[[], None]) -> None:
    for child in group:
        await child.ready.wait()
    state.ready.write_text("".join(f"{c.name} {c.pid}\n" for c in group), encoding="ascii")
    on_ready()


async def _supervise(child: Child, logs: Path) -> None:
    pause = RESTART_S[0]
    while True:
        started = time.monotonic()
        log_file = logs / f"{child.name}.log"
        mode = "ab" if log_file.exists() and log_file.stat().st_size < _LOG_LIMIT else "wb"
        with log_file.open(mode) as output:
            process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # Ctrl-C of a terminal reaches the group alone, which ends them in order
                preexec_fn=_die_with_parent(os.getpid()),
            )
        child.pid = process.pid
        child.starts += 1
        try:
            assert process.stdout
            async for line in process.stdout:
                if line.strip() == b"ready":
                    child.ready.set()
            code = await process.wait()
        finally:
            await _end(process)
        if time.monotonic() - started > STEADY_S:
            pause = RESTART_S[0]
        log.warning("%s ended (status %s), starts again in %.1f s; see %s", child.name, code, pause, log_file)
        await asyncio.sleep(pause)
        pause = min(pause * 2, RESTART_S[1])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _watch_broker(child: Child, mqtt: Endpoint) -> None:
    """Mosquitto doesn't say when it is ready: it is when its port answers."""
    while not child.ready.is_set():
        try:
            _, writer = await asyncio.open_connection(*mqtt.reach)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        child.ready.set()


def _die_with_parent(parent: int) -> Callable[[], None]:
    """For the child between fork and exec: the kernel kills it when the group's process is gone (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1

    def before_exec() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # gone already
            os._exit(1)

    return before_exec
