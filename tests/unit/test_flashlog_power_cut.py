"""Power cuts, exhaustively: the writer's stream of file operations is cut at every place and every byte."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from firmware.clock import Instant
from firmware.wire.block import Sample
from services.flashlog import AckBook, Reader, Writer
from services.flashlog.disk import Disk

BOOT, NEXT_BOOT = b"\1" * 16, b"\2" * 16
STREAM = "plc-a"


class Recorder(Disk):
    """The real file system, and a list of what was done to it."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, ...] | tuple[str, str, bytes]] = []
        self._names: dict[int, str] = {}

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self._names[fd] = path.name
        self.operations.append(("create", path.name))
        return fd

    def write(self, fd: int, data: bytes) -> None:
        super().write(fd, data)
        self.operations.append(("write", self._names[fd], data))

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.operations.append(("sync", self._names[fd]))

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        if path.name == STREAM:
            self.operations.append(("sync_folder",))

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.operations.append(("remove", path.name))


@dataclass
class Flash:
    """What a file system may show after a power cut: all that was synced, and any part of the rest."""

    synced: dict[str, bytes] = field(default_factory=dict)
    """Contents by file, as of its last sync."""
    written: dict[str, bytes] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    """Names as of the last sync of the folder."""

    def apply(self, operation: tuple[str, ...] | tuple[str, str, bytes]) -> None:
        match operation:
            case ("create", name):
                self.written[name] = self.synced[name] = b""
            case ("write", name, data):
                self.written[name] += data  # type: ignore[operator]
            case ("sync", name):
                self.synced[name] = self.written[name]
            case ("sync_folder",):
                self.names = set(self.written)
            case ("remove", name):
                del self.written[name]

    def remains(self) -> Iterator[dict[str, bytes]]:
        """Everything that may be left: nothing unsynced, all of it, or the last write cut at any byte."""
        yield {name: self.synced[name] for name in self.names}  # also a removed file comes back
        yield dict(self.written)
        for name, data in self.written.items():
            safe = len(self.synced[name])
            for end in range(safe, len(data)):
                yield {**self.written, name: data[:end]}
                if end % 5 == 0:  # the length was stored, the contents were not
                    yield {**self.written, name: data[:end] + bytes(len(data) - end)}


def record(tmp_path: Path) -> tuple[list[tuple[int, set[bytes]]], Recorder, set[bytes]]:
    """A writer at work: for each sealed block the number of operations after which it was promised."""
    disk, ticks = Recorder(), itertools.count(1_000_000, 1_000_000)
    acks = AckBook(tmp_path / "acks")
    writer = Writer(
        tmp_path, STREAM, "SP-1", BOOT, disk=disk, acks=AckBook(tmp_path / "acks"), segment_bytes=4096,
        segment_s=3, clock=lambda: Instant(next(ticks), 0),
    )  # fmt: skip
    promised: list[tuple[int, set[bytes]]] = []
    blocks: set[bytes] = set()
    acked = 0
    for i in range(8):
        for j in range(1 + i % 3):
            writer.append(Sample("t", i * 10 + j, i, 0, "H"))
        sealed = writer.seal()
        assert sealed
        new = {r.raw for r in Reader(tmp_path).records(STREAM)} - blocks
        assert new
        blocks |= new
        promised.append((len(disk.operations), new))
        if i == 4:
            acked = sealed.seq
            acks.add(STREAM, BOOT, 0, acked)
            acks.save()
    assert any(o[0] == "remove" for o in disk.operations)
    writer.close()
    return promised, disk, blocks


def test_power_cut_at_every_byte(tmp_path: Path) -> None:
    """Every block that was promised is there unless it was dropped, none is invented, and writing goes on."""
    promised, disk, blocks = record(tmp_path / "made" if (tmp_path / "made").mkdir() is None else tmp_path)
    flash, dropped = Flash(), set[bytes]()
    where = contents(tmp_path / "made", disk)
    states = 0
    for done, operation in enumerate(disk.operations, 1):
        flash.apply(operation)
        if operation[0] == "remove":
            dropped |= where[str(operation[1])]
        safe = set().union(*(raw for at, raw in promised if at <= done)) - dropped
        for number, files in enumerate(flash.remains()):
            root = lay_out(tmp_path / "after", files)
            reader = Reader(root)
            found = [r.raw for r in reader.records(STREAM)]
            seqs = [r.seq for r in reader.records(STREAM)]
            assert safe <= set(found), f"lost after {operation[:2]}, state {number}"
            assert set(found) <= blocks, "invented"
            assert seqs == sorted(set(seqs))
            if number % 9 == 0:
                go_on(root, found)
            states += 1
    assert states > 500


def contents(root: Path, disk: Recorder) -> dict[str, set[bytes]]:
    """Blocks by segment, from all that was ever written."""
    flash = Flash()
    ever: dict[str, bytes] = {}
    for operation in disk.operations:
        if operation[0] != "remove":
            flash.apply(operation)
        ever |= flash.written
    folder = lay_out(root / "ever", ever)
    found: dict[str, set[bytes]] = {name: set() for name in ever}
    for item in Reader(folder).records(STREAM):
        found[item.cursor.segment].add(item.raw)
    return found


def lay_out(root: Path, files: dict[str, bytes]) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    (root / STREAM).mkdir(parents=True)
    for name, data in files.items():
        (root / STREAM / name).write_bytes(data)
    return root


def go_on(root: Path, before: list[bytes]) -> None:
    """The next boot appends behind whatever is there, and changes nothing of it."""
    old = {f.name: f.read_bytes() for f in (root / STREAM).iterdir()}
    writer = Writer(root, STREAM, "SP-1", NEXT_BOOT, clock=lambda: Instant(0, 0))
    writer.append(Sample("t", 0, 1, 0, "H"))
    assert writer.seal()
    writer.close()
    records = list(Reader(root).records(STREAM))
    assert [r.raw for r in records[:-1]] == before
    assert records[-1].boot == NEXT_BOOT
    assert all(records[-1].seq > r.seq for r in records[:-1])
    assert all((root / STREAM / name).read_bytes() == data for name, data in old.items())
    assert len(list((root / STREAM).iterdir())) == len(old) + 1
