"""The overlay that all builders share, checked without booting it."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest

import image
from image.debian import disks

ROOT = Path(image.__file__).parent / "rootfs"
UNITS = ROOT / "usr/lib/systemd/system"
OURS = sorted(UNITS.glob("sallyport-*.service"))
DAEMONS = [path for path in OURS if path.stem != "sallyport-closed"]
CHECKOUT = Path(image.__file__).parents[1]


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections of a unit file; each key with all its values."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


def test_the_five_services_and_the_closed_rule_set_are_there() -> None:
    names = ("closed", "config", "firewall", "network", "plc", "uplink")
    assert [path.stem for path in OURS] == [f"sallyport-{name}" for name in names]


@pytest.mark.parametrize("path", DAEMONS, ids=lambda path: path.stem)
def test_a_service_is_watched_restarted_for_ever_and_never_root(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["Type"] == ["notify"]
    assert service["WatchdogSec"] == ["30"]
    assert service["Restart"] == ["always"]
    assert service["User"] != ["root"]
    assert set(service["CapabilityBoundingSet"]) <= {"", "CAP_NET_ADMIN"}
    assert unit(UNITS / "sallyport-.service.d/sandbox.conf")["Unit"]["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("path", DAEMONS, ids=lambda path: path.stem)
def test_a_service_starts_a_module_that_exists(path: Path) -> None:
    (command,) = unit(path)["Service"]["ExecStart"]
    interpreter, *_, module = command.split()
    assert interpreter == "/usr/lib/sallyport/bin/python"
    assert (CHECKOUT / module.replace(".", "/") / "__main__.py").is_file()


def test_no_two_services_share_a_user() -> None:
    users = [unit(path)["Service"]["User"][0] for path in DAEMONS]
    assert len(set(users)) == len(users)
    known = {name for kind, name in disks.numbers() if kind == "u"}
    assert set(users) - known == {"systemd-network"}


def test_the_shared_sandbox_can_not_take_back_what_a_unit_says() -> None:
    """A drop-in is read after the unit: it must leave alone what units differ in."""
    shared = set(unit(UNITS / "sallyport-.service.d/sandbox.conf")["Service"])
    differing = {
        *("User", "CapabilityBoundingSet", "AmbientCapabilities", "PrivateUsers", "PrivateNetwork"),
        *("RestrictAddressFamilies", "IPAddressDeny", "ReadWritePaths", "Type", "Restart", "WatchdogSec"),
    }
    assert not shared & differing


def test_networkd_does_not_start_without_the_closed_rule_set() -> None:
    link = unit(UNITS / "systemd-networkd.service.d/closed.conf")["Unit"]
    assert link["Requires"] == link["After"] == ["sallyport-closed.service"]
    closed = unit(UNITS / "sallyport-closed.service")["Unit"]
    assert "network-pre.target" in closed["Before"][0].split()
    assert closed["DefaultDependencies"] == ["no"]


def test_each_unit_of_ours_is_started_and_each_link_leads_somewhere() -> None:
    links = [path for path in UNITS.glob("*.wants/*") if path.is_symlink()]
    assert {path.name for path in OURS} <= {path.name for path in links}
    for path in links:
        assert path.readlink().parts[0] == ".."
        if path.name.startswith("sallyport-"):
            assert path.resolve().is_file()


def test_no_login_on_the_console_and_no_needless_generator() -> None:
    generators = ROOT / "etc/systemd/system-generators"
    assert str((generators / "systemd-getty-generator").readlink()) == "/dev/null"
    assert not any("getty" in path.name for path in UNITS.glob("*.wants/*"))


def test_temporary_folders_name_only_known_owners() -> None:
    ids = disks.numbers()
    for line in (ROOT / "usr/lib/tmpfiles.d/sallyport.conf").read_text(encoding="utf-8").splitlines():
        if line.startswith("d"):
            _, _, _, user, group = line.split()
            assert user == "systemd-network" or ("u", user) in ids
            assert group == "systemd-network" or ("g", group) in ids


def test_nothing_is_forwarded_by_default() -> None:
    parser = ConfigParser(strict=True)
    text = (ROOT / "usr/lib/sysctl.d/90-sallyport.conf").read_text(encoding="utf-8")
    parser.read_string("[sysctl]\n" + text)
    values = dict(parser["sysctl"])
    assert values["net.ipv4.ip_forward"] == "0"
    assert values["net.ipv6.conf.all.forwarding"] == "0"
    assert values["net.ipv4.conf.all.rp_filter"] == "1"
    assert values["net.ipv4.conf.all.arp_ignore"] == "1"
    assert values["net.ipv4.conf.all.arp_announce"] == "2"
