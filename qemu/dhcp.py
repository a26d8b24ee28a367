"""A small DHCP client (RFC 2131) for the gateway as a bare namespace. A program: `dhcp.py INTERFACE`.

Asks for an address, accepts the offer, and prints `{"address", "prefix", "router", "dns": [...]}`. It configures
nothing and does not renew.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
COOKIE = b"\x63\x82\x53\x63"
BROADCAST_FLAG = 0x8000
HEADER = "!BBBBIHH4s4s4s4s16s192s"
TRIES = 5
MASK, ROUTER, DNS, WANTED, KIND, SERVER, LIST = 1, 3, 6, 50, 53, 54, 55


def message(kind: int, transaction: int, mac: bytes, options: dict[int, bytes]) -> bytes:
    none = bytes(4)
    header = struct.pack(
        HEADER, 1, 1, 6, 0, transaction, 0, BROADCAST_FLAG, none, none, none, none, mac.ljust(16, b"\0"), b""
    )
    body = b"".join(
        bytes((code, len(value))) + value for code, value in {KIND: bytes((kind,)), **options}.items()
    )
    return header + COOKIE + body + b"\xff"


def parse(data: bytes) -> tuple[int, str, dict[int, bytes]]:
    """(transaction, offered address, options)"""
    size = struct.calcsize(HEADER)
    fields = struct.unpack_from(HEADER, data)
    options, position = {}, size + len(COOKIE)
    while position < len(data) and data[position] != 255:
        if data[position] == 0:
            position += 1
            continue
        code, length = data[position], data[position + 1]
        options[code] = data[position + 2 : position + 2 + length]
        position += 2 + length
    return fields[4], socket.inet_ntoa(fields[8]), options


def lease(interface: str) -> dict[str, Any]:
    mac = bytes.fromhex(Path(f"/sys/class/net/{interface}/address").read_text().strip().replace(":", ""))
    transaction = secrets.randbits(32)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.bind(("", 68))

        def ask(kind: int, wanted: int, options: dict[int, bytes]) -> tuple[str, dict[int, bytes]]:
            for _ in range(TRIES):
                sock.sendto(message(kind, transaction, mac, options), ("255.255.255.255", 67))
                deadline = time.monotonic() + 1
                while (left := deadline - time.monotonic()) > 0:
                    sock.settimeout(left)
                    try:
                        number, address, given = parse(sock.recv(2048))
                    except TimeoutError:
                        break
                    if number == transaction and given.get(KIND) == bytes((wanted,)):
                        return address, given
            raise SystemExit(f"no DHCP server answers on {interface}")

        listed = {LIST: bytes((MASK, ROUTER, DNS))}
        address, offer = ask(DISCOVER, OFFER, listed)
        chosen = {WANTED: socket.inet_aton(address), SERVER: offer[SERVER], **listed}
        address, given = ask(REQUEST, ACK, chosen)
    dns = given.get(DNS, b"")
    return {
        "address": address,
        "prefix": ipaddress.ip_network(f"0.0.0.0/{socket.inet_ntoa(given[MASK])}").prefixlen,
        "router": socket.inet_ntoa(given[ROUTER][:4]),
        "dns": [socket.inet_ntoa(dns[at : at + 4]) for at in range(0, len(dns), 4)],
    }


if __name__ == "__main__":
    print(json.dumps(lease(sys.argv[1])))
