"""A booted site for a bench."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qemu.promises import eventually
from qemu.site import Site

PATIENCE_S = 180.0


@contextmanager
def booting_site() -> Iterator[Site]:
    """The pretend site with its gateway just powered on, and nothing left of it afterwards."""
    with tempfile.TemporaryDirectory(prefix="sp-") as folder, Site(Path(folder)) as site:
        yield site


def first_sample(site: Site) -> tuple[float, str]:
    """Wait until any sample is in the cloud; gives its true time (seconds since 1970) and its tag."""

    def look() -> list[tuple[float, str]]:
        gateways = site.cloud_get("/api/v1/gateways")
        found = []
        for gateway in gateways:
            for tag in site.cloud_get(f"/api/v1/gateways/{gateway['id']}/tags"):
                path = f"/api/v1/gateways/{gateway['id']}/series?tag={tag['tag']}&from=0&limit=1"
                found += [(point["time_us"] / 1e6, tag["tag"]) for point in site.cloud_get(path)]
        return found

    return min(eventually(look, within=PATIENCE_S, what="a sample in the cloud"))
