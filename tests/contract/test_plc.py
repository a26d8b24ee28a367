"""The PLC service against a real Modbus TCP server in a process of its own, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from firmware.config.schema import Desired, Log, Plc, Tag
from firmware.wire import block
from firmware.wire.block import Event, Quality, Sample
from services.flashlog import Reader
from services.plc.service import Service
from tests.contract.modbus_device import Device

WITHIN_S = 10.0


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def device(port: int) -> Iterator[Device]:
    device = Device(port)
    yield device
    device.kill()


class Gateway:
    """The service with its log and its status, in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("log", "acks", "status"):
            (root / name).mkdir(parents=True)
        self.documents: asyncio.Queue[Desired] = asyncio.Queue()
        self.service = Service("SP-TEST", log_root=root / "log", acks=root / "acks", status=root / "status")
        self.task = asyncio.create_task(self.service.run(self._follow()))

    async def _follow(self) -> AsyncIterator[Desired]:
        while True:
            yield await self.documents.get()

    def configure(self, *plcs: Plc, sync_s: float = 1.0) -> None:
        self.documents.put_nowait(Desired(plc=list(plcs), log=Log(sync_s=sync_s)))

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    def poller(self, name: str = "a") -> Any:
        return self.service._running[name].poller

    def live(self, name: str = "a") -> list[Sample]:
        """What is not sealed yet."""
        return list(self.service._running[name].writer._samples)

    def samples(self, name: str = "a") -> list[Sample]:
        return list(sealed(self.root / "log", f"plc-{name}"))

    def events(self) -> list[Event]:
        reader = Reader(self.root / "log")
        return [e for r in reader.records("events-plc") for e in block.decode(r.raw).events]


def sealed(root: Path, stream: str) -> Iterator[Sample]:
    reader = Reader(root)
    for record in reader.records(stream):
        yield from block.decode(record.raw).samples
    assert not reader.damage


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(tmp_path)
    yield gateway
    await gateway.stop()


