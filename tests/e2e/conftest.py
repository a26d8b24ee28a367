"""One booted site serves many tests: a boot takes half a minute in software emulation.

`site` has been watched on every cable from before power-on (`power_on`). A test that changes something puts it back.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu.packets import Packet
from qemu.promises import eventually
from qemu.site import Site
from tests.e2e import lab

KEPT = Path(__file__).resolve().parents[2] / "build/test-logs"
_failed: set[str] = set()


@dataclass(frozen=True)
class PowerOn:
    """Everything that passed each cable from before power-on until data flowed into the cloud."""

    wan: list[Packet]
    lan: list[Packet]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """On failure, keep the logs of the site that the test used."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    site = getattr(item, "funcargs", {}).get("site")
    if report.failed and isinstance(site, Site):
        folder = KEPT / item.name
        shutil.rmtree(folder, ignore_errors=True)
        site.keep_logs(folder)
        item.add_report_section(report.when, "logs", f"kept in {folder}")


@pytest.fixture(scope="session")
def state_folder() -> Iterator[Path]:
    """Short, because Unix sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="sp-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def watched(state_folder: Path) -> Iterator[tuple[Site, PowerOn]]:
    with Site(state_folder / "site", power=False) as site:
        wan, lan = site.capture("wan"), site.capture("lan")
        site.power()
        site.machine.wait_booted()
        lab.wait_online(site)
        eventually(
            lambda: site.cloud_get("/api/v1/health")["counters"]["samples"],
            within=lab.SLOW_S,
            what="samples reach the cloud",
        )
        yield site, PowerOn(wan.stop(), lan.stop())


@pytest.fixture(scope="session")
def power_on(watched: tuple[Site, PowerOn]) -> PowerOn:
    return watched[1]


def _heal(site: Site) -> None:
    """Whatever a test left broken."""
    off = not site.machine.powered
    site.heal()
    if off:
        site.machine.wait_booted()
        lab.wait_online(site)


@pytest.fixture
def site(watched: tuple[Site, PowerOn]) -> Iterator[Site]:
    """The site, powered and online, with both links up; put back so after the test."""
    yield watched[0]
    _heal(watched[0])


@pytest.fixture
def own_configuration(site: Site) -> Iterator[None]:
    """What the test configures is taken back after it."""
    before = site.machine.agent.run("sallyport", "config", "show").stdout
    yield
    _heal(site)
    lab.configure(site, before)


@pytest.fixture
def since_us() -> int:
    """Now, as microseconds since 1970: what the cloud has from before does not count."""
    return time.time_ns() // 1000
