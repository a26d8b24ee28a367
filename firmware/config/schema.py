"""The desired document: what the gateway should be. Every key, its type, its range and its default.

TOML for people, JSON on the wire and in the store. Unknown keys are refused.
`check.py` turns a violation into a text that names the key, the value and the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

SCHEMA_VERSION = 1

Port = Annotated[int, Meta(ge=1, le=65535, description="a TCP port, 1 to 65535")]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$",
        description="lower-case letters, digits, - and _, at most 32, starting with a letter or digit",
    ),
]
TagName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$",
        description="letters, digits, . - and _, at most 100, starting with a letter, digit or _",
    ),
]
Address = Annotated[str, Meta(min_length=1, max_length=253, description="an IP address or a host name")]

TagType = Literal[
    "bool", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "string"
]


class Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Base of every section: no unknown keys. `frozen` and `kw_only` are repeated below: mypy wants the one,
    msgspec the other."""


class Cloud(Section, frozen=True, kw_only=True):
    enabled: bool = False
    """Communication with the cloud; off until the owner allows it (L08)."""
    host: Address = "mqtt.sallyport.example"
    """MQTT broker; its certificate must carry this name."""
    port: Annotated[int, Meta(description="443 (X71)", ge=443, le=443)] = 443
    backfill_kib_s: Annotated[int, Meta(ge=1, le=100_000, description="1 to 100000 KiB/s")] = 256
    """Rate of history behind the live data."""


class Wan(Section, frozen=True, kw_only=True):
    """The company side: one Ethernet link in this version (X77, X78)."""

    mode: Literal["dhcp", "static"] = "dhcp"
    address: Annotated[str, Meta(description='address and prefix, as "10.10.0.50/24"')] = ""
    gateway: Annotated[str, Meta(description='the router\'s address, as "10.10.0.1"')] = ""
    dns: list[Annotated[str, Meta(description='an IP address, as "10.10.0.1"')]] = []
    """With DHCP and none given here: the servers that DHCP names (X74)."""


class Lan(Section, frozen=True, kw_only=True):
    """The machine side."""

    address: Annotated[str, Meta(description='address and prefix, as "192.168.10.1/24"')] = "192.168.10.1/24"


class Log(Section, frozen=True, kw_only=True):
    sync_s: Annotated[float, Meta(ge=1, le=60, description="1 to 60 seconds")] = 5.0
    """Samples are sealed and synced to flash this often; a power cut loses at most this much."""
    quota_mib: Annotated[int, Meta(ge=1, le=1_000_000, description="1 to 1000000 MiB")] = 6144
    """Room for all streams together; the oldest segment goes first."""


class Tag(Section, frozen=True, kw_only=True):
    name: TagName
    table: Literal["holding", "input", "coil", "discrete"] = "holding"
    address: Annotated[int, Meta(ge=0, le=65535, description="0 to 65535, counted from 0")]
    type: TagType = "uint16"
    length: Annotated[int, Meta(ge=1, le=120, description="1 to 120 registers")] = 1
    """Registers, for strings only."""
    word_order: Literal["big", "little"] = "big"
    """Which register of a 32- or 64-bit value comes first: the high one (big) or the low one."""
    byte_order: Literal["big", "little"] = "big"
    """Bytes within a register."""
    scale: float = 1.0
    offset: float = 0.0
    """value = raw * scale + offset; the result is a float unless both are neutral."""
    deadband: Annotated[float, Meta(ge=0, description="0 (every poll) or more, in units of the value")] = 0.0
    """A value that moved less than this since the last logged one is not logged again."""
    interval_ms: Annotated[int, Meta(ge=0, le=86_400_000, description="0 (the device's) to 86400000")] = 0
    unit: Annotated[str, Meta(max_length=20, description="at most 20 characters")] = ""


class Plc(Section, frozen=True, kw_only=True):
    name: Name
    protocol: Literal["modbus-tcp"] = "modbus-tcp"
    host: Address
    port: Port = 502
    unit: Annotated[int, Meta(ge=0, le=255, description="0 to 255")] = 1
    interval_ms: Annotated[int, Meta(ge=50, le=86_400_000, description="50 to 86400000 ms")] = 1000
    timeout_ms: Annotated[int, Meta(ge=50, le=60_000, description="50 to 60000 ms")] = 1000
    max_registers: Annotated[int, Meta(ge=1, le=125, description="1 to 125 registers a request")] = 125
    max_gap: Annotated[int, Meta(ge=0, le=124, description="0 to 124 unused registers")] = 16
    """Two tags this close are read with one request, the gap included."""
    tags: list[Tag] = field(default_factory=list)


class Desired(Section, frozen=True, kw_only=True):
    """The whole document."""

    schema: Literal[1] = 1
    device_name: Annotated[str, Meta(max_length=60, description="at most 60 characters")] = ""
    cloud: Cloud = field(default_factory=Cloud)
    wan: Wan = field(default_factory=Wan)
    lan: Lan = field(default_factory=Lan)
    log: Log = field(default_factory=Log)
    plc: list[Plc] = field(default_factory=list)


def load_published(path: Path) -> Desired:
    """Read the document that the configuration service published (already checked)."""
    return msgspec.json.decode(path.read_bytes(), type=Desired)
