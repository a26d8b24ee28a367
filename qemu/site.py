"""The pretend site, running: networks, neighbours, machines, the cloud, and a gateway in the middle.

    with Site(state, gateway="qemu") as site:
        site.machine.wait_booted()
        site.plc1.set("holding", 0, 1234)
        site.cut("wan")

The gateway is the booted image (`gateway="qemu"`: `site.machine`), or a bare namespace with `wan0` and `lan0` in which
a test runs services as processes (`gateway="netns"`: `site.gateway`), or absent (`"none"`).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from qemu import accel, dhcp, topology, wires
from qemu.capture import Capture
from qemu.cloud import Cloud
from qemu.hosts import Host
from qemu.machine import Image, Machine
from qemu.namespaces import Namespaces, SiteError
from qemu.neighbours import internet
from qemu.neighbours.router import Router
from qemu.plc import Plc

Substrate = Literal["qemu", "netns", "none"]
Link = Literal["wan", "lan"]

PROJECT = Path(__file__).parent.parent
IMAGE = PROJECT / "build/image"
PROVISIONED = Path(__file__).with_name("provisioned.toml")
FLASH_MIB = 512
TUN = Path("/dev/net/tun")
MOTIONS = {"plc1": "press", "plc2": "boiler"}


class Site:
    """Everything is switched on when the constructor returns, the gateway too (but it may still boot).

    `state`: a folder for sockets, disks and logs; short, and nothing else in it. `moving`: the PLCs play a plant, else
    their values rest at 0. `power=False`: the gateway's machine is made but stays off. `say` gets a line for each step.
    """

    def __init__(
        self,
        state: Path,
        *,
        gateway: Substrate = "qemu",
        cloud: bool | None = None,
        image: Path = IMAGE,
        provisioned: str | None = None,
        moving: bool = False,
        power: bool = True,
        page_port: int = 0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.state = state.resolve()
        self.logs = self.state / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.cut_links: dict[str, str] = {}
        """Link -> "carrier" or "silent", for those that are cut."""
        self._substrate = gateway
        self._numbers = itertools.count(1)
        self.captures: dict[str, Capture] = {}
        """Those that were started last, by cable."""
        self._machine: Machine | None = None
        self._gateway: Host | None = None
        self._cloud: Cloud | None = None
        if gateway == "qemu":
            Image(image).check()
        say("networks and neighbours")
        self.space = Namespaces(self.state)
        try:
            wires.batch(self.space, wires.bridges())
            self._plug_in_neighbours()
            self.router = Router(self.hosts["router"], self.state)
            internet.start_dns(self.hosts["cloud"], self.state)
            say("machines")
            self.plcs = {
                name: Plc(self.hosts[name], address, self.state, motion=MOTIONS[name] if moving else "")
                for name, address in topology.PLCS.items()
            }
            for plc in self.plcs.values():
                plc.power()
            if cloud if cloud is not None else gateway == "qemu":
                say("cloud")
                self._cloud = Cloud(self.hosts["cloud"], self.state / "cloud", page_port=page_port)
                self._cloud.start()
            self._plug_in_gateway(image, provisioned, power, say)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process of the site; its namespaces and mounts go with them. The state folder stays."""
        if self._cloud:
            self._cloud.close()
        self.space.close()

    # Who is there

    @property
    def office(self) -> Host:
        """The attacker on the company network."""
        return self.hosts["office"]

    @property
    def stranger(self) -> Host:
        """The attacker on the internet."""
        return self.hosts["stranger"]

    @property
    def laptop(self) -> Host:
        """The attacker on the machine network."""
        return self.hosts["laptop"]

    @property
    def plc1(self) -> Plc:
        return self.plcs["plc1"]

    @property
    def plc2(self) -> Plc:
        return self.plcs["plc2"]

    @property
    def gateway(self) -> Host:
        """The gateway's namespace (`gateway="netns"`)."""
        if not self._gateway:
            raise SiteError("this site's gateway is no namespace; see `site.machine`")
        return self._gateway

    @property
    def machine(self) -> Machine:
        """The gateway's virtual machine (`gateway="qemu"`)."""
        if not self._machine:
            raise SiteError("this site's gateway is no virtual machine; see `site.gateway`")
        return self._machine

    @property
    def booted(self) -> bool:
        """Whether the gateway is a virtual machine."""
        return self._machine is not None

    @property
    def cloud(self) -> Cloud:
        if not self._cloud:
            raise SiteError("this site has no cloud; ask for one with Site(cloud=True)")
        return self._cloud

    def cloud_get(self, path: str) -> Any:
        """A document of the cloud's HTTP API."""
        return self.cloud.get(path)

    def wan_address(self) -> str | None:
        """What the router's DHCP gave to the gateway's WAN port last."""
        found = [lease.address for lease in self.router.leases() if lease.mac == topology.WAN.mac]
        return found[-1] if found else None

    def configure_gateway(self) -> str:
        """Give the bare gateway its addresses: WAN by DHCP, LAN fixed, IPv6 on both. Returns the WAN's IPv4 address."""
        told = self.gateway.run(sys.executable, "-I", "-S", dhcp.__file__, "wan0").stdout
        lease = json.loads(told)
        self.gateway.ip(
            f"address add {lease['address']}/{lease['prefix']} dev wan0",
            f"route add default via {lease['router']}",
            "address add fd00:10::2/64 dev wan0 nodad",
            f"address add {topology.GATEWAY_LAN}/24 dev lan0",
            "address add fd00:20::1/64 dev lan0 nodad",
        )
        return str(lease["address"])

    # What happens to it

    def cut(self, link: Link, *, silent: bool = False) -> None:
        """Cut a link of the gateway: its carrier goes; `silent`: no frame passes any more, but the carrier stays."""
        plug = self._plug(link)
        if silent:
            wires.cut_silently(self.space, plug)
        elif self._machine:
            if self._machine.powered:  # else `power` does it
                self._machine.qmp.set_link(link, up=False)
        else:
            wires.cut_carrier(self.space, plug)
        self.cut_links[link] = "silent" if silent else "carrier"

    def restore(self, link: Link) -> None:
        """Undo any cut of a link."""
        wires.restore(self.space, self._plug(link))
        if self._machine and self._machine.powered:
            self._machine.qmp.set_link(link, up=True)
        self.cut_links.pop(link, None)

    def power(self, *, kernel_options: str = "") -> None:
        """Power the gateway on. Links that are cut stay cut."""
        self.machine.power(kernel_options=kernel_options)
        for link, how in self.cut_links.items():
            if how == "carrier":
                self.machine.qmp.set_link(link, up=False)

    def power_cut(self) -> None:
        """Take the gateway's power away at once (see `machine.py`)."""
        self.machine.power_cut()

    def heal(self) -> None:
        """Undo every cut and fault, power on what is off: as new, but for what was stored."""
        for link in list(self.cut_links):
            self.restore(link)  # type: ignore[arg-type]
        self.router.dns_fault("none")
        for plc in self.plcs.values():
            plc.power()
            plc.heal()
        if self._machine and not self._machine.powered:
            self.power()

    def capture(self, where: str, path: Path | None = None, expression: str = "") -> Capture:
        """Watch a cable: "wan", "lan", or a host's name. It runs until its `stop()` or the site's end."""
        port = self.port(where)
        path = path or self.logs / f"{where}-{next(self._numbers)}.pcap"
        self.captures[where] = Capture(self.space, port, path.resolve(), expression)
        return self.captures[where]

    def port(self, where: str) -> str:
        """The patch panel's port of a link or host; "internet" is the router's cable there."""
        ports = {name: plug.port for name, plug in topology.LINKS.items()}
        ports |= {plug.host: plug.port for plug in topology.PLUGS if plug.host != "router"}
        ports |= {plug.interface: plug.port for plug in topology.plugs_of("router")}
        if where not in ports:
            raise SiteError(f"no cable {where!r}; there are {', '.join(ports)}")
        return ports[where]

    def keep_logs(self, folder: Path) -> None:
        """Copy what was written by and about everybody."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.logs.iterdir():
            shutil.copy(path, folder / path.name)
        if self._machine:
            self._machine.keep_logs(folder)

    # How it is put together

    def _plug_in_neighbours(self) -> None:
        resolver = self.state / "resolv.conf"
        resolver.write_text(f"nameserver {topology.ROUTER_COMPANY}\n", encoding="ascii")
        self.hosts = {
            name: Host(self.space, name, self.logs, {"/etc/resolv.conf": resolver})
            for name in topology.hosts()
        }
        wires.batch(
            self.space,
            [line for plug in topology.PLUGS for line in wires.cable(plug, self.hosts[plug.host].holder)],
        )
        for name, host in self.hosts.items():
            host.configure(topology.plugs_of(name))

    def _plug_in_gateway(
        self, image: Path, provisioned: str | None, power: bool, say: Callable[[str], None]
    ) -> None:
        if self._substrate == "netns":
            # The resolver is a file of its own, that a test may write as DHCP told it.
            resolver = self.state / "gateway-resolv.conf"
            resolver.write_text(f"nameserver {topology.ROUTER_COMPANY}\n", encoding="ascii")
            self._gateway = Host(self.space, "gateway", self.logs, {"/etc/resolv.conf": resolver})
            for plug in topology.LINKS.values():
                wires.batch(self.space, wires.cable(plug, self._gateway.holder))
            self._gateway.ip("link set lo up", "link set wan0 up", "link set lan0 up")
        elif self._substrate == "qemu":
            accelerator = accel.choose(image / "bzImage")
            say(f"gateway, {accelerator.reason}")
            if not os.access(TUN, os.R_OK | os.W_OK):
                raise SiteError(
                    f"{TUN} is not yours to open, so no machine can be plugged in; as root: chmod 666 {TUN}"
                )
            for plug in topology.LINKS.values():
                wires.batch(self.space, wires.tap(plug))
            document = self.state / "provisioned.toml"
            document.write_text(
                PROVISIONED.read_text(encoding="utf-8") if provisioned is None else provisioned,
                encoding="utf-8",
            )
            self._machine = Machine(
                self.space, Image(image), self.state / "gateway", accelerator, self._make_disks
            )
            if power:
                self._machine.power()

    def _make_disks(self, folder: Path) -> None:
        from image.debian import disks  # noqa: PLC0415  only a booted gateway needs the image's builder

        if not self._cloud:
            raise SiteError("a gateway's identity comes from the cloud: Site(cloud=True)")
        disks.make_data(
            folder / "data.img", identity=self._cloud.identity, provisioned=self.state / "provisioned.toml"
        )
        disks.make_flash(folder / "flash.img", mib=FLASH_MIB)

    def _plug(self, link: Link) -> topology.Plug:
        if link not in topology.LINKS:
            raise SiteError(f"no link {link!r}; there are {', '.join(topology.LINKS)}")
        return topology.LINKS[link]
