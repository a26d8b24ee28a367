"""What a site looks like right now, as plain data: for `site status` and for the live view."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

from qemu import topology
from qemu.namespaces import SiteError
from qemu.site import Site

OBSERVED = 'for file in /run/sallyport/status/*.json; do cat "$file" && echo; done'
AGENT_S = 0.5


def overview(site: Site) -> dict[str, Any]:
    """JSON-ready. A part that does not answer is reported with its `error`; nothing is raised."""
    return {
        "state": str(site.state),
        "gateway": _part(lambda: gateway(site)),
        "links": {link: site.cut_links.get(link, "plugged in") for link in topology.LINKS},
        "wan_address": _part(site.wan_address),
        "router": _part(site.router.counters),
        "plcs": {name: _part(lambda plc=plc: dict(plc.requests())) for name, plc in site.plcs.items()},
        "cloud": _part(lambda: cloud(site)),
    }


def gateway(site: Site) -> dict[str, Any]:
    """Power, and the observed document of each service as the gateway itself has it."""
    machine = site.machine
    seen: dict[str, Any] = {
        "powered": machine.powered,
        "boot": machine.boot,
        "accelerator": machine.accelerator.reason,
        "services": {},
    }
    if machine.powered:
        seen["powered_s"] = round(time.monotonic() - machine.powered_at, 1)
        with suppress(OSError, ValueError, SiteError):
            # The guest may still boot: then the next look asks again.
            text = machine.agent.shell(OBSERVED, check=False) if machine.agent.answers(AGENT_S) else ""
            seen["services"] = {
                document["service"]: document for document in map(json.loads, filter(None, text.splitlines()))
            }
    return seen


def cloud(site: Site) -> dict[str, Any]:
    """Where its page is, what it stored, and the last sample of each tag."""
    health = site.cloud_get("/api/v1/health")
    known = site.cloud_get("/api/v1/gateways")
    return {
        "url": site.cloud.url,
        "ca": str(site.cloud.identity / "ca.crt"),
        "counters": health["counters"],
        "online": any(one["id"] == topology.DEVICE and one["online"] for one in known),
        "tags": site.cloud_get(f"/api/v1/gateways/{topology.DEVICE}/tags") if known else [],
    }


def _part(look: Any) -> Any:
    try:
        return look()
    except (OSError, SiteError, ValueError) as error:
        return {"error": str(error)}
