"""The kernel's side of the firewall: libnftables in this process, and two netlink messages. CAP_NET_ADMIN."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nftables

from services.firewall.core import TABLE

NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7

# ctnetlink, linux/netfilter/nfnetlink_conntrack.h
IPCTNL_MSG_CT_DELETE = (1 << 8) | 2
NLM_F_REQUEST_ACK = 1 | 4
NLMSG_ERROR = 2


class KernelError(Exception):
    """The kernel refused; nothing has changed. The text is its reason."""


class Kernel:
    """The rule set in this process's network namespace."""

    def __init__(self) -> None:
        self._nft = nftables.Nftables()
        self._nft.set_stateless_output(True)
        self.changes = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
        )
        """Readable after any change of any nftables rule, whoever made it."""
        self.changes.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))

    def apply(self, text: str) -> None:
        """One transaction: all of it or nothing. Raises KernelError."""
        self._run(text)

    def listing(self) -> str:
        """Our tables as the kernel has them, without counts; empty if they are gone."""
        try:
            return self._run(f"list table inet {TABLE}") + self._run(f"list table arp {TABLE}")
        except KernelError:
            return ""

    def foreign_tables(self) -> list[str]:
        """Tables that are not ours, as "ip nat". They can't allow what we drop, but can rewrite it."""
        names = [line.removeprefix("table ") for line in self._run("list tables").splitlines()]
        return [name for name in names if name not in (f"inet {TABLE}", f"arp {TABLE}")]

    def refused(self) -> dict[str, int]:
        """Packets refused since boot, by counter."""
        with self._json():
            _, answer, _ = self._nft.json_cmd(
                {"nftables": [{"list": {"counters": {"table": {"family": "inet", "name": TABLE}}}}]}
            )
        found: list[dict[str, Any]] = (answer or {}).get("nftables", [])
        counters = [item["counter"] for item in found if "counter" in item]
        return {one["name"]: one["packets"] for one in counters if one["table"] == TABLE}

    def forget_flows(self) -> None:
        """Flush connection tracking: what the new rules still allow is picked up again by its next packet,
        what they forbid ends. Raises KernelError."""
        header = struct.pack("=IHHII", 20, IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST_ACK, 1, 0)
        everything = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
            sock.settimeout(5)
            try:
                sock.sendall(header + everything)
                answer = sock.recv(4096)
            except OSError as error:
                raise KernelError(f"connection tracking: {error}") from error
        kind, code = struct.unpack_from("=H10xi", answer, 4)
        if kind == NLMSG_ERROR and code:
            raise KernelError(f"connection tracking: errno {-code}")

    def drain(self) -> None:
        """Forget what `changes` had to say."""
        try:
            while self.changes.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: some were lost, and we look at the whole anyway
            pass

    def _run(self, text: str) -> str:
        code, output, error = self._nft.cmd(text)
        if code:
            raise KernelError(" ".join(str(error).split()) or f"nftables error {code}")
        return str(output)

    @contextmanager
    def _json(self) -> Iterator[None]:
        self._nft.set_stateless_output(False)
        try:
            yield
        finally:
            self._nft.set_stateless_output(True)
            self._nft.set_json_output(False)
