"""Reads pcap files: the headers that tests ask about.

Formats: pcap (draft-ietf-opsawg-pcap, microsecond and nanosecond, both byte orders), Ethernet II, 802.1Q, ARP
(RFC 826), IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP (RFC 768), ICMP.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_HEADER_BYTES = 24
ETHERNET = 1
ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
IPV6_EXTENSIONS = (0, 43, 44, 60)
FIN, SYN, RST, ACK = 1, 2, 4, 16


@dataclass(frozen=True)
class Packet:
    """One frame. What a header does not give is empty or 0."""

    time_s: float
    source_mac: str
    destination_mac: str
    ethertype: int
    source: str = ""
    """IP address; for ARP the sender's."""
    destination: str = ""
    """IP address; for ARP the one asked for."""
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0
    tcp_flags: int = 0
    icmp_type: int = -1
    arp_operation: int = 0
    payload: bytes = b""
    """After the last header that was understood."""

    @property
    def opens_connection(self) -> bool:
        """The first packet of a TCP handshake."""
        return self.protocol == TCP and self.tcp_flags & (SYN | ACK) == SYN

    @property
    def multicast(self) -> bool:
        """Multicast or broadcast on Ethernet."""
        return bool(int(self.destination_mac[:2], 16) & 1)

    def __str__(self) -> str:
        if self.ethertype == ARP:
            kind = "request" if self.arp_operation == 1 else "reply"
            return f"{self.time_s:.6f} {self.source_mac} ARP {kind} {self.source} for {self.destination}"
        names = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6"}
        what = names.get(self.protocol, f"type {self.ethertype:#06x} protocol {self.protocol}")
        ports = (f":{self.source_port}", f":{self.destination_port}") if self.source_port else ("", "")
        return f"{self.time_s:.6f} {self.source_mac} {what} {self.source}{ports[0]} > {self.destination}{ports[1]}"


def read(path: Path) -> Iterator[Packet]:
    """The packets of a file; a last one that is torn is left out. Raises `ValueError` for what is not Ethernet pcap."""
    data = path.read_bytes()
    if len(data) < FILE_HEADER_BYTES:
        return
    order = "<" if data[0] in (0xD4, 0x4D) else ">"
    magic, *_, link = struct.unpack_from(f"{order}IHHiIII", data)
    if magic not in (0xA1B2C3D4, 0xA1B23C4D) or link != ETHERNET:
        raise ValueError(f"{path} is not a pcap file of Ethernet frames")
    fraction = 1e-9 if magic == 0xA1B23C4D else 1e-6
    position = FILE_HEADER_BYTES
    while position + 16 <= len(data):
        seconds, part, captured, _ = struct.unpack_from(f"{order}IIII", data, position)
        position += 16
        if position + captured > len(data):
            return
        yield parse(data[position : position + captured], seconds + part * fraction)
        position += captured


def parse(frame: bytes, time_s: float = 0.0) -> Packet:
    """One Ethernet frame. Headers that are cut off are left out, never an error."""
    if len(frame) < 14:
        return Packet(time_s, "", "00", 0, payload=frame)
    destination, source = frame[:6].hex(":"), frame[6:12].hex(":")
    ethertype, position = struct.unpack_from("!H", frame, 12)[0], 14
    while ethertype == VLAN and len(frame) >= position + 4:
        ethertype, position = struct.unpack_from("!H", frame, position + 2)[0], position + 4
    body = frame[position:]
    fields: dict[str, object] = {"payload": body}
    try:
        if ethertype == ARP:
            fields = _arp(body)
        elif ethertype == IPV4:
            fields = _ipv4(body)
        elif ethertype == IPV6:
            fields = _ipv6(body)
    except (struct.error, IndexError):
        pass
    return Packet(time_s, source, destination, ethertype, **fields)  # type: ignore[arg-type]


def _address(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw))


def _arp(body: bytes) -> dict[str, object]:
    operation, _, sender, _, target = struct.unpack_from("!6xH6s4s6s4s", body)
    return {"arp_operation": operation, "source": _address(sender), "destination": _address(target)}


def _ipv4(body: bytes) -> dict[str, object]:
    length, fragment, protocol, source, destination = struct.unpack_from("!2xH2xHxB2x4s4s", body)
    fields: dict[str, object] = {
        "source": _address(source),
        "destination": _address(destination),
        "protocol": protocol,
    }
    rest = body[(body[0] & 15) * 4 : length or None]
    return fields | (_transport(protocol, rest) if fragment & 0x1FFF == 0 else {"payload": rest})


def _ipv6(body: bytes) -> dict[str, object]:
    length, protocol, source, destination = struct.unpack_from("!4xHBx16s16s", body)
    rest = body[40 : 40 + length]
    while protocol in IPV6_EXTENSIONS and len(rest) >= 8:
        size = 8 if protocol == 44 else (rest[1] + 1) * 8
        if protocol == 44 and struct.unpack_from("!H", rest, 2)[0] >> 3:
            break
        protocol, rest = rest[0], rest[size:]
    fields: dict[str, object] = {
        "source": _address(source),
        "destination": _address(destination),
        "protocol": protocol,
    }
    return fields | _transport(protocol, rest)


def _transport(protocol: int, body: bytes) -> dict[str, object]:
    if protocol == TCP and len(body) >= 20:
        source, destination, offset, flags = struct.unpack_from("!HH8xBB", body)
        payload = body[(offset >> 4) * 4 :]
        return {
            "source_port": source,
            "destination_port": destination,
            "tcp_flags": flags,
            "payload": payload,
        }
    if protocol == UDP and len(body) >= 8:
        source, destination = struct.unpack_from("!HH", body)
        return {"source_port": source, "destination_port": destination, "payload": body[8:]}
    if protocol in (ICMP, ICMPV6) and body:
        return {"icmp_type": body[0], "payload": body[4:]}
    return {"payload": body}
