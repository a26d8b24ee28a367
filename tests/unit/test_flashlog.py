"""The flash log: sequence, quota, acknowledgements, damage, and a flash that fails."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudstub.ingest.buffer import Buffer, Received
from cloudstub.ingest.core import FAR_US, StoreBlock, decide
from firmware.clock import Instant
from firmware.wire import block, topics
from firmware.wire.block import Event, Sample
from services.flashlog import BEGIN, AckBook, Quota, Ranges, Reader, Record, Writer, samples_quota, used_bytes
from services.flashlog.disk import Disk

BOOT, BOOT2 = b"\1" * 16, b"\2" * 16


class Clock:
    """Stands still until told."""

    def __init__(self, us: int = 5_000) -> None:
        self.us = us

    def __call__(self) -> Instant:
        return Instant(self.us, self.us + 10**15)


def fill(writer: Writer, blocks: int, start: int = 0) -> list[int]:
    """Seal so many blocks of 20 samples; the values count up."""
    seqs = []
    for i in range(start, start + blocks):
        writer.extend(Sample("t", i * 1000 + j, i * 20 + j, 0, "I") for j in range(20))
        sealed = writer.seal()
        assert sealed
        seqs.append(sealed.seq)
    return seqs


def unreadable(patch: pytest.MonkeyPatch, error: int) -> None:
    """From now on no segment can be opened for reading."""
    real = os.open

    def failing(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if str(path).endswith(".seg") and not flags & os.O_WRONLY:
            raise OSError(error, os.strerror(error), str(path))
        return real(path, flags, *args, **more)

    patch.setattr(os, "open", failing)


def seqs(records: list[Record]) -> list[int]:
    return [r.seq for r in records]


def values(root: Path, stream: str = "plc-a") -> list[object]:
    return [s.value for r in Reader(root).records(stream) for s in block.decode(r.raw).samples]


# Writing and reading


def test_what_is_sealed_is_read(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    assert writer.seal() is None
    fill(writer, 3)
    writer.append_event(Event(1, "door", data={"open": True}))
    writer.seal()
    reader = Reader(tmp_path)
    assert reader.streams() == ["plc-a"]
    records = list(reader.records("plc-a"))
    first = records[0].seq
    assert values(tmp_path) == list(range(60))
    assert [(r.boot, r.seq - first, r.entries, r.kind) for r in records] == [
        (BOOT, 0, 20, 0),
        (BOOT, 1, 20, 0),
        (BOOT, 2, 20, 0),
        (BOOT, 3, 1, 1),
    ]
    assert block.decode(records[0].raw).header.offset_us == 10**15
    assert block.decode(records[3].raw).events == [Event(1, "door", data={"open": True})]


def test_following_the_end(tmp_path: Path) -> None:
    """A reader that goes on from its cursor sees each block once, over segments, and none early."""
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, segment_bytes=4096, clock=Clock())
    reader, cursor, seen = Reader(tmp_path), BEGIN, []
    written = []
    for i in range(120):
        written += fill(writer, 1, i)
        for record in reader.records("plc-a", cursor):
            seen.append(record.seq)
            cursor = record.cursor
        assert seen == written
    assert writer.stats.segments > 2
    assert not list(reader.records("plc-a", cursor))


def test_half_an_append_is_waited_for(tmp_path: Path) -> None:
    """At every byte of an append that is under way the reader shows the blocks before it, and no damage."""
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    written = fill(writer, 2)
    path = next((tmp_path / "plc-a").iterdir())
    whole = path.read_bytes()
    reader = Reader(tmp_path)
    first, _ = [r.cursor for r in reader.records("plc-a")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert seqs(list(reader.records("plc-a"))) == (written[:1] if size >= first.offset else [])
        assert reader.damage == []
        assert reader.end("plc-a").offset in (first.offset, 0)


def test_live_and_history(tmp_path: Path) -> None:
    """`end` parts history from live data; newest_first is the same backwards, from any place on."""
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, segment_bytes=4096, clock=Clock())
    reader = Reader(tmp_path)
    assert reader.end("plc-a") == BEGIN
    history = fill(writer, 100)
    end = reader.end("plc-a")
    live = fill(writer, 50, 100)
    assert seqs(list(reader.records("plc-a", until=end))) == history
    assert seqs(list(reader.records("plc-a", end))) == live
    assert seqs(list(reader.newest_first("plc-a"))) == [*history, *live][::-1]
    assert seqs(list(reader.newest_first("plc-a", end))) == history[::-1]
    half = list(reader.newest_first("plc-a"))[:75]
    assert seqs(list(reader.newest_first("plc-a", half[-1].start))) == [*history, *live][:75][::-1]
    assert seqs(list(reader.records("plc-a", skip=lambda boot, seq: boot == BOOT and seq % 2 == 0))) == [
        s for s in [*history, *live] if s % 2
    ]
    assert seqs(list(reader.newest_first("plc-a", skip=lambda _, seq: seq != live[3]))) == [live[3]]


def test_deleted_under_the_reader(tmp_path: Path) -> None:
    """A segment that goes while it is read, or with the cursor in it, costs nothing else."""
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, segment_bytes=4096, clock=Clock())
    written = fill(writer, 150)
    reader = Reader(tmp_path)
    files = sorted((tmp_path / "plc-a").iterdir())
    reading = reader.records("plc-a")
    first = next(reading)
    files[0].unlink()
    files[1].unlink()
    rest = seqs(list(reading))
    assert first.seq == written[0]
    assert rest == sorted(rest)
    assert rest[-1] == written[-1]
    after = seqs(list(reader.records("plc-a", first.cursor)))
    assert after[-1] == written[-1]
    assert after == written[-len(after) :]
    assert not reader.damage


def test_segment_ends_by_size_and_by_time(tmp_path: Path) -> None:
    clock = Clock()
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=clock)
    fill(writer, 2)
    clock.us += 599_999_999
    fill(writer, 1)
    assert writer.stats.segments == 1
    clock.us += 1
    fill(writer, 1)
    assert writer.stats.segments == 2
    assert (
        writer.stats.bytes
        == writer.stats.used_bytes
        == sum(f.stat().st_size for f in (tmp_path / "plc-a").iterdir())
    )
    assert used_bytes(tmp_path) == {"plc-a": writer.stats.bytes}


def test_one_writer_per_stream(tmp_path: Path) -> None:
    """A second writer of a stream gets nothing in, says why, and takes over once the first is gone."""
    first = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    second = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    written = fill(first, 2)
    second.append(Sample("t", 0, 1, 0, "H"))
    assert second.seal() is None
    assert "another process writes this stream" in second.stats.error
    first.close()
    sealed = second.seal()
    assert sealed
    assert second.stats.error == ""
    assert seqs(list(Reader(tmp_path).records("plc-a"))) == [*written, written[-1] + 1]


def test_a_late_seal_does_not_take_the_stream_back(tmp_path: Path) -> None:
    """A seal that was queued before `close` leaves the lock to the next writer."""
    first = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    fill(first, 2)
    first.close()
    first.append(Sample("t", 0, 1, 0, "H"))
    assert first.seal() is None
    fill(Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock()), 1)


def test_bad_sample_does_not_take_others_along(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    writer.extend(Sample("t", i, 70_000 if i == 13 else i, 0, "H") for i in range(50))
    assert writer.seal()
    assert sorted(values(tmp_path)) == [i for i in range(50) if i != 13]  # type: ignore[type-var]
    assert writer.stats.lost_entries == 1
    assert writer.stats.entries == 49


def test_many_samples_are_several_blocks(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    writer.extend(Sample("t", i, i, 0, "I") for i in range(20_000))
    assert writer.full
    writer.extend(Sample("t", i, i, 0, "I") for i in range(20_000, 25_000))
    writer.seal()
    assert not writer.full
    assert [r.entries for r in Reader(tmp_path).records("plc-a")] == [20_000, 5_000]
    assert values(tmp_path) == list(range(25_000))


# Identity


def test_sequence_goes_on(tmp_path: Path) -> None:
    """Over restarts and boots; old segments are never touched."""
    first = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    start = fill(first, 3)[0]
    first.close()
    before = {f: f.read_bytes() for f in (tmp_path / "plc-a").iterdir()}
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT2, clock=Clock(0))
    fill(writer, 2)
    assert [(r.boot, r.seq - start) for r in Reader(tmp_path).records("plc-a")] == [
        (BOOT, 0),
        (BOOT, 1),
        (BOOT, 2),
        (BOOT2, 3),
        (BOOT2, 4),
    ]
    assert all(f.read_bytes() == data for f, data in before.items())


@pytest.mark.parametrize("keep_acks", [True, False])
def test_wiped_log_never_reuses_an_identity(tmp_path: Path, keep_acks: bool) -> None:
    """In the same boot, with blocks the cloud has seen: new ones must not be taken for those."""
    clock = Clock()
    acks = AckBook(tmp_path / "acks")
    first = Writer(tmp_path, "plc-a", "SP-1", BOOT, acks=acks, clock=clock)
    used = set(fill(first, 20))
    first.close()
    acks.add("plc-a", BOOT, min(used), max(used))
    acks.save()
    for file in (tmp_path / "plc-a").iterdir():
        file.unlink()
    if not keep_acks:
        (tmp_path / "acks/plc-a.json").unlink()
        clock.us += 20 * 1_000_000  # the time that sealing took
    again = Writer(tmp_path, "plc-a", "SP-1", BOOT, acks=AckBook(tmp_path / "acks"), clock=clock)
    assert used.isdisjoint(fill(again, 20))


def test_wiped_after_numbers_of_an_earlier_boot(tmp_path: Path) -> None:
    """The boot's numbers went on from an earlier boot's: nothing on the gateway tells how far they are."""
    old = Writer(tmp_path, "plc-a", "SP-1", BOOT2, clock=Clock(777_000_000))
    fill(old, 1)
    old.close()
    clock = Clock(776_990_000)
    used = set[int]()
    for _ in range(5):
        writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=clock)
        new = set(fill(writer, 30))
        writer.close()
        assert used.isdisjoint(new)
        used |= new
        for file in (tmp_path / "plc-a").iterdir():
            file.unlink()


@pytest.mark.parametrize("drawn", [0, 1], ids=["least", "most"])
def test_jumps_rise_and_stay_within_what_the_cloud_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: int
) -> None:
    """Torn end after torn end; reader, acks and cloud work with such numbers."""
    monkeypatch.setattr("secrets.randbits", lambda bits: drawn * ((1 << bits) - 1))
    written: list[int] = []
    for _ in range(20):
        writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
        new = fill(writer, 2)
        writer.close()
        assert not written or 2**40 <= new[0] - written[-1] <= 2**41
        written += new
        with max((tmp_path / "plc-a").iterdir()).open("ab") as file:
            file.write(b"torn")
    assert written[-1] + (2**18 - 20) * 2**41 < FAR_US
    records = list(Reader(tmp_path).records("plc-a"))
    assert seqs(records) == written
    acks = AckBook(tmp_path / "acks")
    acks.add("plc-a", BOOT, written[0], written[1])
    acks.add("plc-a", BOOT, written[-1], written[-1])
    acks.save()
    acks = AckBook(tmp_path / "acks")
    assert [s for s in written if acks.has("plc-a", BOOT, s)] == [*written[:2], written[-1]]
    assert acks.highest("plc-a", BOOT) == written[-1]
    decision = decide(topics.block("SP-1", "live", "plc-a"), records[-1].raw, None, 0)
    assert isinstance(decision, StoreBlock), decision
    buffer = Buffer(tmp_path / "buffer.sqlite")
    assert [buffer.commit([Received(0, decision)]) for _ in range(2)] == [0, 1]
    buffer.close()


def test_unreadable_newest_segment_is_a_damaged_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    written = fill(first, 3)
    first.close()
    with monkeypatch.context() as patch:
        unreadable(patch, errno.EIO)
        again = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
        assert again.stats.error == ""
        assert fill(again, 1)[0] > written[-1]


def test_reader_notices_a_wiped_log(tmp_path: Path) -> None:
    """A cursor into a log that is gone starts over with the new one."""
    first = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock(9_000_000))
    fill(first, 5)
    first.close()
    reader = Reader(tmp_path)
    end = reader.end("plc-a")
    for file in (tmp_path / "plc-a").iterdir():
        file.unlink()
    new = fill(Writer(tmp_path, "plc-a", "SP-1", BOOT2, clock=Clock(0)), 2)
    assert seqs(list(reader.records("plc-a", end))) == new


def test_all_acknowledged_then_restarted(tmp_path: Path) -> None:
    """The newest segment stays, so that the sequence goes on after everything else was dropped."""
    acks = AckBook(tmp_path / "acks")
    writer = Writer(
        tmp_path, "plc-a", "SP-1", BOOT, acks=AckBook(tmp_path / "acks"), segment_bytes=4096, clock=Clock()
    )
    written = fill(writer, 100)
    acks.add("plc-a", BOOT, written[0], written[-1])
    acks.save()
    writer.seal()
    assert writer.stats.segments == 1
    assert writer.stats.acked_segments > 1
    assert writer.stats.dropped_blocks == 0
    writer.close()
    assert Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock(0)).stats.next_seq == written[-1] + 1


@pytest.mark.parametrize("wiped", ["files", "folder", "folder made again"])
def test_wiped_under_a_running_writer(tmp_path: Path, wiped: str) -> None:
    """What is sealed after that is read, under new numbers."""
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    written = fill(writer, 3)
    if wiped == "files":
        next((tmp_path / "plc-a").iterdir()).unlink()
    else:
        shutil.rmtree(tmp_path / "plc-a")
    if wiped == "folder made again":
        (tmp_path / "plc-a").mkdir()
    new = fill(writer, 2)
    assert new == [written[-1] + 1, written[-1] + 2]
    assert seqs(list(Reader(tmp_path).records("plc-a"))) == new
    assert writer.stats.used_bytes == used_bytes(tmp_path)["plc-a"]
    second = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    assert "another process writes this stream" in second.stats.error


def test_folder_deleted_between_two_segments(tmp_path: Path) -> None:
    """One seal fails, the next one makes the folder again and stores all."""
    clock = Clock()
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=clock)
    shutil.rmtree(tmp_path / "plc-a")
    writer.append(Sample("t", 0, 1, 0, "I"))
    assert writer.seal() is None
    next_seq = writer.stats.next_seq
    assert fill(writer, 1) == [next_seq]
    assert seqs(list(Reader(tmp_path).records("plc-a"))) == [next_seq - 1, next_seq]


# Room


def test_oldest_goes_first_and_is_counted(tmp_path: Path) -> None:
    """A full log drops its oldest segment; what the cloud did not have is counted exactly."""
    acks = AckBook(tmp_path / "acks")
    writer = Writer(
        tmp_path, "plc-a", "SP-1", BOOT, quota=32_768, segment_bytes=4096, acks=acks, clock=Clock()
    )
    written = fill(writer, 10)
    acks.add("plc-a", BOOT, written[0], written[4])
    written += fill(writer, 500, 10)
    left = list(Reader(tmp_path).records("plc-a"))
    stats = writer.stats
    assert stats.used_bytes <= 32_768
    assert seqs(left) == written[-len(left) :]
    assert stats.dropped_blocks == len(written) - len(left) - 5
    assert stats.dropped_entries == stats.dropped_blocks * 20
    assert stats.dropped_segments > 3


def test_quota_is_shared(tmp_path: Path) -> None:
    """One quota over several streams, and over one that nobody writes any more."""
    old = Writer(tmp_path, "plc-old", "SP-1", BOOT, segment_bytes=4096, clock=Clock())
    fill(old, 100)
    old.close()
    for file in (tmp_path / "plc-old").iterdir():
        os.utime(file, (1, 1))
    quota = Quota(65_536)
    quota.adopt(tmp_path / "plc-old")
    clock = Clock()
    a = Writer(tmp_path, "plc-a", "SP-1", BOOT, quota=quota, segment_bytes=4096, clock=clock)
    b = Writer(tmp_path, "plc-b", "SP-1", BOOT, quota=quota, segment_bytes=4096, clock=clock)
    for i in range(600):
        clock.us += 1_000_000
        fill(a, 1, i)
        if i % 3 == 0:
            fill(b, 1, i)
    used = used_bytes(tmp_path)
    assert sum(used.values()) == quota.used_bytes <= 65_536
    assert used["plc-old"] <= 4096 + 200, "the oldest of all went first, down to its last segment"
    assert used["plc-a"] > 2 * used["plc-b"], "room follows the data"


def test_samples_quota() -> None:
    assert samples_quota(6 << 30) == (6 << 30) - (64 << 20)
    assert samples_quota(1 << 20) == 1 << 19


# Acknowledgements


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), max_size=30))
def test_ranges_are_a_set(parts: list[tuple[int, int]]) -> None:
    ranges, numbers = Ranges(), set[int]()
    for first, length in parts:
        new = set(range(first, first + length + 1))
        assert ranges.add(first, first + length) == (not new <= numbers)
        numbers |= new
        pairs = list(ranges)
        assert all(b + 1 < c for (_, b), (c, _) in pairwise(pairs)), "apart"
        assert {n for a, b in pairs for n in range(a, b + 1)} == numbers
    for number in range(-1, 72):
        assert (number in ranges) == (number in numbers)
        assert ranges.overlaps(number, number + 3) == any(n in numbers for n in range(number, number + 4))
    assert ranges.highest == max(numbers, default=None)


def test_acks_survive_and_are_seen_by_others(tmp_path: Path) -> None:
    uplink, writer = AckBook(tmp_path), AckBook(tmp_path)
    assert not writer.has("plc-a", BOOT, 1)
    assert uplink.add("plc-a", BOOT, 1, 3)
    assert not uplink.add("plc-a", BOOT, 2, 3)
    uplink.add("plc-b", BOOT2, 9, 9)
    uplink.save()
    assert writer.refresh("plc-a")
    assert not writer.refresh("plc-a")
    assert writer.has("plc-a", BOOT, 2)
    assert not writer.has("plc-a", BOOT2, 2)
    assert AckBook(tmp_path).highest("plc-b", BOOT2) == 9
    uplink.forget("plc-a", [BOOT2])
    uplink.save()
    assert not AckBook(tmp_path).has("plc-a", BOOT, 2)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"boots": {"zz": []}}', b'{"boots": {"01": [[5, 1]]}}', b"\xff"]
)
def test_damaged_acks_only_cost_a_resend(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plc-a.json").write_bytes(content)
    book = AckBook(tmp_path)
    assert not book.has("plc-a", BOOT, 1)
    book.add("plc-a", BOOT, 1, 1)
    book.save()
    assert AckBook(tmp_path).has("plc-a", BOOT, 1)


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE])
def test_what_cannot_be_read_is_not_taken_for_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A segment that can't be read just now may hold blocks that the cloud does not have."""
    acks = AckBook(tmp_path / "acks")
    writer = Writer(
        tmp_path, "plc-a", "SP-1", BOOT, acks=AckBook(tmp_path / "acks"), segment_bytes=4096, clock=Clock()
    )
    written = fill(writer, 100)
    segments = writer.stats.segments
    acks.add("plc-a", BOOT, written[0], written[0])
    acks.save()
    with monkeypatch.context() as patch:
        unreadable(patch, error)
        writer.seal()
    assert writer.stats.segments == segments
    assert seqs(list(Reader(tmp_path).records("plc-a"))) == written


