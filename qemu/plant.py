"""What the two pretend machines do, and how values become Modbus registers.

`provisioned.toml` names the same addresses: change both together.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from typing import Literal

Step = tuple[str, int, list[int]]
"""Table, first address, raw values."""
Kind = Literal["int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
FORMATS = {
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}


def registers(kind: Kind, value: float, word_order: Literal["big", "little"] = "big") -> list[int]:
    """A number as registers, in the order of their addresses."""
    raw = struct.pack(f">{FORMATS[kind]}", value)
    words = [int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2)]
    return words if word_order == "big" else words[::-1]


def text(value: str, count: int) -> list[int]:
    """A string as `count` registers, two bytes each, filled with zeros."""
    raw = value.encode().ljust(2 * count, b"\0")[: 2 * count]
    return [int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2)]


def press(t: float) -> Iterable[Step]:
    """A press: 4 s a stroke, a pause of 10 s each minute. `t`: seconds since it was switched on."""
    running = t % 60 < 50
    phase = 2 * math.pi * t / 4
    force = max(0.0, math.sin(phase)) * 820 if running else 0.0
    yield "holding", 0, registers("float32", 45 + 12 * math.sin(t / 20) + 0.3 * math.sin(phase))
    yield "holding", 2, registers("float32", force)
    yield "holding", 4, [int(600 + 60 * math.sin(t / 7)) if running else 0]
    yield "holding", 5, registers("uint32", int(t / 4))
    yield "holding", 7, registers("int16", int(150 * math.sin(phase)) if running else 0)
    yield "holding", 10, text("BRACKET-7" if t % 120 < 60 else "HINGE-12", 8)
    yield "input", 0, registers("uint64", int(1_000_000 + 3.1 * t), "little")
    yield "coil", 0, [int(running)]
    yield "discrete", 0, [int(t % 30 > 3)]


def boiler(t: float) -> Iterable[Step]:
    """A boiler that fills, heats and empties in turns of 40 s."""
    turn = t % 40 / 40
    level = 20 + 70 * (1 - abs(2 * turn - 1))
    yield "holding", 0, registers("float64", level)
    yield "holding", 4, registers("int32", int(1200 * math.cos(2 * math.pi * turn)), "little")
    yield "holding", 6, [int(100 * abs(math.sin(t / 9)))]
    yield "input", 0, registers("float32", 61 + 25 * math.sin(t / 15), "little")
    yield "coil", 0, [int(turn < 0.5)]
    yield "discrete", 0, [int(level > 85)]


MOTIONS: dict[str, Callable[[float], Iterable[Step]]] = {"press": press, "boiler": boiler}
