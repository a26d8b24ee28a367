"""Where things are on a gateway.

`SALLYPORT_ROOT` puts the whole tree under another folder (tests, services on a developer's machine).
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(os.environ.get("SALLYPORT_ROOT", "/"))

RUN = ROOT / "run/sallyport"
STATUS = RUN / "status"
"""Observed documents, one `<service>.json` each."""
DESIRED = RUN / "desired.json"
"""The desired document in force, published by the configuration service."""
CONFIG_SOCKET = RUN / "config/socket"

CONFIG = ROOT / "data/config"
"""Revisions of the desired document; only the configuration service writes here."""
IDENTITY = ROOT / "data/identity"
"""device.key, device.crt, ca.crt (PEM)."""

LOG = ROOT / "flash/log"
"""One folder of segments per stream, on the separate log flash."""
ACKS = ROOT / "flash/acks"
"""What the cloud has stored, one file per stream; only the uplink writes here."""

BOARD = ROOT / "etc/sallyport/board.toml"
FACTORY = ROOT / "etc/sallyport/factory.toml"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