def test_dropping_that_fails_is_ridden_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It ends nobody, is said once, and what is on flash stays counted."""
    disk, quota = Failing(), Quota(1 << 20)
    acks = AckBook(tmp_path / "acks")
    writer = Writer(
        tmp_path, "plc-a", "SP-1", BOOT, quota=quota, acks=AckBook(tmp_path / "acks"), segment_bytes=4096,
        disk=disk, clock=Clock(),
    )  # fmt: skip
    written = fill(writer, 150)
    before = writer.stats
    disk.error, disk.at = errno.EROFS, {"remove"}
    half = written[len(written) // 2]
    for last in (half, half + 1):  # the first segment stays for its first block, the second can't be removed
        acks.add("plc-a", BOOT, written[1], last)
        acks.save()
        quota.drop_acknowledged()
        assert writer.stats.segments == before.segments
        assert writer.stats.used_bytes == before.used_bytes
    assert disk.calls == 2
    assert sum("can't be dropped" in r.message for r in caplog.records) == 1
    disk.error = 0
    acks.add("plc-a", BOOT, written[0], written[-1])
    acks.save()
    quota.drop_acknowledged()
    assert writer.stats.segments == 1
    assert writer.stats.used_bytes == used_bytes(tmp_path)["plc-a"]


# Damage


def test_a_flipped_bit_costs_one_block_at_most(tmp_path: Path) -> None:
    """A bit flips in any byte of a segment: at most that one block is missing, and that is reported."""
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, segment_bytes=4096, clock=Clock())
    for i in range(4):
        writer.append(Sample("tag", i, i, 0, "I"))
        writer.seal()
    writer.close()
    good = [r.raw for r in Reader(tmp_path).records("plc-a")]
    fill(Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock()), 1)  # the damaged one is not the last
    path = sorted((tmp_path / "plc-a").iterdir())[0]
    whole = path.read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        reader = Reader(tmp_path)
        found = [r.raw for r in reader.records("plc-a")][:-1]
        assert [raw for raw in good if raw in found] == found, "none invented, all in order"
        assert len(found) >= len(good) - 1
        assert reader.damage, f"byte {at} is not reported"
        assert [r.raw for r in Reader(tmp_path).newest_first("plc-a")][1:] == found[::-1]


@pytest.mark.parametrize("hole", [(0, 40), (30, 300), (100, 101), (0, 2000)])
def test_overwritten_part(tmp_path: Path, hole: tuple[int, int]) -> None:
    """After a hole of zeros reading goes on with the next whole block."""
    written = fill(Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock()), 40)
    path = next((tmp_path / "plc-a").iterdir())
    data = bytearray(path.read_bytes())
    data[slice(*hole)] = bytes(hole[1] - hole[0])
    path.write_bytes(data)
    found = seqs(list(Reader(tmp_path).records("plc-a")))
    assert found == written[-len(found) :] or found == written[:1] + written[-len(found) + 1 :]
    assert len(found) >= len(written) - 2 - (hole[1] - hole[0]) // 100


def test_newer_format_is_left_alone(tmp_path: Path) -> None:
    """A segment of a later version (after a roll-back of the system) is reported, not misread."""
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    fill(writer, 2)
    writer.close()
    path = next((tmp_path / "plc-a").iterdir())
    data = bytearray(path.read_bytes())
    data[4] = 2
    length = int.from_bytes(data[6:8], "little")
    data[length - 4 : length] = zlib.crc32(data[: length - 4]).to_bytes(4, "little")
    path.write_bytes(data)
    new = fill(Writer(tmp_path, "plc-a", "SP-1", BOOT2, clock=Clock()), 1)
    reader = Reader(tmp_path)
    assert seqs(list(reader.records("plc-a"))) == new
    assert "newer system" in reader.damage[0].reason
    assert path.read_bytes() == data


def test_strangers_in_the_folder(tmp_path: Path) -> None:
    """Other files and folders are neither read nor dropped."""
    (tmp_path / "plc-a").mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "plc-a" / "notes.txt").write_text("x")
    (tmp_path / "plc-a" / ("0" * 16 + ".seg")).write_text("x")
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, quota=4096, segment_bytes=4096, clock=Clock())
    fill(writer, 200)
    assert values(tmp_path)
    assert (tmp_path / "plc-a" / "notes.txt").exists()
    assert not list(Reader(tmp_path).records("lost+found"))


# A flash that fails


class Failing(Disk):
    """Fails with `error` at the methods in `at` as long as that is set."""

    def __init__(self) -> None:
        self.error = 0
        self.at: set[str] = set()
        self.partly = False
        self.calls = 0

    def _check(self, name: str) -> None:
        if self.error and name in self.at:
            self.calls += 1
            raise OSError(self.error, os.strerror(self.error))

    def open_folder(self, path: Path) -> int:
        self._check("open_folder")
        return super().open_folder(path)

    def create(self, path: Path) -> int:
        self._check("create")
        return super().create(path)

    def write(self, fd: int, data: bytes) -> None:
        if self.partly and self.error and "write" in self.at:
            super().write(fd, data[: len(data) // 2])
        self._check("write")
        super().write(fd, data)

    def sync(self, fd: int) -> None:
        self._check("sync")
        super().sync(fd)

    def sync_folder(self, path: Path) -> None:
        self._check("sync_folder")
        super().sync_folder(path)

    def remove(self, path: Path) -> None:
        self._check("remove")
        super().remove(path)


def _cases() -> list[tuple[int, set[str], bool]]:
    return [
        (errno.EIO, {"write"}, False),
        (errno.EIO, {"write"}, True),
        (errno.EIO, {"sync"}, False),
        (errno.EIO, {"sync_folder"}, False),
        (errno.ENOSPC, {"create", "write"}, True),
        (errno.ENOSPC, {"sync"}, True),
        (errno.EROFS, {"create", "write", "sync", "sync_folder", "remove"}, False),
        (errno.EROFS, {"create", "write", "sync", "sync_folder", "remove"}, True),
    ]


@pytest.mark.parametrize(("error", "at", "partly"), _cases())
@pytest.mark.parametrize("already", [0, 3])
def test_failure_is_ridden_out(tmp_path: Path, error: int, at: set[str], partly: bool, already: int) -> None:
    """While the flash fails samples wait in memory; when it takes data again none is missing or double."""
    disk = Failing()
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, disk=disk, clock=Clock())
    fill(writer, already)
    disk.error, disk.at, disk.partly = error, at, partly
    failed = not (already and at == {"sync_folder"})  # a segment that is there needs no folder sync
    for i in range(already, already + 5):
        writer.extend(Sample("t", i, i * 20 + j, 0, "I") for j in range(20))
        assert (writer.seal() is None) == failed
    if failed:
        assert os.strerror(error) in writer.stats.error
        assert ";" in writer.stats.error, "with a remedy"
        assert writer.stats.waiting_bytes
    disk.error = 0
    fill(writer, 1, already + 5)
    assert writer.stats.error == ""
    assert writer.stats.lost_entries == writer.stats.waiting_bytes == 0
    seen: dict[int, bytes] = {}
    for record in Reader(tmp_path).records("plc-a"):
        assert seen.setdefault(record.seq, record.raw) == record.raw
    assert list(seen) == sorted(seen)
    got = [s.value for raw in seen.values() for s in block.decode(raw).samples]
    assert got == list(range((already + 6) * 20))


def test_after_a_failed_sync_the_retry_goes_to_another_file(tmp_path: Path) -> None:
    """Linux reports a failed write-back once; a second sync of the same file would promise what is not there."""
    disk = Failing()
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, disk=disk, clock=Clock())
    fill(writer, 2)
    disk.error, disk.at = errno.EIO, {"sync"}
    writer.append(Sample("t", 0, 1, 0, "I"))
    assert writer.seal() is None
    disk.error = 0
    sealed = writer.seal()
    assert sealed
    files = sorted((tmp_path / "plc-a").iterdir())
    assert len(files) == 2
    assert int(files[1].name[:16], 16) == sealed.seq


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A flash that fails for long: the newest blocks wait, the oldest are lost and counted."""
    disk = Failing()
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, disk=disk, ram_bytes=2000, clock=Clock())
    disk.error, disk.at = errno.EIO, {"write"}
    for i in range(200):
        writer.extend(Sample("t", i, i * 20 + j, 0, "I") for j in range(20))
        writer.seal()
        assert writer.stats.waiting_bytes <= 2000
    lost = writer.stats.lost_entries
    disk.error = 0
    fill(writer, 1, 200)
    assert 0 < lost < 4000
    assert values(tmp_path) == list(range(lost, 201 * 20))


