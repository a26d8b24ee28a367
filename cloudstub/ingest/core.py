"""What to do with a message that came up from a gateway. Pure: bytes in, decision out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from firmware.wire import messages, topics
from firmware.wire.block import BlockError, BlockId, Header, Kind, read_header
from firmware.wire.messages import ClockReport, MessageError, Nack, Status, TimeReply, TimeRequest

FAR_US = 2**60
"""Some 36,000 years: larger numbers are refused, so that sums of a few fit the stores' 64 bits."""


@dataclass(frozen=True)
class StoreBlock:
    """Keep the block, then acknowledge it."""

    id: BlockId
    kind: Kind
    data: bytes


@dataclass(frozen=True)
class StoreClock:
    device: str
    report: ClockReport


@dataclass(frozen=True)
class StoreStatus:
    device: str
    data: bytes


@dataclass(frozen=True)
class AnswerTime:
    device: str
    reply: TimeReply


@dataclass(frozen=True)
class Refuse:
    """Not kept. Counted; the gateway is told when the message was a block that it would send again."""

    device: str
    reason: str
    nack: Nack | None = None


Decision: TypeAlias = StoreBlock | StoreClock | StoreStatus | AnswerTime | Refuse | None
"""None: nothing of the ingest's business."""


def decide(topic: str, payload: bytes, reference: bytes | None, now_us: int) -> Decision:
    """`reference` is the MQTT 5 correlation data, `now_us` the cloud's time since 1970. Never raises."""
    up = topics.parse_up(topic)
    if up is None or up.rest == "pong":
        return None
    if block := topics.parse_block(up.rest):
        return _decide_block(up.device, block.stream, payload, reference)
    try:
        return _decide_message(up.device, up.rest, payload, now_us)
    except (MessageError, ValueError) as error:
        return Refuse(up.device, f"{up.rest}: {error}")


def _decide_message(device: str, rest: str, payload: bytes, now_us: int) -> Decision:
    match rest:
        case "time":
            request = messages.decode(payload, TimeRequest)
            return AnswerTime(device, TimeReply(request.boot, request.sent_us, now_us))
        case "clock":
            report = messages.decode(payload, ClockReport)
            _check_clock(report)
            return StoreClock(device, report)
        case "status":
            messages.decode(payload, Status)
            return StoreStatus(device, payload)
    raise ValueError("unknown topic")


def _decide_block(device: str, stream: str, payload: bytes, reference: bytes | None) -> Decision:
    try:
        header = read_header(payload)
        _check_header(header, device, stream)
    except BlockError as error:
        named = messages.parse_block_ref(reference)
        nack = Nack(stream, named[0].hex(), named[1], str(error)) if named else None
        return Refuse(device, f"block of {stream}: {error}", nack)
    return StoreBlock(header.id, header.kind, payload)


def _check_header(header: Header, device: str, stream: str) -> None:
    if (header.id.device, header.id.stream) != (device, stream):
        raise BlockError(
            f"the block belongs to {header.id.device}/{header.id.stream}, the topic to {device}/{stream}"
        )
    if max(header.id.seq, abs(header.first_us), abs(header.last_us), abs(header.offset_us)) > FAR_US:
        raise BlockError(f"sequence {header.id.seq} or its times are beyond all reason")


def _check_clock(report: ClockReport) -> None:
    numbers = (report.measured_us, report.boot_epoch_us, report.error_us, report.wall_error_us)
    if len(bytes.fromhex(report.boot)) != 16 or max(map(abs, numbers)) > FAR_US:
        raise ValueError("boot is not 32 hexadecimal digits, or a time is beyond all reason")


def ranges(seqs: list[int]) -> list[tuple[int, int]]:
    """Sorted runs of consecutive numbers, both ends included."""
    runs: list[tuple[int, int]] = []
    for seq in sorted(seqs):
        if runs and seq <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], max(seq, runs[-1][1]))
        else:
            runs.append((seq, seq))
    return runs
