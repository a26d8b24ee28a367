"""Stored times are right whatever the gateway's clock says (X37). Real Mosquitto, ingest, stores."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from firmware import clock
from tests.contract.cloud import START_US, Cloud, Gateway, counting, eventually

TOLERANCE_US = 500_000
HOUR, DAY = 3600, 86400


@pytest.fixture
def cloud(shared_cloud: Cloud) -> Cloud:
    return shared_cloud


@pytest.mark.parametrize("wrong_s", [3 * HOUR, -2 * DAY, 0])
async def test_wrong_clock(cloud: Cloud, tmp_path: Path, wrong_s: int) -> None:
    """Clock 3 h fast, 2 days slow, right: times stored are true, original times are as the gateway's clock had them.

    Shows: X37
    """
    device = f"SP-CLOCK{abs(wrong_s)}"
    gateway = Gateway(tmp_path, cloud, device, wall_error_s=wrong_s)
    gateway.log(counting(5))
    true_offset_us = clock.now().wall_offset_us
    async with gateway.running():
        await eventually(lambda: len(cloud.points("n", device)) == 50, what="50 samples")
        await eventually(
            lambda: not any(p.estimated for p in cloud.points("n", device)), what="measured times"
        )
    for n, point in enumerate(cloud.points("n", device)):
        true_us = START_US + n * 1000 + true_offset_us
        assert abs(point.time_us - true_us) < TOLERANCE_US
        assert abs(point.original_us - (true_us + wrong_s * 1_000_000)) < 1000
    times = [p.time_us for p in cloud.points("n", device)]
    assert [b - a for a, b in pairwise(times)] == [1000] * 49


async def test_boot_that_never_reported(cloud: Cloud, tmp_path: Path) -> None:
    """Logged in a boot without any connection, 2 days slow; sent in the next: estimated from what that one reports.

    Shows: X37, X88
    """
    device = "SP-LATE"
    earlier = Gateway(tmp_path, cloud, device, boot=b"A" * 16, wall_error_s=-2 * DAY)
    earlier.log(counting(5))
    true_offset_us = clock.now().wall_offset_us
    gateway = Gateway(tmp_path, cloud, device, boot=b"B" * 16, wall_error_s=-2 * DAY)
    gateway.log(counting(5, start=50))
    async with gateway.running():
        await eventually(lambda: len(cloud.points("n", device)) == 100, what="100 samples")
        await eventually(
            lambda: all(p.estimated == (n < 50) for n, p in enumerate(cloud.points("n", device))),
            what="measured times for the second boot only",
        )
    for n, point in enumerate(cloud.points("n", device)):
        assert abs(point.time_us - (START_US + n * 1000 + true_offset_us)) < TOLERANCE_US
        assert point.value == n