async def eventually(what: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """Wait until something holds; fails with the last that was seen."""
    end = time.monotonic() + within_s
    while True:
        with contextlib.suppress(KeyError):
            if seen := what():
                return seen
        assert time.monotonic() < end, f"still {seen!r} after {within_s} s"
        await asyncio.sleep(0.02)


def plc(port: int, *tags: Tag, name: str = "a", **more: Any) -> Plc:
    return Plc(
        name=name,
        host="127.0.0.1",
        port=port,
        tags=list(tags),
        **{"interval_ms": 50, "timeout_ms": 200, **more},
    )


def logged(gateway: Gateway, name: str, quality: int = Quality.GOOD, plc: str = "a") -> list[Sample]:
    return [s for s in gateway.samples(plc) + gateway.live(plc) if s.tag == name and s.quality == quality]


# Values

EXTREMES: dict[str, list[int | float]] = {
    "int16": [0, -1, -(2**15), 2**15 - 1],
    "uint16": [0, 1, 2**16 - 1],
    "int32": [0, -1, -(2**31), 2**31 - 1, 0x01020304],
    "uint32": [0, 2**32 - 1, 0x01020304],
    "int64": [0, -1, -(2**63), 2**63 - 1, 0x0102030405060708],
    "uint64": [0, 2**64 - 1, 2**53 + 1],
    "float32": [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 3.4028234663852886e38, 1e-45],
    "float64": [0.0, -0.0, 0.1, math.inf, math.nan, 1.7976931348623157e308, 5e-324],
}
FORMATS = {
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}


def test_device_is_not_pymodbus() -> None:
    """The peer must be another implementation, or its faults would cancel ours out."""
    assert "pymodbus" not in Path(Device.__init__.__code__.co_filename).read_text().replace("pyModbusTCP", "")


async def test_all_types_and_orders_are_exact(gateway: Gateway, device: Device, port: int) -> None:
    """What stands in the registers is what stands in the log, bit for bit, with the type's own letter."""
    tags, expected, address = [], {}, 0
    for type_, values in EXTREMES.items():
        for word_order in ("big", "little"):
            for byte_order in ("big", "little"):
                for value in values:
                    raw = struct.pack(">" + FORMATS[type_], value)
                    words = [raw[i : i + 2] for i in range(0, len(raw), 2)]
                    if word_order == "little":
                        words.reverse()
                    numbers = [int.from_bytes(w, byte_order) for w in words]  # type: ignore[arg-type]
                    device.set("holding", address, numbers)
                    name = f"{type_}.{word_order}.{byte_order}.{address}"
                    tags.append(
                        Tag(
                            name=name,
                            address=address,
                            type=type_,
                            word_order=word_order,
                            byte_order=byte_order,
                        )
                    )  # type: ignore[arg-type]
                    expected[name] = (FORMATS[type_], raw)
                    address += len(numbers)
    text = "Pumpe: 5 °C 𝄞"
    data = text.encode() + b"\0" * (-len(text.encode()) % 2)
    device.set("input", 7, [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)])
    device.set("input", 100, [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)])
    device.set("coil", 3, [1, 0, 1])
    device.set("discrete", 65535, [1])
    device.set("holding", 3000, [0, 7])
    tags += [
        Tag(name="text", table="input", address=7, type="string", length=len(data) // 2),
        Tag(
            name="swapped",
            table="input",
            address=100,
            type="string",
            length=len(data) // 2,
            byte_order="little",
        ),
        Tag(name="coil3", table="coil", address=3, type="bool"),
        Tag(name="coil4", table="coil", address=4, type="bool"),
        Tag(name="last", table="discrete", address=65535, type="bool"),
        Tag(name="off", address=3000, type="bool"),
        Tag(name="on", address=3001, type="bool"),
        Tag(name="scaled", address=3001, type="uint16", scale=0.1, offset=-2.0),
    ]
    gateway.configure(plc(port, *tags, max_gap=0))
    await eventually(lambda: logged(gateway, "scaled"))
    await gateway.stop()

    first: dict[str, Sample] = {}
    for sample in gateway.samples():
        assert sample.quality == Quality.GOOD
        first.setdefault(sample.tag, sample)
    for name, (letter, raw) in expected.items():
        assert first[name].type == letter, name
        assert struct.pack(">" + letter, first[name].value) == raw, name
    assert {
        n: (first[n].value, first[n].type) for n in ("text", "swapped", "coil3", "coil4", "last", "off", "on")
    } == {
        "text": (text, "s"),
        "swapped": (text, "s"),
        "coil3": (True, "?"),
        "coil4": (False, "?"),
        "last": (True, "?"),
        "off": (False, "?"),
        "on": (True, "?"),
    }
    assert (first["scaled"].value, first["scaled"].type) == (7 * 0.1 - 2.0, "d")


async def test_thousand_registers_take_eight_requests(gateway: Gateway, device: Device, port: int) -> None:
    """1,000 neighbouring registers need 8 requests a round."""
    gateway.configure(plc(port, *(Tag(name=f"t{i}", address=i) for i in range(1000)), interval_ms=5000))
    await eventually(lambda: gateway.poller().polls == 1)
    assert device.ask("requests") == 8


async def test_times_are_those_of_the_poll(gateway: Gateway, device: Device, port: int) -> None:
    """Samples lie on the cadence: no drift over many polls, none double."""
    gateway.configure(plc(port, Tag(name="x", address=0), interval_ms=100))
    await eventually(lambda: len(logged(gateway, "x")) >= 12)
    times = [s.time_us for s in logged(gateway, "x")]
    assert times == sorted(set(times))
    slots = [t // 100_000 for t in times[1:]]  # the first poll is at once
    assert slots == sorted(set(slots))


# Faults


async def test_absent_at_start(gateway: Gateway, port: int) -> None:
    """A PLC that is not there is one sample of bad quality, not one per poll; data follows once it comes."""
    gateway.configure(plc(port, Tag(name="x", address=0)))
    await eventually(lambda: gateway.poller().failures >= 2)
    assert "connection refused" in gateway.poller().error
    assert [s.value for s in logged(gateway, "x", Quality.NO_CONNECTION)] == [None]
    device = Device(port)
    try:
        await eventually(lambda: logged(gateway, "x"))
        assert gateway.poller().state == "connected"
        assert len(logged(gateway, "x", Quality.NO_CONNECTION)) == 1
    finally:
        device.kill()


async def test_restart_in_the_middle(gateway: Gateway, device: Device, port: int) -> None:
    """After a restart of the PLC polling goes on by itself; the gap shows as one bad sample."""
    gateway.configure(plc(port, Tag(name="x", address=0)))
    await eventually(lambda: logged(gateway, "x"))
    device.kill()
    await eventually(lambda: gateway.poller().state == "lost")
    again = Device(port)
    try:
        again.set("holding", 0, [77])
        await eventually(lambda: [s for s in logged(gateway, "x") if s.value == 77])
    finally:
        again.kill()
    assert len(logged(gateway, "x", Quality.NO_CONNECTION)) == 1
    await gateway.stop()
    assert [e.name for e in gateway.events()][:3] == ["connected", "lost", "connected"]


async def test_hang(gateway: Gateway, device: Device, port: int) -> None:
    """A PLC that takes requests and answers none is lost after its timeout, and comes back."""
    gateway.configure(plc(port, Tag(name="x", address=0)))
    await eventually(lambda: logged(gateway, "x"))
    device.hang()
    await eventually(lambda: gateway.poller().state == "lost")
    assert "0.2 s" in gateway.poller().error
    before = len(logged(gateway, "x"))
    device.go_on()
    await eventually(lambda: len(logged(gateway, "x")) > before)
    assert len(logged(gateway, "x", Quality.NO_CONNECTION)) == 1


async def test_one_bad_address_blinds_only_its_tag(gateway: Gateway, device: Device, port: int) -> None:
    """A refused request is split until only the bad tag fails; that is remembered, and it heals."""
    device.ask("refuse", "holding", 37)
    gateway.configure(plc(port, *(Tag(name=f"t{i}", address=i) for i in range(100))))
    await eventually(lambda: gateway.poller().polls >= 2)
    assert list(gateway.poller().observed()["refused_tags"]) == ["t37"]
    assert "illegal data address" in gateway.poller().observed()["refused_tags"]["t37"]
    assert len(logged(gateway, "t37", Quality.DEVICE_ERROR)) == 1
    assert not [s for s in gateway.live() + gateway.samples() if s.quality != Quality.GOOD and s.tag != "t37"]
    polls, before = gateway.poller().polls, device.ask("requests")
    await eventually(lambda: gateway.poller().polls >= polls + 3)
    per_poll = (device.ask("requests") - before) / (gateway.poller().polls - polls)
    assert per_poll < 15, "the search is repeated at each poll"
    device.ask("allow")
    await eventually(lambda: logged(gateway, "t37"))
    await eventually(lambda: not gateway.poller().error)
    await gateway.stop()
    assert [(e.name, e.data.get("tags")) for e in gateway.events()] == [
        ("connected", None),
        ("device_error", 1),
    ]


async def test_all_addresses_bad(gateway: Gateway, device: Device, port: int) -> None:
    """A device that refuses everything is asked for all of it with one request a round, after one search."""
    for address in range(60):
        device.ask("refuse", "holding", address)
    gateway.configure(plc(port, *(Tag(name=f"t{i}", address=i) for i in range(60))))
    await eventually(lambda: len(gateway.poller().observed()["refused_tags"]) == 20)
    await eventually(lambda: gateway.poller().polls >= 2)
    assert gateway.poller().observed()["requests_per_round"] == 1
    polls, before = gateway.poller().polls, device.ask("requests")
    await eventually(lambda: gateway.poller().polls >= polls + 5)
    assert device.ask("requests") - before <= 2 * 6


class Rogue:
    """A device that answers well `good` times on each connection, then as it is told."""

    def __init__(self, good: int, then: bytes | None) -> None:
        self.good, self.then = good, then
        self.connections = 0
        self.healed = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        answered = 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readexactly(12)
                tid, _, _, unit, function, _, count = struct.unpack(">HHHBBHH", request)
                if self.healed or answered < self.good:
                    answered += 1
                    body = struct.pack(">BBB", unit, function, 2 * count) + b"\0\x05" * count
                    writer.write(struct.pack(">HHH", tid, 0, len(body)) + body)
                elif self.then is not None:
                    writer.write(self.then.replace(b"TT", struct.pack(">H", tid)))
        writer.close()


@pytest.mark.parametrize(
    ("then", "good"),
    [
        pytest.param(None, 2, id="half-open: silent, but a new connection works"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", 2, id="another protocol"),
        pytest.param(b"TT\0\0\0\3\1\3\x02", 2, id="shorter than it says"),
        pytest.param(b"TT\0\0\0\5\1\3\2\0\1", 2, id="fewer registers"),
        pytest.param(b"TT\0\0\0\7\1\4\4\0\1\0\2", 2, id="another function"),
        pytest.param(b"TT\0\0\0\7\x09\3\4\0\1\0\2", 2, id="another unit"),
        pytest.param(b"\xff\xff\0\0\0\7\1\3\4\0\1\0\2", 2, id="another transaction"),
        pytest.param(b"TT\0\0\0\2\1\x7f", 2, id="unknown function"),
        pytest.param(b"\0" * 300, 2, id="zeros"),
    ],
)
async def test_garbage(gateway: Gateway, port: int, then: bytes | None, good: int) -> None:
    """Whatever comes instead of an answer is never logged as a value; a new connection is tried at once."""
    rogue = Rogue(good, then)
    async with await asyncio.start_server(rogue, "127.0.0.1", port):
        gateway.configure(plc(port, Tag(name="x", address=0), Tag(name="y", address=1)))
        await eventually(lambda: rogue.connections >= 4)
        rogue.healed = True
        before = len(logged(gateway, "x"))
        await eventually(lambda: len(logged(gateway, "x")) > before)
        await gateway.stop()
    if then is None:
        assert [e.name for e in gateway.events()] == ["connected"], (
            "a new connection worked: nothing was lost"
        )
        assert {s.quality for s in gateway.samples()} == {Quality.GOOD}
    good_samples = [s for s in gateway.samples() if s.quality == Quality.GOOD]
    assert {s.value for s in good_samples} == {5}


async def test_garbage_from_the_first_byte(gateway: Gateway, port: int) -> None:
    """A port that speaks something else is reported as such and logged as not connected."""
    rogue = Rogue(0, b"TT\0\0\0\3\1\3\x09\0")
    async with await asyncio.start_server(rogue, "127.0.0.1", port):
        gateway.configure(plc(port, Tag(name="x", address=0)))
        await eventually(lambda: gateway.poller().failures >= 2)
        assert [s.quality for s in gateway.live() + gateway.samples()] == [Quality.NO_CONNECTION]
        assert gateway.poller().error
        await gateway.stop()


# Configuration


async def test_only_what_changed_restarts(gateway: Gateway, device: Device, port: int) -> None:
    """A changed PLC begins anew, the other goes on undisturbed; a removed one is sealed and stays in the log."""
    kept, old = (
        plc(port, Tag(name="x", address=0), name="kept"),
        plc(port, Tag(name="x", address=0), name="old"),
    )
    gateway.configure(kept, old)
    await eventually(lambda: gateway.poller("kept").polls and gateway.poller("old").polls)
    before = gateway.poller("kept")
    changed = plc(port, Tag(name="y", address=1), name="old")
    gateway.configure(kept, changed)
    await eventually(lambda: logged(gateway, "y", plc="old"))
    assert gateway.poller("kept") is before
    assert next(s.tag for s in gateway.samples("old")) == "x"
    gateway.configure(kept)
    await eventually(lambda: set(gateway.service._running) == {"kept"})
    assert {s.tag for s in gateway.samples("old")} == {"x", "y"}


# The daemon


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The tree of a gateway, with a certificate."""
    for name in ("run/sallyport/status", "flash/log", "flash/acks", "data/identity"):
        (tmp_path / name).mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Some CA")])
    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Someone"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "SP-000007"),
        ]
    )
    start = datetime.datetime(2020, 1, 1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "data/identity/device.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return tmp_path


def publish(tree: Path, desired: Desired) -> None:
    new = tree / "run/sallyport/.desired"
    new.write_bytes(msgspec.json.encode(desired))
    new.replace(tree / "run/sallyport/desired.json")


def status(tree: Path) -> dict[str, Any]:
    path = tree / "run/sallyport/status/plc.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


@contextlib.contextmanager
def running(tree: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "SALLYPORT_ROOT": str(tree)}
    process = subprocess.Popen(
        [sys.executable, "-m", "services.plc"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_daemon(tree: Path, device: Device, port: int) -> None:
    """The process as systemd runs it: waits for the flash, logs, reports, seals on SIGTERM, stays small."""
    (tree / "flash/log").rmdir()
    device.set("holding", 0, [41, 42])
    tags = [Tag(name=f"t{i}", address=i) for i in range(2)]
    publish(tree, Desired(plc=[plc(port, *tags)], log=Log(sync_s=60)))
    with running(tree) as process:
        await eventually(lambda: status(tree).get("detail", {}).get("plcs", {}).get("a", {}).get("samples"))
        assert status(tree)["state"] == "failed"
        assert "is the flash mounted" in status(tree)["summary"]
        (tree / "flash/log").mkdir()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0, errors
    samples = list(sealed(tree / "flash/log", "plc-a"))
    assert {(s.tag, s.value) for s in samples} == {("t0", 41), ("t1", 42)}
    assert {r.raw for r in Reader(tree / "flash/log").records("plc-a")}
    header = block.read_header(next(iter(Reader(tree / "flash/log").records("plc-a"))).raw)
    assert header.id.device == "SP-000007"


def private_kib(pid: int) -> int:
    """Unique set size."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


async def test_daemon_memory(tree: Path, device: Device, port: int) -> None:
    """Private memory of the daemon with 1,000 tags at work: at most 25 MB (the goal is 20)."""
    tags = [Tag(name=f"machine.part{i // 20}.value{i}", address=i) for i in range(1000)]
    publish(tree, Desired(plc=[plc(port, *tags, interval_ms=200)], log=Log(sync_s=1)))
    with running(tree) as process:
        await eventually(
            lambda: status(tree).get("detail", {}).get("plcs", {}).get("a", {}).get("polls", 0) > 15
        )
        private = private_kib(process.pid)
    assert private < 25_000


async def test_daemon_waits_for_an_identity(tree: Path) -> None:
    """Without a certificate the daemon says what is missing, and goes on once it is there."""
    certificate = tree / "data/identity/device.crt"
    aside = certificate.rename(tree / "aside")
    publish(tree, Desired())
    with running(tree):
        await eventually(lambda: status(tree).get("state") == "failed")
        assert "provision the gateway" in status(tree)["summary"]
        aside.rename(certificate)
        await eventually(lambda: status(tree).get("state") == "ok")
