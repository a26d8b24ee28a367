"""The uplink as a process, as systemd starts it: readiness, watchdog, following the desired document, its memory."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

from firmware.wire.block import Sample
from tests.contract.cloud import START_US, Cloud, Gateway, desired, eventually

ROOT = Path(__file__).parents[2]
USS_MB = 22


async def test_daemon(shared_cloud: Cloud, tmp_path: Path) -> None:
    """Off by default; sends after the owner allows it; says READY and WATCHDOG to systemd; ends on SIGTERM; stays
    within its memory with 2 MB to send.

    Shows: L08, X17
    """
    cloud = shared_cloud
    gateway = Gateway(tmp_path, cloud, "SP-DAEMON", boot=os.urandom(16))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, str(Path(__file__).with_name("uplink_process.py")), str(cloud.port)],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "SALLYPORT_ROOT": str(tmp_path),
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "WATCHDOG_USEC": "600000",
            },
        )
        try:
            assert {systemd.recv(100), systemd.recv(100)} == {b"READY=1", b"WATCHDOG=1"}
            asyncio.get_running_loop().add_reader(systemd, systemd.recv, 100)
            _publish(tmp_path, desired())
            await eventually(lambda: gateway.observed().summary.startswith("off"), what="off by default")
            _publish(tmp_path, desired(enabled=True, host="localhost", backfill_kib_s=100_000))
            await gateway.connected()
            samples = gateway.log(noise(100, 2000))
            await eventually(lambda: len(cloud.points("x", "SP-DAEMON")) == samples, 60, f"{samples} samples")
            assert uss_mb(process.pid) <= USS_MB
        finally:
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 10) == 0
    acks = (tmp_path / "flash/acks/plc-press.json").read_text()
    assert gateway.boot.hex() in acks


def noise(blocks: int, per_block: int) -> list[list[Sample]]:
    """What no codec makes small: 8 bytes a sample."""
    rand = random.Random(1)
    return [
        [Sample("x", START_US + (b * per_block + i), rand.random()) for i in range(per_block)]
        for b in range(blocks)
    ]


def _publish(root: Path, document: bytes) -> None:
    new = root / "run/sallyport/.desired.new"
    new.write_bytes(document)
    new.replace(root / "run/sallyport/desired.json")


def uss_mb(pid: int) -> float:
    """Memory that would be free without this process: its private pages."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
    return kib / 1024
