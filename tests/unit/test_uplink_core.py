"""The uplink's decisions, with a clock of the test's own."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloudstub import ca
from firmware.clock import Instant
from firmware.identity import IdentityError
from firmware.wire.messages import Ack, TimeReply
from services.uplink import identity, trouble
from services.uplink.core import (
    RESEND_MOST_S,
    RESEND_S,
    TIME_EVERY_S,
    TIME_WAIT_S,
    WINDOW_BLOCKS,
    WINDOW_BYTES,
    Backoff,
    Key,
    Outbox,
    Rate,
    StatusPace,
    TimeExchange,
)

BOOT = bytes(16)


def key(seq: int, stream: str = "plc-a") -> Key:
    return Key(stream, BOOT, seq)


def test_backoff_has_full_jitter_below_a_doubling_ceiling() -> None:
    highest = Backoff(rand=lambda: 1.0)
    assert [highest.next_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert Backoff(rand=lambda: 0.0).next_s() == 0
    highest.reset()
    assert highest.next_s() == 1


def test_window_is_bounded_and_keeps_room_for_live_data() -> None:
    """History fills three quarters of the window; live data finds the rest free."""
    outbox = Outbox(1e9)
    seq = 0
    while outbox.history_room(0):
        outbox.sent(0, key(seq), "backfill", b"x" * 100, history=True)
        seq += 1
    assert seq == WINDOW_BLOCKS * 3 // 4
    while outbox.live_room():
        outbox.sent(0, key(seq), "live", b"x" * 100, history=False)
        seq += 1
    assert seq == WINDOW_BLOCKS
    outbox.acknowledged(Ack("plc-a", BOOT.hex(), [(0, 0)]))
    assert outbox.live_room()
    assert not outbox.history_room(0)


def test_a_block_larger_than_the_window_goes_alone() -> None:
    outbox = Outbox(1e9)
    outbox.sent(0, key(0), "live", b"x" * (WINDOW_BYTES + 1), history=False)
    assert not outbox.live_room()
    outbox.acknowledged(Ack("plc-a", BOOT.hex(), [(0, 5)]))
    assert outbox.live_room()


def test_unacknowledged_blocks_are_sent_again_with_growing_waits() -> None:
    """Shows: X88"""
    outbox = Outbox(1)
    outbox.sent(0, key(1), "live", b"x", history=False)
    times = [t for t in range(0, 3000) if outbox.due(float(t))]
    gaps = [b - a for a, b in zip([0, *times], times, strict=False)]
    assert gaps[:5] == [30, 60, 120, 240, 480]
    assert set(gaps[5:]) == {RESEND_MOST_S}
    assert gaps[0] == RESEND_S
    outbox.acknowledged(Ack("plc-a", BOOT.hex(), [(1, 1)]))
    assert not outbox.due(1e9)


def test_acknowledgements_of_others_change_nothing() -> None:
    outbox = Outbox(1)
    outbox.sent(0, key(7), "live", b"x", history=False)
    assert outbox.acknowledged(Ack("plc-b", BOOT.hex(), [(7, 7)])) == []
    assert outbox.acknowledged(Ack("../../etc", BOOT.hex(), [(0, 2**80)])) == []
    outbox.acknowledged(Ack("plc-a", (b"\1" * 16).hex(), [(7, 7)]))
    outbox.acknowledged(Ack("plc-a", BOOT.hex(), [(0, 6), (8, 9)]))
    assert key(7) in outbox
    with pytest.raises(ValueError, match="hex"):
        outbox.acknowledged(Ack("plc-a", "no boot", [(7, 7)]))
    assert outbox.counts.acknowledged == 0


def test_refused_blocks_stay_out_and_the_window_is_free_again() -> None:
    outbox = Outbox(1)
    outbox.sent(0, key(7), "live", b"x", history=False)
    assert outbox.refused(key(7))
    assert not outbox.refused(key(7))
    assert key(7) in outbox
    assert len(outbox) == 0
    outbox.disconnected()
    assert key(7) in outbox


def test_a_lost_connection_makes_everything_unacknowledged() -> None:
    outbox = Outbox(1)
    outbox.sent(0, key(7), "live", b"x", history=False)
    outbox.disconnected()
    assert key(7) not in outbox
    assert outbox.live_room()


def test_rate_of_history() -> None:
    """100 bytes per second: 10 s carry one second's worth at once and ten more, in blocks larger than that too."""
    for size in (10, 250):
        rate, sent = Rate(100), 0
        for tenth in range(101):
            while rate.free(tenth / 10):
                rate.spend(size)
                sent += size
        assert 1000 <= sent <= 1100 + size


def test_time_is_measured_at_the_middle_of_the_round_trip() -> None:
    """Shows: X37"""
    exchange = TimeExchange(BOOT.hex())
    exchange.connected(100)
    asked = exchange.ask(100, Instant(5_000_000, 10_000_000))
    assert asked and asked.sent_us == 5_000_000
    assert exchange.ask(100.1, Instant(5_100_000, 0)) is None
    reply = TimeReply(BOOT.hex(), 5_000_000, 1_000_000_000)
    report = exchange.answer(100.2, Instant(5_200_000, 10_200_000), reply)
    assert report
    assert report.measured_us == 5_100_000
    assert report.boot_epoch_us == 1_000_000_000 - 5_100_000
    assert report.error_us == 100_000
    assert report.wall_error_us == 10_100_000 - 1_000_000_000
    assert exchange.ask(100.2 + TIME_EVERY_S - 1, Instant(0, 0)) is None
    assert exchange.ask(100.2 + TIME_EVERY_S, Instant(9, 9))


