"""Appending to the flash log: samples and events in, sealed blocks on flash out."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from firmware import clock as clocks
from firmware import paths
from firmware.wire import block
from firmware.wire.block import BlockId, Event, Sample
from services.flashlog import segment
from services.flashlog.acks import AckBook
from services.flashlog.disk import Disk
from services.flashlog.folder import EVENTS_QUOTA, Folder, Kept, Quota

log = logging.getLogger(__name__)

SEGMENT_BYTES = 1024 * 1024
SEGMENT_S = 600
BLOCK_ENTRIES = 20_000
"""More are split over several blocks; also where `Writer.full` begins."""
_BEGIN_BITS, _JUMP_BITS = 59, 40
"""Random bits of a new beginning of the sequence, and of a jump in it: see `Writer._next_seq`."""
_REMEDIES = {
    errno.ENOSPC: "the flash is full and no segment of this stream is left to drop: lower log.quota_mib",
    errno.EROFS: "the flash is read-only, so the kernel found a fault in it: see the journal, check it",
    errno.EIO: "the flash does not answer: check or replace it",
    errno.ENOENT: "the folder of the log is not there: is the flash mounted?",
    errno.EACCES: "this service may not write there: check owner and mode of the folder",
    errno.EAGAIN: "another process writes this stream: end it",
}


class Stats(msgspec.Struct):
    """What a writer did since it began; plain data for a status document."""

    next_seq: int = 0
    blocks: int = 0
    entries: int = 0
    bytes: int = 0
    """Written and synced: blocks, frames and headers."""
    segments: int = 0
    used_bytes: int = 0
    """On flash now."""
    acked_segments: int = 0
    dropped_segments: int = 0
    dropped_blocks: int = 0
    dropped_entries: int = 0
    """Dropped for room although the cloud had not stored them."""
    waiting_bytes: int = 0
    """Sealed, but held in memory because the flash fails."""
    lost_entries: int = 0
    """Never reached the flash: it failed for too long, or they could not be encoded."""
    error: str = ""
    """Why the flash fails at the moment, and what helps."""


class _Sealed(NamedTuple):
    id: BlockId
    raw: bytes
    entries: int


class Writer:
    """Appends to one stream. `append` and `extend` only fill memory; `seal` does the work and may block.

    `seal` may run in another thread than the rest. A flash that fails never raises: up to `ram_bytes`
    of sealed blocks (and `max_entries` unsealed entries) wait in memory, `seal` tries again, `stats`
    says what is wrong and counts what had to go.

    `root` is the folder of all streams (default `/flash/log`); `quota` is bytes for this stream, or a
    `Quota` shared with others of this process; `boot` defaults to this boot. With `acks`, segments that
    the cloud has stored as a whole are dropped.
    """

    def __init__(
        self,
        root: Path | None,
        stream: str,
        device: str,
        boot: bytes | None = None,
        *,
        quota: Quota | int = EVENTS_QUOTA,
        acks: AckBook | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        segment_s: float = SEGMENT_S,
        ram_bytes: int = 1024 * 1024,
        max_entries: int = 2 * BLOCK_ENTRIES,
        clock: Callable[[], clocks.Instant] = clocks.now,
        disk: Disk | None = None,
    ) -> None:
        self._device = device
        self._boot = boot or clocks.boot_id()
        self._quota = quota if isinstance(quota, Quota) else Quota(quota)
        self._disk = disk or Disk()
        self._folder = Folder((root or paths.LOG) / stream, self._disk, acks)
        self._segment_bytes = max(4096, min(segment_bytes, self._quota.limit_bytes // 8))
        self._segment_us = int(segment_s * 1e6)
        self._ram_bytes = ram_bytes
        self._max_entries = max_entries
        self._clock = clock
        self._samples: deque[Sample] = deque()
        self._events: deque[Event] = deque()
        self._queue: deque[_Sealed] = deque()
        self._filling = threading.Lock()
        self._sealing = threading.Lock()
        self._closed = False
        self._lock_fd: int | None = None
        self._fd: int | None = None
        self._born_us = 0
        self._stats = Stats()
        try:
            self._open()
        except OSError as error:
            self._fail(error)

    @property
    def stream(self) -> str:
        return self._folder.stream

    @property
    def stats(self) -> Stats:
        """A copy."""
        stats = msgspec.structs.replace(
            self._stats,
            segments=len(self._folder.kept),
            used_bytes=self._folder.size,
            waiting_bytes=sum(len(b.raw) for b in tuple(self._queue)),
        )
        for name in ("acked_segments", "dropped_segments", "dropped_blocks", "dropped_entries"):
            setattr(stats, name, getattr(self._folder, name))
        return stats

    @property
    def full(self) -> bool:
        """So much waits that `seal` should be called now rather than at the next turn."""
        return len(self._samples) >= BLOCK_ENTRIES

    def append(self, sample: Sample) -> None:
        self.extend((sample,))

    def extend(self, samples: Iterable[Sample]) -> None:
        with self._filling:
            self._samples.extend(samples)
            self._bound(self._samples)

    def append_event(self, event: Event) -> None:
        with self._filling:
            self._events.append(event)
            self._bound(self._events)

    def seal(self) -> BlockId | None:
        """Put all that was appended on flash: encode, one write, fdatasync.

        Returns the last block that is now safe; None if there was nothing to do, the flash fails, or
        the writer is closed.
        """
        with self._sealing:
            if self._closed:
                return None
            try:
                if self._lock_fd is None:
                    self._open()
                self._encode()
                last = self._queue[-1].id if self._queue else None
                if last:
                    self._store()
                self._folder.drop_acknowledged()
            except OSError as error:
                self._fail(error)
                return None
            if self._stats.error:
                log.warning("%s: the flash takes data again", self.stream)
                self._stats.error = ""
            return last

    def close(self) -> None:
        """Seal and let go of the stream. The writer can't be used after that."""
        self.seal()
        with self._sealing:
            self._closed = True  # a late `seal` would take the lock again, for ever
            self._let_go()

    def _open(self) -> None:
        """Lock the stream and find out how the sequence goes on. Old segments are left as they are."""
        fd = self._disk.open_folder(self._folder.path)
        try:
            self._folder.load()
            self._stats.next_seq = max(self._stats.next_seq, self._next_seq())
        except BaseException:
            self._disk.close(fd)
            raise
        self._lock_fd = fd
        self._quota.join(self._folder)

    def _next_seq(self) -> int:
        following, clean = 0, False
        if self._folder.kept:
            newest = self._folder.kept[-1].name
            following = newest.first_seq + 1
            try:
                fd = os.open(self._folder.path / str(newest), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    for found in segment.scan(fd, final=True):
                        clean = isinstance(found, segment.Frame)
                        if isinstance(found, segment.Frame):
                            following = max(following, found.head.seq + 1)
                finally:
                    os.close(fd)
            except OSError as error:
                clean = False
                log.warning("%s: %s can't be read, the sequence jumps: %s", self.stream, newest, error)
        if self._folder.acks:
            highest = self._folder.acks.highest(self.stream, self._boot)
            following = max(following, -1 if highest is None else highest + 1)
        if not clean and not self._stats.next_seq:
            # Blocks of this same boot may be gone (wiped, damaged) that the cloud has seen. A damaged segment
            # held far less than a jump; numbers that are gone altogether are missed by chance. Beginnings
            # don't add up, and so 2**18 jumps stay below the 2**60 from which the cloud refuses.
            jump = (1 << _JUMP_BITS) + secrets.randbits(_JUMP_BITS)
            following = max(secrets.randbits(_BEGIN_BITS), following + jump)
        return following

    def _encode(self) -> None:
        """Everything appended so far becomes blocks in the queue."""
        with self._filling:
            samples, self._samples = self._samples, deque()
            events, self._events = self._events, deque()
        offset_us = self._clock().wall_offset_us if samples or events else 0
        for entries in (list(samples), list(events)):
            for start in range(0, len(entries), BLOCK_ENTRIES):
                self._encode_some(entries[start : start + BLOCK_ENTRIES], offset_us)

    def _encode_some(self, entries: list[Sample] | list[Event], offset_us: int) -> None:
        identity = BlockId(self._device, self.stream, self._boot, self._stats.next_seq)
        try:
            if isinstance(entries[0], Sample):
                raw = block.encode_samples(identity, entries, offset_us)
            else:
                raw = block.encode_events(identity, entries, offset_us)
        except block.BlockError as error:
            if len(entries) == 1:
                self._stats.lost_entries += 1
                log.error("%s: an entry can't be stored and is left out: %s", self.stream, error)  # noqa: TRY400
                return
            # One bad entry must not take the others along; halving also helps against a block too long.
            middle = len(entries) // 2
            self._encode_some(entries[:middle], offset_us)
            self._encode_some(entries[middle:], offset_us)
            return
        self._stats.next_seq += 1
        self._queue.append(_Sealed(identity, raw, len(entries)))

    def _store(self) -> None:
        """The queue goes to flash. Raises OSError and keeps the queue, bounded."""
        frames = b"".join(segment.frame(b.raw) for b in self._queue)
        while True:
            try:
                self._quota.make_room(len(frames))
                self._write(frames)
                break
            except OSError as error:
                # A sync that failed may succeed the next time without having written anything: the retry
                # goes to another file. Nor does anything go behind a torn frame.
                self._end_segment()
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._quota.drop_oldest():
                    raise
        self._stats.blocks += len(self._queue)
        self._stats.entries += sum(b.entries for b in self._queue)
        self._queue.clear()

    def _write(self, frames: bytes) -> None:
        now = self._clock()
        if self._fd is not None and self._disk.is_gone(self._fd):
            self._let_go()
            self._open()
        if self._fd is not None and (
            self._folder.kept[-1].size >= self._segment_bytes
            or now.monotonic_us - self._born_us >= self._segment_us
        ):
            self._end_segment()
        if self._fd is None:
            self._begin_segment(frames, now)
        else:
            self._disk.write(self._fd, frames)
            self._disk.sync(self._fd)
            self._folder.grow(len(frames))
            self._stats.bytes += len(frames)

    def _begin_segment(self, frames: bytes, now: clocks.Instant) -> None:
        """A new segment with its first frames, or none at all."""
        name = segment.Name(self._queue[0].id.seq, self._boot)
        path = self._folder.path / str(name)
        data = segment.header(name, self.stream) + frames
        fd = self._disk.create(path)
        try:
            self._disk.write(fd, data)
            self._disk.sync(fd)
            self._disk.sync_folder(self._folder.path)
        except OSError:
            self._disk.close(fd)
            with contextlib.suppress(OSError):
                self._disk.remove(path)
            raise
        self._fd, self._born_us = fd, now.monotonic_us
        self._folder.add(Kept(name, len(data), now.wall_us * 1000))
        self._stats.bytes += len(data)

    def _end_segment(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self._disk.close(fd)

    def _let_go(self) -> None:
        """Of segment and lock. The next `seal` looks anew at what is there."""
        self._end_segment()
        if self._lock_fd is not None:
            fd, self._lock_fd = self._lock_fd, None
            self._disk.close(fd)

    def _fail(self, error: OSError) -> None:
        remedy = _REMEDIES.get(error.errno or 0, "see the journal")
        text = f"{self._folder.path}: {os.strerror(error.errno) if error.errno else error}; {remedy}"
        if text != self._stats.error:
            log.error("%s", text)
        self._stats.error = text
        if error.errno in (errno.ENOENT, errno.ESTALE):  # the folder was deleted, or mounted anew
            with contextlib.suppress(OSError):
                self._let_go()
        waiting = sum(len(b.raw) for b in self._queue)
        while waiting > self._ram_bytes:
            gone = self._queue.popleft()
            waiting -= len(gone.raw)
            self._stats.lost_entries += gone.entries

    def _bound(self, entries: deque[Sample] | deque[Event]) -> None:
        while len(entries) > self._max_entries:
            entries.popleft()
            self._stats.lost_entries += 1
