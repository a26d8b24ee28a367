"""Draws an overview of the site for a terminal."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qemu import topology

COLOURS = {"ok": "green", "starting": "yellow", "degraded": "yellow", "failed": "red"}
HINTS = "in another terminal:  .venv/bin/site cut wan | restore wan | power-cut | boot | watch wan | shell | --help"


def show(seen: dict[str, Any]) -> None:
    Console().print(draw(seen))


def draw(seen: dict[str, Any], *, log: list[str] | None = None) -> RenderableType:
    parts: list[RenderableType] = [
        Panel(_gateway(seen), title=f"gateway {topology.DEVICE}", title_align="left"),
        Panel(_flow(seen), title="machine data", title_align="left"),
    ]
    tags = seen["cloud"].get("tags") or []
    if tags:
        parts.append(Panel(_tags(tags), title="last values in the cloud", title_align="left"))
    if log:
        parts.append(Text("\n".join(log), style="dim"))
    parts.append(Text(HINTS, style="dim"))
    return Group(*parts)


def line(seen: dict[str, Any]) -> str:
    """The same in one line, for a log."""
    services = _services(seen)
    states = " ".join(f"{name}:{service['state']}" for name, service in services.items()) or "booting"
    return (
        f"wan {seen['wan_address'] or '-'}  {states}  samples logged {_logged(services)}  "
        f"in the cloud {_stored(seen)}"
    )


def _services(seen: dict[str, Any]) -> dict[str, Any]:
    services: dict[str, Any] = seen["gateway"].get("services", {})
    return services


def _gateway(seen: dict[str, Any]) -> Table:
    gateway, services = seen["gateway"], _services(seen)
    table = _grid()
    if "error" in gateway:
        table.add_row("power", Text(gateway["error"], "red"))
    elif gateway["powered"]:
        state = "running" if services else "booting, no service has reported yet"
        table.add_row("power", f"on for {gateway['powered_s']:.0f} s, boot {gateway['boot']}, {state}")
    else:
        table.add_row("power", Text("off (`site boot` powers it on)", "red"))
    for link, how in seen["links"].items():
        cut = Text(f"cut ({how}); `site restore {link}` undoes it", "red")
        table.add_row(f"link {link}", Text("plugged in", "green") if how == "plugged in" else cut)
    for name, service in sorted(services.items()):
        state = service["state"]
        table.add_row(name, Text.assemble((f"{state:9}", COLOURS.get(state, "")), service["summary"]))
    return table


def _flow(seen: dict[str, Any]) -> Table:
    services, cloud, router = _services(seen), seen["cloud"], seen["router"]
    table = _grid()
    requests = "  ".join(
        f"{name} {sum(v for v in r.values() if isinstance(v, int))}" for name, r in seen["plcs"].items()
    )
    table.add_row("asked of the PLCs", f"{requests} requests")
    table.add_row("samples logged", f"{_logged(services)} in this boot")
    if "error" in cloud:
        table.add_row("cloud", Text(cloud["error"], "red"))
    else:
        counters = cloud["counters"]
        there = Text("online", "green") if cloud["online"] else Text("offline", "red")
        duplicates = counters.get("duplicates", 0)
        table.add_row("samples in the cloud", f"{_stored(seen)} ({duplicates} duplicate blocks dropped)")
        table.add_row("cloud sees it", there)
        table.add_row("page", Text(cloud["url"], "bold"))
    if "error" not in router:
        table.add_row(
            "company's firewall",
            f"passed {router['passed_https']} connections and {router['passed_dns']} DNS questions, "
            f"dropped {router['dropped_egress']} out, {router['dropped_ingress']} in",
        )
    return table


def _tags(tags: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("tag", "left"), ("value", "right"), ("time", "left"), ("samples", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for tag in tags:
        last = tag["last"] or {}
        value = last.get("value")
        shown = f"{value:.2f}" if isinstance(value, float) else "-" if value is None else str(value)
        at = datetime.fromtimestamp(last.get("time_us", 0) / 1e6).strftime("%H:%M:%S.%f")[:-3]
        table.add_row(tag["tag"], shown, at, str(tag["count"]))
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    return table


def _logged(services: dict[str, Any]) -> int:
    plcs = services.get("plc", {}).get("detail", {}).get("plcs", {})
    return sum(plc.get("samples", 0) for plc in plcs.values())


def _stored(seen: dict[str, Any]) -> int:
    return int(seen["cloud"].get("counters", {}).get("samples", 0))


def clock() -> str:
    return time.strftime("%H:%M:%S")
