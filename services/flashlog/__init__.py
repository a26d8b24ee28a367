"""The flash log: append-only segment files, the only pipe between what produces data and what sends it.

A *stream* is a folder of segments that one process appends to. A segment holds sealed blocks
(`firmware.wire.block`), one behind the other; docs/log-format.md describes it byte by byte.

- `Writer` (the process that owns a stream) seals samples and events into blocks and keeps the quota.
- `Reader` (the uplink) reads blocks in order, follows the end, and survives damage and deletion.
- `AckBook` (the uplink writes, the writers read) says which blocks the cloud has stored.

A block is named by device, stream, boot and sequence. The sequence goes on over boots while the log
lives; should it be wiped or its end be damaged, the sequence goes on at a number that was never used.
"""

from services.flashlog.acks import AckBook, Ranges
from services.flashlog.folder import EVENTS_QUOTA, Quota, samples_quota, used_bytes
from services.flashlog.reader import BEGIN, Cursor, Damage, Reader, Record
from services.flashlog.writer import Stats, Writer

__all__ = [
    "BEGIN",
    "EVENTS_QUOTA",
    "AckBook",
    "Cursor",
    "Damage",
    "Quota",
    "Ranges",
    "Reader",
    "Record",
    "Stats",
    "Writer",
    "samples_quota",
    "used_bytes",
]
