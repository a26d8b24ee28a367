"""Runs dnsmasq(8) on a host, configured by a file in the site's state folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qemu.namespaces import SiteError

if TYPE_CHECKING:
    from qemu.hosts import Host

START_S = 10.0
BASIS = [
    "keep-in-foreground",
    "user=root",
    "group=root",
    "pid-file=",
    "log-facility=-",
    "log-async=0",
    "no-resolv",
    "no-hosts",
    "bind-dynamic",
    "except-interface=lo",
]


class Dnsmasq:
    def __init__(self, host: Host, state: Path, lines: Sequence[str], *, ready: tuple[str, int]) -> None:
        """Returns when it answers on TCP at `ready`."""
        path = state / f"dnsmasq-{host.name}.conf"
        path.write_text("\n".join([*BASIS, *lines]) + "\n", encoding="utf-8")
        self._process = host.start("dnsmasq", f"--conf-file={path}")
        deadline = time.monotonic() + START_S
        while host.probe(*ready) != "answered":
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SiteError(f"dnsmasq on {host.name} does not start; see {host.log_path('dnsmasq')}")
