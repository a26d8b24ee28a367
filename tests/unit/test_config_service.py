"""The configuration service as its clients see it: the real process, its socket and the command line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from firmware.clock import Instant
from firmware.config import check
from firmware.config.protocol import Reply, Request
from firmware.config.schema import Desired, load_published
from firmware.config.service import Service
from firmware.config.store import Store
from firmware.status import SERVICES, State
from qemu.promises import eventually
from tests.unit.malformed import MALFORMED


class Gateway:
    """A folder with a gateway's paths, and the service on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**os.environ, "SALLYPORT_ROOT": str(root)}
        for folder in ("etc/sallyport", "run/sallyport/status", "data/config"):
            (root / folder).mkdir(parents=True)
        (root / "etc/sallyport/factory.toml").write_bytes(
            Path(check.__file__).with_name("factory.toml").read_bytes()
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the service tells systemd that it is ready."""
        address = str(self.root / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(address)
            notify.settimeout(20)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "firmware.config"],
                env={**self.environment, "NOTIFY_SOCKET": address},
                stderr=(self.root / "log").open("ab"),
            )
            assert notify.recv(100) == b"READY=1"
        Path(address).unlink()

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            assert self.process.wait(10) == 0
            self.process = None

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "firmware.cli", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def ask(self, line: bytes) -> Reply:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.root / "run/sallyport/config/socket"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(line)
            return msgspec.json.decode(sock.makefile("rb").readline(), type=Reply)

    @property
    def published(self) -> Desired:
        return load_published(self.root / "run/sallyport/desired.json")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    gateway.start()
    yield gateway
    gateway.stop()


def test_a_technicians_session(gateway: Gateway) -> None:
    """check, set with a deadline, confirm, rollback, history; a reboot in between."""
    shown = gateway.run("config", "show")
    assert shown.returncode == 0
    assert check.parse(shown.stdout) == gateway.published == Desired()

    file = gateway.root / "new.toml"
    file.write_text(shown.stdout.replace('device_name = ""', 'device_name = "Press 7"'))
    assert gateway.run("config", "check", str(file)).returncode == 0
    done = gateway.run("config", "set", str(file), "--confirm-within", "60")
    assert (done.returncode, done.stderr) == (0, "")
    assert "revision 2 is in force for 60 s" in done.stdout
    assert gateway.published.device_name == "Press 7"
    assert "in force, not confirmed" in gateway.run("config", "history").stdout
    assert gateway.run("config", "confirm").returncode == 0

    gateway.stop()
    gateway.start()
    assert gateway.published.device_name == "Press 7"
    assert gateway.run("config", "rollback").stdout == "revision 3 is in force\n"
    assert gateway.published == Desired()
    assert gateway.run("config", "set", str(file)).returncode == 0
    assert gateway.run("config", "set", str(file)).stdout == "revision 4 says this already\n"
    history = json.loads(gateway.run("config", "history", "--json").stdout)
    assert [(one["number"], one["state"]) for one in history] == [
        (4, "confirmed"),
        (3, "confirmed"),
        (2, "confirmed"),
        (1, "confirmed"),
    ]
    assert (
        json.loads(gateway.run("config", "show", "--revision", "2", "--json").stdout)["device_name"]
        == "Press 7"
    )


def test_an_unconfirmed_change_is_gone_after_a_restart(gateway: Gateway) -> None:
    assert (
        gateway.run("config", "set", "-", "--confirm-within", "60", stdin="device_name = 'x'").returncode == 0
    )
    gateway.stop()
    gateway.start()
    assert gateway.published.device_name == ""
    status = gateway.run("status")
    assert "revision 2 was not confirmed" in status.stdout


def test_an_unconfirmed_change_is_rolled_back_by_the_running_service(gateway: Gateway) -> None:
    """With the real clock, after a second."""
    gateway.run("config", "set", "-", "--confirm-within", "1", stdin="device_name = 'x'")
    eventually(lambda: gateway.published.device_name == "", within=10, what="rolled back")
    assert "2         rolled-back" in gateway.run("config", "history").stdout
    assert gateway.run("config", "confirm").returncode == 1


def test_malformed_documents_are_refused_and_change_nothing(gateway: Gateway) -> None:
    """Every document of test_config_check, over the socket: the same errors, the same file published."""
    path = gateway.root / "run/sallyport/desired.json"
    before = (path.stat().st_ino, path.read_bytes())
    for what, document, key, words in MALFORMED:
        if isinstance(document, bytes):
            continue
        reply = gateway.ask(msgspec.json.encode(Request("set", text=document)) + b"\n")
        assert not reply.ok, what
        assert any(one.key == key and words[0] in one.message for one in reply.problems), what
    assert (path.stat().st_ino, path.read_bytes()) == before
    assert sorted(p.name for p in (gateway.root / "data/config").iterdir()) == ["000001.json"]


def test_the_command_line_says_what_is_wrong_and_how_it_ends(gateway: Gateway) -> None:
    refused = gateway.run("config", "set", "-", stdin="[wan]\nmod = 'dhcp'\nmode = 'x'\n")
    assert refused.returncode == 1
    assert "- is refused, nothing is changed: 2 problems" in refused.stderr
    assert "wan.mod: unknown key" in refused.stderr
    absent = gateway.run("config", "check", "absent.toml")
    assert (absent.returncode, absent.stdout) == (1, "")
    assert "absent.toml can't be read" in absent.stderr
    assert gateway.run("config", "set", "x", "--confirm-within", "0").returncode == 2
    assert gateway.run("config", "confirm").returncode == 1
    gateway.stop()
    down = gateway.run("config", "show")
    assert down.returncode == 1
    assert "systemctl status sallyport-config" in down.stderr
    assert gateway.run("config", "show", "--default").returncode == 0


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{}\n", b"\xff\n", b'{"op":"erase"}\n', b"[" * 100_000 + b"\n"]
)
def test_what_is_not_a_request_gets_an_answer(gateway: Gateway, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(gateway.root / "run/sallyport/config/socket"))
        sock.sendall(line)
        sock.shutdown(socket.SHUT_WR)
        reply = msgspec.json.decode(sock.makefile("rb").readline(), type=Reply)
    assert not reply.ok
    assert "not a request" in reply.message
    assert gateway.ask(b'{"op":"show"}\n').ok


def test_status_fails_when_a_service_has_failed_or_does_not_run(gateway: Gateway) -> None:
    def says(service: str, state: str, summary: str = "") -> None:
        (gateway.root / f"run/sallyport/status/{service}.json").write_text(
            f'{{"service":"{service}","state":"{state}","summary":"{summary}","since_us":0,"updated_us":0}}'
        )

    for service in SERVICES:
        if service != "config":
            says(service, "ok")
    assert gateway.run("status").returncode == 0
    says("uplink", "failed", "no certificate")
    (gateway.root / "run/sallyport/status/plc.json").unlink()
    status = gateway.run("status")
    assert status.returncode == 1
    assert "no certificate" in status.stdout
    assert "systemctl status sallyport-plc" in status.stdout
    documents = json.loads(gateway.run("status", "--json").stdout)
    assert documents["uplink"]["state"] == documents["plc"]["state"] == "failed"
    assert documents["config"]["detail"]["revision"] == 1


def test_a_rollback_that_cannot_be_done_keeps_the_staged_revision_and_its_timer(gateway: Gateway) -> None:
    gateway.run("config", "set", "-", "--confirm-within", "3", stdin="device_name = 'x'")
    refused = gateway.run("config", "rollback", "--to", "99")
    assert refused.returncode == 1
    assert "no revision 99" in refused.stderr
    assert gateway.published.device_name == "x"
    eventually(lambda: gateway.published.device_name == "", within=10, what="rolled back on time")


def test_setting_what_waits_to_be_confirmed_does_not_pass_for_a_confirmation(gateway: Gateway) -> None:
    gateway.run("config", "set", "-", "--confirm-within", "60", stdin="device_name = 'x'")
    again = gateway.run("config", "set", "-", stdin="device_name = 'x'")
    assert again.returncode == 1
    assert "confirm" in again.stderr


def test_who_may_read_and_ask(gateway: Gateway) -> None:
    """The document: its group; the socket: its group; the store: nobody else."""
    run = gateway.root / "run/sallyport"
    assert (run / "desired.json").stat().st_mode & 0o777 == 0o640
    assert (run / "config/socket").stat().st_mode & 0o777 == 0o660
    assert (gateway.root / "data/config/000001.json").stat().st_mode & 0o777 == 0o600


def at(seconds: float) -> Instant:
    return Instant(int(seconds * 1e6), 0)


def test_the_deadline_with_a_clock_of_ours(tmp_path: Path) -> None:
    """An unconfirmed change is rolled back at its second, published and reported."""
    factory = tmp_path / "factory.toml"
    factory.write_text("")
    published: list[Desired] = []
    service = Service(Store(tmp_path / "config", first=(factory,)), published.append)
    request = Request("set", text="device_name = 'x'", confirm_within_s=60)
    assert service.handle(request, at(1000)).ok
    assert service.seconds_left(at(1001)) == 59
    service.tick(at(1059.9))
    assert [one.device_name for one in published] == ["", "x"]
    service.tick(at(1060))
    assert [one.device_name for one in published] == ["", "x", ""]
    assert service.seconds_left(at(1061)) is None
    state, summary, _ = service.status()
    assert state is State.DEGRADED
    assert "revision 2 was not confirmed in time" in summary
