"""Time on a gateway: a monotonic microsecond count since boot, and a wall clock that may be wrong."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from functools import cache

from firmware import paths


@cache
def boot_id() -> bytes:
    """16 bytes that name this boot."""
    return uuid.UUID(paths.BOOT_ID.read_text(encoding="ascii").strip()).bytes


@dataclass(frozen=True)
class Instant:
    """One reading of both clocks, in microseconds."""

    monotonic_us: int
    """CLOCK_BOOTTIME: counts from boot, never stepped."""
    wall_us: int
    """CLOCK_REALTIME since 1970: may be unset or stepped."""

    @property
    def wall_offset_us(self) -> int:
        return self.wall_us - self.monotonic_us


def now() -> Instant:
    return Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000, time.time_ns() // 1000)
