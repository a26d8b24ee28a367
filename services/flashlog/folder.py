"""The segments of a stream as its owner keeps them, and the quota over several streams."""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from firmware import paths
from firmware.wire import block
from services.flashlog import segment
from services.flashlog.acks import AckBook
from services.flashlog.disk import Disk

log = logging.getLogger(__name__)

EVENTS_QUOTA = 8 * 1024 * 1024
"""Bytes that a stream of events may take."""
_EVENT_STREAMS = 8
"""Room is set aside for so many streams of events."""


@dataclass
class Kept:
    """A segment on the flash."""

    name: segment.Name
    size: int
    changed_ns: int
    """Wall clock; compared only between streams, so that a wrong clock is unfair at worst."""


@dataclass
class Folder:
    """All segments of one stream, oldest first. The newest is never dropped: it carries the sequence on."""

    path: Path
    disk: Disk = field(default_factory=Disk)
    acks: AckBook | None = None
    kept: deque[Kept] = field(default_factory=deque)
    size: int = 0
    acked_segments: int = 0
    dropped_segments: int = 0
    dropped_blocks: int = 0
    dropped_entries: int = 0
    """Dropped for room although the cloud had not stored them."""
    warned: set[str] = field(default_factory=set)

    @property
    def stream(self) -> str:
        return self.path.name

    def load(self) -> None:
        """Take stock of what is on the flash. Raises OSError."""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                name = segment.parse_name(entry.name)
                if name:
                    stat = entry.stat()
                    found.append(Kept(name, stat.st_size, stat.st_mtime_ns))
        self.kept = deque(sorted(found, key=lambda k: k.name))
        self.size = sum(k.size for k in found)

    def add(self, kept: Kept) -> None:
        self.kept.append(kept)
        self.size += kept.size

    def grow(self, size: int) -> None:
        """The newest segment has become longer."""
        self.kept[-1].size += size
        self.size += size

    def drop_oldest(self) -> None:
        """Remove the oldest segment (there must be a newer one), counting what the cloud does not have."""
        blocks, entries = self._unacked(self.kept[0].name)
        self._remove_first()
        self.dropped_segments += 1
        self.dropped_blocks += blocks
        self.dropped_entries += entries
        log.warning(
            "%s: oldest segment dropped for room: %d blocks, %d entries", self.stream, blocks, entries
        )

    def drop_acknowledged(self) -> None:
        """Remove the segments of which the cloud has stored every readable block. Raises OSError."""
        if self.acks is None or not self.acks.refresh(self.stream):
            return
        waiting: deque[Kept] = deque()
        try:
            while len(self.kept) > 1:
                name, after = self.kept[0].name, self.kept[1].name
                last = after.first_seq - 1
                if (
                    self.acks.overlaps(self.stream, name.boot, name.first_seq, last)
                    and not self._unacked(name)[0]
                ):
                    self._remove_first()
                    self.acked_segments += 1
                else:
                    waiting.append(self.kept.popleft())
        finally:
            waiting.extend(self.kept)
            self.kept = waiting

    def warn(self, text: str) -> None:
        """Once per text: this comes round every second."""
        if text not in self.warned:
            self.warned.add(text)
            log.warning("%s: %s", self.stream, text)

    def _remove_first(self) -> None:
        self.disk.remove(self.path / str(self.kept[0].name))
        self.size -= self.kept.popleft().size

    def _unacked(self, name: segment.Name) -> tuple[int, int]:
        """Readable blocks of a segment that the cloud has not stored, and their entries.

        Where reading fails there may be more (the next time it may succeed): that counts as one block.
        """
        blocks = entries = 0
        try:
            fd = os.open(self.path / str(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                for found in segment.scan(fd, final=True):
                    if isinstance(found, segment.Gap):
                        continue
                    head = found.head
                    if self.acks and self.acks.has(self.stream, head.boot, head.seq):
                        continue
                    try:
                        block.read_header(segment.body(fd, found))
                    except block.BlockError:
                        continue
                    blocks += 1
                    entries += head.entries
            finally:
                os.close(fd)
        except FileNotFoundError:
            return 0, 0
        except OSError as error:
            self.warn(f"{name} can't be read: {error}")
            blocks += 1
        return blocks, entries


class Quota:
    """Room for all streams of one process together: the oldest segment of all goes first.

    Not for two threads at once.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._folders: dict[Path, Folder] = {}

    @property
    def used_bytes(self) -> int:
        return sum(f.size for f in list(self._folders.values()))

    def join(self, folder: Folder) -> None:
        self._folders[folder.path] = folder

    def adopt(self, path: Path, acks: AckBook | None = None) -> Folder:
        """Count a stream in that nobody writes any more, so that it makes room too. Raises OSError."""
        folder = Folder(path, acks=acks)
        folder.load()
        self.join(folder)
        return folder

    def make_room(self, need: int) -> None:
        """Drop until `need` more bytes fit, or nothing is left that may go. Raises OSError."""
        while self.used_bytes + need > self.limit_bytes and self.drop_oldest():
            pass

    def drop_acknowledged(self) -> None:
        """Also of streams that nobody writes any more. Writers look after their own. What fails has time."""
        for folder in self._folders.values():
            try:
                folder.drop_acknowledged()
            except OSError as error:
                folder.warn(f"what the cloud has stored can't be dropped: {error}")

    def drop_oldest(self) -> bool:
        """Drop the oldest segment of all. False if none may go. Raises OSError."""
        candidates = [f for f in self._folders.values() if len(f.kept) > 1]
        if not candidates:
            return False
        min(candidates, key=lambda f: f.kept[0].changed_ns).drop_oldest()
        return True


def samples_quota(total_bytes: int) -> int:
    """What of the room for the whole log (`log.quota_mib`) is for samples; events keep the rest."""
    return max(total_bytes - _EVENT_STREAMS * EVENTS_QUOTA, total_bytes // 2)


def used_bytes(root: Path | None = None) -> dict[str, int]:
    """Bytes that each stream takes now."""
    used = {}
    for folder in sorted((root or paths.LOG).glob("*/")):
        taken = Folder(folder)
        try:
            taken.load()
        except OSError:
            continue
        used[folder.name] = taken.size
    return used
