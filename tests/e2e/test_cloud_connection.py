"""The way to the cloud: names, certificates, clocks, and nothing in plain text.

Network: the pretend site; its router's DNS can be made to fail in parts. Steps: break one thing at a time.
"""

from __future__ import annotations

import ipaddress
import time

import pytest

from qemu import topology
from qemu.packets import TCP, UDP, Packet
from qemu.promises import eventually
from qemu.site import Site
from tests.e2e import lab


def _reconnect(site: Site) -> None:
    """Make the gateway look the cloud up again: forget names, restart the uplink."""
    site.machine.agent.shell("resolvectl flush-caches; systemctl restart sallyport-uplink.service")


def _dns_packets_of_reconnection(site: Site, fault: str, *, within: float) -> list[Packet]:
    """Reconnect while DNS is broken in this way; what the gateway sent to port 53 until it was online again."""
    site.router.dns_fault(fault)
    wan = site.capture("wan")
    try:
        before = lab.gateway(site)["since_us"]
        _reconnect(site)
        eventually(
            lambda: lab.gateway(site),
            done=lambda g: g["online"] and g["since_us"] > before,
            within=within,
            what=f"online again with the DNS fault {fault}",
        )
    finally:
        site.router.dns_fault()
    return [p for p in wan.stop() if p.protocol in (UDP, TCP) and p.destination_port == 53]


def test_dns_over_tcp_when_udp_is_blocked(site: Site) -> None:
    """UDP 53 is blocked: names are resolved over TCP 53, and the gateway gets online.

    Shows: X73
    """
    asked = _dns_packets_of_reconnection(site, "no-udp", within=150)
    assert any(p.protocol == TCP for p in asked)


def test_local_dns_serves_when_the_internets_is_blocked(site: Site) -> None:
    """The resolvers that DHCP and the router advertisement named are used, and no other.

    Port 53 towards the internet may be closed.

    Shows: X74
    """
    asked = {p.destination for p in _dns_packets_of_reconnection(site, "no-internet", within=90)}
    near = [ipaddress.ip_network(n) for n in ("10.10.0.0/24", "fd00:10::/64", "fe80::/10")]
    assert asked
    assert all(any(ipaddress.ip_address(a) in n for n in near) for a in asked), asked


@pytest.mark.usefixtures("own_configuration")
def test_wrong_server_name_is_refused_by_the_gateway(site: Site) -> None:
    """Under a name that its certificate does not carry, the server gets nothing from the gateway, and it says why.

    Shows: L19
    """
    lab.configure(site, lab.counter_document(host=topology.WRONG_NAME))
    said = eventually(
        lambda: lab.observed(site, "uplink"),
        done=lambda doc: doc["detail"].get("trouble") == "server-name",
        within=lab.SLOW_S,
        what="the uplink refuses the server",
    )
    assert topology.WRONG_NAME in said["summary"]
    assert not lab.gateway(site)["online"]


def test_no_plaintext_anywhere(site: Site) -> None:
    """The broker does not listen on 1883 and drops a plain CONNECT on 443; nothing the gateway sends is readable.

    Shows: L19, X41, X42
    """
    assert site.stranger.probe(topology.CLOUD_MQTT, 1883) == "refused"
    plain = (
        "import socket; s=socket.create_connection(('203.0.113.10',443),5);"
        "s.sendall(bytes.fromhex('101000044d5154540502003c000003737031'));"
        "s.settimeout(10);\ntry: print(s.recv(4)[:1].hex())\nexcept ConnectionError: print('')"
    )
    answer = site.stranger.run("python3", "-c", plain).stdout.strip()
    assert answer != "20", "the broker answered a plain CONNECT with CONNACK"
    wan = site.capture("wan")
    count = len(lab.points(site, "plc-plc1/speed"))
    eventually(
        lambda: len(lab.points(site, "plc-plc1/speed")),
        done=lambda n: n > count,
        within=lab.SLOW_S,
        what="another block arrives",
    )
    sent = b"".join(p.payload for p in wan.stop() if p.protocol == TCP and p.source_mac == topology.WAN.mac)
    assert sent
    assert not [word for word in (b"SPB1", b"plc-plc1", b"speed", b"SP-000001") if word in sent]


@pytest.mark.parametrize(("off", "error_s"), [("+3 hours", 10_800), ("-2 days", -172_800)])
def test_wrong_gateway_clock_is_corrected(site: Site, off: str, error_s: float) -> None:
    """The gateway's clock is hours or days off: the cloud stores true times, and keeps the original ones.

    Shows: X37, X36
    """
    agent = site.machine.agent
    agent.shell(f'date -s "{off}"')
    began_us = time.time_ns() // 1000
    try:
        _reconnect(site)

        def wrong() -> list[lab.Point]:
            found = lab.points(site, "plc-plc1/speed", start_us=began_us)
            return [p for p in found if p.original_s - p.time_s == pytest.approx(error_s, abs=5)]

        found = eventually(wrong, within=120, what="samples with a wrong original and a true corrected time")
        # Every sample since is there under its true time: polled twice a second, until just now.
        assert found[0].time_s < began_us / 1e6 + 15
        assert not found[-1].estimated
        assert abs(found[-1].time_s - time.time()) < 30
    finally:
        agent.shell(f"date -s @{time.time():.0f}")
        _reconnect(site)
        lab.wait_online(site, within=120)


def test_communication_is_off_until_enabled(site: Site) -> None:
    """With `cloud.enabled` taken out the gateway sends nothing to the cloud; put back, it delivers what it kept.

    Shows: L08
    """
    agent = site.machine.agent
    before = agent.run("sallyport", "config", "show").stdout
    lab.configure(site, before.replace("enabled = true", "enabled = false"))
    try:
        eventually(lambda: lab.gateway(site)["online"], done=lambda on: not on, within=60, what="offline")
        wan = site.capture("wan")
        blocks = lab.observed(site, "plc")
        eventually(
            lambda: lab.observed(site, "plc"),
            done=lambda doc: doc != blocks,
            within=30,
            what="polling goes on",
        )
        assert not [p for p in wan.stop() if p.destination == topology.CLOUD_MQTT]
    finally:
        lab.configure(site, before)
    lab.wait_online(site)
