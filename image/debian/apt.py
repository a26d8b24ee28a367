"""Debian packages by way of this machine's own apt configuration: no mirror is written down here."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from image.debian.steps import BuildError, run

_URI = re.compile(r"'(?P<uri>\S+)' (?P<file>\S+) (?P<size>\d+)(?: SHA256:(?P<sha256>[0-9a-f]{64}))?")


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    file: str


def sources(suite: str) -> list[str]:
    """Lines for sources.list that give `suite` and its updates from the mirrors that this machine uses.

    Raises BuildError without a mirror.
    """
    done = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)",
            "Created-By: Packages",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = []
    for row in done.stdout.splitlines():
        site, release, component, origin = row.split("|")
        if origin != "Debian":  # another vendor's packages
            continue
        pocket = release.partition("-")[2]
        if component == "main" and pocket in ("", "updates", "security"):
            lines.append(f"deb {site} {suite}{'-' + pocket if pocket else ''} main")
    if not any(line.endswith(f" {suite} main") for line in lines):
        raise BuildError(
            "apt on this machine has no Debian mirror (apt-get indextargets lists none); "
            "add one to /etc/apt/sources.list and run apt-get update"
        )
    return sorted(set(lines))


def proxies() -> list[str]:
    """Lines for apt.conf that send apt through the same proxies as this machine's."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return re.findall(r"^Acquire::https?::proxy\S* .*;$", done.stdout, re.IGNORECASE | re.MULTILINE)


def candidate(name: str) -> Package:
    """The version of a package that apt would download. Raises BuildError naming the suites to add."""
    done = subprocess.run(
        ["apt-get", "download", "--print-uris", name], capture_output=True, text=True, check=False
    )
    match = _URI.search(done.stdout)
    if done.returncode or not match:
        raise BuildError(
            f"apt knows no package {name}; it is in Debian 13 (trixie) main and in Debian 12's "
            "bookworm-security and bookworm-backports: add one to apt's sources and run apt-get update"
        )
    # Epochs and tildes are percent-encoded in file names.
    version = (
        match["file"].removeprefix(f"{name}_").rpartition("_")[0].replace("%3a", ":").replace("%7e", "~")
    )
    return Package(name, version, match["file"])


def download(package: Package, folder: Path, log: Path) -> Path:
    """The .deb, checked by apt against the signed index. Kept when it is there already."""
    path = folder / package.file
    if not path.exists():
        run(["apt-get", "download", f"{package.name}={package.version}"], log, cwd=folder)
    return path
