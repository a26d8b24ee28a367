"""Bridges, cables and taps, with ip(8) in batch mode.

The patch panel is the site's own network namespace: one bridge for each network, one port for each cable, no address
and no IPv6, so that it never sends a frame by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qemu import topology
from qemu.namespaces import Namespaces
from qemu.topology import Plug


def batch(space: Namespaces, lines: Iterable[str], host: str | None = None) -> None:
    """Run lines of ip(8) in a host, or in the panel. Raises `SiteError` with ip's own words."""
    space.run(["ip", "-batch", "-"], host=host, stdin="\n".join(lines) + "\n").check()


def bridges() -> list[str]:
    """No spanning tree, no multicast snooping: what comes in goes out, at once and unchanged."""
    lines = ["link set lo up"]
    for network in topology.NETWORKS:
        lines += [
            f"link add {network.name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {network.name} up",
        ]
    return lines


def cable(plug: Plug, holder: int) -> list[str]:
    """Lines for the panel: a cable from a port there to the host held by process `holder`."""
    mac = f" address {plug.mac}" if plug.mac else ""
    return [
        f"link add {plug.port} type veth peer name {plug.interface}{mac} netns {holder}",
        f"link set {plug.port} master {plug.network} up",
    ]


def tap(plug: Plug) -> list[str]:
    """Lines for the panel: a port that a virtual machine is plugged into."""
    return [f"tuntap add dev {plug.port} mode tap vnet_hdr", f"link set {plug.port} master {plug.network} up"]


def configure(plugs: Sequence[Plug]) -> list[str]:
    """Lines for a host: its interfaces up, with their addresses (usable at once: no duplicate detection)."""
    lines = ["link set lo up"]
    for plug in plugs:
        lines += [
            f"address add {address} dev {plug.interface}{' nodad' if ':' in address else ''}"
            for address in plug.addresses
        ]
        lines.append(f"link set {plug.interface} up")
    return lines


def routes(host: str) -> list[str]:
    return [
        f"route add {route.destination} via {route.via}" for route in topology.ROUTES if route.host == host
    ]


def cut_silently(space: Namespaces, plug: Plug) -> None:
    """Unplug behind the first switch: no frame passes, the carrier stays."""
    batch(space, [f"link set {plug.port} nomaster"])


def cut_carrier(space: Namespaces, plug: Plug) -> None:
    """Pull a cable out of the panel: the host's interface loses its carrier. (For a virtual machine: QMP.)"""
    batch(space, [f"link set {plug.port} down"])


def restore(space: Namespaces, plug: Plug) -> None:
    batch(space, [f"link set {plug.port} master {plug.network} up"])
