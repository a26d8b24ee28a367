"""What every daemon shares, on a real process: readiness, watchdog, signals; and the observed documents."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from firmware import daemon, status
from firmware.config.schema import Desired
from firmware.status import Reporter, State, write_atomic

SERVICE = """
import asyncio, sys
from firmware import daemon
async def body(ready):
    ready()
    {work}
sys.exit(daemon.run("test", body))
"""


@contextmanager
def running(
    tmp_path: Path, work: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(20)
        process = subprocess.Popen(
            [sys.executable, "-c", SERVICE.format(work=work)],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process, notify
        finally:
            process.kill()
            process.communicate()


def test_a_daemon_says_that_it_is_ready_and_ends_on_sigterm(tmp_path: Path) -> None:
    with running(tmp_path, "await asyncio.sleep(60)") as (process, notify):
        assert notify.recv(100) == b"READY=1"
        process.send_signal(signal.SIGTERM)
        assert notify.recv(100) == b"STOPPING=1"
        assert process.wait(10) == 0


def test_a_daemon_feeds_the_watchdog_only_while_its_loop_turns(tmp_path: Path) -> None:
    with running(
        tmp_path, "await asyncio.sleep(0.5); import time; time.sleep(60)", WATCHDOG_USEC="150000"
    ) as (
        _,
        notify,
    ):
        said = [notify.recv(100) for _ in range(6)]
        assert said.count(b"WATCHDOG=1") == 5
        notify.settimeout(1)
        with pytest.raises(TimeoutError):
            for _ in range(20):
                notify.recv(100)


def test_a_daemon_that_breaks_says_why_and_fails(tmp_path: Path) -> None:
    with running(tmp_path, "raise ValueError('broken here')", JOURNAL_STREAM="1:2") as (process, _):
        _, said = process.communicate(timeout=20)
        assert process.returncode == 1
        assert said.startswith("<3>test: ")
        assert "broken here" in said
        assert all(line.startswith((" ", "<")) for line in said.splitlines())


async def test_desired_documents_come_once_for_each_replacement(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    documents = daemon.desired_documents(path)
    first = asyncio.ensure_future(anext(documents))
    await asyncio.sleep(0)
    assert not first.done()
    for name in ("a", "b"):
        write_atomic(path, msgspec.json.encode(Desired(device_name=name)))
        assert (await asyncio.wait_for(first, 10)).device_name == name
        first = asyncio.ensure_future(anext(documents))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(first, 1.2 * daemon.POLL_S)


def test_an_observed_document_is_written_only_when_it_changed(tmp_path: Path) -> None:
    reporter = Reporter("test", tmp_path)
    reporter.report(State.STARTING, "starts")
    reporter.report(State.OK, "works", count=1)
    seen = status.read_all(tmp_path)["test"]
    assert (seen.state, seen.summary, seen.detail) == (State.OK, "works", {"count": 1})
    inode = (tmp_path / "test.json").stat().st_ino
    reporter.report(State.OK, "works", count=1)
    assert (tmp_path / "test.json").stat().st_ino == inode
    reporter.report(State.OK, "works", count=2)
    after = status.read_all(tmp_path)["test"]
    assert after.since_us == seen.since_us
    assert after.updated_us > seen.updated_us
    assert [path.name for path in tmp_path.iterdir()] == ["test.json"]


def test_an_observed_document_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    """A full /run must not end a service."""
    reporter = Reporter("test", tmp_path / "absent")
    reporter.report(State.OK, "works")
    (tmp_path / "absent").mkdir()
    reporter.report(State.OK, "works")
    assert status.read_all(tmp_path / "absent")["test"].state is State.OK


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff"])
def test_a_service_whose_document_cannot_be_read_counts_as_failed(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "plc.json").write_bytes(damage)
    assert status.read_all(tmp_path)["plc"].state is State.FAILED


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old", durable=True)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new", durable=True)
    assert path.read_bytes() == b"old"
