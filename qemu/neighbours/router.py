"""The company's router: DHCP, DNS and router advertisements towards the company, and a strict egress firewall.

Out of the company network pass TCP 443 and DNS (UDP and TCP 53), IPv4 and IPv6, behind NAT. Everything else is
dropped and counted. Nothing comes in that was not asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qemu import topology
from qemu.namespaces import SiteError
from qemu.neighbours.dnsmasq import Dnsmasq

if TYPE_CHECKING:
    from qemu.hosts import Host

COUNTERS = ("passed_https", "passed_dns", "dropped_egress", "dropped_ingress", "dropped_input")
DNS_FAULTS = {
    "none": "",
    "no-udp": "meta l4proto udp th dport 53 drop",
    "no-local": 'fib daddr type local iifname "company" meta l4proto { tcp, udp } th dport 53 drop',
    "no-internet": 'iifname "company" oifname "internet" meta l4proto { tcp, udp } th dport 53 drop',
    "off": 'iifname "company" meta l4proto { tcp, udp } th dport 53 drop',
}
"""Name of a DNS fault -> rule. `no-udp`: UDP 53 blocked everywhere; `no-local`: the router's own resolver is dead;
`no-internet`: DNS past the router is blocked (X74); `off`: both."""

RULES = """
table inet company {
    counter passed_https {}
    counter passed_dns {}
    counter dropped_egress {}
    counter dropped_ingress {}
    counter dropped_input {}

    chain faults_input {}
    chain faults_forward {}

    chain input {
        type filter hook input priority 0; policy drop;
        iifname "lo" accept
        jump faults_input
        ct state established,related accept
        meta l4proto { icmp, ipv6-icmp } accept
        iifname "company" udp dport { 67, 547 } accept
        iifname "company" meta l4proto { tcp, udp } th dport 53 accept
        counter name dropped_input drop
    }
    chain forward {
        type filter hook forward priority 0; policy drop;
        jump faults_forward
        ct state established,related accept
        iifname "company" oifname "internet" tcp dport 443 counter name passed_https accept
        iifname "company" oifname "internet" meta l4proto { tcp, udp } th dport 53 counter name passed_dns accept
        iifname "company" counter name dropped_egress drop
        counter name dropped_ingress drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "internet" masquerade
    }
}
"""

SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
}


@dataclass(frozen=True)
class Lease:
    mac: str
    address: str
    name: str


class Router:
    def __init__(self, host: Host, state: Path) -> None:
        self.host = host
        self._leases = state / "leases"
        for key, value in SYSCTLS.items():
            host.run("sh", "-c", f"echo {value} > /proc/sys/{key}")
        host.run("nft", "-f", "-", stdin=RULES)
        first, last = topology.DHCP_RANGE
        self._dnsmasq = Dnsmasq(
            host,
            state,
            [
                "interface=company",
                f"dhcp-range={first},{last},255.255.255.0,1h",
                f"dhcp-range={topology.network('company').ipv6.removesuffix('/64')},ra-stateless,64,1h",
                "enable-ra",
                "ra-param=company,mtu:1500,30",
                "dhcp-authoritative",
                "no-ping",  # an address test before each offer would cost three seconds
                f"dhcp-leasefile={self._leases}",
                f"server={topology.CLOUD_DNS}",
                "log-dhcp",
            ],
            ready=(f"{topology.ROUTER_COMPANY}", 53),
        )

    def leases(self) -> list[Lease]:
        """What was given out by DHCP (IPv4)."""
        try:
            lines = self._leases.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        fields = [line.split() for line in lines]
        return [Lease(f[1], f[2], f[3]) for f in fields if len(f) == 5 and ":" in f[1]]

    def counters(self) -> dict[str, int]:
        """Packets by `COUNTERS`; `passed_*` count the first packet of each flow."""
        listed = json.loads(self.host.run("nft", "-j", "list", "counters").stdout)["nftables"]
        return {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}

    def dns_fault(self, fault: str = "none") -> None:
        """Switch a fault of `DNS_FAULTS` on; it replaces the one before. Known flows are cut too."""
        if fault not in DNS_FAULTS:
            raise SiteError(f"no DNS fault {fault!r}; there are {', '.join(DNS_FAULTS)}")
        rule = DNS_FAULTS[fault]
        rules = ["flush chain inet company faults_input", "flush chain inet company faults_forward"]
        if rule:
            if "oifname" not in rule:
                rules.append(f"add rule inet company faults_input {rule}")
            if "fib" not in rule:
                rules.append(f"add rule inet company faults_forward {rule}")
        self.host.run("nft", "-f", "-", stdin="\n".join(rules) + "\n")
