"""Ingest: decisions, durable buffer, stores, time correction. Real SQLite files, no broker."""

from __future__ import annotations

import math
import struct
import zlib
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion

from cloudstub.broker import ACCESS, configuration
from cloudstub.ingest import __main__ as receiver
from cloudstub.ingest.buffer import Buffer, Received, Row
from cloudstub.ingest.core import AnswerTime, Refuse, StoreBlock, StoreClock, StoreStatus, decide, ranges
from cloudstub.ingest.worker import platform_mover, series_mover
from cloudstub.state import State
from cloudstub.stores import ledger
from cloudstub.stores.platform import PlatformReader, PlatformWriter
from cloudstub.stores.series import Point, SqliteSeriesReader, SqliteSeriesWriter
from firmware.wire import messages, topics
from firmware.wire.block import BlockId, Event, Kind, Sample, encode_events, encode_samples
from firmware.wire.messages import ClockReport, Status, TimeRequest

A, B, C = b"A" * 16, b"B" * 16, b"C" * 16
EPOCH = 1_700_000_000_000_000
DAY_US = 86_400_000_000


def block(
    seq: int, *, boot: bytes = A, offset_us: int = EPOCH, at_us: int = 1000, device: str = "D"
) -> bytes:
    return encode_samples(BlockId(device, "plc-a", boot, seq), [Sample("t", at_us, float(seq))], offset_us)


def store_block(data: bytes, at_us: int = 1) -> Received:
    what = decide(topics.block("D", "live", "plc-a"), data, None, at_us)
    assert isinstance(what, StoreBlock), what
    return Received(at_us, what)


def clock(boot: bytes, measured_us: int, epoch_us: int, wall_error_us: int = 0) -> Received:
    return Received(1, StoreClock("D", ClockReport(boot.hex(), measured_us, epoch_us, 10, wall_error_us)))


# Decisions.


def test_decisions() -> None:
    """Shows: X35, X37"""
    data = block(7)
    match decide(topics.block("D", "backfill", "plc-a"), data, None, 5):
        case StoreBlock(identity, kind, same):
            assert (identity, kind, same) == (BlockId("D", "plc-a", A, 7), Kind.SAMPLES, data)
        case other:
            raise AssertionError(other)
    asked = decide(topics.up("D", "time"), messages.encode(TimeRequest(A.hex(), 77)), None, 5)
    assert isinstance(asked, AnswerTime)
    assert (asked.reply.sent_us, asked.reply.cloud_epoch_us) == (77, 5)
    assert isinstance(decide(topics.up("D", "status"), b'{"online":true}', None, 5), StoreStatus)
    assert decide("elsewhere", b"", None, 5) is None
    assert decide(topics.up("D", "pong"), b"", None, 5) is None


def test_unreadable_blocks_are_refused_by_name() -> None:
    """The correlation data names a block whose bytes can't."""
    reference = messages.block_ref(A, 7)
    for data in (b"", block(7)[:-1], b"x" * 200, block(7, device="OTHER"), block(2**61)):
        what = decide(topics.block("D", "live", "plc-a"), data, reference, 5)
        assert isinstance(what, Refuse)
        assert what.nack
        assert (what.nack.stream, what.nack.boot, what.nack.seq) == ("plc-a", A.hex(), 7)
    what = decide(topics.block("D", "live", "plc-a"), b"", None, 5)
    assert isinstance(what, Refuse)
    assert what.nack is None


@pytest.mark.parametrize(
    ("rest", "payload"),
    [
        ("time", b"{"),
        ("clock", b"{}"),
        ("clock", messages.encode(ClockReport("zz", 1, 1, 1, 1))),
        ("clock", messages.encode(ClockReport("00", 1, 1, 1, 1))),
        ("clock", messages.encode(ClockReport(A.hex(), 1, 2**63, 1, 1))),
        ("status", b"[]"),
        ("status", b"\xff"),
        ("block/other/plc-a", b""),
        ("block/live/", b""),
        ("block/live/a/b", b""),
        ("nonsense", b""),
    ],
)
def test_bad_messages_are_refused(rest: str, payload: bytes) -> None:
    assert isinstance(decide(topics.up("D", rest), payload, None, 5), Refuse)


