"""What the PLC service reads when, and what it makes of the answers."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.config.schema import Plc, Tag
from firmware.wire.block import Quality
from services.plc import core


def tag(name: str = "t", address: int = 0, **more: Any) -> Tag:
    return Tag(name=name, address=address, **more)


# Requests

TYPES = ["uint16", "int32", "float64", "string", "bool"]


@given(
    st.lists(
        st.builds(
            tag,
            name=st.text("abc", min_size=1),
            table=st.sampled_from(["holding", "input", "coil"]),
            address=st.integers(0, 400),
            type=st.sampled_from(TYPES),
            length=st.integers(1, 30),
        ),
        max_size=40,
    ),
    st.integers(1, 125),
    st.integers(0, 30),
)
def test_requests_cover_every_tag_once(tags: list[Tag], max_registers: int, max_gap: int) -> None:
    """No tag is lost, doubled or split; no request is longer than allowed unless one tag alone is."""
    requests = core.coalesce(tags, max_registers=max_registers, max_gap=max_gap)
    assert sorted((t for r in requests for t in r.tags), key=repr) == sorted(tags, key=repr)
    for request in requests:
        bits = core.is_bits(request.table)
        limit = min(max_registers * 16, 2000) if bits else max_registers
        assert request.length <= limit or request.length == max(map(core.width, request.tags))
        covered = {a for t in request.tags for a in range(t.address, t.address + core.width(t))}
        assert min(covered) == request.address
        assert max(covered) == request.address + request.length - 1
        assert {t.table for t in request.tags} == {request.table}
        for address in range(request.address, request.address + request.length):
            gap = max_gap * 16 if bits else max_gap
            assert any(address - gap <= c <= address + gap for c in covered)
        if len(request.tags) > 1:
            one, two = request.halves()
            assert one.tags + two.tags == request.tags


@pytest.mark.parametrize(
    ("addresses", "max_registers", "max_gap", "expected"),
    [
        (range(1000), 125, 16, [(i * 125, 125) for i in range(8)]),
        ([0, 1, 2, 19], 125, 16, [(0, 20)]),
        ([0, 1, 2, 20], 125, 16, [(0, 3), (20, 1)]),
        ([0, 10], 125, 0, [(0, 1), (10, 1)]),
        ([0, 1, 2], 2, 16, [(0, 2), (2, 1)]),
        ([65535], 125, 16, [(65535, 1)]),
        ([5, 5], 125, 0, [(5, 1)]),
    ],
)
def test_coalescing(
    addresses: Any, max_registers: int, max_gap: int, expected: list[tuple[int, int]]
) -> None:
    requests = core.coalesce(
        [tag(address=a) for a in addresses], max_registers=max_registers, max_gap=max_gap
    )
    assert [(r.address, r.length) for r in requests] == expected


def test_overlapping_tags_share_a_request() -> None:
    wide, inside = tag("wide", 0, type="float64"), tag("inside", 1)
    (request,) = core.coalesce([inside, wide], max_registers=125, max_gap=0)
    assert (request.address, request.length) == (0, 4)
    assert {t.name: v for t, v in request.values([0x3FF8, 7, 0, 0])}["inside"] == 7


# Values

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


@given(
    st.sampled_from(sorted(FORMATS)), st.binary(min_size=8, max_size=8), st.sampled_from(["big", "little"]),
    st.sampled_from(["big", "little"]),
)  # fmt: skip
def test_every_bit_pattern_decodes_as_struct_does(
    type_: str, data: bytes, word_order: Any, byte_order: Any
) -> None:
    data = data[: struct.calcsize(">" + FORMATS[type_])]
    words = [int.from_bytes(data[i : i + 2], byte_order) for i in range(0, len(data), 2)]
    if word_order == "little":
        words.reverse()
    value = core.decode(tag(type=type_, word_order=word_order, byte_order=byte_order), words)
    expected = struct.unpack(">" + FORMATS[type_], data)[0]
    assert value == expected or (math.isnan(value) and math.isnan(expected))  # type: ignore[arg-type]
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("more", "words", "value", "letter"),
    [
        ({"type": "uint16"}, [5], 5, "H"),
        ({"type": "int16", "scale": 0.5}, [0xFFFE], -1.0, "d"),
        ({"type": "uint16", "offset": 10.0}, [5], 15.0, "d"),
        ({"type": "uint64", "scale": 1.0}, [0xFFFF] * 4, 2**64 - 1, "Q"),
        ({"type": "string", "length": 3}, [0x4162, 0x6300, 0x5858], "Abc", "s"),
        ({"type": "string", "length": 1}, [0xE400], "ä", "s"),
        ({"type": "string", "length": 2}, [0, 0], "", "s"),
        ({"type": "string", "length": 1, "word_order": "little"}, [0x4142], "AB", "s"),
        ({"type": "string", "length": 2, "byte_order": "little"}, [0x4241, 0x4443], "ABCD", "s"),
        ({"type": "bool", "table": "coil"}, [True], True, "?"),
        ({"type": "bool"}, [2], True, "?"),
        ({"type": "bool"}, [0], False, "?"),
    ],
)
def test_values(more: dict[str, Any], words: list[int], value: object, letter: str) -> None:
    """Unscaled values keep their type, scaled ones are floats, text ends at NUL."""
    decoded = core.decode(tag(**more), words)
    assert decoded == value
    assert type(decoded) is type(value)
    assert core.letter(tag(**more)) == letter


# Schedule


def test_polls_lie_on_the_grid_and_missed_ones_are_left_out() -> None:
    group = core.Group(1000, [], 12_345)
    assert group.due_us == 12_345
    seen = []
    for took in (10, 10, 999, 1001, 10, 5500, 10):
        seen.append(group.due_us)
        group.done(group.due_us + took)
    assert seen == [12_345, 13_000, 14_000, 15_000, 17_000, 18_000, 24_000]
    assert group.missed == 1 + 5


def test_intervals_are_polled_apart() -> None:
    plc = Plc(
        name="a", host="h", interval_ms=1000, tags=[tag("x", 0), tag("y", 1, interval_ms=100), tag("z", 2)]
    )
    groups = core.plan(plc, 7)
    assert [(g.interval_us, [t.name for r in g.requests for t in r.tags]) for g in groups] == [
        (100_000, ["y"]),
        (1_000_000, ["x", "z"]),
    ]


# What is logged


def offered(t: Tag, values: list[Any]) -> list[Any]:
    """Those of the values that are logged; a Quality stands for a failed reading."""
    changes = core.Changes()
    kept = []
    for time, value in enumerate(values):
        sample = changes.bad(t, time, value) if isinstance(value, Quality) else changes.value(t, time, value)
        if sample:
            assert sample.time_us == time
            kept.append(sample.value if sample.value is not None else Quality(sample.quality))
    return kept


NAN, INF = math.nan, math.inf
LOST, REFUSED = Quality.NO_CONNECTION, Quality.DEVICE_ERROR


@pytest.mark.parametrize(
    ("deadband", "values", "expected"),
    [
        (0.0, [1, 1, 1], [1, 1, 1]),
        (2.0, [10, 11, 9, 12, 13, 10], [10, 12, 10]),
        (0.5, [1.0, 1.5, 1.6], [1.0, 1.5]),
        (1.0, [INF, INF, -INF, 0.0], [INF, -INF, 0.0]),
        (1.0, [0.0, INF, 0.0], [0.0, INF, 0.0]),
        (5.0, [1, LOST, LOST, 1, 2], [1, LOST, 1]),
        (0.0, [LOST, LOST, REFUSED, LOST, 1, LOST], [LOST, REFUSED, LOST, 1, LOST]),
        (0.1, [2**64 - 1, 2**64 - 1, 2**64 - 2], [2**64 - 1, 2**64 - 2]),
    ],
)
def test_deadband_and_quality(deadband: float, values: list[Any], expected: list[Any]) -> None:
    """Against the last logged value, so that a slow drift is seen; a bad quality only when it begins."""
    assert offered(tag(deadband=deadband), values) == expected


def test_deadband_and_no_number() -> None:
    kept = offered(tag(deadband=1.0), [NAN, NAN, 1.0, NAN])
    assert [math.isnan(v) for v in kept] == [True, False, True]


def test_backoff() -> None:
    """0.5 s doubling to 10 s, spread over the upper half."""
    assert [core.backoff_s(n, 0.0) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 10, 10]
    assert core.backoff_s(1, 1.0) == 0.25
    assert core.backoff_s(10_000, 0.0) == 10
