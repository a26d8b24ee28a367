"""The block format: exact round trips, and nothing but BlockError for whatever else comes in."""

from __future__ import annotations

import contextlib
import math
import random
import struct
import tracemalloc
import zlib
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.wire import block
from firmware.wire.block import BlockError, BlockId, Event, Quality, Sample

ID = BlockId("SP-000001", "plc-press", bytes(range(16)), 42)
TAGS = (
    st.text(min_size=1, max_size=8)
    .filter(lambda t: len(t.encode("utf-8", "surrogatepass")) < 256)
    .filter(lambda t: not any(0xD800 <= ord(c) < 0xE000 for c in t))
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
INTS = {"b": 8, "B": 8, "h": 16, "H": 16, "i": 32, "I": 32, "q": 64, "Q": 64}


def value_of(letter: str) -> st.SearchStrategy[object]:
    if letter == "?":
        return st.booleans()
    if letter == "s":
        return TEXT
    if letter == "f":
        return st.floats(width=32)
    if letter == "d":
        return st.floats()
    bits = INTS[letter]
    low = 0 if letter.isupper() else -(2 ** (bits - 1))
    return st.integers(low, low + 2**bits - 1)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    letter = draw(st.sampled_from(block.VALUE_TYPES))
    quality = draw(st.sampled_from([0, 64, 127, 128, 129, 130, 255]))
    value = None if quality >= Quality.BAD else draw(value_of(letter))
    return Sample(draw(TAGS), draw(st.integers(0, 2**62)), value, quality, letter)  # type: ignore[arg-type]


def exact(sample: Sample) -> tuple[object, ...]:
    """Comparable bit for bit: NaN equals itself, -0.0 is not 0.0, True is not 1."""
    value: object = sample.value
    if isinstance(value, float):
        value = "NaN" if math.isnan(value) else struct.pack("<d", value)
    return (*sample[:2], type(value), value, *sample[3:])


def by_tag(entries: list[Sample]) -> dict[tuple[str, str], list[tuple[object, ...]]]:
    """A block keeps the order within a tag."""
    grouped: dict[tuple[str, str], list[tuple[object, ...]]] = {}
    for sample in entries:
        grouped.setdefault((sample.tag, sample.type), []).append(exact(sample))
    return grouped


@given(st.lists(samples(), min_size=1, max_size=60), st.integers(-(2**62), 2**62))
def test_samples_come_back_exactly(entries: list[Sample], offset_us: int) -> None:
    """All value types, every quality, NaN, infinities, -0.0, empty and non-BMP text."""
    decoded = block.decode(block.encode_samples(ID, entries, offset_us))
    assert by_tag(list(decoded.samples)) == by_tag(entries)
    times = [s.time_us for s in entries]
    header = decoded.header
    assert (header.id, header.count, header.offset_us) == (ID, len(entries), offset_us)
    assert (header.first_us, header.last_us) == (min(times), max(times))


@given(
    st.lists(
        st.builds(
            Event,
            time_us=st.integers(0, 2**62),
            name=TEXT,
            severity=st.sampled_from(["info", "warning", "error"]),
            data=st.dictionaries(
                TEXT,
                st.booleans()
                | st.integers(-(2**63), 2**64 - 1)
                | st.floats(allow_nan=False, allow_infinity=False)
                | TEXT,
                max_size=4,
            ),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_events_come_back_exactly(events: list[Event]) -> None:
    assert list(block.decode(block.encode_events(ID, events, 0)).events) == events


def many() -> list[Sample]:
    rng = random.Random(1)
    return [
        Sample(f"tag{i % 9}", 1_000_000 + i * 1000, value, 0, letter)
        for i in range(60)
        for letter, value in [
            ("h", rng.randrange(-5, 5)),
            ("d", rng.random()),
            ("s", "x" * rng.randrange(4)),
            ("?", True),
            ("f", 0.5),
        ]
    ]


SEALED = block.encode_samples(ID, many(), 7)


def fix_crc(data: bytes) -> bytes:
    """With a right checksum, so that damage reaches the code behind it."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def must_be_block_or_error(data: bytes) -> None:
    for read in (block.decode, block.read_header, block.peek):
        with contextlib.suppress(BlockError):
            read(data)


@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    must_be_block_or_error(data)
    must_be_block_or_error(fix_crc(SEALED[:68] + data + b"0000"))


@settings(max_examples=400)
@given(st.integers(0, len(SEALED) - 5), st.integers(1, 255), st.booleans())
def test_changed_byte(at: int, flip: int, checksum_right: bool) -> None:
    """A changed byte is always noticed by the checksum; a forged checksum breaks nothing either."""
    data = bytearray(SEALED)
    data[at] ^= flip
    if checksum_right:
        must_be_block_or_error(fix_crc(bytes(data)))
    else:
        with pytest.raises(BlockError):
            block.decode(bytes(data))


@pytest.mark.parametrize("codec", [0, 1])
def test_forged_body(codec: int) -> None:
    """Bodies that an attacker shaped, with all lengths and checksums right: BlockError or a block."""
    rng = random.Random(codec)
    raw = block._unpack(1, block._open(SEALED)[2], block._open(SEALED)[3])
    for _ in range(1500):
        body = bytearray(raw)
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(min(len(body), 120))] = rng.randrange(256)
        if rng.random() < 0.3:
            del body[rng.randrange(len(body)) :]
        packed = block.zstd.compress(bytes(body)) if codec else bytes(body)
        must_be_block_or_error(forge(packed, len(body), rng.choice([300, 300, 1, 65536]), codec))


def forge(body: bytes, raw_len: int, count: int, codec: int, kind: int = 0) -> bytes:
    head = block._HEAD.pack(block.MAGIC, kind, codec, 0, ID.boot, 1, 0, 0, 0, count, raw_len, len(body))
    return fix_crc(head + b"\1d\1s" + body + b"0000")


@pytest.mark.parametrize("cut", range(0, len(SEALED), 7))
def test_cut(cut: int) -> None:
    with pytest.raises(BlockError):
        block.decode(SEALED[:cut])


EMPTY_TAGS = struct.pack("<I", 2_000_000) + struct.pack("<BcI", 0, b"H", 0) * 2_000_000
BOMB = block.zstd.compress(bytes(512 * 1024 * 1024), level=3)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(forge(BOMB, 1000, 1, 1), id="body unpacks to 512 MiB, header says 1000"),
        pytest.param(forge(BOMB, block.MAX_RAW, 1, 1), id="body unpacks to 512 MiB, header says the most"),
        pytest.param(forge(BOMB, 512 * 1024 * 1024, 1, 1), id="header admits 512 MiB"),
        pytest.param(forge(b"\xff" * 100, 100, 0xFFFFFFFF, 0), id="4 billion entries"),
        pytest.param(forge(struct.pack("<I", 0xFFFFFFFF) + bytes(1000), 1004, 65536, 0), id="4 billion tags"),
        pytest.param(
            forge(block.zstd.compress(EMPTY_TAGS), len(EMPTY_TAGS), 1, 1), id="2 million tags of nothing"
        ),
        pytest.param(forge(b"[" * 100_000, 100_000, 1, 0, 1), id="events nested 100,000 deep"),
        pytest.param(
            forge(b'[{"time_us":1,"name":"","x":' + b"[" * 99_000, 99_028, 1, 0, 1), id="deep unknown field"
        ),
    ],
)
def test_bomb(data: bytes) -> None:
    """A hostile block costs a bounded amount of memory."""
    tracemalloc.start()
    with pytest.raises(BlockError):
        block.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * block.MAX_RAW


@pytest.mark.parametrize(
    ("sample", "named"),
    [
        (Sample("t.low", 0, -1, 0, "H"), "'t.low': -1"),
        (Sample("t.high", 0, 2**64, 0, "Q"), "t.high"),
        (Sample("t.text", 0, "x", 0, "d"), "t.text"),
        (Sample("t.none", 0, None, 0, "d"), "t.none"),
        (Sample("t.bad", 0, 1.0, 128, "d"), "t.bad"),
        (Sample("t.type", 0, 1, 0, "x"), "t.type"),
        (Sample("t.half", 0, "\ud800", 0, "s"), "t.half"),
        (Sample("t.quality", 0, None, 256, "d"), "t.quality"),
        (Sample("t" * 256, 0, 1, 0, "H"), "ttt"),
        (Sample("t.time", 2**64, 1, 0, "H"), "can't be sealed"),
        (Sample("t.boot", 2**64, 1, 0, "H"), "out of range"),
    ],
)
def test_what_does_not_fit_is_named(sample: Sample, named: str) -> None:
    with pytest.raises(BlockError, match=named):
        others = [] if sample.tag == "t.boot" else [Sample("fine", 0, 1, 0, "H")]
        block.encode_samples(ID, [*others, sample], 0)


def test_limits() -> None:
    with pytest.raises(BlockError, match="1 to 65536"):
        block.encode_samples(ID, [], 0)
    with pytest.raises(BlockError, match="1 to 65536"):
        block.encode_samples(ID, [Sample("t", 0, 1, 0, "H")] * 65_537, 0)
    with pytest.raises(BlockError, match="the most is"):
        rng = random.Random(0)
        block.encode_samples(ID, [Sample("t", 0, rng.randbytes(100).hex(), 0, "s") for _ in range(60_000)], 0)
    with pytest.raises(BlockError, match="255"):
        block.encode_events(BlockId("d" * 256, "s", bytes(16), 0), [Event(0, "e")], 0)


GOLDEN = Path(__file__).parent.parent / "golden" / "block-v1.bin"


def test_old_blocks_stay_readable() -> None:
    """A block written by the first release (big-endian hosts must read and write the same bytes)."""
    entries = [
        Sample("a", 1000, 1, 0, "H"),
        Sample("a", 2000, 65535, 0, "H"),
        Sample("b", 1000, -1.5, 64, "d"),
        Sample("c", 1500, "Grüße 𝄞", 0, "s"),
        Sample("d", 1500, None, 129, "?"),
        Sample("e", 1500, -(2**63), 0, "q"),
    ]
    decoded = block.decode(GOLDEN.read_bytes())
    assert list(decoded.samples) == entries
    assert decoded.header.id == ID
    assert decoded.header.offset_us == 5


def test_big_endian_hosts_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are little endian on flash whatever the host: the swap is there and its own inverse."""
    numbers = array("I", [1, 2**31])
    here = block._to_little(numbers)
    monkeypatch.setattr(block, "_SWAP", not block._SWAP)
    assert block._to_little(numbers) == b"".join(here[i : i + 4][::-1] for i in (0, 4))
    assert block._from_little("I", block._to_little(numbers)) == numbers
    assert numbers[0] == 1