def test_flash_absent_at_start(tmp_path: Path) -> None:
    """Without its folder the writer waits in bounded memory, and goes on with the sequence found later."""
    root = tmp_path / "flash"
    writer = Writer(root, "plc-a", "SP-1", BOOT2, max_entries=50, clock=Clock())
    assert "is the flash mounted" in writer.stats.error
    for i in range(80):
        writer.append(Sample("t", i, i, 0, "I"))
    assert writer.seal() is None
    assert not root.exists()
    root.mkdir()
    old = Writer(root, "plc-a", "SP-1", BOOT, clock=Clock(777_000))
    last = fill(old, 2)[-1]
    old.close()
    sealed = writer.seal()
    assert sealed and sealed.seq == last + 1
    assert values(root)[40:] == list(range(30, 80))
    assert writer.stats.lost_entries == 30


def test_full_disk_drops_oldest(tmp_path: Path) -> None:
    """ENOSPC before the quota is reached: the oldest segment makes room, and nothing new is lost."""

    class Small(Disk):
        def write(self, fd: int, data: bytes) -> None:
            used = sum(f.stat().st_size for f in (tmp_path / "plc-a").iterdir())
            if used + len(data) > 20_000:
                raise OSError(errno.ENOSPC, "full")
            super().write(fd, data)

    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, segment_bytes=4096, disk=Small(), clock=Clock())
    written = fill(writer, 400)
    assert writer.stats.error == ""
    assert writer.stats.lost_entries == 0
    left = seqs(list(Reader(tmp_path).records("plc-a")))
    assert left == written[-len(left) :]
    assert writer.stats.dropped_blocks == len(written) - len(left)


def test_seal_in_a_thread_loses_nothing(tmp_path: Path) -> None:
    """Samples appended while another thread seals are all there, in order."""
    writer = Writer(tmp_path, "plc-a", "SP-1", BOOT, clock=Clock())
    done = threading.Event()

    def sealing(seal: Callable[[], object]) -> None:
        while not done.is_set():
            seal()

    thread = threading.Thread(target=sealing, args=(writer.seal,))
    thread.start()
    for i in range(30_000):
        writer.append(Sample("t", i, i, 0, "I"))
    done.set()
    thread.join()
    writer.close()
    assert values(tmp_path) == list(range(30_000))
