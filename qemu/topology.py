"""The pretend site as data: which networks there are, who is on them, under which addresses and names.

The one place for these; docs/architecture.md shows them to people.
"""

from __future__ import annotations

from dataclasses import dataclass

DEVICE = "SP-000001"
"""Serial number and device id of the gateway."""


@dataclass(frozen=True)
class Network:
    """One Ethernet segment: a bridge in the patch panel, without any address of its own."""

    name: str
    ipv4: str
    ipv6: str


@dataclass(frozen=True)
class Plug:
    """One end of a cable: a host's interface on a network. `addresses` with prefix length."""

    host: str
    network: str
    interface: str = "eth0"
    addresses: tuple[str, ...] = ()
    mac: str = ""

    @property
    def port(self) -> str:
        """The other end, in the patch panel."""
        return f"{self.host}-{self.network[0]}"


@dataclass(frozen=True)
class Route:
    host: str
    destination: str
    via: str


NETWORKS = (
    Network("company", "10.10.0.0/24", "fd00:10::/64"),
    Network("internet", "203.0.113.0/24", "2001:db8::/64"),
    Network("machine", "192.168.10.0/24", "fd00:20::/64"),
)

ROUTER_COMPANY = "10.10.0.1"
ROUTER_COMPANY_6 = "fd00:10::1"
DHCP_RANGE = ("10.10.0.100", "10.10.0.150")
CLOUD_MQTT = "203.0.113.10"
CLOUD_PORTAL = "203.0.113.11"
CLOUD_DNS = "203.0.113.53"
WRONG_NAME = "alias.sallyport.test"
"""Leads to the broker, but its certificate does not carry it."""
NAMES = {
    "mqtt.sallyport.test": CLOUD_MQTT,
    "portal.sallyport.test": CLOUD_PORTAL,
    WRONG_NAME: CLOUD_MQTT,
}
GATEWAY_LAN = "192.168.10.1"
PLCS = {"plc1": "192.168.10.10", "plc2": "192.168.10.11"}
MODBUS_PORT = 502

PLUGS = (
    Plug("router", "company", "company", (f"{ROUTER_COMPANY}/24", f"{ROUTER_COMPANY_6}/64")),
    Plug("router", "internet", "internet", ("203.0.113.2/24", "2001:db8::2/64")),
    Plug("office", "company", addresses=("10.10.0.66/24", "fd00:10::66/64")),
    Plug(
        "cloud",
        "internet",
        addresses=(f"{CLOUD_MQTT}/24", f"{CLOUD_PORTAL}/24", f"{CLOUD_DNS}/24", "2001:db8::10/64"),
    ),
    Plug("stranger", "internet", addresses=("203.0.113.66/24", "2001:db8::66/64")),
    Plug("plc1", "machine", addresses=(f"{PLCS['plc1']}/24", "fd00:20::10/64")),
    Plug("plc2", "machine", addresses=(f"{PLCS['plc2']}/24", "fd00:20::11/64")),
    Plug("laptop", "machine", addresses=("192.168.10.66/24", "fd00:20::66/64")),
)

WAN = Plug("gateway", "company", "wan0", mac="02:53:50:00:00:01")
LAN = Plug("gateway", "machine", "lan0", mac="02:53:50:00:00:02")
LINKS = {"wan": WAN, "lan": LAN}
"""The gateway's own plugs, by the name that people cut them by."""

# The attackers and the PLCs send everything that is not theirs to the gateway: they try to get through.
ROUTES = (
    Route("office", "default", ROUTER_COMPANY),
    Route("office", "default", ROUTER_COMPANY_6),
    Route("stranger", "default", "203.0.113.2"),
    Route("stranger", "default", "2001:db8::2"),
    Route("plc1", "default", GATEWAY_LAN),
    Route("plc2", "default", GATEWAY_LAN),
    Route("laptop", "default", GATEWAY_LAN),
    Route("laptop", "default", "fd00:20::1"),
)


def network(name: str) -> Network:
    return next(found for found in NETWORKS if found.name == name)


def hosts() -> list[str]:
    """Every host but the gateway, in the order in which they are plugged in."""
    return list(dict.fromkeys(plug.host for plug in PLUGS))


def plugs_of(host: str) -> list[Plug]:
    return [plug for plug in PLUGS if plug.host == host]
