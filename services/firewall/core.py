"""Policy -> nftables text. Pure.

The base chains are created once (by the closed set, before any interface comes up) and kept; a transaction
empties and refills them. Each ends with an explicit `drop`: a chain's policy alone lets packets through while
rules are swapped. Interfaces are matched by name, so a port that nobody described is in no zone: dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

TABLE = "sallyport"

COUNTERS = (
    "lan_to_wan",
    "wan_to_lan",
    "other_forward",
    "from_wan",
    "from_lan",
    "from_elsewhere",
    "spoofed",
    "output",
)
"""Named counters of refused packets; they keep counting over a swap."""


@dataclass(frozen=True)
class Policy:
    """What the gateway itself may do. Nothing here lets a packet pass between zones."""

    wan: tuple[str, ...]
    """Interface names on the company side."""
    lan: tuple[str, ...]
    """Interface names on the machine side."""
    lan_network: IPv4Network
    """The machine network."""
    machine_uid: int | None
    """The user that talks to machines, and only to them. None: nobody may."""
    dhcp: bool = True
    """The WAN's address is asked for by DHCP."""


def render_closed(wan: tuple[str, ...]) -> str:
    """The resting state: loopback and the DHCP client, nothing else. Creates the tables if need be."""
    return _table(
        prerouting=[],
        input_=["iif lo accept", _dhcp_reply(wan), _refuse("from_elsewhere")],
        forward=[_refuse("other_forward")],
        output=["oif lo accept", _dhcp_request(wan), _refuse("output")],
        # networkd asks for a lease on a socket of its own below ARP.
        arp_input=["drop"],
        arp_output=["drop"],
    )


def render(policy: Policy) -> str:
    """The full rule set, as one transaction for `nft -f` or libnftables."""
    wan, lan, machines = _set(policy.wan), _set(policy.lan), str(policy.lan_network)
    uid = policy.machine_uid
    return _table(
        prerouting=[
            f"iifname {wan} ip saddr {machines} {_refuse('spoofed')}",
            f"iifname {lan} ip saddr != {machines} {_refuse('spoofed')}",
            # The machine network has no IPv6 in this version.
            f"iifname {lan} meta nfproto ipv6 {_refuse('from_lan')}",
        ],
        input_=[
            "iif lo accept",
            "ct state established,related accept",
            *([_dhcp_reply(policy.wan)] if policy.dhcp else []),
            f"iifname {wan} ip6 hoplimit 255 icmpv6 type "
            "{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept",
            *_refuse_loudly("from_wan", f"iifname {wan}"),
            *_refuse_loudly("from_lan", f"iifname {lan}"),
            _refuse("from_elsewhere"),
        ],
        forward=[
            *_refuse_loudly("lan_to_wan", f"iifname {lan} oifname {wan}"),
            *_refuse_loudly("wan_to_lan", f"iifname {wan} oifname {lan}"),
            _refuse("other_forward"),
        ],
        output=[
            "oif lo accept",
            # A packet to the other side's addresses never leaves by the wrong port.
            f"oifname {wan} ip daddr {machines} {_refuse('output')}",
            f"oifname {lan} ip daddr != {machines} {_refuse('output')}",
            f"oifname {lan} meta nfproto ipv6 {_refuse('output')}",
            *([f"oifname != {lan} meta skuid {uid} {_refuse('output')}"] if uid is not None else []),
            "ct state established,related accept",
            *([_dhcp_request(policy.wan)] if policy.dhcp else []),
            f"oifname {wan} ip6 hoplimit 255 icmpv6 type "
            "{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept",
            # Switches that snoop pass neighbour discovery only to hosts that joined (RFC 4890, 4.4.1).
            f"oifname {wan} icmpv6 type mld2-listener-report accept",
            f"oifname {wan} tcp dport {{ 53, 443 }} ct state new accept",
            f"oifname {wan} udp dport 53 ct state new accept",
            *(
                [f"oifname {lan} meta skuid {uid} meta l4proto {{ tcp, udp }} ct state new accept"]
                if uid is not None
                else []
            ),
            *_refuse_loudly("output", ""),
        ],
        arp_input=[
            # Whoever asks from one side for an address of the other gets no answer.
            f"iifname {lan} arp saddr ip {{ 0.0.0.0, {machines} }} arp daddr ip {machines} accept",
            f"iifname {wan} arp saddr ip != {machines} arp daddr ip != {machines} accept",
            "drop",
        ],
        arp_output=[
            f"oifname {lan} arp saddr ip {{ 0.0.0.0, {machines} }} arp daddr ip {machines} accept",
            f"oifname {wan} arp saddr ip != {machines} arp daddr ip != {machines} accept",
            "drop",
        ],
    )


def _table(
    *,
    prerouting: list[str],
    input_: list[str],
    forward: list[str],
    output: list[str],
    arp_input: list[str],
    arp_output: list[str],
) -> str:
    counters = [f"\tcounter {name} {{ }}" for name in COUNTERS]
    return "\n".join(
        [
            f"add table inet {TABLE}",
            f"flush table inet {TABLE}",
            f"add table arp {TABLE}",
            f"flush table arp {TABLE}",
            f"table inet {TABLE} {{",
            *counters,
            *_chain("prerouting", "prerouting", "raw", "accept", prerouting),
            *_chain("input", "input", "filter", "drop", input_),
            *_chain("forward", "forward", "filter", "drop", forward),
            *_chain("output", "output", "filter", "drop", output),
            "}",
            f"table arp {TABLE} {{",
            *_chain("input", "input", "filter", "drop", arp_input),
            *_chain("output", "output", "filter", "drop", arp_output),
            "}",
            "",
        ]
    )


def _chain(name: str, hook: str, priority: str, policy: str, rules: list[str]) -> list[str]:
    head = f"\t\ttype filter hook {hook} priority {priority}; policy {policy};"
    return [f"\tchain {name} {{", head, *(f"\t\t{rule}" for rule in rules), "\t}"]


def _dhcp_reply(wan: tuple[str, ...]) -> str:
    return f"iifname {_set(wan)} meta nfproto ipv4 udp sport 67 udp dport 68 accept"


def _dhcp_request(wan: tuple[str, ...]) -> str:
    return f"oifname {_set(wan)} meta nfproto ipv4 udp sport 68 udp dport 67 accept"


def _refuse(counter: str) -> str:
    return f"counter name {counter} drop"


def _refuse_loudly(counter: str, match: str) -> list[str]:
    """Refused and, up to a rate that no attacker can raise, told to the kernel's log."""
    words = counter.replace("_", " ")
    log = f'limit rate 6/minute burst 5 packets log prefix "sallyport refused {words}: " level info'
    return [f"{match} {log}".strip(), f"{match} {_refuse(counter)}".strip()]


def _set(names: tuple[str, ...]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"
