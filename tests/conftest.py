"""Shared fixtures: a pretend site without a virtual machine, and the logs of a test that fails on it."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from qemu.site import PROJECT, Site

LOGS = PROJECT / "build/test-logs"
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def site_folder() -> Iterator[Path]:
    """A folder with a short path: Unix sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="site-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def shared_netns_site(site_folder: Path) -> Iterator[Site]:
    with Site(site_folder / "netns", gateway="netns") as site:
        site.configure_gateway()
        yield site


@pytest.fixture
def netns_site(shared_netns_site: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Networks, neighbours and PLCs, the gateway a bare namespace. One for all tests, healed before each."""
    site = shared_netns_site
    site.heal()
    folder = LOGS / re.sub(r"[^\w.-]+", "_", request.node.nodeid.removeprefix("tests/"))
    shutil.rmtree(folder, ignore_errors=True)
    yield site
    if request.node.stash.get(FAILED, False):
        site.keep_logs(folder)
        request.node.add_report_section("teardown", "logs", f"kept in {folder.relative_to(PROJECT)}")
