"""What the end-to-end tests say often: ask the guest, ask the cloud, configure, wait."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qemu import topology
from qemu.promises import eventually
from qemu.site import Site

DEVICE = topology.DEVICE
SLOW_S = 90.0
"""Patience for what takes a second on hardware: software emulation on a busy machine."""


@dataclass(frozen=True)
class Point:
    """One sample as the cloud gives it."""

    time_s: float
    original_s: float
    value: Any
    quality: int
    estimated: bool


def points(site: Site, tag: str, *, start_us: int = 0, limit: int = 100_000) -> list[Point]:
    """All samples of "<stream>/<name>" that the cloud has, oldest first."""
    found = site.cloud_get(f"/api/v1/gateways/{DEVICE}/series?tag={tag}&from={start_us}&limit={limit}")
    return [
        Point(p["time_us"] / 1e6, p["original_us"] / 1e6, p["value"], p["quality"], p["estimated"])
        for p in found
    ]


def values(site: Site, tag: str, *, start_us: int = 0) -> list[Any]:
    """The good values of a tag, oldest first."""
    return [p.value for p in points(site, tag, start_us=start_us) if p.quality < 128]


def gateway(site: Site) -> dict[str, Any]:
    """What the cloud knows of the gateway."""
    found: dict[str, Any] = site.cloud_get(f"/api/v1/gateways/{DEVICE}")
    return found


def wait_online(site: Site, within: float = SLOW_S) -> None:
    """Until the cloud hears from the gateway's present boot."""
    boot = site.machine.agent.shell("cat /proc/sys/kernel/random/boot_id").strip().replace("-", "")
    eventually(
        lambda: gateway(site),
        done=lambda g: bool(g["online"]) and g["boot"] == boot,
        within=within,
        what="the gateway's present boot is online in the cloud",
    )


def boot(site: Site) -> None:
    """Power on, wait until the gateway is online, and check what must hold after every boot."""
    site.power()
    site.machine.wait_booted()
    wait_online(site)
    assert gates(site) == []


def gates(site: Site) -> list[str]:
    """What is wrong after a boot: failed units, a broken ordering cycle, errors of our services, a tainted kernel."""
    agent = site.machine.agent
    state = agent.run("systemctl", "is-system-running", "--wait", timeout=SLOW_S, check=False).stdout.strip()
    wrong = [] if state == "running" else [f"systemd is {state}"]
    wrong += agent.shell("systemctl list-units --failed --plain --no-legend").splitlines()
    if taint := agent.read_file("/proc/sys/kernel/tainted").strip().strip(b"0"):
        wrong.append(f"kernel is tainted: {taint.decode()}")
    for entry in site.machine.journal.entries():
        if "ordering cycle" in entry.message.lower() or (
            entry.unit.startswith("sallyport-") and entry.priority <= 3
        ):
            wrong.append(str(entry))
    return wrong


def observed(site: Site, service: str) -> dict[str, Any]:
    """A service's observed document, read on the gateway itself."""
    found: dict[str, Any] = json.loads(site.machine.agent.read_file(f"/run/sallyport/status/{service}.json"))
    return found


def configure(site: Site, document: str, *options: str) -> str:
    """Put a desired document in force, as a technician would. Returns what the command says."""
    return site.machine.agent.run("sallyport", "config", "set", "-", *options, stdin=document.encode()).stdout


def counter_document(*, interval_ms: int = 1000, host: str = "mqtt.sallyport.test") -> str:
    """A configuration whose one tag counts the reads that the PLC answered."""
    return f"""
schema = 1
[cloud]
enabled = true
host = "{host}"
[[plc]]
name = "counter"
host = "{topology.PLCS["plc2"]}"
interval_ms = {interval_ms}
timeout_ms = 10000
tags = [{{ name = "reads", address = 1000, type = "uint32" }}]
"""


def gaps(counted: Iterable[int]) -> list[int]:
    """How many numbers are missing, at each place where a rising count is not one more than before.

    Raises AssertionError where it does not rise: a duplicate, or the order is wrong.
    """
    found = []
    before: int | None = None
    for now in counted:
        if before is not None:
            assert now > before, f"{now} after {before}: stored twice or out of order"
            if now != before + 1:
                found.append(now - before - 1)
        before = now
    return found
