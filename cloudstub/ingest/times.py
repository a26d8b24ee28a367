"""Time correction (X37): when was it really? Pure.

A block's times count from the boot of its gateway. The boot's *epoch* is the true time of its zero, in
microseconds since 1970; time of a sample = epoch + its monotonic time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from firmware.wire.block import Header

RESTAMP_US = 100_000
"""A later report that says the same within this is no reason to rewrite stored times."""


class Clock(NamedTuple):
    """A clock report: cloud time = boot_epoch_us + monotonic time, within error_us."""

    boot: bytes
    measured_us: int
    boot_epoch_us: int
    error_us: int
    wall_error_us: int


class Epoch(NamedTuple):
    epoch_us: int
    estimated: bool
    """No report of this boot: taken from the gateway's wall clock."""


def epoch_of(header: Header, reports: Sequence[Clock], next_wall_error_us: int | None) -> Epoch:
    """Epoch for a block, from the reports of its boot; without any, from its wall clock as sealed.

    `next_wall_error_us`: how wrong the gateway's wall clock was when it next reported (None: unknown, taken as 0).
    """
    if reports:
        middle = (header.first_us + header.last_us) // 2
        nearest = min(reports, key=lambda r: abs(r.measured_us - middle))
        return Epoch(nearest.boot_epoch_us, estimated=False)
    return Epoch(header.offset_us - (next_wall_error_us or 0), estimated=True)
