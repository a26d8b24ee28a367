"""What the kernel says about ports, addresses and routes, by rtnetlink(7). Needs no privilege.

Small and by hand: a library for this costs more memory than the whole service.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

RTMGRP = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # link, IPv4 address and route, IPv6 address and route
RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_DUMP_REQUEST = 0x301
IFLA_IFNAME, IFLA_CARRIER, IFLA_ADDRESS = 3, 33, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_TENTATIVE = 0x40
RTA_OIF, RTA_GATEWAY = 4, 5
RT_TABLE_MAIN = 254
RT_SCOPE_LINK = 253


@dataclass
class Port:
    name: str
    mac: str
    carrier: bool
    addresses: list[str] = field(default_factory=list)
    """With prefix; those that are in use (not link-local, not being probed)."""
    gateways: list[str] = field(default_factory=list)
    """Of the default routes."""


class Watch:
    """`socket` is readable after any change; then `drain` and look again."""

    def __init__(self) -> None:
        self.socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        self.socket.bind((0, RTMGRP))

    def drain(self) -> None:
        try:
            while self.socket.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: some were lost, and the reader looks at the whole anyway
            pass


def ports() -> dict[str, Port]:
    """Every port of this network namespace, by name. Raises OSError."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as sock:
        sock.settimeout(5)
        sock.bind((0, 0))
        found: dict[int, Port] = {}
        for message in _dump(sock, RTM_GETLINK, RTM_NEWLINK):
            (index,) = struct.unpack_from("=4xi", message)
            attributes = dict(_attributes(message[16:]))
            found[index] = Port(
                attributes[IFLA_IFNAME].rstrip(b"\0").decode(),
                attributes.get(IFLA_ADDRESS, b"").hex(":"),
                attributes.get(IFLA_CARRIER) == b"\1",
            )
        for message in _dump(sock, RTM_GETADDR, RTM_NEWADDR):
            _, prefix, flags, scope, index = struct.unpack_from("=BBBBI", message)
            attributes = dict(_attributes(message[8:]))
            (flags,) = struct.unpack("=I", attributes.get(IFA_FLAGS, struct.pack("=I", flags)))
            address = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS)
            if address and index in found and scope < RT_SCOPE_LINK and not flags & IFA_F_TENTATIVE:
                found[index].addresses.append(f"{ipaddress.ip_address(address)}/{prefix}")
        for message in _dump(sock, RTM_GETROUTE, RTM_NEWROUTE):
            _, destination, _, _, table = struct.unpack_from("=BBBBB", message)
            attributes = dict(_attributes(message[12:]))
            if destination == 0 and table == RT_TABLE_MAIN and {RTA_OIF, RTA_GATEWAY} <= attributes.keys():
                (index,) = struct.unpack("=I", attributes[RTA_OIF])
                if index in found:
                    found[index].gateways.append(str(ipaddress.ip_address(attributes[RTA_GATEWAY])))
    return {port.name: port for port in found.values()}


def _dump(sock: socket.socket, kind: int, answer: int) -> Iterator[bytes]:
    """Bodies of all messages of one dump (linux/rtnetlink.h)."""
    sock.send(struct.pack("=IHHIIB15x", 32, kind, NLM_F_DUMP_REQUEST, 1, 0, socket.AF_UNSPEC))
    while True:
        data = sock.recv(65536)
        while data:
            length, got = struct.unpack_from("=IH", data)
            if got == NLMSG_DONE:
                return
            if got == NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, 16)
                raise OSError(-code, os.strerror(-code))
            if got == answer:
                yield data[16:length]
            data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]
