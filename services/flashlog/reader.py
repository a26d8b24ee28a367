"""Reading the flash log: in order, following the end, whatever happened to the files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from firmware import paths
from firmware.wire import block
from services.flashlog import segment

log = logging.getLogger(__name__)


class Cursor(NamedTuple):
    """A place in a stream, between two blocks. Cursors of one stream compare in log order.

    Cursors are for a running process; what outlives it are the acks. A cursor stays good when its
    segment is deleted (reading goes on with the next one) and when the log is wiped (from the begin).
    """

    segment: str
    offset: int


BEGIN = Cursor("", 0)


class Record(NamedTuple):
    """One block of the log, checked, with what its header says."""

    stream: str
    boot: bytes
    seq: int
    kind: int
    first_us: int
    last_us: int
    entries: int
    """Samples or events in the block."""
    raw: bytes
    """The block as sealed: publish it as it is."""
    cursor: Cursor
    """The place behind this block: `records(stream, after=record.cursor)` goes on there."""
    start: Cursor
    """The place before it: `newest_first(stream, before=record.start)` goes on there."""


class Damage(NamedTuple):
    """A part of the log that can't be read. Power cuts leave such ends; anything else is a flash fault."""

    stream: str
    segment: str
    start: int
    end: int
    reason: str


Skip = Callable[[bytes, int], bool]
"""(boot, seq) -> leave this block out, before its body is read."""


class Reader:
    """All streams under one folder (default `/flash/log`). Reads only; any number may exist."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or paths.LOG
        self._damage: dict[tuple[str, str, int], Damage] = {}

    @property
    def damage(self) -> list[Damage]:
        """What could not be read so far, each place once."""
        return list(self._damage.values())

    def streams(self) -> list[str]:
        """Names of all streams; none while the flash is not there."""
        try:
            with os.scandir(self._root) as entries:
                return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        except OSError:
            return []

    def boots(self, stream: str) -> set[bytes]:
        """Boots that have segments; for `AckBook.forget`."""
        return {name.boot for text in self._segments(stream) if (name := segment.parse_name(text))}

    def end(self, stream: str) -> Cursor:
        """The place behind the last whole block now: history lies before it, live data comes behind it."""
        names = self._segments(stream)
        if not names:
            return BEGIN
        offset = 0
        try:
            with _opened(self._root / stream / names[-1]) as fd:
                for found in segment.scan(fd, final=False):
                    offset = found.end
        except OSError as error:
            log.warning("%s/%s can't be read: %s", stream, names[-1], error)
        return Cursor(names[-1], offset)

    def records(
        self, stream: str, after: Cursor = BEGIN, *, until: Cursor | None = None, skip: Skip | None = None
    ) -> Iterator[Record]:
        """Blocks behind `after` (and before `until`), oldest first, to the present end.

        To follow a stream, call it again with the last record's cursor. Lazy: one block in memory.
        `skip` leaves blocks out without reading them, e.g. those that are acknowledged.
        Damaged parts are passed over and noted in `damage`. A block that the writer stored twice (its
        first attempt had failed) may come twice, with the same identity and bytes.
        """
        # The list comes before the reading: what has a successor in it is not appended to any more.
        names = self._segments(stream)
        if names and names[-1] < after.segment:
            after = BEGIN  # The newest segment is never deleted, so this is another log: it was wiped.
        last: dict[bytes, int] = {}
        for name in names:
            if name < after.segment:
                continue
            if until is not None and name > until.segment:
                return
            offset = after.offset if name == after.segment else 0
            limit = until.offset if until is not None and name == until.segment else None
            try:
                with _opened(self._root / stream / name) as fd:
                    for found in segment.scan(fd, offset, final=name != names[-1]):
                        if limit is not None and found.end > limit:
                            break
                        if isinstance(found, segment.Gap):
                            self._note(stream, name, found.start, found.end, found.reason)
                            continue
                        if found.head.seq <= last.get(found.head.boot, -1):
                            continue
                        if skip and skip(found.head.boot, found.head.seq):
                            continue
                        record = self._read(fd, stream, name, found)
                        if record:
                            last[record.boot] = record.seq
                            yield record
            except FileNotFoundError:
                continue  # dropped by the writer in the meantime
            except OSError as error:
                self._note(stream, name, offset, -1, f"the flash can't be read: {error}")

    def newest_first(
        self, stream: str, before: Cursor | None = None, *, skip: Skip | None = None
    ) -> Iterator[Record]:
        """Blocks before a place (default: the end), newest first. Otherwise as `records`."""
        names = self._segments(stream)
        for name in reversed(names):
            if before is not None and name > before.segment:
                continue
            limit = before.offset if before is not None and name == before.segment else None
            try:
                with _opened(self._root / stream / name) as fd:
                    frames = []
                    for found in segment.scan(fd, final=name != names[-1]):
                        if isinstance(found, segment.Gap):
                            self._note(stream, name, found.start, found.end, found.reason)
                        elif limit is None or found.end <= limit:
                            frames.append(found)
                    for found in reversed(frames):
                        if not (skip and skip(found.head.boot, found.head.seq)):
                            record = self._read(fd, stream, name, found)
                            if record:
                                yield record
            except FileNotFoundError:
                continue
            except OSError as error:
                self._note(stream, name, 0, -1, f"the flash can't be read: {error}")

    def _read(self, fd: int, stream: str, name: str, found: segment.Frame) -> Record | None:
        raw = segment.body(fd, found)
        try:
            head = block.read_header(raw)
        except block.BlockError as error:
            self._note(stream, name, found.start, found.end, str(error))
            return None
        owner = segment.parse_name(name)
        if head.id.stream != stream or owner is None or head.id.boot != owner.boot:
            self._note(stream, name, found.start, found.end, f"a block of another segment: {head.id}")
            return None
        return Record(
            stream,
            head.id.boot,
            head.id.seq,
            head.kind,
            head.first_us,
            head.last_us,
            head.count,
            raw,
            Cursor(name, found.end),
            Cursor(name, found.start),
        )

    def _segments(self, stream: str) -> list[str]:
        try:
            names = os.listdir(self._root / stream)  # noqa: PTH208 - a Path per segment would cost
        except OSError:
            return []
        return sorted(n for n in names if segment.parse_name(n))

    def _note(self, stream: str, name: str, start: int, end: int, reason: str) -> None:
        if (stream, name, start) not in self._damage:
            self._damage[stream, name, start] = Damage(stream, name, start, end, reason)
            log.warning("%s/%s: bytes %d to %d are passed over: %s", stream, name, start, end, reason)


class _opened:  # noqa: N801 - reads like contextlib's
    """A file descriptor for reading, closed at the end of the block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
