"""Desired document + what the kernel says -> the observed document. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firmware.config.schema import Desired
from firmware.status import State
from hal.boards import Board
from services.network.rtnetlink import Port


@dataclass(frozen=True)
class Seen:
    state: State
    summary: str
    detail: dict[str, Any]


def observe(
    desired: Desired | None, board: Board, ports: Mapping[str, Port], dns: Sequence[str], failure: str
) -> Seen:
    """`dns`: the name servers in use. `failure`: why the settings could not be applied, if so."""
    detail: dict[str, Any] = {"dns": list(dns), "ports": {}}
    missing = []
    for port in board.ports:
        have = ports.get(port.name)
        if have is None:
            missing.append(f"{port.name} is not there (board {board.name}: {port.path})")
            continue
        detail["ports"][port.name] = {
            "zone": port.zone,
            "mac": have.mac,
            "carrier": have.carrier,
            "addresses": sorted(have.addresses),
            "gateways": sorted(have.gateways),
        }
        if not have.carrier:
            missing.append(f"{port.name} has no link: no cable, or the other side is off")
        elif not have.addresses:
            missing.append(f"{port.name} has no address{_why(desired, port.zone)}")
        elif port.zone == "wan" and not have.gateways:
            missing.append(f"{port.name} knows no router")
        elif port.zone == "wan" and desired and (clash := _overlap(desired, have)):
            missing.append(f"{port.name} got {clash}, which overlaps the machine network; change lan.address")
    if failure:
        return Seen(State.FAILED, f"the settings can't be applied: {failure}", detail)
    if desired is None:
        return Seen(State.STARTING, "waits for the configuration", detail)
    if missing:
        return Seen(State.DEGRADED, "; ".join(missing), detail)
    addresses = [f"{name} {' '.join(have['addresses'])}" for name, have in detail["ports"].items()]
    return Seen(State.OK, ", ".join(addresses), detail)


def _why(desired: Desired | None, zone: str) -> str:
    return (
        " yet: no DHCP server answered"
        if desired and zone == "wan" and desired.wan.mode == "dhcp"
        else " yet"
    )


def _overlap(desired: Desired, wan: Port) -> str:
    """The WAN address that clashes with the machine network, empty if none does."""
    machines = ipaddress.IPv4Interface(desired.lan.address).network
    for text in wan.addresses:
        if ":" not in text and machines.overlaps(ipaddress.IPv4Interface(text).network):
            return text
    return ""
