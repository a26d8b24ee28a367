"""A board: which port is which. One TOML file per board in `boards/`; an image holds the one it is built for.

name = "qemu-x86_64"
compatible = "sallyport-qemu-x86_64"

[[port]]
name = "wan0"              # the interface's name on the gateway
zone = "wan"               # "wan" or "lan"
path = "pci-0000:00:03.0"  # where it is plugged in: udev's ID_PATH, never a MAC address or a probing order
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware import paths

BOARDS = Path(__file__).with_name("boards")
ZONES = ("wan", "lan")

_PORT_NAME = re.compile(r"[a-z][a-z0-9]{0,14}")  # IFNAMSIZ leaves 15 bytes
_PATH = re.compile(r"[A-Za-z0-9_.:*?\[\]/+-]+")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Names that the kernel or udev give out: a port called so could lose its name to another card.
_TAKEN = re.compile(r"lo|(eth|wlan|usb|wwan|sit|tun|tap)\d*|en[opsx].*|wl[opsx].*")


class BoardError(ValueError):
    """A board file can't be used. The text names the file, the key and the remedy."""


@dataclass(frozen=True)
class Port:
    name: str
    zone: str
    """One of `ZONES`."""
    path: str
    """udev's ID_PATH of the device, shell globs allowed."""


@dataclass(frozen=True)
class Board:
    name: str
    compatible: str
    """What an update must name to be taken by this board."""
    ports: tuple[Port, ...]

    def zone(self, zone: str) -> tuple[Port, ...]:
        """The ports of one zone, in the board file's order."""
        return tuple(port for port in self.ports if port.zone == zone)


def load(path: Path = paths.BOARD) -> Board:
    """Read a board file. Raises BoardError, also when the file isn't there."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BoardError(
            f"{path}: can't be read ({error.strerror}); is the image built for this board?"
        ) from error
    except ValueError as error:  # TOML syntax and UTF-8 alike
        raise BoardError(f"{path}: not TOML: {error}") from error
    return parse(document, str(path))


def parse(document: dict[str, Any], source: str) -> Board:
    """A board from its decoded document; `source` is named in errors. Raises BoardError."""

    def fail(key: str, problem: str) -> BoardError:
        return BoardError(f"{source}: {key}: {problem}")

    def text(table: dict[str, Any], key: str, place: str, form: re.Pattern[str], remedy: str) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not form.fullmatch(value):
            raise fail(place, f"{_shown(table, key)}; {remedy}")
        return value

    _no_unknown(document, ("name", "compatible", "port"), "", fail)
    remedy = "write a string of letters, digits, '.', '_' and '-'"
    name = text(document, "name", "name", _IDENTIFIER, remedy)
    compatible = text(document, "compatible", "compatible", _IDENTIFIER, remedy)
    tables = document.get("port")
    if not isinstance(tables, list) or not tables:
        raise fail("port", "no port; write a [[port]] table for each network port")

    ports: list[Port] = []
    for number, table in enumerate(tables):
        place = f"port[{number}]"
        if not isinstance(table, dict):
            raise fail(place, f"{table!r} is not a table; write [[port]]")
        _no_unknown(table, ("name", "zone", "path"), place + ".", fail)
        port = Port(
            text(
                table,
                "name",
                f"{place}.name",
                _PORT_NAME,
                "use 1 to 15 lower-case letters and digits, such as 'wan0'",
            ),
            text(
                table, "zone", f"{place}.zone", re.compile("|".join(ZONES)), f"use one of {', '.join(ZONES)}"
            ),
            text(table, "path", f"{place}.path", _PATH, "use udev's ID_PATH, such as 'pci-0000:00:03.0'"),
        )
        if _TAKEN.fullmatch(port.name):
            raise fail(
                f"{place}.name",
                f"{port.name!r} is a name that Linux gives to other devices; use one such as 'wan0'",
            )
        for key in ("name", "path"):
            if getattr(port, key) in [getattr(other, key) for other in ports]:
                raise fail(f"{place}.{key}", f"{getattr(port, key)!r} is used twice; each port needs its own")
        ports.append(port)
    return Board(name, compatible, tuple(ports))


def links(board: Board) -> dict[str, str]:
    """The systemd.link(5) files, by file name, that give each port its name."""
    return {
        f"10-{port.name}.link": (
            f"# Zone {port.zone} of board {board.name}.\n"
            f"[Match]\nPath={port.path}\n\n"
            f"[Link]\nName={port.name}\nMACAddressPolicy=none\n"
        )
        for port in board.ports
    }


def _no_unknown(
    table: dict[str, Any], known: tuple[str, ...], place: str, fail: Callable[[str, str], BoardError]
) -> None:
    for key in table:
        if key not in known:
            raise fail(place + key, f"unknown key; known are {', '.join(known)}")


def _shown(table: dict[str, Any], key: str) -> str:
    return f"{table[key]!r} can't be used" if key in table else "missing"
