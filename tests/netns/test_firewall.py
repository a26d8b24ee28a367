"""The firewall service on real packets: company host, gateway, machine host, each a network namespace.

    office 10.10.0.66 ── wan0 10.10.0.100 gateway lan0 192.168.10.1 ── laptop 192.168.10.66
           fd00:10::66        fd00:10::100        fd00:20::1                  fd00:20::66
                             usb0 172.16.0.1 ── stranger 172.16.0.2, on a port that nobody described

The gateway forwards and answers ARP for all its addresses (kernel defaults): what stops packets is the
rule set and nothing else. Both hosts have routes through the gateway.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qemu import wires
from qemu.capture import Capture
from qemu.hosts import Host, Protocol
from qemu.namespaces import Namespaces
from qemu.promises import eventually, must_not_reach, must_not_reach_any, must_reach

pytestmark = pytest.mark.netns

OFFICE, OFFICE_6 = "10.10.0.66", "fd00:10::66"
LAPTOP, LAPTOP_6 = "192.168.10.66", "fd00:20::66"
WAN, WAN_6 = "10.10.0.100", "fd00:10::100"
LAN, LAN_6 = "192.168.10.1", "fd00:20::1"
STRANGER = "172.16.0.2"
MACHINE_UID = 812
TCP = [22, 53, 80, 443, 502, 1883, 8443]
UDP = [53, 67, 68, 123, 443, 502, 546, 5353]

BOARD = """
name = "netns"
compatible = "netns"
[[port]]
name = "wan0"
zone = "wan"
path = "a"
[[port]]
name = "lan0"
zone = "lan"
path = "b"
"""


class Lab:
    """Three hosts around a gateway that runs the firewall service."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        (self.root / "run/sallyport/status").mkdir(parents=True)
        (self.root / "etc/sallyport").mkdir(parents=True)
        (self.root / "etc/sallyport/board.toml").write_text(BOARD)
        passwd = folder / "passwd"
        passwd.write_text(
            f"{Path('/etc/passwd').read_text()}sallyport-plc:x:{MACHINE_UID}:{MACHINE_UID}::/:/bin/false\n"
        )
        self.space = Namespaces(folder)
        self.gateway = Host(self.space, "gateway", folder, {"/etc/passwd": passwd})
        self.office = Host(self.space, "office", folder)
        self.laptop = Host(self.space, "laptop", folder)
        self.stranger = Host(self.space, "stranger", folder)
        lines = []
        for host, port in ((self.office, "wan0"), (self.laptop, "lan0"), (self.stranger, "usb0")):
            ours, theirs = f"gw-{port}", f"{host.name}-eth0"
            lines += [
                f"link add {port}-br type bridge mcast_snooping 0",
                f"link add {ours} type veth peer name {port} netns {self.gateway.holder}",
                f"link add {theirs} type veth peer name eth0 netns {host.holder}",
                f"link set {ours} master {port}-br up",
                f"link set {theirs} master {port}-br up",
                f"link set {port}-br up",
            ]
        self.panel("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        wires.batch(self.space, lines)
        self.gateway.ip(
            "link set lo up",
            *_up("wan0", f"{WAN}/24", f"{WAN_6}/64"),
            *_up("lan0", f"{LAN}/24", f"{LAN_6}/64"),
            *_up("usb0", "172.16.0.1/24"),
        )
        self.gateway.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.office.ip(*_up("eth0", f"{OFFICE}/24", f"{OFFICE_6}/64"), *_routes(WAN, WAN_6))
        self.laptop.ip(*_up("eth0", f"{LAPTOP}/24", f"{LAPTOP_6}/64"), *_routes(LAN, LAN_6))
        self.stranger.ip(*_up("eth0", f"{STRANGER}/24"), "route add default via 172.16.0.1")

    def panel(self, *argv: str) -> str:
        return self.space.run(argv).check().stdout

    def python(self, host: Host, code: str, *arguments: str, uid: int = 0) -> str:
        user = ["setpriv", f"--reuid={uid}", "--clear-groups"] if uid else []
        return host.run(*user, sys.executable, "-c", code, *arguments, timeout=60).stdout

    def write_desired(self, document: dict[str, Any]) -> None:
        path = self.root / "run/sallyport/desired.json"
        path.with_suffix(".new").write_text(json.dumps(document))
        path.with_suffix(".new").replace(path)

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.root / "run/sallyport/status/firewall.json").read_text())
        return document

    def counter(self, name: str) -> int:
        said = self.gateway.run("nft", "-j", "list", "counter", "inet", "sallyport", name).stdout
        packets: int = json.loads(said)["nftables"][-1]["counter"]["packets"]
        return packets

    @property
    def environment(self) -> dict[str, str]:
        return {"SALLYPORT_ROOT": str(self.root), "PYTHONPATH": str(Path(__file__).parents[2])}

    def load_closed(self) -> None:
        """As at boot."""
        argv = [sys.executable, "-m", "services.firewall", "closed"]
        text = self.gateway.run(*argv, env=self.environment).stdout
        self.gateway.run("nft", "-f", "-", stdin=text)

    def start_service(self) -> None:
        argv = [sys.executable, "-m", "services.firewall"]
        self.gateway.start(*argv, env=self.environment, log="service")


