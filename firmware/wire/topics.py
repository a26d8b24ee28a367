"""MQTT topics. A device writes only below its own `up/` and reads only below its own `down/`.

sp/v1/<device>/up/block/<lane>/<stream>   a block, as sealed on flash (lane: live, backfill)
sp/v1/<device>/up/status                  Status, retained; the last will says offline
sp/v1/<device>/up/time                    TimeRequest
sp/v1/<device>/up/clock                   ClockReport
sp/v1/<device>/up/pong                    Pong
sp/v1/<device>/down/ack                   Ack: stored, may be forgotten
sp/v1/<device>/down/nack                  Nack: cannot be read, don't send it again
sp/v1/<device>/down/time                  TimeReply
sp/v1/<device>/down/ping                  Ping
"""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "sp/v1"
ALL_UP = f"{PREFIX}/+/up/#"
ALL_PONGS = f"{PREFIX}/+/up/pong"
LIVE = "live"
BACKFILL = "backfill"

_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Up(NamedTuple):
    """A topic that came up from a device."""

    device: str
    rest: str
    """What stands behind `up/`."""


class BlockTopic(NamedTuple):
    lane: str
    stream: str


def is_device(text: str) -> bool:
    """Whether a text can be a device id: safe in a topic, a path, a certificate and a URL."""
    return _DEVICE.fullmatch(text) is not None


def up(device: str, rest: str) -> str:
    return f"{PREFIX}/{device}/up/{rest}"


def down(device: str, rest: str) -> str:
    return f"{PREFIX}/{device}/down/{rest}"


def all_down(device: str) -> str:
    return down(device, "#")


def block(device: str, lane: str, stream: str) -> str:
    return up(device, f"block/{lane}/{stream}")


def parse_up(topic: str) -> Up | None:
    """Device and rest of an upward topic; None for any other."""
    parts = topic.split("/", 4)
    if len(parts) < 5 or "/".join(parts[:2]) != PREFIX or parts[3] != "up":
        return None
    return Up(parts[2], parts[4])


def parse_block(rest: str) -> BlockTopic | None:
    """Lane and stream of the rest of an upward block topic; None for any other."""
    match rest.split("/"):
        case ["block", ("live" | "backfill") as lane, stream] if stream:
            return BlockTopic(lane, stream)
    return None
