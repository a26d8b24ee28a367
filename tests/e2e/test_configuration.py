"""Changes that go wrong undo themselves.

Network: the pretend site. Steps: refuse what is malformed; cut the gateway off by a wrong address and watch it return.
"""

from __future__ import annotations

import json

import pytest

from qemu.namespaces import SiteError
from qemu.promises import eventually
from qemu.site import Site
from tests.e2e import lab


def test_malformed_document_changes_nothing(site: Site) -> None:
    """A wrong document is refused with the key, the value and the remedy; the configuration stays as it was."""
    agent = site.machine.agent
    before = agent.run("sallyport", "config", "show").stdout
    history = agent.run("sallyport", "config", "history").stdout
    wrong = before.replace("interval_ms = 500", "interval_ms = 5")
    assert wrong != before
    said = agent.run("sallyport", "config", "set", "-", stdin=wrong.encode(), check=False)
    assert said.status == 1
    assert "plc[0].interval_ms" in said.stderr
    assert "50" in said.stderr
    assert agent.run("sallyport", "config", "show").stdout == before
    assert agent.run("sallyport", "config", "history").stdout == history


@pytest.mark.usefixtures("own_configuration")
def test_unconfirmed_change_that_cuts_off_rolls_back(site: Site) -> None:
    """A static address in the wrong network takes the gateway off the company network; unconfirmed, it comes back.

    Shows: X77
    """
    agent = site.machine.agent
    good = agent.run("sallyport", "config", "show", "--json").stdout
    wrong = json.loads(good)
    wrong["wan"] = {
        "mode": "static",
        "address": "172.31.9.5/24",
        "gateway": "172.31.9.1",
        "dns": ["172.31.9.1"],
    }
    lab.configure(site, json.dumps(wrong), "--confirm-within", "30")
    eventually(
        lambda: agent.shell("ip -4 -o address show dev wan0"),
        done=lambda text: "172.31.9.5" in text,
        within=30,
        what="the wrong address is in force",
    )
    eventually(
        lambda: lab.gateway(site)["online"], done=lambda on: not on, within=60, what="the gateway is cut off"
    )
    eventually(
        lambda: agent.shell("ip -4 -o address show dev wan0"),
        done=lambda text: "10.10.0." in text and "172.31" not in text,
        within=90,
        what="the old configuration is back",
    )
    lab.wait_online(site, within=120)
    assert agent.run("sallyport", "config", "show", "--json").stdout == good


@pytest.mark.usefixtures("own_configuration")
def test_power_cut_keeps_what_was_confirmed_and_drops_what_was_not(site: Site) -> None:
    """A confirmed change is there after a power cut right behind the confirmation; an unconfirmed one is gone.

    The technician's last remedy: power off and on brings the confirmed configuration back.
    """
    agent = site.machine.agent
    lab.configure(site, lab.counter_document(interval_ms=2000), "--confirm-within", "60")
    agent.run("sallyport", "config", "confirm")
    confirmed = agent.run("sallyport", "config", "show").stdout
    assert "interval_ms = 2000" in confirmed
    lab.configure(site, lab.counter_document(interval_ms=3000), "--confirm-within", "3600")
    boot = site.machine.boot
    agent.shell("echo kept > /data/power-cut && sync /data/power-cut")
    site.power_cut()
    with pytest.raises(SiteError, match="powered off"):
        _ = site.machine.qmp
    lab.boot(site)
    assert site.machine.boot == boot + 1
    assert agent.read_file("/data/power-cut") == b"kept\n"
    agent.shell("rm /data/power-cut")
    assert site.machine.agent.run("sallyport", "config", "show").stdout == confirmed
