"""Nothing lost, nothing twice: through a cut of the WAN, a power cut, and a boot without any WAN.

The device counts the reads that it answered and gives the count as the value: what the gateway read is known exactly,
whoever counts. A number missing in the cloud is a sample lost, one that does not rise is a duplicate.
"""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from qemu.promises import eventually
from qemu.site import Site
from tests.e2e import lab

SYNC_S = 5
TAG = "plc-counter/reads"

pytestmark = pytest.mark.usefixtures("counting")


@pytest.fixture
def counting(site: Site, own_configuration: None) -> None:
    """The gateway reads, once a second, a count of its reads."""
    site.plc2.count_reads(1000)
    lab.configure(site, lab.counter_document())


def _served(site: Site) -> int:
    """The last count that the device gave out."""
    high, low = site.plc2.get("holding", 1000, 2)
    return high << 16 | low


def _wait_for(
    site: Site, count: int, start_us: int, within: float = lab.SLOW_S, *, lost: int = 0
) -> list[lab.Point]:
    """Until the cloud has all samples up to this count, but for `lost` of them; gives all since `start_us`.

    Live data comes before the history: the last sample alone says little.
    """
    return eventually(
        lambda: [p for p in lab.points(site, TAG, start_us=start_us) if p.quality < 128],
        done=lambda found: (
            bool(found) and found[-1].value >= count and sum(lab.gaps(p.value for p in found)) <= lost
        ),
        within=within,
        what=f"the cloud has every sample up to {count}",
    )


def test_wan_cut_and_power_cut(site: Site, since_us: int) -> None:
    """WAN gone for a minute, power cut in the middle of it: count in is count out, in order, with the right times.

    What is missing at the power cut is at most one sync interval.

    Shows: X88, X35, X36
    """
    _wait_for(site, 5, since_us)
    site.cut("wan")
    cut_at = time.time()
    before_power_cut = _served(site) + 20
    eventually(
        lambda: _served(site),
        done=lambda n: n >= before_power_cut,
        within=60,
        what="20 reads with the WAN down",
    )
    site.power_cut()
    last_before = _served(site)
    site.power()
    site.machine.wait_booted()
    eventually(
        lambda: time.time() - cut_at,
        done=lambda s: s >= 60,
        within=60,
        what="the WAN has been down for a minute",
        pause=1,
    )
    eventually(
        lambda: _served(site), done=lambda n: n >= last_before + 10, within=60, what="reads after the boot"
    )
    assert lab.values(site, TAG, start_us=int(cut_at * 1e6) + 2_000_000) == [], "nothing arrived meanwhile"
    site.restore("wan")
    lab.wait_online(site, within=120)
    assert lab.gates(site) == []
    last = _served(site)
    found = _wait_for(site, last, since_us, within=120, lost=SYNC_S + 1)

    lost = lab.gaps(p.value for p in found)
    print(f"samples stored: {len(found)}, lost at the power cut: {lost} of at most {SYNC_S + 1}")
    assert found[0].value <= 5
    assert len(lost) <= 1, f"a gap that no power cut explains: {lost}"
    times = [p.time_s for p in found]
    assert times == sorted(times)
    # The boot takes longer than any poll, even when the power went right after a sync and nothing was lost.
    second = next(n for n, (a, b) in enumerate(pairwise(found), 1) if b.time_s - a.time_s > 10)
    for boot in (found[:second], found[second:]):
        for n, (one, next_) in enumerate(pairwise(boot)):
            # The first poll of a connection comes at once, the second on the grid of the interval.
            least = 0 if n == 0 else 0.5
            assert least <= next_.time_s - one.time_s <= 2.5, (one, next_)


def test_boot_without_wan_logs_from_the_first_poll(site: Site, since_us: int) -> None:
    """Booted with the cable out, the gateway logs from its first poll on; all of it arrives when the cable is back.

    Shows: X88, X35
    """
    _wait_for(site, 2, since_us)
    site.power_cut()
    site.cut("wan")
    first = _served(site) + 1
    site.power()
    site.machine.wait_booted()
    eventually(lambda: _served(site), done=lambda n: n >= first + 15, within=lab.SLOW_S, what="15 reads")
    site.restore("wan")
    lab.wait_online(site, within=120)
    assert lab.gates(site) == []
    found = _wait_for(site, _served(site), since_us, within=120, lost=SYNC_S + 1)
    counted = [p.value for p in found if p.value >= first]
    assert counted[0] == first, "the first poll after the boot is there"
    assert lab.gaps(counted) == []


def test_cloud_away_for_a_while(site: Site, since_us: int) -> None:
    """The whole cloud is stopped and started again: nothing lost, nothing twice.

    Shows: X36, X88
    """
    _wait_for(site, 2, since_us)
    site.cloud.stop()
    until = _served(site) + 12
    eventually(lambda: _served(site), done=lambda n: n >= until, within=60, what="reads with the cloud away")
    site.cloud.start()
    lab.wait_online(site, within=150)
    found = _wait_for(site, until, since_us, within=120)
    assert lab.gaps(p.value for p in found) == []


def test_silent_loss_is_noticed(site: Site, since_us: int) -> None:
    """Frames vanish but the carrier stays: the uplink notices, keeps logging, and delivers afterwards.

    Shows: X88
    """
    _wait_for(site, 2, since_us)
    site.cut("wan", silent=True)
    eventually(
        lambda: lab.observed(site, "uplink")["state"],
        done=lambda state: state != "ok",
        within=60,
        what="the uplink notices that nothing gets through",
    )
    until = _served(site) + 5
    eventually(lambda: _served(site), done=lambda n: n >= until, within=30, what="reads meanwhile")
    site.restore("wan")
    lab.wait_online(site, within=120)
    found = _wait_for(site, until, since_us, within=120)
    assert lab.gaps(p.value for p in found) == []
