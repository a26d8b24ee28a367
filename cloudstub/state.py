"""Where the cloud keeps its things: one state folder, nothing outside of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class State:
    """Paths below the folder given as `--state`."""

    root: Path

    @property
    def ca(self) -> Path:
        """Root key and certificate of the development CA."""
        return self.root / "ca"

    @property
    def certs(self) -> Path:
        """Key and certificate of each process: mqtt, portal (servers); ingest, api (clients)."""
        return self.root / "certs"

    @property
    def broker(self) -> Path:
        """Generated Mosquitto configuration, and its persistence."""
        return self.root / "broker"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def buffer(self) -> Path:
        """Durable buffer between broker and stores (X36)."""
        return self.root / "buffer.db"

    @property
    def series(self) -> Path:
        """Machine data."""
        return self.root / "series.db"

    @property
    def platform(self) -> Path:
        """Gateways, presence, events and alarms; never in one store with machine data (D10, L20)."""
        return self.root / "platform.db"

    @property
    def ready(self) -> Path:
        """Exists while the whole group runs."""
        return self.root / "ready"
