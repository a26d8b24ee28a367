"""Small messages between gateway and cloud, as JSON. Unknown fields are ignored, so that either side may be newer.

Times are integers in microseconds: `*_us` of a boot are monotonic since that boot, `epoch` ones since 1970.
Boots are 32 hexadecimal digits.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class MessageError(ValueError):
    """The bytes are not the message that was expected; the text says where."""


class TimeRequest(msgspec.Struct, frozen=True):
    """Gateway asks for the time."""

    boot: str
    sent_us: int


class TimeReply(msgspec.Struct, frozen=True):
    """Cloud answers at once."""

    boot: str
    sent_us: int
    """Copied from the request."""
    cloud_epoch_us: int


class ClockReport(msgspec.Struct, frozen=True):
    """Gateway tells what it measured (X37): cloud time = boot_epoch_us + monotonic time of that boot."""

    boot: str
    measured_us: int
    boot_epoch_us: int
    error_us: int
    """Half the round trip: the measurement is right within this."""
    wall_error_us: int
    """Wall clock of the gateway minus cloud time, when measured."""


class Ack(msgspec.Struct, frozen=True):
    """Cloud has stored these blocks; the gateway may forget them."""

    stream: str
    boot: str
    seqs: list[tuple[int, int]]
    """Ranges, both ends included."""


class Nack(msgspec.Struct, frozen=True):
    """Cloud cannot read this block and will not, however often it is sent. Sent on `down/nack`."""

    stream: str
    boot: str
    seq: int
    reason: str


class Ping(msgspec.Struct, frozen=True):
    nonce: str


class Pong(msgspec.Struct, frozen=True):
    nonce: str
    boot: str
    sent_us: int


class Status(msgspec.Struct, frozen=True):
    """What the gateway says of itself: the observed documents of its services."""

    online: bool
    version: str = ""
    boot: str = ""
    observed: dict[str, dict[str, Any]] = {}


_BOOT = 16


def block_ref(boot: bytes, seq: int) -> bytes:
    """Names a block beside its bytes (MQTT 5 correlation data), so that one can be refused that is unreadable."""
    return boot + seq.to_bytes(8, "little")


def parse_block_ref(data: bytes | None) -> tuple[bytes, int] | None:
    """Boot and sequence; None when there is no usable reference."""
    if data is None or len(data) != _BOOT + 8:
        return None
    return data[:_BOOT], int.from_bytes(data[_BOOT:], "little")


def encode(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message)


def decode(data: bytes, type_: type[T]) -> T:
    """Raises MessageError that names the type and the place."""
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"{type_.__name__}: {error}") from error
