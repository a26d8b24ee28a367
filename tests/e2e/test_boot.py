"""What must hold after every boot.

Network: the pretend site as it is. Steps: boot, look at systemd, kernel and processes.
"""

from __future__ import annotations

import json
import re

import pytest

from qemu.site import Site
from tests.e2e import lab

UNITS = ("closed", "config", "network", "firewall", "plc", "uplink")
EXPOSURE = {"closed": 2.5, "firewall": 2.5}
"""Most that `systemd-analyze security` may give; 2.0 for every unit not named here."""
PYTHON_PSS_MIB = 100


def test_gates_after_boot(site: Site) -> None:
    """No failed unit, no ordering cycle, no error of our services, the kernel not tainted. (`lab.boot`: each boot.)"""
    assert lab.gates(site) == []


@pytest.mark.parametrize("unit", UNITS)
def test_unit_is_sandboxed(site: Site, unit: str) -> None:
    """`systemd-analyze security` gives at most 2.0, or 2.5 where CAP_NET_ADMIN is needed."""
    answer = site.machine.agent.run(
        "systemd-analyze", "security", "--no-pager", f"sallyport-{unit}.service", check=False
    ).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", answer)
    assert found, answer
    assert float(found[1]) <= EXPOSURE.get(unit, 2.0), answer


def test_services_run_without_root(site: Site) -> None:
    """Each daemon has its own user, none is root."""
    users = {
        unit: site.machine.agent.shell(f"systemctl show -p User --value sallyport-{unit}.service").strip()
        for unit in UNITS
    }
    assert all(user not in ("", "root") for user in users.values()), users
    daemons = [users[unit] for unit in UNITS if unit != "closed"]
    assert len(set(daemons)) == len(daemons), users


def test_memory_of_all_services(site: Site) -> None:
    """All resident Python services together take at most 100 MB (PSS)."""
    script = (
        "for unit in config network firewall plc uplink; do"
        " pid=$(systemctl show -p MainPID --value sallyport-$unit.service);"
        " awk -v u=$unit '/^Pss:/ {print u, $2}' /proc/$pid/smaps_rollup; done"
    )
    pss = dict(line.split() for line in site.machine.agent.shell(script).splitlines())
    assert len(pss) == 5, pss
    assert sum(map(int, pss.values())) / 1024 <= PYTHON_PSS_MIB, pss


def test_root_is_read_only(site: Site) -> None:
    """Nothing can be written to the system; state lies on the data partition and the log flash."""
    mounts = json.loads(site.machine.agent.shell("findmnt --json --list -o TARGET,OPTIONS,SOURCE"))[
        "filesystems"
    ]
    by_target = {mount["target"]: mount for mount in mounts}
    assert "ro" in by_target["/"]["options"].split(",")
    assert by_target["/data"]["source"] == "/dev/vdb"
    assert by_target["/flash"]["source"] == "/dev/vdc"


def test_gateway_tells_its_state(site: Site) -> None:
    """`sallyport status` shows every service at work, and the cloud sees the same documents."""
    said = json.loads(site.machine.agent.run("sallyport", "status", "--json").stdout)
    assert {"config", "network", "firewall", "plc", "uplink"} <= set(said)
    assert {name: doc["state"] for name, doc in said.items() if doc["state"] != "ok"} == {}
    assert {"network", "firewall", "plc"} <= set(lab.gateway(site)["observed"])
