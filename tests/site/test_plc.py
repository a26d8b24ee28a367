"""The pretend PLC, asked by a Modbus client of another make, over the site's machine network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from qemu import plant, topology
from qemu.namespaces import SiteError
from qemu.plc import Plc
from qemu.promises import eventually
from qemu.site import Site

pytestmark = pytest.mark.netns

# Reads (function, address, count) from standard input with pymodbus; prints values, or the exception, or the failure.
CLIENT = """
import json, sys
from pymodbus.client import ModbusTcpClient
client = ModbusTcpClient(sys.argv[1], timeout=float(sys.argv[2]), retries=0)
answers = []
for function, address, values in json.load(sys.stdin):
    try:
        if not client.connect():
            answers.append("no connection")
            continue
        call = getattr(client, function)
        got = call(address, values) if function.startswith("write") else call(address, count=values)
        if got.isError():
            answers.append(f"exception {got.exception_code}")
        else:
            answers.append(got.registers if hasattr(got, "registers") and got.registers else got.bits)
    except Exception as error:
        client.close()
        answers.append(type(error).__name__)
print(json.dumps(answers))
"""


@pytest.fixture
def plc(netns_site: Site) -> Iterator[Plc]:
    """A PLC that was switched on just now: all values 0."""
    netns_site.plc1.power_cut()
    netns_site.plc1.power()
    return netns_site.plc1


def ask(site: Site, *requests: tuple[str, int, Any], timeout: float = 2.0) -> list[Any]:
    told = site.laptop.run(
        sys.executable, "-c", CLIENT, topology.PLCS["plc1"], str(timeout), stdin=json.dumps(requests)
    )
    answers: list[Any] = json.loads(told.stdout)
    return answers


def test_four_tables_are_read_and_written(netns_site: Site, plc: Plc) -> None:
    """What is set is what a client reads, in each table; what a client writes is what is got."""
    plc.set("holding", 0, 1, 65535)
    plc.set("holding", 65535, 7)
    plc.set("input", 0, *plant.registers("uint64", 2**64 - 2, "little"))
    plc.set("coil", 3, 1, 0, 1)
    plc.set("discrete", 0, 1)
    answers = ask(
        netns_site,
        ("read_holding_registers", 0, 3),
        ("read_holding_registers", 65535, 1),
        ("read_input_registers", 0, 4),
        ("read_coils", 0, 8),
        ("read_discrete_inputs", 0, 8),
        ("write_registers", 100, [5, 6]),
        ("write_coil", 9, True),
    )
    assert answers[:3] == [[1, 65535, 0], [7], [65534, 65535, 65535, 65535]]
    assert answers[3] == [False, False, False, True, False, True, False, False]
    assert answers[4] == [True, *[False] * 7]
    assert plc.get("holding", 100, 2) == [5, 6]
    assert plc.get("coil", 9) == [1]
    assert plc.requests() == {
        "holding": 2,
        "input": 1,
        "coil": 1,
        "discrete": 1,
        "write-holding": 1,
        "write-coil": 1,
    }


def test_exceptions_stalls_and_dropped_connections(netns_site: Site, plc: Plc) -> None:
    """Each fault is seen by the client as what it is, and heals."""
    plc.fail("holding", 5, code=4)
    assert ask(netns_site, ("read_holding_registers", 0, 5), ("read_holding_registers", 0, 6)) == [
        [0] * 5,
        "exception 4",
    ]
    plc.stall()
    assert ask(netns_site, ("read_coils", 0, 8), timeout=0.3) == ["ModbusIOException"]
    plc.stall(False)
    plc.listen(False)
    assert ask(netns_site, ("read_coils", 0, 8)) == ["no connection"]
    plc.heal()
    assert ask(netns_site, ("read_holding_registers", 5, 1)) == [[0]]


def test_a_power_cut_forgets_the_values(netns_site: Site, plc: Plc) -> None:
    plc.set("holding", 0, 9)
    plc.power_cut()
    assert ask(netns_site, ("read_holding_registers", 0, 1)) == ["no connection"]
    plc.power()
    assert ask(netns_site, ("read_holding_registers", 0, 1)) == [[0]]


def test_reads_are_counted(netns_site: Site, plc: Plc) -> None:
    """Each read of a counted register is answered with the next number, over the 16-bit border too."""
    plc.set("holding", 1000, 0, 65534)
    plc.count_reads(1000)
    answers = ask(netns_site, *[("read_holding_registers", 1000, 2)] * 3, ("read_holding_registers", 1001, 1))
    assert answers == [[0, 65535], [1, 0], [1, 1], [1]]


@pytest.mark.parametrize(
    ("table", "address", "values", "said"),
    [
        ("holding", 0, [65536], "65536 is not in 0..65535"),
        ("coil", 0, [2], "2 is not in 0..1"),
        ("input", 65535, [1, 2], "outside of 0..65535"),
    ],
)
def test_impossible_values_are_refused(
    netns_site: Site, table: Any, address: int, values: list[int], said: str
) -> None:
    with pytest.raises(SiteError, match=said):
        netns_site.plc1.set(table, address, *values)


@pytest.mark.parametrize("motion", plant.MOTIONS)
def test_a_plant_moves(netns_site: Site, motion: str) -> None:
    """A PLC that plays a plant changes by itself, and every value fits its registers for a whole day."""
    for second in range(0, 86_400, 97):
        for table, _, values in plant.MOTIONS[motion](float(second)):
            limit = 1 if table in ("coil", "discrete") else 65535
            assert all(isinstance(value, int) and 0 <= value <= limit for value in values)
    plc = Plc(netns_site.hosts["plc2"], "127.0.0.1", netns_site.state, motion=motion)
    netns_site.plc2.power_cut()
    netns_site.hosts["plc2"].ip("link set lo up")
    try:
        plc.power()
        first = plc.get("holding", 0, 8)
        eventually(
            lambda: plc.get("holding", 0, 8), done=lambda now: now != first, within=5, what="values move"
        )
    finally:
        plc.power_cut()
        netns_site.plc2.power()
