"""Memory of the gateway's services."""

from __future__ import annotations

from bench.entry import Figure, Number
from bench.gateway import booting_site, first_sample

SERVICES = ("config", "network", "firewall", "plc", "uplink")
ABOUT = (
    "Proportional set size of each Python service on the booted gateway, two PLCs with 15 tags being read and "
    "delivered; and the memory that the whole system uses."
)
FIGURES = {f"{name}_pss_mb": Figure(f"`services/{name}`, daemon", "MB") for name in SERVICES} | {
    "services_pss_mb": Figure("all resident Python services together", "MB", at_most=100),
    "system_used_mb": Figure("MemTotal less MemAvailable", "MB"),
}


def run(*, quick: bool) -> dict[str, Number]:
    with booting_site() as site:
        site.machine.wait_booted()
        first_sample(site)
        shell = site.machine.agent.shell
        pss = {}
        for name in SERVICES:
            pid = shell(f"systemctl show -p MainPID --value sallyport-{name}.service").strip()
            pss[f"{name}_pss_mb"] = _mb(shell(f"cat /proc/{pid}/smaps_rollup"), "Pss")
        info = shell("cat /proc/meminfo")
        return {
            **pss,
            "services_pss_mb": round(sum(pss.values()), 1),
            "system_used_mb": round(_mb(info, "MemTotal") - _mb(info, "MemAvailable"), 1),
        }


def _mb(table: str, key: str) -> float:
    """A line "Key:   123 kB" of a table of procfs, in 10^6 bytes."""
    line = next(line for line in table.splitlines() if line.startswith(f"{key}:"))
    return round(int(line.split()[1]) * 1024 / 1e6, 1)
