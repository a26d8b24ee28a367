"""The internet's name server: authoritative for what the cloud is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qemu import topology
from qemu.neighbours.dnsmasq import Dnsmasq

if TYPE_CHECKING:
    from qemu.hosts import Host


def start_dns(host: Host, state: Path) -> Dnsmasq:
    records = [f"host-record={name},{address}" for name, address in topology.NAMES.items()]
    return Dnsmasq(
        host,
        state,
        [
            f"listen-address={topology.CLOUD_DNS}",
            "local=/sallyport.test/",
            *records,
            "local-ttl=30",
            "log-queries",
        ],
        ready=(topology.CLOUD_DNS, 53),
    )