def _up(interface: str, *addresses: str) -> list[str]:
    lines = [f"address add {a} dev {interface}{' nodad' if ':' in a else ''}" for a in addresses]
    return ["link set lo up", *lines, f"link set {interface} up"]


def _routes(via: str, via_6: str) -> list[str]:
    return [f"route add default via {via}", f"route add default via {via_6}"]


CROSSING = [
    (LAPTOP, 502, "tcp"),
    (LAPTOP, 502, "udp"),
    (LAPTOP, 0, "ping"),
    (LAPTOP_6, 502, "tcp"),
    (LAPTOP_6, 502, "udp"),
    (LAPTOP_6, 0, "ping"),
]
OUTWARD = [
    (OFFICE, 443, "tcp"),
    (OFFICE, 53, "udp"),
    (OFFICE, 0, "ping"),
    (OFFICE_6, 443, "tcp"),
    (OFFICE_6, 53, "udp"),
    (OFFICE_6, 0, "ping"),
]
GATEWAY: list[tuple[str, int, Protocol]] = [
    (address, port, protocol)  # type: ignore[misc]
    for address in (WAN, LAN, WAN_6, LAN_6)
    for protocol, ports in (("tcp", TCP), ("udp", UDP), ("ping", [0]))
    for port in ports
]

ASK_ARP = """
import socket, struct, sys
target, sender = sys.argv[1:3]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
s.bind(("eth0", 0x0806))
mac = s.getsockname()[4]
head = b"\\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1)
s.settimeout(float(sys.argv[3]))
s.send(head + mac + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target))
try:
    while True:
        frame = s.recv(100)
        if frame[20:22] == b"\\0\\2" and frame[28:32] == socket.inet_aton(target):
            print("answered"); break
except TimeoutError:
    print("silent")
"""


def arp(lab: Lab, host: Host, target: str, sender: str) -> str:
    """Ask by ARP who has `target`; "answered" or "silent"."""
    return lab.python(host, ASK_ARP, target, sender, "0.7").strip()


@contextmanager
def new_lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="fw-") as folder:  # a short path: a Unix socket lives there
        lab = Lab(Path(folder))
        try:
            yield lab
        finally:
            lab.space.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Lab]:
    """A lab that was open in every way that the tests try, until the service was started."""
    with new_lab() as lab:
        prove_open(lab)
        lab.write_desired({})
        lab.start_service()
        eventually(lab.status, within=20, what="rules in force", done=lambda seen: seen["state"] == "ok")
        yield lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


def prove_open(lab: Lab) -> None:
    with lab.laptop.answering(tcp=[502], udp=[502]), lab.office.answering(tcp=[443], udp=[53]):
        assert lab.office.probe_all(CROSSING, 5) == ["answered"] * len(CROSSING)
        assert lab.laptop.probe_all(OUTWARD, 5) == ["answered"] * len(OUTWARD)
    assert arp(lab, lab.office, LAN, OFFICE) == "answered"
    assert arp(lab, lab.laptop, WAN, LAPTOP) == "answered"


def test_nothing_crosses_by_tcp_udp_or_ping(guarded: Lab) -> None:
    """Both ways, IPv4 and IPv6, with forwarding on. Shows: X64, X65, X68."""
    lan_to_wan, wan_to_lan = guarded.counter("lan_to_wan"), guarded.counter("wan_to_lan")
    with guarded.laptop.answering(tcp=[502], udp=[502]), guarded.office.answering(tcp=[443], udp=[53]):
        must_not_reach_any(guarded.office, CROSSING)
        must_not_reach_any(guarded.laptop, OUTWARD)
    assert guarded.counter("lan_to_wan") > lan_to_wan
    assert guarded.counter("wan_to_lan") > wan_to_lan


def test_the_gateway_answers_nobody(guarded: Lab) -> None:
    """With listeners on every probed port, from either side, on all its addresses. Shows: L10."""
    with guarded.gateway.answering(tcp=TCP, udp=UDP):
        must_reach(guarded.gateway, WAN, 443)  # the listeners are there: over loopback they answer
        must_not_reach_any(guarded.office, GATEWAY)
        must_not_reach_any(guarded.laptop, GATEWAY)


