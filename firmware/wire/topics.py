"""MQTT topics. A device writes only below its own `up/` and reads only below its own `down/`.

sp/v1/<device>/up/block/<lane>/<stream>   a block, as sealed on flash (lane: live, backfill)
sp/v1/<device>/up/status                  Status, retained; the last will says offline
sp/v1/<device>/up/time                    TimeRequest
sp/v1/<device>/up/clock                   ClockReport
sp/v1/<device>/up/pong                    Pong
sp/v1/<device>/down/ack                   Ack: stored, may be forgotten
sp/v1/<device>/down/time                  TimeReply
sp/v1/<device>/down/ping                  Ping
"""

from __future__ import annotations

from typing import NamedTuple

PREFIX = "sp/v1"
ALL_UP = f"{PREFIX}/+/up/#"
LIVE = "live"
BACKFILL = "backfill"


class Up(NamedTuple):
    """A topic that came up from a device."""

    device: str
    rest: str
    """What stands behind `up/`."""


def up(device: str, rest: str) -> str:
    return f"{PREFIX}/{device}/up/{rest}"


def down(device: str, rest: str) -> str:
    return f"{PREFIX}/{device}/down/{rest}"


def block(device: str, lane: str, stream: str) -> str:
    return up(device, f"block/{lane}/{stream}")


def parse_up(topic: str) -> Up | None:
    """Device and rest of an upward topic; None for any other."""
    parts = topic.split("/", 4)
    if len(parts) < 5 or "/".join(parts[:2]) != PREFIX or parts[3] != "up":
        return None
    return Up(parts[2], parts[4])
