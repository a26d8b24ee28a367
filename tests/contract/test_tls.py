"""Who may talk to whom: certificates, names, versions, topics. Real Mosquitto, real handshakes."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cloudstub import ca
from firmware.wire import topics
from firmware.wire.block import BlockId, Sample, encode_samples
from services.uplink import __main__ as uplink
from services.uplink import session
from tests.contract.cloud import Cloud, Gateway, counting, enabled, eventually, free_port

PAST = datetime(2021, 1, 1, tzinfo=UTC)
FUTURE = datetime(2045, 1, 1, tzinfo=UTC)
CONNECT = bytes.fromhex("10 10 0004 4d515454 05 02 003c 00 0003 646576".replace(" ", ""))
"""MQTT 5 CONNECT: clean start, keep alive 60, client id "dev"."""


def certified(authority: ca.Authority, device: str, **validity: datetime) -> ca.Certified:
    return authority.device(device, **validity)


def answer(cloud: Cloud, identity: ca.Certified | None, folder: Path, **versions: ssl.TLSVersion) -> bytes:
    """First byte that the broker sends to an MQTT CONNECT; nothing when it refuses the client."""
    context = ssl.create_default_context(cafile=str(cloud.state.ca / "ca.crt"))
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # so that only the server's rules are tested
    for name, version in versions.items():
        setattr(context, name, version)
    if identity:
        folder.mkdir(exist_ok=True)
        identity.write(folder, "client")
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
    with (
        socket.create_connection(("127.0.0.1", cloud.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        sock.sendall(CONNECT)
        return sock.recv(1)


@pytest.fixture
def cloud(shared_cloud: Cloud) -> Cloud:
    return shared_cloud


def test_only_certificates_of_this_ca_are_admitted(cloud: Cloud, tmp_path: Path) -> None:
    """Other CA with the same name, self-signed, expired, not yet valid, a server's, none: refused in the handshake.

    Shows: L19, L18, X66
    """
    good = cloud.authority
    assert answer(cloud, certified(good, "SP-GOOD"), tmp_path) == b"\x20"
    own = ca.Authority.new("SP-GOOD")
    bad = {
        "another CA": certified(ca.Authority.new(), "SP-GOOD"),
        "self-signed": ca.Certified(ca._pem(own._key), own.certificate),
        "expired": certified(good, "SP-GOOD", end=PAST),
        "not yet valid": certified(good, "SP-GOOD", start=FUTURE),
        "a server's": good.server("SP-GOOD"),
        "none": None,
    }
    for what, identity in bad.items():
        try:
            seen = answer(cloud, identity, tmp_path)
        except (ssl.SSLError, ConnectionError):
            seen = b""
        assert seen == b"", what


def test_old_tls_is_refused_by_the_broker(cloud: Cloud, tmp_path: Path) -> None:
    """TLS 1.0 and 1.1 are refused, 1.2 and 1.3 accepted.

    Shows: L19, X41
    """
    identity = certified(cloud.authority, "SP-OLD")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        versions = {"minimum_version": version, "maximum_version": version}
        assert answer(cloud, identity, tmp_path, **versions) == b"\x20"
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            answer(cloud, identity, tmp_path, minimum_version=version, maximum_version=version)


def test_old_tls_is_refused_by_the_portal(cloud: Cloud) -> None:
    """Shows: X41"""
    for version, works in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        context = ssl.create_default_context(cafile=str(cloud.state.ca / "ca.crt"))
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", cloud.api_port), 10) as plain:
            if works:
                context.wrap_socket(plain, server_hostname="localhost").close()
            else:
                with pytest.raises(ssl.SSLError):
                    context.wrap_socket(plain, server_hostname="localhost")


def test_no_plaintext_anywhere(cloud: Cloud) -> None:
    """The broker listens on its TLS port alone, and gives no answer to plaintext there.

    Shows: X42, L19
    """
    assert listening(cloud.pids()["broker"]) == {cloud.port}
    with socket.create_connection(("127.0.0.1", cloud.port), 10) as sock:
        sock.sendall(CONNECT)
        try:
            seen = sock.recv(100)
        except ConnectionResetError:
            seen = b""
    assert seen[:1] in (b"", b"\x15")  # nothing, or a TLS alert
    assert listening(cloud.pids()["api"]) == {cloud.api_port}
    for name in ("ingest", "series", "platform"):
        assert listening(cloud.pids()[name]) == set()


def listening(pid: int) -> set[int]:
    """TCP ports on which a process listens."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(fd.readlink()).removeprefix("socket:[").rstrip("]"))
        except OSError:
            continue
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