def test_stale_time_replies_are_ignored() -> None:
    exchange = TimeExchange(BOOT.hex())
    exchange.connected(0)
    exchange.ask(0, Instant(1000, 0))
    exchange.ask(10, Instant(2000, 0))
    now = Instant(3000, 0)
    assert exchange.answer(10, now, TimeReply(BOOT.hex(), 1000, 1)) is None
    assert exchange.answer(10, now, TimeReply((b"\1" * 16).hex(), 2000, 1)) is None
    assert exchange.answer(10, now, TimeReply(BOOT.hex(), 2000, 1))
    assert exchange.answer(10, now, TimeReply(BOOT.hex(), 2000, 1)) is None


def test_blocks_wait_a_little_for_the_time() -> None:
    exchange = TimeExchange(BOOT.hex())
    exchange.connected(50)
    assert not exchange.blocks_may_go(50 + TIME_WAIT_S - 0.1)
    assert exchange.blocks_may_go(50 + TIME_WAIT_S)
    exchange.ask(50, Instant(1000, 0))
    exchange.answer(50.1, Instant(2000, 0), TimeReply(BOOT.hex(), 1000, 1))
    assert exchange.blocks_may_go(50.1)


def test_pace_of_status() -> None:
    """Changes that matter within 2 s, numbers every 10 s, nothing when nothing changed."""
    pace = StatusPace()
    assert pace.due(0, "ok", 1)
    assert not pace.due(100, "ok", 1)
    assert pace.due(101, "ok", 2)
    assert not pace.due(102, "bad", 3)
    assert pace.due(103, "bad", 3)
    assert not pace.due(112, "bad", 4)
    assert pace.due(113, "bad", 4)
    pace.connected()
    assert pace.due(113, "bad", 4)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (socket.gaierror(-2, "Name or service not known"), "dns"),
        (TimeoutError("timed out"), "timeout"),
        (ConnectionRefusedError(111, "refused"), "closed"),
        (ConnectionResetError(104, "reset"), "reset"),
        (OSError(101, "Network is unreachable"), "no-route"),
        (ssl.SSLError(1, "[SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert protocol version"), "tls-version"),
        (
            ssl.SSLError(1, "[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] alert certificate expired"),
            "certificate-expired",
        ),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "no-tls"),
        (ValueError("label too long"), "error"),
    ],
)
def test_troubles_are_told_apart(error: BaseException, code: str) -> None:
    found = trouble.explain(error, "mqtt.example", 443)
    assert found.code == code
    assert "mqtt.example" in found.text


def test_identity_names_the_device(tmp_path: Path) -> None:
    """The device id is the certificate's common name, whatever else the certificate says."""
    authority = ca.Authority.new("A CA whose common name comes first")
    ca.issue_device(authority, "SP-000001", tmp_path)
    assert identity.load(tmp_path).device == "SP-000001"
    assert identity.load(tmp_path).context().minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("name", ["device.key", "device.crt", "ca.crt"])
@pytest.mark.parametrize(
    "content", [None, b"", b"-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n"]
)
def test_bad_identity_says_what_is_wrong(tmp_path: Path, name: str, content: bytes | None) -> None:
    ca.issue_device(ca.Authority.new(), "SP-000001", tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(IdentityError, match="provision"):
        identity.load(tmp_path).context()


def test_development_ca_is_strict_enough_for_newer_pythons(tmp_path: Path) -> None:
    """Python 3.13 verifies strictly by RFC 5280; so does this handshake, both ways, without a network.

    Shows: L19
    """
    authority = ca.Authority.open(tmp_path / "ca")
    authority.server("mqtt.example", "203.0.113.10").write(tmp_path, "server")
    authority.device("SP-1").write(tmp_path, "client")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, name in ((server, "server"), (client, "client")):
        context.load_cert_chain(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        context.load_verify_locations(tmp_path / "ca/ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    for host in ("mqtt.example", "203.0.113.10"):
        a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [client.wrap_bio(a, b, server_hostname=host), server.wrap_bio(b, a, server_side=True)]
        for _ in range(4):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        peer = ends[1].getpeercert()
        assert peer and peer["subject"] == ((("commonName", "SP-1"),),)


def test_ca_keeps_its_secrets_and_refuses_odd_names(tmp_path: Path) -> None:
    authority = ca.Authority.open(tmp_path)
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    assert ca.Authority.open(tmp_path).certificate == authority.certificate
    ca.issue_device(authority, "SP-1", tmp_path / "out")
    assert (tmp_path / "out/device.key").stat().st_mode & 0o777 == 0o600
    for name in ("", "a/b", "+", "#", "%u", "-x", "x" * 65, "cloud-ingest", "a b", "ä"):
        with pytest.raises(ca.CaError, match="device id"):
            authority.device(name)
    (tmp_path / "ca.key").write_bytes(b"damaged")
    with pytest.raises(ca.CaError, match=r"backup"):
        ca.Authority.open(tmp_path)
    assert datetime(2021, 1, 1, tzinfo=UTC) > ca.START
