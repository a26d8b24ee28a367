"""Observed documents: how a service says what it sees, and how a reader reads it.

One file per service, `/run/sallyport/status/<service>.json`, replaced atomically:
`{"service", "state", "summary", "since_us", "updated_us", "detail": {...}}`.
Never a secret in it: everyone on the gateway may read it, and the uplink sends it to the cloud.
"""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from firmware import clock, paths

log = logging.getLogger(__name__)

SERVICES = ("config", "firewall", "network", "plc", "uplink")
"""Those that run on every gateway."""


class State(StrEnum):
    STARTING = "starting"
    OK = "ok"
    DEGRADED = "degraded"
    """Works in part; `summary` says what is missing."""
    FAILED = "failed"
    """Does not do its work; `summary` says why and what helps."""


class Observed(msgspec.Struct, frozen=True):
    service: str
    state: State
    summary: str
    """One line for a person."""
    since_us: int
    """Monotonic time since when `state` holds."""
    updated_us: int
    detail: dict[str, Any] = {}


class Reporter:
    """Writes one service's observed document, only when something changed."""

    def __init__(self, service: str, folder: Path | None = None) -> None:
        self._path = (folder or paths.STATUS) / f"{service}.json"
        self._service = service
        self._last: tuple[State, str, dict[str, Any]] | None = None
        self._since_us = 0
        self._written = True

    def report(self, state: State, summary: str, **detail: Any) -> None:
        """`detail` must be plain data (JSON). A document that can't be written is tried again at the next report."""
        if (state, summary, detail) == self._last and self._written:
            return
        now_us = clock.now().monotonic_us
        if self._last is None or self._last[0] is not state:
            self._since_us = now_us
        self._last = (state, summary, detail)
        document = Observed(self._service, state, summary, self._since_us, now_us, detail)
        try:
            write_atomic(self._path, msgspec.json.encode(document))
        except OSError as error:
            if self._written:
                log.warning("status can't be written: %s", error)
            self._written = False
        else:
            self._written = True


def read_all(folder: Path | None = None) -> dict[str, Observed]:
    """Every service's observed document by name. One that can't be read counts as failed."""
    found = {}
    for path in sorted((folder or paths.STATUS).glob("*.json")):
        try:
            found[path.stem] = msgspec.json.decode(path.read_bytes(), type=Observed)
        except (OSError, msgspec.DecodeError) as error:
            found[path.stem] = Observed(path.stem, State.FAILED, f"{path} can't be read: {error}", 0, 0)
    return found


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = False) -> None:
    """Replace a file as a whole: readers see the old or the new one, also after a power cut if `durable`."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "wb", opener=lambda p, flags: os.open(p, flags, mode)) as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes renames and removals in a folder last over a power cut."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
