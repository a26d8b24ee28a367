"""Machine network and company network know nothing of each other, from power-on on.

Network: attackers on the company network (office), on the machine network (laptop) and on the internet (stranger).
Steps: watch both cables from before power-on; scan; shout; force forwarding on and try to get through.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from qemu import topology
from qemu.packets import ARP, ICMPV6, TCP, UDP, Packet
from qemu.promises import must_not_reach, must_not_reach_any, must_reach
from qemu.site import Site
from tests.e2e.conftest import PowerOn

COMPANY = [ipaddress.ip_network(n) for n in ("10.10.0.0/24", "fd00:10::/64")]
MACHINE = [ipaddress.ip_network(n) for n in ("192.168.10.0/24", "fd00:20::/64")]


def inside(address: str, networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return bool(address) and any(ipaddress.ip_address(address) in n for n in networks)


def test_no_frame_crosses_from_power_on(site: Site, power_on: PowerOn) -> None:
    """Neither cable carried a frame of the other side: no MAC, no address, no ARP, no multicast.

    Shows: X64, X65, X68
    """
    lan_macs = {p.source_mac for p in power_on.lan}
    wan_macs = {p.source_mac for p in power_on.wan}
    assert topology.LAN.mac in lan_macs, "the gateway polled its PLCs"
    assert topology.WAN.mac in wan_macs, "the gateway reached its cloud"
    assert not lan_macs & wan_macs
    strange = [str(p) for p in power_on.wan if inside(p.source, MACHINE) or inside(p.destination, MACHINE)]
    strange += [str(p) for p in power_on.lan if inside(p.source, COMPANY) or inside(p.destination, COMPANY)]
    assert not strange


def test_every_flow_starts_at_the_gateway(power_on: PowerOn) -> None:
    """On the WAN the first packet of every TCP and UDP flow leaves the gateway; answers come to what it asked.

    Shows: L11, X70
    """
    first: dict[frozenset[tuple[str, int]], Packet] = {}
    for p in power_on.wan:
        if p.protocol in (TCP, UDP) and not p.multicast:
            first.setdefault(frozenset({(p.source, p.source_port), (p.destination, p.destination_port)}), p)
    assert first
    # The DHCP server answers a client that has no address yet: its first packet goes to a broadcast address.
    foreign = [
        str(p) for p in first.values() if p.source_mac != topology.WAN.mac and p.destination_port != 68
    ]
    assert not foreign


def test_only_443_and_dns_leave(power_on: PowerOn) -> None:
    """What the gateway sends to the WAN is TCP 443, DNS, DHCP, ARP and neighbour discovery, and nothing else.

    Shows: X71, X70
    """
    sent = [p for p in power_on.wan if p.source_mac == topology.WAN.mac]

    def allowed(p: Packet) -> bool:
        if p.ethertype == ARP or p.protocol == ICMPV6:
            return True
        if p.protocol == TCP:
            return p.destination_port in (443, 53)
        return p.protocol == UDP and p.destination_port in (53, 67, 547)

    assert any(p.protocol == TCP and p.destination_port == 443 for p in sent)
    assert not [str(p) for p in sent if not allowed(p)]


def test_address_came_by_dhcp(site: Site, power_on: PowerOn) -> None:
    """The factory way: the WAN port asks by DHCP, with its own stable MAC.

    Shows: X78
    """
    assert any(p.protocol == UDP and p.destination_port == 67 for p in power_on.wan)
    address = site.wan_address()
    assert address
    assert address in site.machine.agent.shell("ip -4 -o address show dev wan0")


@pytest.mark.parametrize("attacker", ["office", "laptop"])
def test_full_scan_finds_nothing(site: Site, attacker: str) -> None:
    """All 65,535 TCP ports and the well-known UDP ports, from the company's and from the machines' side.

    Shows: L10, X65, X66
    """
    wan = site.wan_address()
    assert wan
    target = wan if attacker == "office" else topology.GATEWAY_LAN
    host = site.hosts[attacker]
    tcp = host.run(
        *("nmap", "-Pn", "-n", "-sS", "-p-", "--max-retries", "1", "--min-rate", "8000", "-oG", "-", target),
        timeout=300,
    ).stdout
    assert "Status: Up" in tcp or "Host:" in tcp, tcp
    assert "/open/" not in tcp, tcp
    assert "/closed/" not in tcp, "a closed port answers; a gateway that is not there does not"
    udp = host.run(
        *("nmap", "-Pn", "-n", "-sU", "-p-", "--max-retries", "0", "--min-rate", "8000", "-oG", "-", target),
        timeout=300,
    ).stdout
    assert "/open/udp" not in udp, udp
    assert "/closed/udp" not in udp, udp


def test_attackers_cannot_ping(site: Site) -> None:
    """The gateway does not answer pings, on either side, IPv4 and IPv6.

    Shows: L10
    """
    wan = site.wan_address()
    assert wan
    must_not_reach(site.office, wan, protocol="ping")
    must_not_reach(site.laptop, topology.GATEWAY_LAN, protocol="ping")
    must_not_reach(site.office, _wan_ipv6(site), protocol="ping")


def _wan_ipv6(site: Site) -> str:
    found = site.machine.agent.shell("ip -6 -o address show dev wan0 scope global").split()
    six = next((word.split("/")[0] for word in found if word.startswith("fd00:10:")), None)
    assert six, "the WAN port has an IPv6 address by router advertisement"
    return six


def test_the_way_in_for_dhcp_is_not_a_way_in(site: Site) -> None:
    """Who pretends to be a DHCP server (from UDP 67 to 68) gets no answer either, not even "port unreachable".

    Shows: L10
    """
    probe = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.bind(('', 67)); s.connect((sys.argv[1], 68)); s.settimeout(2)\n"
        "s.send(b'x' * 300)\n"
        "try: print('answered', s.recv(1))\n"
        "except TimeoutError: print('silent')\n"
        "except OSError as error: print(error)\n"
    )
    wan = site.wan_address()
    assert wan
    for address in (wan, _wan_ipv6(site)):
        assert site.office.run("python3", "-c", probe, address).stdout == "silent\n"


@pytest.fixture
def forwarding_forced(site: Site) -> Iterator[None]:
    """As if somebody had switched routing on: now only the rules stand between the networks."""
    on = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
    site.machine.agent.shell(on)
    yield
    site.machine.agent.shell(on.replace("=1", "=0"))


@pytest.fixture
def ways_through(site: Site) -> Iterator[str]:
    """The attackers know the way: routes over the gateway to the other side. Gives the gateway's WAN address."""
    wan = site.wan_address()
    assert wan
    site.office.ip(f"route add 192.168.10.0/24 via {wan}")
    yield wan
    site.office.ip("route del 192.168.10.0/24")


