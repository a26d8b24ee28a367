"""The networks of the pretend site do what they pretend: real packets between real hosts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qemu import topology
from qemu.namespaces import SiteError
from qemu.packets import ARP, TCP, UDP
from qemu.promises import eventually, must_not_reach, must_not_reach_any, must_reach
from qemu.site import Site

pytestmark = pytest.mark.netns

CLOUD = topology.CLOUD_MQTT
CLOUD_6 = "2001:db8::10"


def test_the_company_lets_out_https_and_dns_only(netns_site: Site) -> None:
    """TCP 443 and DNS pass, IPv4 and IPv6; nothing else does, and each drop is counted.

    The same ports answer when they are asked from the internet: it is the filter that stops them.
    """
    cloud, office, stranger = netns_site.hosts["cloud"], netns_site.office, netns_site.stranger
    tcp, udp = [22, 80, 443, 1883, 8443, 8883], [123, 443, 1194]
    with cloud.answering(tcp=tcp, udp=udp):
        before = netns_site.router.counters()
        for address in (CLOUD, CLOUD_6):
            must_reach(office, address, 443)
            stopped = [(address, port, "tcp") for port in tcp if port != 443]
            stopped += [(address, port, "udp") for port in udp] + [(address, 0, "ping")]
            assert set(stranger.probe_all(stopped)) == {"answered"}
            must_not_reach_any(office, stopped)
        must_reach(office, topology.CLOUD_DNS, 53)
        after = netns_site.router.counters()
    assert after["passed_https"] - before["passed_https"] == 2
    assert after["dropped_egress"] - before["dropped_egress"] >= 18


def test_nobody_comes_in_from_the_internet(netns_site: Site) -> None:
    """The router opens nothing towards the company network, by IPv4 or IPv6."""
    before = netns_site.router.counters()["dropped_ingress"]
    with netns_site.office.answering(tcp=[443], udp=[53]):
        must_reach(netns_site.gateway, "10.10.0.66", 443)
        for address in ("10.10.0.66", "fd00:10::66"):
            must_not_reach_any(
                netns_site.stranger, [(address, 443, "tcp"), (address, 53, "udp"), (address, 0, "ping")]
            )
    assert netns_site.router.counters()["dropped_ingress"] > before
    must_not_reach(netns_site.stranger, "203.0.113.2", 53, "udp")


def test_the_gateway_gets_a_lease_with_router_and_dns(netns_site: Site) -> None:
    """DHCP gives the gateway's MAC an address of the range; IPv6 addresses come from router advertisements."""
    leases = {lease.mac: lease.address for lease in netns_site.router.leases()}
    address = leases[topology.WAN.mac]
    assert netns_site.wan_address() == address
    assert int(address.rsplit(".", 1)[1]) in range(100, 151)
    assert address in netns_site.gateway.addresses("wan0")
    eventually(
        lambda: [
            a for a in netns_site.gateway.addresses("wan0") if a.startswith("fd00:10::") and "ff:fe" in a
        ],
        within=40,
        what="an IPv6 address made from a router advertisement",
    )


def test_dns_resolves_the_cloud(netns_site: Site) -> None:
    """The company's resolver asks the internet's name server."""
    look = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"
    for name, address in topology.NAMES.items():
        assert netns_site.gateway.run("python3", "-c", look, name).stdout.strip() == address


@pytest.mark.parametrize(
    ("fault", "open_ones"),
    [
        ("none", {"local udp", "local tcp", "internet udp", "internet tcp"}),
        ("no-udp", {"local tcp", "internet tcp"}),
        ("no-local", {"internet udp", "internet tcp"}),
        ("no-internet", {"local udp", "local tcp"}),
        ("off", set()),
    ],
)
def test_dns_faults(netns_site: Site, fault: str, open_ones: set[str]) -> None:
    """Each DNS fault stops what its name says and nothing else."""
    netns_site.router.dns_fault(fault)
    ways = {
        f"{where} {protocol}": (address, protocol)
        for where, address in (("local", topology.ROUTER_COMPANY), ("internet", topology.CLOUD_DNS))
        for protocol in ("udp", "tcp")
    }
    query = (
        "import socket, sys; kind = socket.SOCK_DGRAM if sys.argv[2] == 'udp' else socket.SOCK_STREAM\n"
        "q = bytes.fromhex('123401000001000000000000046d71747409') + b'sallyport\\x04test\\0\\0\\1\\0\\1'\n"
        "s = socket.socket(socket.AF_INET, kind); s.settimeout(0.7); s.connect((sys.argv[1], 53))\n"
        "s.sendall(q if sys.argv[2] == 'udp' else len(q).to_bytes(2, 'big') + q); print(s.recv(512).hex())"
    )
    answers = {
        name: netns_site.office.run("python3", "-c", query, *how, check=False).stdout
        for name, how in ways.items()
    }
    assert {name for name, answer in answers.items() if "cb00710a" in answer} == open_ones


