from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.cloud import Cloud, Gateway


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin"):
        return
    for item in items:
        if "cloud" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="mosquitto is not installed"))


@pytest.fixture(scope="module")
def shared_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One cloud for the tests of a file that leave it running; each uses a device id of its own."""
    cloud = Cloud(tmp_path_factory.mktemp("cloud") / "state")
    cloud.start()
    yield cloud
    cloud.stop()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """A cloud of one's own, to break."""
    cloud = Cloud(tmp_path / "state")
    cloud.start()
    yield cloud
    cloud.stop()


@pytest.fixture
def gateway(tmp_path: Path, cloud: Cloud) -> Gateway:
    return Gateway(tmp_path / "gateway", cloud)