def test_only_tcp_443_and_dns_leave_to_the_wan(guarded: Lab) -> None:
    """Everything else, 8443 too, is refused on the gateway itself. Shows: L11, X70, X71, X73."""
    with guarded.office.answering(tcp=TCP, udp=UDP):
        for address in (OFFICE, OFFICE_6):
            for port, protocol in ((443, "tcp"), (53, "tcp"), (53, "udp")):
                must_reach(guarded.gateway, address, port, protocol)
            must_not_reach_any(
                guarded.gateway,
                [
                    *((address, port, "tcp") for port in TCP if port not in (53, 443)),
                    *((address, port, "udp") for port in UDP if port != 53),
                    (address, 0, "ping"),
                ],
            )


CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close(); print("answered")
except OSError:
    print("silent")
"""


def test_only_the_machine_service_talks_to_machines_and_to_nobody_else(guarded: Lab) -> None:
    """Shows: X64."""
    with guarded.laptop.answering(tcp=[502]), guarded.office.answering(tcp=[443]):
        assert guarded.python(guarded.gateway, CONNECT, LAPTOP, "502", uid=MACHINE_UID) == "answered\n"
        assert guarded.python(guarded.gateway, CONNECT, OFFICE, "443", uid=MACHINE_UID) == "silent\n"
        must_reach(guarded.gateway, OFFICE, 443)
        must_not_reach(guarded.gateway, LAPTOP, 502)
        must_not_reach(guarded.gateway, LAPTOP_6, 502)


def test_arp_is_answered_only_for_the_own_side(guarded: Lab) -> None:
    """Shows: X65."""
    assert arp(guarded, guarded.office, WAN, OFFICE) == "answered"
    assert arp(guarded, guarded.laptop, LAN, LAPTOP) == "answered"
    assert arp(guarded, guarded.office, LAN, OFFICE) == "silent"
    assert arp(guarded, guarded.laptop, WAN, LAPTOP) == "silent"
    assert arp(guarded, guarded.laptop, WAN, OFFICE) == "silent"


SEND_UDP = """
import socket, sys
source, *targets = sys.argv[1:]
for target in targets:
    six = ":" in target
    s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    s.setsockopt(*((socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) if six
                   else (socket.IPPROTO_IP, socket.IP_MULTICAST_TTL)), 8)
    if source != "-":
        s.bind((source, 4000))
    for _ in range(5):
        s.sendto(b"across?", (target, 5353))
"""


def test_broadcast_and_multicast_stay_on_their_side(guarded: Lab, tmp_path: Path) -> None:
    """Limited and directed broadcast, multicast of IPv4 and IPv6. Shows: X65."""
    for sender, listener, own, other in (
        (guarded.office, "laptop", "10.10.0.255", "192.168.10.255"),
        (guarded.laptop, "office", "192.168.10.255", "10.10.0.255"),
    ):
        capture = Capture(guarded.space, f"{listener}-eth0", tmp_path / "pcap", "udp port 5353")
        targets = ["255.255.255.255", own, other, "224.0.0.251", "239.1.2.3", "ff02::fb", "ff05::1:3"]
        guarded.python(sender, SEND_UDP, "-", *targets)
        assert [str(packet) for packet in capture.stop()] == []
        control = Capture(guarded.space, f"{sender.name}-eth0", tmp_path / "pcap2", "udp port 5353")
        guarded.python(sender, SEND_UDP, "-", *targets)
        assert len(control.stop()) == 5 * len(targets)


def test_forged_sources_are_dropped_first(guarded: Lab) -> None:
    """An address of one side on a packet from the other. Shows: X65."""
    for host, forged, target in ((guarded.office, "192.168.10.77", WAN), (guarded.laptop, "10.10.0.77", LAN)):
        host.run("sysctl", "-qw", "net.ipv4.conf.all.arp_announce=2")  # only the packet is forged
        host.ip(f"address add {forged}/32 dev eth0")
        before = guarded.counter("spoofed")
        guarded.python(host, SEND_UDP, forged, target)
        assert guarded.counter("spoofed") == before + 5
        host.ip(f"address del {forged}/32 dev eth0")


def test_a_port_that_nobody_described_is_in_no_zone(guarded: Lab) -> None:
    """As a USB network card that someone plugs in. Shows: X68."""
    with (
        guarded.laptop.answering(tcp=[502]),
        guarded.office.answering(tcp=[443]),
        guarded.gateway.answering(tcp=[80]),
        guarded.stranger.answering(tcp=[443]),
    ):
        must_not_reach_any(
            guarded.stranger,
            [
                (LAPTOP, 502, "tcp"),
                (OFFICE, 443, "tcp"),
                ("172.16.0.1", 80, "tcp"),
                ("172.16.0.1", 0, "ping"),
            ],
        )
        for host in (guarded.laptop, guarded.office, guarded.gateway):
            must_not_reach(host, STRANGER, 443)


FLOOD = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("going", flush=True)
end, sent = time.monotonic() + 30, 0
while time.monotonic() < end:
    for _ in range(100):
        s.sendto(b"x", (sys.argv[1], 9))
"""
SWAP = """
import sys
from ipaddress import ip_network
from services.firewall import core
from services.firewall.kernel import Kernel
kernel = Kernel()
texts = [core.render(core.Policy(("wan0",), ("lan0",), ip_network(lan), 812))
         for lan in ("192.168.11.0/24", "192.168.10.0/24")]
for number in range(200):
    kernel.apply(texts[number % 2])
"""