def test_the_machine_network_is_a_network_of_its_own(netns_site: Site) -> None:
    """The laptop reaches the PLCs, and neither of the other networks (the bare gateway does not forward)."""
    must_reach(netns_site.laptop, topology.PLCS["plc1"], topology.MODBUS_PORT)
    must_reach(netns_site.laptop, topology.PLCS["plc2"], topology.MODBUS_PORT)
    with netns_site.office.answering(tcp=[443]):
        must_not_reach(netns_site.laptop, "10.10.0.66", 443)
        must_not_reach(netns_site.laptop, "fd00:10::66", 443)


def test_a_probe_without_a_route_proves_nothing(netns_site: Site) -> None:
    """must_not_reach fails when the packet never left the attacker."""
    with pytest.raises(AssertionError, match="no route"):
        must_not_reach(netns_site.hosts["cloud"], "192.0.2.1", 443)


def test_must_not_reach_fails_when_it_is_reached(netns_site: Site) -> None:
    """Answers and refusals both count as reached."""
    with pytest.raises(AssertionError, match=r"tcp 192\.168\.10\.10 port 502: answered"):
        must_not_reach(netns_site.laptop, "192.168.10.10", 502)
    with pytest.raises(AssertionError, match=r"port 503: refused"):
        must_not_reach(netns_site.laptop, "192.168.10.10", 503)
    with pytest.raises(AssertionError, match=r"must reach udp 192\.168\.10\.10 port 503, but: refused"):
        must_reach(netns_site.laptop, "192.168.10.10", 503, "udp")


@pytest.mark.parametrize("silent", [False, True])
def test_cut_and_restore_a_link(netns_site: Site, silent: bool) -> None:
    """A cut link passes nothing; its carrier goes or stays as asked; restored it works again."""
    gateway = netns_site.gateway
    netns_site.cut("wan", silent=silent)
    assert gateway.run("cat", "/sys/class/net/wan0/carrier").stdout.strip() == ("1" if silent else "0")
    assert gateway.probe(topology.ROUTER_COMPANY, 53) != "answered"
    must_reach(gateway, topology.PLCS["plc1"], 502)
    netns_site.restore("wan")
    must_reach(gateway, topology.ROUTER_COMPANY, 53)


def test_a_capture_shows_what_passes_the_cable(netns_site: Site, tmp_path: Path) -> None:
    """tcpdump's file and our parser agree with what was sent: addresses, ports, handshake, payload."""
    capture = netns_site.capture("laptop", tmp_path / "x.pcap")
    must_reach(netns_site.laptop, "192.168.10.10", 502)
    with netns_site.hosts["plc1"].answering(udp=[9999]):
        must_reach(netns_site.laptop, "192.168.10.10", 9999, "udp")
        must_reach(netns_site.laptop, "fd00:20::10", 9999, "udp")
    found = capture.stop()
    opening = [p for p in found if p.opens_connection]
    assert [(p.source, p.destination, p.destination_port, p.protocol) for p in opening] == [
        ("192.168.10.66", "192.168.10.10", 502, TCP)
    ]
    asked = [p for p in found if p.protocol == UDP and p.destination_port == 9999]
    assert {(p.source, p.payload) for p in asked} == {
        ("192.168.10.66", b"sallyport probe"),
        ("fd00:20::66", b"sallyport probe"),
    }


def test_the_patch_panel_is_silent(netns_site: Site, tmp_path: Path) -> None:
    """No bridge speaks: every frame on a cable carries the MAC of a host."""
    macs = {
        json.loads(host.run("ip", "-json", "link", "show", "dev", plug.interface).stdout)[0]["address"]
        for host, plug in [
            *((netns_site.hosts[plug.host], plug) for plug in topology.PLUGS),
            *((netns_site.gateway, plug) for plug in topology.LINKS.values()),
        ]
    }
    capture = netns_site.capture("office", tmp_path / "x.pcap")
    netns_site.office.run("ip", "neigh", "flush", "all")
    must_reach(netns_site.office, topology.ROUTER_COMPANY, 0, "ping")
    must_reach(netns_site.office, topology.ROUTER_COMPANY_6, 0, "ping")
    found = capture.stop()
    assert any(p.ethertype == ARP for p in found)
    assert {p.source_mac for p in found} <= macs


def test_unknown_names_are_refused(netns_site: Site) -> None:
    for wrong in (
        lambda: netns_site.cut("wifi"),  # type: ignore[arg-type]
        lambda: netns_site.router.dns_fault("flaky"),
        lambda: netns_site.port("nobody"),
        lambda: netns_site.machine,
        lambda: netns_site.cloud,
    ):
        with pytest.raises(SiteError):
            wrong()
