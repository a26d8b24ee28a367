"""Desired document + board -> systemd.network(5) files. Pure."""

from __future__ import annotations

from ipaddress import IPv4Interface

from firmware.config.schema import Desired, Lan, Wan
from hal.boards import Board

PREFIX = "10-sallyport-"
"""Begins every file that is ours; others are left alone."""

LAN_TABLE = 100
"""Number and priority of the routing table that leads to the machines."""
_SILENT = """\
LLMNR=no
MulticastDNS=no
LLDP=no
EmitLLDP=no
"""


def render(desired: Desired, board: Board) -> dict[str, str]:
    """Text by file name, for the folder /run/systemd/network. Raises ValueError for a board that this version
    can't serve: it knows one port of each zone."""
    files = {}
    for zone in ("wan", "lan"):
        ports = board.zone(zone)
        if len(ports) != 1:
            raise ValueError(
                f"board {board.name} has {len(ports)} ports of zone {zone}; this version serves one"
            )
        name = ports[0].name
        files[f"{PREFIX}{name}.network"] = (
            _wan(name, desired.wan) if zone == "wan" else _lan(name, desired.lan)
        )
    return files


def _wan(name: str, wan: Wan) -> str:
    """One stable identity towards the company (X75): the MAC address is the DHCP client's id, and IPv6
    addresses are made from it."""
    servers = "".join(f"DNS={server}\n" for server in wan.dns)
    own_servers = "no" if wan.dns else "yes"
    static = f"DHCP=no\nAddress={wan.address}\nGateway={wan.gateway}\n"
    addresses = static if wan.mode == "static" else "DHCP=ipv4\n"
    return f"""\
# The company side. Written by sallyport-network from the configuration; changes are overwritten.
[Match]
Name={name}

[Link]
RequiredForOnline=no

[Network]
{addresses}{servers}DNSDefaultRoute=yes
LinkLocalAddressing=ipv6
IPv6AcceptRA=yes
IPv6PrivacyExtensions=no
IPv6LinkLocalAddressGenerationMode=eui64
{_SILENT}
[DHCPv4]
ClientIdentifier=mac
UseGateway=yes
UseRoutes=no
UseDNS={own_servers}
UseDomains=no
UseHostname=no
UseNTP=no
UseSIP=no
UseTimezone=no
SendHostname=no
SendRelease=no

[IPv6AcceptRA]
DHCPv6Client=no
UseDNS={own_servers}
UseDomains=no
Token=eui64
"""


def _lan(name: str, lan: Lan) -> str:
    """Up also without a cable, so that what belongs to the machine network never leaves by the WAN.

    A table of its own, looked up first: whatever DHCP says on the company side, machines stay here.
    """
    interface = IPv4Interface(lan.address)
    return f"""\
# The machine side. Written by sallyport-network from the configuration; changes are overwritten.
[Match]
Name={name}

[Link]
RequiredForOnline=no

[Network]
Address={lan.address}
DHCP=no
IPv6AcceptRA=no
LinkLocalAddressing=no
ConfigureWithoutCarrier=yes
DNSDefaultRoute=no
{_SILENT}
[Route]
Destination={interface.network}
Scope=link
PreferredSource={interface.ip}
Table={LAN_TABLE}

[RoutingPolicyRule]
To={interface.network}
Table={LAN_TABLE}
Priority={LAN_TABLE}
"""