@pytest.mark.usefixtures("forwarding_forced")
def test_nothing_passes_even_with_forwarding_on(site: Site, ways_through: str) -> None:
    """Both directions, TCP, UDP and ping, with routing forced on: the rule set alone holds.

    Shows: X65, X66, X68
    """
    wan, lan = site.capture("wan"), site.capture("lan")
    plc = topology.PLCS["plc1"]
    must_reach(site.laptop, plc, topology.MODBUS_PORT)
    must_not_reach_any(site.office, [(plc, 502, "tcp"), (plc, 502, "udp"), (plc, 0, "ping")])
    must_not_reach_any(
        site.laptop,
        [
            (topology.ROUTER_COMPANY, 53, "tcp"),
            (topology.ROUTER_COMPANY, 53, "udp"),
            ("10.10.0.66", 0, "ping"),
            (topology.CLOUD_MQTT, 443, "tcp"),
        ],
    )
    crossed = [str(p) for p in wan.stop() if inside(p.source, MACHINE) and p.source_mac == topology.WAN.mac]
    crossed += [str(p) for p in lan.stop() if inside(p.source, COMPANY) and p.source_mac == topology.LAN.mac]
    assert not crossed


def test_gateway_answers_no_arp_for_the_other_side(site: Site) -> None:
    """Asked on one side for an address of the other, the gateway stays silent; for its own it answers.

    Shows: X64, X65
    """
    wan = site.wan_address()
    assert wan
    own = site.office.run("arping", "-c", "2", "-w", "3", "-I", "eth0", wan, check=False)
    assert own.status == 0, own
    for host, foreign in ((site.office, topology.GATEWAY_LAN), (site.laptop, wan)):
        answer = host.run("arping", "-c", "2", "-w", "2", "-I", "eth0", foreign, check=False)
        assert answer.status != 0, f"{host} got an ARP answer for {foreign}: {answer.stdout}"


def test_shouting_does_not_cross(site: Site) -> None:
    """Broadcast and multicast, IPv4 and IPv6, from each side: not one frame on the other, nor an answer.

    Shows: X65
    """
    wan, lan = site.capture("wan"), site.capture("lan")
    shout = (
        "import socket;"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.setsockopt(socket.SOL_SOCKET,socket.SO_BROADCAST,1);"
        "s.setsockopt(socket.IPPROTO_IP,socket.IP_MULTICAST_TTL,9);"
        "[s.sendto(b'sallyport-shout',(a,5353)) for a in ('255.255.255.255','224.0.0.251','239.1.2.3')];"
        "s=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM);"
        "s.setsockopt(socket.IPPROTO_IPV6,socket.IPV6_MULTICAST_HOPS,9);"
        "i=socket.if_nametoindex('eth0');"
        "[s.sendto(b'sallyport-shout',(a,5353,0,i)) for a in ('ff02::1','ff05::1:3')]"
    )
    for host in (site.office, site.laptop):
        host.run("python3", "-c", shout)
    # Each attacker's own cable side has seen the shout; a ping of its own network marks that all has passed.
    must_reach(site.office, topology.ROUTER_COMPANY, protocol="ping")
    must_reach(site.laptop, topology.PLCS["plc1"], protocol="ping")
    heard_wan = [p for p in wan.stop() if b"sallyport-shout" in p.payload]
    heard_lan = [p for p in lan.stop() if b"sallyport-shout" in p.payload]
    assert len(heard_wan) == 5, "the office's five shouts reach the gateway's WAN port, and no others"
    assert len(heard_lan) == 5, "the laptop's five shouts reach the gateway's LAN port, and no others"
    assert {p.source_mac for p in heard_wan}.isdisjoint({p.source_mac for p in heard_lan})


def test_firewall_survives_its_process(site: Site) -> None:
    """With the firewall's process killed the rules stay, and systemd brings it back.

    Shows: X68
    """
    agent = site.machine.agent
    pid = agent.shell("systemctl show -p MainPID --value sallyport-firewall.service").strip()
    rules = "nft list table inet sallyport | grep -c drop"
    before = int(agent.shell(rules))
    agent.shell(f"kill -9 {pid}")
    assert int(agent.shell(rules)) == before
    entry = len(site.machine.journal.entries())
    assert entry
    site.machine.journal.wait_for(
        lambda e: e.unit == "sallyport-firewall.service" or "Started sallyport-firewall" in e.message, 60
    )
    must_not_reach(site.office, site.wan_address() or "", 22)
