"""What is written into the Modbus device is what the cloud stores.

Network: the pretend site. Steps: configure one tag of every type in both word orders, write values into the device,
read them back from the cloud.
"""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest

from qemu import plant, topology
from qemu.promises import eventually
from qemu.site import Site
from tests.e2e import lab

BASE = 2000
EXACT: list[tuple[str, Any]] = [
    ("int16", -32768),
    ("uint16", 65535),
    ("int32", -2_147_483_648),
    ("uint32", 4_294_967_295),
    ("int64", -9_223_372_036_854_775_808),
    ("uint64", 18_446_744_073_709_551_615),
    ("float32", struct.unpack("<f", struct.pack("<f", 3.14159))[0]),
    ("float64", 2.718281828459045),
]


def _tags() -> tuple[str, list[tuple[str, int, list[int], Any]]]:
    """TOML of the tags; and for each its name, address, registers and value."""
    lines, written = [], []
    address = BASE
    for order in ("big", "little"):
        for kind, value in EXACT:
            name = f"{kind}_{order}"
            registers = plant.registers(kind, value, order)  # type: ignore[arg-type]
            lines.append(
                f'{{ name = "{name}", address = {address}, type = "{kind}", word_order = "{order}" }},'
            )
            written.append((name, address, registers, value))
            address += len(registers)
    lines.append(f'{{ name = "text", address = {address}, type = "string", length = 6 }},')
    written.append(("text", address, plant.text("Größe 42", 6), "Größe 42"))
    address += 6
    lines.append(f'{{ name = "scaled", address = {address}, type = "int16", scale = 0.5, offset = 10.0 }},')
    written.append(("scaled", address, [65533], -3 * 0.5 + 10.0))
    return "\n".join(lines), written


@pytest.mark.usefixtures("own_configuration")
def test_all_types_and_word_orders_arrive_exactly(site: Site, since_us: int) -> None:
    """Every Modbus type, both word orders, all four tables: exact values, with the time at which they were read.

    Shows: X17, X35, L12
    """
    tags, written = _tags()
    plc = site.plc2
    for _, address, registers, _ in written:
        plc.set("holding", address, *registers)
    plc.set("input", 77, 4711)
    plc.set("coil", 5, 1)
    plc.set("discrete", 6, 1)
    expected = {name: value for name, _, _, value in written}
    expected |= {"input": 4711, "coil": True, "discrete": True}
    began = time.time()
    lab.configure(
        site,
        f"""
schema = 1
[cloud]
enabled = true
host = "mqtt.sallyport.test"
[[plc]]
name = "types"
host = "{topology.PLCS["plc2"]}"
tags = [
{tags}
{{ name = "input", table = "input", address = 77 }},
{{ name = "coil", table = "coil", address = 5, type = "bool" }},
{{ name = "discrete", table = "discrete", address = 6, type = "bool" }},
]
""",
    )

    def latest() -> dict[str, Any]:
        found = site.cloud_get(f"/api/v1/gateways/{lab.DEVICE}/tags")
        return {t["name"]: t["last"]["value"] for t in found if t["stream"] == "plc-types"}

    stored = eventually(
        latest, done=lambda s: s.keys() >= expected.keys(), within=lab.SLOW_S, what="all tags"
    )
    assert stored == expected
    assert {name: type(value) for name, value in stored.items()} == {
        name: type(value) for name, value in expected.items()
    }
    times = [p.time_s for p in lab.points(site, "plc-types/uint16_big", start_us=since_us)]
    assert times == sorted(times)
    assert began - 1 <= times[0] <= time.time() + 1


@pytest.mark.usefixtures("own_configuration")
def test_a_change_is_stored_with_the_time_of_its_poll(site: Site, since_us: int) -> None:
    """A value changed in the device shows in the cloud with a time between the change and one interval after it.

    Shows: X36, X37
    """
    lab.configure(site, lab.counter_document().replace("reads", "level").replace("uint32", "uint16"))
    eventually(
        lambda: lab.values(site, "plc-counter/level", start_us=since_us),
        within=lab.SLOW_S,
        what="first values",
    )
    before = time.time()
    site.plc2.set("holding", 1000, 42)
    after = time.time()
    found = eventually(
        lambda: [p for p in lab.points(site, "plc-counter/level", start_us=since_us) if p.value == 42],
        within=lab.SLOW_S,
        what="the new value",
    )
    # One poll interval, the poll itself, and the bound of the clock measurement.
    assert before - 0.25 <= found[0].time_s <= after + 1.0 + 1.0


def test_round_trip_to_the_gateway_and_back(site: Site) -> None:
    """A message from the cloud reaches the gateway and its answer comes back; also after a reconnection.

    Shows: L12
    """
    boot = lab.gateway(site)["boot"]
    path = f"/api/v1/gateways/{lab.DEVICE}/ping"
    assert site.cloud.request("POST", path)["boot"] == boot
    site.cut("wan")
    eventually(lambda: lab.gateway(site)["online"], done=lambda on: not on, within=120, what="offline")
    site.restore("wan")
    lab.wait_online(site, within=120)
    assert site.cloud.request("POST", path)["boot"] == boot