def test_swapping_rules_lets_no_packet_through(lab: Lab) -> None:
    """200 swaps under a flood from the company side; on a base chain's policy alone some get through.
    Shows: X65, X68."""
    lab.laptop.run(
        "nft",
        "table inet sink { counter seen {}; chain input { type filter hook input priority 0; "
        "udp dport 9 counter name seen drop; }; }",
    )
    # No packet is held back by missing ARP.
    for host, port, address, other in (
        (lab.office, "eth0", WAN, lab.gateway.run("cat", "/sys/class/net/wan0/address").stdout.strip()),
        (lab.gateway, "lan0", LAPTOP, lab.laptop.run("cat", "/sys/class/net/eth0/address").stdout.strip()),
    ):
        host.ip(f"neighbor replace {address} lladdr {other} dev {port} nud permanent")
    lab.load_closed()
    flood = lab.office.start(sys.executable, "-c", FLOOD, LAPTOP, log="flood")
    try:
        eventually(lambda: lab.counter("other_forward"), within=10, what="flood at the gateway")
        lab.gateway.run(sys.executable, "-c", SWAP, env=lab.environment)
    finally:
        flood.kill()
    refused = sum(lab.counter(name) for name in ("other_forward", "wan_to_lan"))
    assert refused > 2000, "the flood was too thin to prove anything"
    said = lab.laptop.run("nft", "-j", "list", "counter", "inet", "sink", "seen").stdout
    assert json.loads(said)["nftables"][-1]["counter"]["packets"] == 0


@pytest.mark.parametrize(
    "damage",
    ["flush ruleset", "insert rule inet sallyport forward accept", "delete table arp sallyport"],
)
def test_what_someone_else_changes_is_restored_and_reported(guarded: Lab, damage: str) -> None:
    """Shows: X68."""
    before = guarded.status()["detail"]["restored"]
    guarded.gateway.run("nft", damage)
    eventually(
        guarded.status, within=10, what="restored", done=lambda seen: seen["detail"]["restored"] > before
    )
    with guarded.laptop.answering(tcp=[502], udp=[502]):
        must_not_reach_any(guarded.office, CROSSING)
    assert arp(guarded, guarded.office, LAN, OFFICE) == "silent"


def test_a_change_ends_the_flows_that_it_forbids(guarded: Lab) -> None:
    """Connections are forgotten when the machine network moves; what was allowed there no longer is."""

    def flows() -> int:
        return int(guarded.gateway.run("sysctl", "-n", "net.netfilter.nf_conntrack_count").stdout)

    def connect() -> str:
        return guarded.python(guarded.gateway, CONNECT, LAPTOP, "502", uid=MACHINE_UID).strip()

    with guarded.laptop.answering(tcp=[502]):
        assert connect() == "answered"
        assert flows() > 0
        guarded.write_desired({"lan": {"address": "192.168.30.1/24"}})
        try:
            # Closed connections would stay for two minutes.
            eventually(flows, within=10, what="flows forgotten", done=lambda count: count == 0)
            assert connect() == "silent"
        finally:
            guarded.write_desired({})
            eventually(connect, within=10, what="allowed again", done=lambda seen: seen == "answered")


def test_from_boot_on_without_configuration_nothing_passes(lab: Lab) -> None:
    """The closed boot set alone, then the service that waits for a configuration. Shows: X68."""
    prove_open(lab)
    lab.load_closed()

    def closed() -> None:
        with (
            lab.laptop.answering(tcp=[502], udp=[502]),
            lab.office.answering(tcp=[443], udp=[53]),
            lab.gateway.answering(tcp=[22]),
        ):
            must_not_reach_any(lab.office, [*CROSSING, (WAN, 22, "tcp"), (WAN_6, 22, "tcp")])
            must_not_reach_any(lab.laptop, [*OUTWARD, (LAN, 22, "tcp")])
            must_not_reach_any(lab.gateway, [*OUTWARD, *CROSSING])

    closed()
    lab.gateway.run("nft", "flush ruleset")  # and even if the boot set were not there
    lab.start_service()
    eventually(lab.status, within=20, what="started", done=lambda seen: seen["state"] == "starting")
    closed()
