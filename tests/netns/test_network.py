"""The network service with the real systemd-networkd, in a network namespace of its own."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware.config.schema import Desired, Lan, Wan
from hal import boards
from qemu import wires
from qemu.capture import Capture
from qemu.hosts import Host
from qemu.namespaces import Namespaces
from qemu.promises import eventually
from services.network import core, files

NETWORKD = Path("/lib/systemd/systemd-networkd")

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not NETWORKD.exists(), reason="needs systemd-networkd"),
    pytest.mark.skipif(os.geteuid() != 0, reason="networkd changes its user: needs root"),
]

BOARD = boards.load(boards.BOARDS / "qemu-x86_64.toml")
STATIC = Desired(
    wan=Wan(mode="static", address="10.10.0.50/24", gateway="10.10.0.1", dns=["10.10.0.1"]),
    lan=Lan(address="192.168.20.1/24"),
)
# networkd wants a /run of its own, and a read-only /sys tells it not to wait for udev.
START = f"""
mount -t tmpfs tmpfs /run
mount -o remount,bind,ro /sys
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
cp "$1"/* /run/systemd/network/ && chmod -R a+rX /run
chown -R systemd-network: /run/systemd/netif
exec {NETWORKD}
"""
REPORT = """
import json, dataclasses
from services.network import rtnetlink
print(json.dumps({name: dataclasses.asdict(port) for name, port in rtnetlink.ports().items()}))
"""


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.space = Namespaces(folder)
        self.gateway = Host(self.space, "gateway", folder)
        wires.batch(
            self.space,
            [
                f"link add {port}-far type veth peer name {port} netns {self.gateway.holder}"
                for port in ("wan0", "lan0")
            ],
        )

    def start_networkd(self, desired: Desired) -> None:
        files.write_changed(self.folder / "files", core.render(desired, BOARD))
        self.gateway.start(
            "unshare", "-m", "sh", "-ec", START, "sh", str(self.folder / "files"), log="networkd"
        )

    def ports(self) -> dict[str, dict[str, object]]:
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        found: dict[str, dict[str, object]] = json.loads(
            self.gateway.run(sys.executable, "-c", REPORT, env=path).stdout
        )
        return found


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="nd-") as folder:  # a short path: a Unix socket lives there
        lab = Lab(Path(folder))
        try:
            yield lab
        finally:
            lab.space.close()


def test_networkd_does_what_the_files_say(lab: Lab) -> None:
    """Static WAN with its router; the LAN has its address without any cable, and no IPv6. Shows: X77."""
    wires.batch(lab.space, ["link set wan0-far up"])
    lab.start_networkd(STATIC)
    seen = eventually(
        lab.ports,
        within=20,
        what="addresses set",
        done=lambda ports: bool(ports["wan0"]["gateways"] and ports["lan0"]["addresses"]),
    )
    assert seen["wan0"]["addresses"] == ["10.10.0.50/24"]
    assert seen["wan0"]["gateways"] == ["10.10.0.1"]
    assert seen["wan0"]["carrier"] is True
    assert seen["lan0"]["addresses"] == ["192.168.20.1/24"]
    assert seen["lan0"]["carrier"] is False
    assert "inet6" not in lab.gateway.run("ip", "address", "show", "dev", "lan0").stdout
    assert "Unknown" not in lab.gateway.log_path("networkd").read_text()


def test_networkd_knows_every_key_of_the_factory_settings(lab: Lab) -> None:
    """It asks by DHCP, and grumbles about nothing. Shows: X78."""
    wires.batch(lab.space, ["link set wan0-far up"])
    lab.start_networkd(Desired())
    eventually(lambda: lab.ports()["lan0"]["addresses"], within=20, what="addresses set")
    ask = Capture(lab.space, "wan0-far", lab.folder / "pcap", "udp port 67")
    eventually(ask.packets, within=20, what="a DHCP question")
    assert {packet.destination_port for packet in ask.stop()} == {67}
    assert "Unknown" not in lab.gateway.log_path("networkd").read_text()