class Client:
    """A plain MQTT client with a device's certificate, for what no honest uplink does."""

    def __init__(self, cloud: Cloud, device: str, folder: Path, client_id: str = "") -> None:
        ca.issue_device(cloud.authority, device, folder)
        self._loop = asyncio.get_running_loop()
        self.connected, self.ended = asyncio.Event(), asyncio.Event()
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._codes: asyncio.Queue[str] = asyncio.Queue()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        self.client.tls_set(str(folder / "ca.crt"), str(folder / "device.crt"), str(folder / "device.key"))
        post = self._loop.call_soon_threadsafe
        self.client.on_connect = lambda *_: post(self.connected.set)
        self.client.on_disconnect = lambda *_: post(self.ended.set)
        self.client.on_publish = lambda *a: post(self._codes.put_nowait, str(a[3]))
        self.client.on_subscribe = lambda *a: post(self._codes.put_nowait, str(a[3][0]))
        self.client.on_message = lambda *a: post(self.messages.put_nowait, (a[2].topic, a[2].payload))
        self.client.connect("localhost", cloud.port)
        self.client.loop_start()

    async def publish(self, topic: str, payload: bytes, **options: Any) -> str:
        self.client.publish(topic, payload, qos=1, **options)
        return await asyncio.wait_for(self._codes.get(), 10)

    async def subscribe(self, topic: str) -> str:
        self.client.subscribe(topic, qos=1)
        return await asyncio.wait_for(self._codes.get(), 10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


async def test_another_devices_topics_are_closed(cloud: Cloud, tmp_path: Path) -> None:
    """Device B can neither write nor read device A's topics, nor everyone's, nor take over A's session.

    Shows: L18, X18
    """
    a = Client(cloud, "SP-A", tmp_path / "a")
    b = Client(cloud, "SP-B", tmp_path / "b", client_id="SP-A")
    try:
        await asyncio.wait_for(asyncio.gather(a.connected.wait(), b.connected.wait()), 10)
        assert await b.publish(topics.up("SP-B", "pong"), b"{}") in ("Success", "No matching subscribers")
        for topic in (
            topics.up("SP-A", "status"),
            topics.down("SP-A", "ack"),
            topics.down("SP-B", "ack"),
            "x",
        ):
            assert await b.publish(topic, b"{}") == "Not authorized", topic
        assert await a.subscribe(topics.all_down("SP-A")) == "Granted QoS 1"
        for topic in (topics.all_down("SP-A"), "sp/v1/+/down/#", "sp/v1/SP-A/up/#"):
            code = await b.subscribe(topic)
            assert code in ("Not authorized", "Granted QoS 1")
        # Whatever was granted, nothing of A is handed out: the reads are checked one by one.
        cloud_side = mqtt_as(cloud, ca.API, tmp_path)
        cloud_side.publish(topics.down("SP-A", "ping"), b"for A", qos=1).wait_for_publish(10)
        assert await asyncio.wait_for(a.messages.get(), 10) == (topics.down("SP-A", "ping"), b"for A")
        cloud_side.publish(topics.down("SP-B", "ping"), b"for B", qos=1).wait_for_publish(10)
        assert await b.subscribe(topics.all_down("SP-B")) == "Granted QoS 1"
        cloud_side.publish(topics.down("SP-B", "ping"), b"for B", qos=1).wait_for_publish(10)
        while True:
            seen = await asyncio.wait_for(b.messages.get(), 10)
            assert seen[0] == topics.down("SP-B", "ping")
            if seen[1] == b"for B":
                break
        cloud_side.disconnect()
        cloud_side.loop_stop()
        assert not a.ended.is_set()
    finally:
        a.close()
        b.close()


def mqtt_as(cloud: Cloud, name: str, folder: Path) -> mqtt.Client:
    """A client with the rights of a process of the cloud. It takes over the session of the real one."""
    stem = "cloud"
    cloud.authority.client(name).write(folder, stem)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
    client.tls_set(str(cloud.state.ca / "ca.crt"), str(folder / f"{stem}.crt"), str(folder / f"{stem}.key"))
    client.connect("localhost", cloud.port)
    client.loop_start()
    return client


async def test_block_of_another_device_on_ones_own_topic(cloud: Cloud, tmp_path: Path) -> None:
    """A block that names another device, or another stream, than its topic: refused and counted, not stored.

    Shows: L18
    """
    liar = Client(cloud, "SP-LIAR", tmp_path)
    before = cloud.counters().get("refused", 0)
    try:
        for device, stream in (("SP-VICTIM", "plc-x"), ("SP-LIAR", "plc-other")):
            block = encode_samples(BlockId(device, stream, bytes(16), 1), [Sample("t", 1, 1.0)], 0)
            assert await liar.publish(topics.block("SP-LIAR", topics.LIVE, "plc-x"), block) == "Success"
        await eventually(lambda: cloud.counters().get("refused", 0) == before + 2, what="two refused")
        assert cloud.points("t", "SP-VICTIM", "plc-x") == cloud.points("t", "SP-LIAR", "plc-other") == []
    finally:
        liar.close()


# The gateway's side: whom it talks to, and what it says when something is wrong.


@asynccontextmanager
async def server(
    folder: Path, certificate: ca.Certified | None, version: ssl.TLSVersion | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on localhost that notes what it is told; without a certificate it speaks plaintext."""
    context = None
    if certificate:
        certificate.write(folder, "fake")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.load_cert_chain(folder / "fake.crt", folder / "fake.key")
        if version:
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version
    told: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with plain:
                plain.settimeout(10)
                try:
                    sock = context.wrap_socket(plain, server_side=True) if context else plain
                    told.append(sock.recv(100))
                    sock.sendall(b"220 not what you expect\r\n")
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], told
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(15)


async def test_gateway_refuses_servers_that_are_not_the_cloud(cloud: Cloud, tmp_path: Path) -> None:
    """Wrong name, unknown CA, expired, TLS 1.1: each told apart, and not a byte of MQTT is sent.

    Shows: L19, X41, X42
    """
    good = cloud.authority
    cases = {
        "server-name": (good.server("mqtt.elsewhere.test"), None),
        "server-unknown-ca": (ca.Authority.new().server("localhost"), None),
        "server-expired": (good.server("localhost", end=PAST), None),
        "tls-version": (good.server("localhost"), ssl.TLSVersion.TLSv1_1),
    }
    for code, (certificate, version) in cases.items():
        gateway = Gateway(tmp_path / code, cloud, "SP-CHECK")
        async with server(tmp_path, certificate, version) as (port, told):
            async with gateway.running(port=port):
                assert await gateway.trouble() == code
                assert "localhost" in gateway.observed().summary
            assert all(t == b"" for t in told), code


async def test_gateway_tells_troubles_apart(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No TLS, closed port, silence, unknown name, no identity: each with its own words."""
    monkeypatch.setattr(session, "KEEPALIVE_S", 1)
    gateway = Gateway(tmp_path / "plain", cloud, "SP-TELL")
    async with server(tmp_path, None) as (port, told), gateway.running(port=port):
        assert await gateway.trouble() == "no-tls"
        assert not any(b"MQTT" in t for t in told)  # no fallback to plaintext
    gateway = Gateway(tmp_path / "closed", cloud, "SP-TELL")
    async with gateway.running(port=free_port()):
        assert await gateway.trouble() == "closed"
    gateway = Gateway(tmp_path / "silent", cloud, "SP-TELL")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with gateway.running(port=silent.getsockname()[1]):
            assert await gateway.trouble() == "timeout"
    gateway = Gateway(tmp_path / "web", cloud, "SP-TELL")
    async with gateway.running(port=cloud.api_port):  # a good certificate, but a web server behind it
        assert await gateway.trouble() == "no-mqtt"
    gateway = Gateway(tmp_path / "mute", cloud, "SP-TELL")
    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as mute:
        patch.setattr(uplink, "ANSWER_S", 0.5)
        async with gateway.running(port=mute.getsockname()[1]):
            assert await gateway.trouble() == "mute"
    gateway = Gateway(tmp_path / "bare", cloud, "SP-TELL")
    (gateway.identity / "device.key").unlink()
    async with gateway.running():
        assert await gateway.trouble() == "identity"
        assert "device.key" in gateway.observed().summary

    def unknown(host: str, *_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    gateway = Gateway(tmp_path / "dns", cloud, "SP-TELL")
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", unknown)
        async with gateway.running(host="mqtt.nowhere.test"):
            assert await gateway.trouble() == "dns"


@pytest.mark.parametrize(
    ("name", "codes"),
    [("expired", {"certificate-expired", "certificate-refused"}), ("foreign", {"certificate-refused"})],
)
async def test_gateway_says_that_its_certificate_is_refused(
    cloud: Cloud, tmp_path: Path, name: str, codes: set[str]
) -> None:
    """A gateway with an expired certificate, or one of another CA, is refused and says so.

    Shows: L18, L19
    """
    gateway = Gateway(tmp_path, cloud, "SP-REFUSED")
    identity = (
        certified(cloud.authority, "SP-REFUSED", end=PAST)
        if name == "expired"
        else certified(ca.Authority.new(), "SP-REFUSED")
    )
    identity.write(gateway.identity, "device")
    gateway.log(counting(1))
    async with gateway.running():
        assert await gateway.trouble() in codes
    assert cloud.points("n", "SP-REFUSED") == []


async def test_disabled_means_no_packet(cloud: Cloud, tmp_path: Path) -> None:
    """Disabled: nobody is called. Enabled: connected. Disabled again: gone at once, and the cloud knows.

    Shows: L08
    """
    gateway = Gateway(tmp_path / "off", cloud, "SP-OFF")
    called = asyncio.Event()
    listener = await asyncio.start_server(lambda *_: called.set(), "127.0.0.1", 0)
    async with listener, gateway.running(enabled=False, port=listener.sockets[0].getsockname()[1]):
        await eventually(lambda: gateway.observed().summary.startswith("off"), what="uplink is off")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(called.wait(), 1)
    gateway = Gateway(tmp_path / "on", cloud, "SP-OFF")
    async with gateway.running():
        await gateway.connected()
        await eventually(lambda: cloud.platform().gateways("SP-OFF")[0].online, what="online")
        started = time.monotonic()
        gateway.configure(enabled(enabled=False))
        await eventually(lambda: gateway.observed().summary.startswith("off"), what="uplink is off")
        assert time.monotonic() - started < 3
        await eventually(lambda: not cloud.platform().gateways("SP-OFF")[0].online, what="offline")


async def test_dead_link_is_noticed(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that swallows everything without a word is noticed after two keep-alives, and replaced."""
    monkeypatch.setattr(session, "KEEPALIVE_S", 1)
    gateway = Gateway(tmp_path, cloud, "SP-DEAD")
    dead = asyncio.Event()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", cloud.port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                if not dead.is_set():
                    target.write(data)

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)
        far_writer.close()
        writer.close()

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
    async with proxy, gateway.running(port=proxy.sockets[0].getsockname()[1]):
        await gateway.connected()
        dead.set()
        assert await gateway.trouble() in ("silent", "timeout")
        dead.clear()
        await gateway.connected(30)