@given(st.text(max_size=40), st.binary(max_size=80), st.none() | st.binary(max_size=30))
def test_nothing_makes_the_ingest_fall(rest: str, payload: bytes, reference: bytes | None) -> None:
    for topic in (rest, topics.up("D", rest), topics.block("D", "live", rest), topics.up("D", "clock")):
        decision = decide(topic, payload, reference, 5)
        # 80 random bytes are no block and no clock report; at most they are taken for a status, read later.
        assert decision is None or isinstance(decision, Refuse | StoreStatus)


@given(st.lists(st.integers(0, 30)))
def test_ranges(numbers: list[int]) -> None:
    runs = ranges(numbers)
    assert [n for first, last in runs for n in range(first, last + 1)] == sorted(set(numbers))
    assert all(b[0] > a[1] + 1 for a, b in pairwise(runs))


# Buffer.


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.lists(st.integers(0, 12), max_size=8), max_size=8))
def test_every_identity_is_taken_once(numbers: list[list[int]], tmp_path_factory: Any) -> None:
    """Whatever the order and however often, across batches and after the bytes have moved on.

    Shows: X36, X88
    """
    buffer = Buffer(tmp_path_factory.mktemp("buffer") / "buffer.db", durable=False)
    taken: list[bytes] = []
    for batch in numbers:
        buffer.commit(store_block(block(n)) for n in batch)
        rows = buffer.waiting([Row.SAMPLES])
        taken += [row.data for row in rows]
        buffer.done(rows)
    assert sorted(taken) == sorted({block(n) for batch in numbers for n in batch})
    buffer.close()


def test_a_failed_commit_keeps_nothing(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path / "b.db")

    def batch() -> Any:
        yield store_block(block(1))
        raise OSError("power")

    with pytest.raises(OSError, match="power"):
        buffer.commit(batch())
    assert buffer.waiting([Row.SAMPLES]) == []
    assert buffer.commit([store_block(block(1))]) == 0


def booleans(seq: int) -> bytes:
    return encode_samples(BlockId("D", "plc-a", A, seq), [Sample("t", 1, True, 0, "?")] * 65_536, EPOCH)


def long_text(seq: int) -> bytes:
    return encode_samples(BlockId("D", "plc-a", A, seq), [Sample("t", 1, "x" * (7 << 20), 0, "s")], EPOCH)


@pytest.mark.parametrize(("make", "together"), [(booleans, 3), (long_text, 1)])
def test_a_batch_is_bounded_by_what_it_unpacks_to(tmp_path: Path, make: Any, together: int) -> None:
    """Blocks of a few hundred bytes that unpack to 65,536 values, or to megabytes of text."""
    buffer = Buffer(tmp_path / "b.db", durable=False)
    buffer.commit(store_block(make(seq)) for seq in range(5))
    rows = buffer.waiting([Row.SAMPLES])
    assert len(rows) == together
    assert sum(len(row.data) for row in rows) < 5000
    assert len(buffer.waiting([Row.SAMPLES], size=1)) == len(buffer.waiting([Row.SAMPLES], entries=1)) == 1


# Stores.

