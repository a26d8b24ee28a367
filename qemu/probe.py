"""Tries to reach addresses and says what came back. A program: standard input and output are JSON.

in: `{"targets": [[address, port, "tcp" | "udp" | "ping"], ...], "timeout": seconds}`
out: one word for each: "answered", "refused" (the other side answered with a reset or "port unreachable"),
"silent" (nothing came back in time), "unreachable" (an ICMP error or no ARP answer), "no route" (it never left).
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import struct
import sys

ICMP_ECHO = 8
ICMP6_ECHO = 128
WORDS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "refused",
    errno.ENETUNREACH: "no route",
    errno.EADDRNOTAVAIL: "no route",
    errno.EHOSTUNREACH: "unreachable",
    errno.EACCES: "unreachable",
    errno.EPERM: "unreachable",
    errno.ETIMEDOUT: "silent",
}


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


async def tcp(address: str, port: int) -> None:
    with socket.socket(family(address), socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))


async def udp(address: str, port: int) -> None:
    """Any answer counts; the question goes out three times a second in case one is lost."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((address, port))
        await _ask(sock, b"sallyport probe")


async def ping(address: str, _port: int) -> None:
    six = ":" in address
    protocol = socket.getprotobyname("ipv6-icmp" if six else "icmp")
    with socket.socket(family(address), socket.SOCK_RAW, protocol) as sock:
        sock.setblocking(False)
        sock.connect((address, 0))
        identity = id(sock) & 0xFFFF
        message = struct.pack("!BBHHH", ICMP6_ECHO if six else ICMP_ECHO, 0, 0, identity, 1)
        if not six:  # the kernel fills in the checksum of ICMPv6 only
            message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
        sending = asyncio.ensure_future(_send(sock, message))
        try:
            while True:
                reply = await asyncio.get_running_loop().sock_recv(sock, 2048)
                body = reply if six else reply[(reply[0] & 15) * 4 :]
                kind, _, _, got, _ = struct.unpack_from("!BBHHH", body)
                if kind in (0, 129) and got == identity:
                    return
        finally:
            sending.cancel()


async def _ask(sock: socket.socket, message: bytes) -> None:
    sending = asyncio.ensure_future(_send(sock, message))
    try:
        await asyncio.get_running_loop().sock_recv(sock, 2048)
    finally:
        sending.cancel()


async def _send(sock: socket.socket, message: bytes) -> None:
    while True:
        try:
            sock.send(message)
        except OSError:
            return  # the receiving side sees the same error
        await asyncio.sleep(0.33)


def checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


async def outcome(address: str, port: int, protocol: str, timeout: float) -> str:  # noqa: ASYNC109
    try:
        await asyncio.wait_for({"tcp": tcp, "udp": udp, "ping": ping}[protocol](address, port), timeout)
    except TimeoutError:
        return "silent"
    except OSError as error:
        return WORDS.get(error.errno or 0, f"unreachable ({error})")
    return "answered"


async def main() -> None:
    asked = json.load(sys.stdin)
    outcomes = [
        outcome(address, port, protocol, asked["timeout"]) for address, port, protocol in asked["targets"]
    ]
    json.dump(await asyncio.gather(*outcomes), sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
