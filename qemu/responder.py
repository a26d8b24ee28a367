"""Answers on ports, so that probes have somebody to reach. A program: `responder.py '{"tcp": [...], "udp": [...]}'`.

Says `ready` when all ports answer, IPv4 and IPv6.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys


def open_port(kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if kind is socket.SOCK_DGRAM:
        # Answer from the address that was asked, on a host with several.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.bind(("::", port))
    if kind is socket.SOCK_STREAM:
        sock.listen(256)
    return sock


def main() -> None:
    ports = json.loads(sys.argv[1])
    selector = selectors.DefaultSelector()
    for port in ports["tcp"]:
        selector.register(open_port(socket.SOCK_STREAM, port), selectors.EVENT_READ, "tcp")
    for port in ports["udp"]:
        selector.register(open_port(socket.SOCK_DGRAM, port), selectors.EVENT_READ, "udp")
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                if key.data == "tcp":
                    sock.accept()[0].close()
                else:
                    data, ancillary, _, peer = sock.recvmsg(2048, 256)
                    sock.sendmsg([data], ancillary, 0, peer)
            except OSError as error:
                print(error, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