_VALUES = st.one_of(
    st.tuples(st.just("d"), st.floats()),
    st.tuples(st.just("f"), st.floats(width=32)),
    st.tuples(st.just("Q"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("q"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("h"), st.integers(-(2**15), 2**15 - 1)),
    st.tuples(st.just("?"), st.booleans()),
    st.tuples(st.just("s"), st.text(max_size=20)),
)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, and of one type."""
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b) or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and bool(a == b)


@settings(max_examples=20, deadline=None)
@given(values=st.lists(_VALUES, min_size=1, max_size=60))
def test_values_are_kept_exactly(values: list[tuple[str, Any]], tmp_path_factory: Any) -> None:
    """From the block to the reader of the store: every type, every bit.

    Shows: X35
    """
    state = State(tmp_path_factory.mktemp("cloud"))
    samples = [Sample("t", n, value, 0, type_) for n, (type_, value) in enumerate(values)]
    flow = Flow(state)
    flow.buffer.commit([store_block(encode_samples(BlockId("D", "plc-a", A, 1), samples, EPOCH))])
    flow.move()
    points = flow.points()
    flow.close()
    assert len(points) == len(values)
    assert all(same(p.value, v) and p.type == t for p, (t, v) in zip(points, values, strict=True))


class Flow:
    """Buffer, movers and stores of one state folder, driven by hand."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.buffer = Buffer(state.buffer, durable=False)
        self.series = SqliteSeriesWriter(state.series)
        self.platform = PlatformWriter(state.platform)
        self.movers = [series_mover(self.buffer, self.series), platform_mover(self.buffer, self.platform)]

    def move(self) -> None:
        for mover in self.movers:
            mover.step()

    def points(self, tag: str = "t") -> list[Point]:
        with closing(SqliteSeriesReader(self.state.series)) as reader:
            return reader.read("D", "plc-a", tag, limit=1000)

    def close(self) -> None:
        for part in (self.buffer, self.series, self.platform):
            part.close()


@pytest.fixture
def flow(tmp_path: Path) -> Any:
    flow = Flow(State(tmp_path))
    yield flow
    flow.close()


# Time correction.


def times(flow: Flow) -> list[tuple[float, int, bool]]:
    """(value, corrected time minus EPOCH, estimated) by value."""
    return sorted((p.value, p.time_us - EPOCH, p.estimated) for p in flow.points())  # type: ignore[misc]


def test_report_first_then_block(flow: Flow) -> None:
    """Shows: X37"""
    flow.buffer.commit([clock(A, 500, EPOCH), store_block(block(1, offset_us=EPOCH + 3 * DAY_US))])
    flow.move()
    assert times(flow) == [(1.0, 1000, False)]
    assert flow.points()[0].original_us == EPOCH + 3 * DAY_US + 1000


def test_block_first_then_report(flow: Flow) -> None:
    """Stored as the wall clock had it and marked; right as soon as the boot's report is there.

    Shows: X37
    """
    flow.buffer.commit([store_block(block(1, offset_us=EPOCH - 2 * DAY_US))])
    flow.move()
    assert times(flow) == [(1.0, 1000 - 2 * DAY_US, True)]
    flow.buffer.commit([clock(A, 5000, EPOCH)])
    flow.move()
    assert times(flow) == [(1.0, 1000, False)]
    assert flow.points()[0].original_us == EPOCH - 2 * DAY_US + 1000


def test_boot_without_report_uses_the_next_boots_error(flow: Flow) -> None:
    """Order of boots by sequence, not by arrival; a boot without a report between two with different errors.

    Shows: X37
    """
    flow.buffer.commit(
        [
            clock(A, 500, EPOCH, wall_error_us=-7 * DAY_US),
            clock(C, 500, EPOCH, wall_error_us=-2 * DAY_US),
            store_block(block(3, boot=C, offset_us=EPOCH - 2 * DAY_US)),
            store_block(block(2, boot=B, offset_us=EPOCH - 2 * DAY_US)),
            store_block(block(1, boot=A, offset_us=EPOCH - 7 * DAY_US)),
            clock(b"E" * 16, 500, EPOCH, wall_error_us=99 * DAY_US),
        ]
    )
    flow.move()
    assert times(flow) == [(1.0, 1000, False), (2.0, 1000, True), (3.0, 1000, False)]


def test_a_report_touches_only_estimates_that_it_changes(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices, each a transaction of its own; a report that says the same loads and changes no block.

    Shows: X37
    """
    monkeypatch.setattr(ledger, "SLICE", 2)
    loaded: list[int] = []
    real = ledger.SqliteLedger._find

    def find(self: Any, *args: Any) -> Any:
        found = real(self, *args)
        loaded.append(len(found))
        return found

    monkeypatch.setattr(ledger.SqliteLedger, "_find", find)
    flow.buffer.commit(
        [store_block(block(n, boot=A, offset_us=EPOCH - DAY_US)) for n in range(5)]
        + [store_block(block(n, boot=B, offset_us=EPOCH + DAY_US)) for n in range(5, 8)]
    )
    flow.move()
    assert [estimated for _, _, estimated in times(flow)] == [True] * 8
    flow.buffer.commit([clock(C, 1, EPOCH, wall_error_us=DAY_US)])
    flow.move()
    assert [t for _, t, _ in times(flow)] == [1000 - 2 * DAY_US] * 5 + [1000] * 3
    assert max(loaded) == 2
    loaded.clear()
    flow.buffer.commit([clock(C, 2, EPOCH, wall_error_us=DAY_US + 50_000)])
    flow.move()
    assert [t for _, t, _ in times(flow)] == [1000 - 2 * DAY_US] * 5 + [1000] * 3
    assert sum(loaded) == 0
    flow.buffer.commit([clock(B, 1, EPOCH, wall_error_us=-DAY_US)])
    flow.move()
    assert times(flow) == [(n, 1000, n < 5) for n in range(8)]


def test_nearest_report_counts_and_small_differences_rewrite_nothing(flow: Flow) -> None:
    """A clock that drifts by 10 s over an hour: blocks take the nearer report, also one that comes later.

    Shows: X37
    """
    hour = 3_600_000_000
    flow.buffer.commit([clock(A, 0, EPOCH)])
    flow.buffer.commit([store_block(block(1, at_us=1000)), store_block(block(2, at_us=hour - 1000))])
    flow.move()
    assert times(flow) == [(1.0, 1000, False), (2.0, hour - 1000, False)]
    flow.buffer.commit([clock(A, hour, EPOCH + 10_000_000)])
    flow.move()
    assert times(flow) == [(1.0, 1000, False), (2.0, hour - 1000 + 10_000_000, False)]
    flow.buffer.commit([clock(A, hour - 500, EPOCH + 10_000_050)])
    flow.move()
    assert times(flow)[1] == (2.0, hour - 1000 + 10_000_000, False)


def test_events_are_corrected_too(flow: Flow) -> None:
    """Events and presence live in the platform store, not with machine data.

    Shows: L20, X37
    """
    data = encode_events(
        BlockId("D", "events-plc", A, 1), [Event(1000, "lost", "warning", {"plc": "a"})], EPOCH - DAY_US
    )
    what = decide(topics.block("D", "live", "events-plc"), data, None, 1)
    assert isinstance(what, StoreBlock)
    flow.buffer.commit([Received(1, what)])
    flow.move()
    flow.buffer.commit(
        [clock(A, 500, EPOCH), Received(9, StoreStatus("D", messages.encode(Status(True, "1.2"))))]
    )
    flow.move()
    with closing(PlatformReader(flow.state.platform)) as reader:
        (event,) = reader.events("D")
        (gateway,) = reader.gateways()
    assert (event.time_us, event.service, event.name, event.data) == (
        EPOCH + 1000,
        "plc",
        "lost",
        {"plc": "a"},
    )
    assert (gateway.device, gateway.online, gateway.version, gateway.since_us) == ("D", True, "1.2", 9)
    assert b"plc-a" not in flow.state.platform.read_bytes()
    assert flow.points() == []


def test_presence_keeps_what_was_known(flow: Flow) -> None:
    """The last will takes a gateway offline and leaves its last status."""
    for at_us, status in (
        (5, Status(True, "1", "b", {"plc": {"state": "ok"}})),
        (7, Status(True)),
        (9, Status(False)),
    ):
        flow.buffer.commit([Received(at_us, StoreStatus("D", messages.encode(status)))])
        flow.move()
        with closing(PlatformReader(flow.state.platform)) as reader:
            (gateway,) = reader.gateways("D")
        assert gateway.since_us == (9 if at_us == 9 else 5)
    assert not gateway.online


# Crashes.


def test_repeated_work_changes_nothing(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the store's commit and the removal from the buffer: done again without a double.

    Shows: X88
    """
    flow.buffer.commit(store_block(block(n)) for n in range(5))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flow.buffer, "done", killed)
        with pytest.raises(KeyboardInterrupt):
            flow.move()
    assert len(flow.points()) == 5
    flow.move()
    flow.move()
    assert len(flow.points()) == 5
    assert flow.buffer.waiting([Row.SAMPLES]) == []
    with closing(SqliteSeriesReader(flow.state.series)) as reader:
        assert reader.count() == 5


def test_a_block_that_only_the_mover_finds_bad_is_set_aside(flow: Flow) -> None:
    """Right checksum, nonsense inside: it stops nobody, and is kept for a look."""
    bad = bytearray(block(1))
    good = store_block(block(2))
    start = bad.index(b"plc-a") + len(b"plc-a")
    bad[start] ^= 0xFF  # the body's first byte: the size of its tag table
    bad[-4:] = struct.pack("<I", zlib.crc32(bad[:-4]))
    flow.buffer.commit([store_block(bytes(bad)), good])
    flow.move()
    assert [p.value for p in flow.points()] == [2.0]
    assert flow.buffer.waiting([Row.SAMPLES]) == []


@pytest.mark.parametrize("deep_in", ["decoding", "encoding"])
def test_a_status_nested_too_deep_is_set_aside(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, deep_in: str
) -> None:
    """It would end the mover each time, and hold up everything behind it."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    real = messages.decode

    def decode(data: bytes, type_: Any) -> Any:
        if b"deep" not in data:
            return real(data, type_)
        if deep_in == "decoding":
            raise RecursionError
        return Status(True, "deep", observed={"plc": {"deep": deep}})

    monkeypatch.setattr(messages, "decode", decode)
    for data in (b'{"online":true,"version":"deep"}', b'{"online":true,"version":"2"}'):
        flow.buffer.commit([Received(1, StoreStatus("D", data))])
    flow.move()
    assert flow.buffer.waiting([Row.STATUS]) == []
    with closing(PlatformReader(flow.state.platform)) as reader:
        assert [g.version for g in reader.gateways()] == ["2"]


# The process that receives.


class Client:
    """Stands for the MQTT client; keeps what is acknowledged."""

    def __init__(self) -> None:
        self.acked: list[tuple[int, int]] = []

    def ack(self, mid: int, qos: int) -> None:
        self.acked.append((mid, qos))


def test_a_fault_of_ours_costs_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Acknowledged, so that it does not come back; the client's thread goes on."""

    def fault(*_: Any) -> None:
        raise RecursionError("too deep")

    client = Client()
    monkeypatch.setattr(receiver, "client", lambda *_, **__: client)
    monkeypatch.setattr(receiver, "decide", fault)
    message = mqtt.MQTTMessage(mid=7, topic=topics.up("D", "status").encode())
    message.qos = 1
    receiver.Ingest(State(tmp_path))._on_message(None, None, message)  # type: ignore[arg-type]
    assert client.acked == [(7, 1)]
    assert "'sp/v1/D/up/status' is left out by a fault of this program" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_process_ends_with_the_clients_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group then starts it again."""

    def fault(*_: Any) -> None:
        raise RuntimeError("unforeseen")

    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    monkeypatch.setattr(client, "reconnect", fault)
    monkeypatch.setattr(receiver, "client", lambda *_, **__: client)
    monkeypatch.setattr(receiver, "ALIVE_S", 0.01)
    with pytest.raises(SystemExit, match="thread has ended"):
        receiver.Ingest(State(tmp_path)).run("127.0.0.1", 1)


# Broker.


def test_broker_configuration_is_closed() -> None:
    """One listener, TLS 1.2, a certificate for everyone, no anonymous client, rights by certificate name.

    Shows: L19, X18, X41, X42
    """
    lines = configuration(State(Path("/s")), "203.0.113.10", 443, root=True).splitlines()
    assert [line for line in lines if line.startswith(("listener", "port"))] == ["listener 443 203.0.113.10"]
    for line in (
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        "user root",
    ):
        assert line in lines
    assert not any(
        line.startswith("user ")
        for line in configuration(State(Path("/s")), "::1", 1, root=False).splitlines()
    )
    assert "pattern write sp/v1/%u/up/#" in ACCESS
    assert "pattern read sp/v1/%u/down/#" in ACCESS
    assert "pattern readwrite" not in ACCESS
