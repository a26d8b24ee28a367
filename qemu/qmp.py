"""QEMU's machine protocol: link up and down, reset, quit. (QEMU documentation, "QMP reference")"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from qemu.jsonsocket import JsonSocket
from qemu.namespaces import SiteError


class Qmp:
    def __init__(self, path: Path, *, timeout: float = 30.0) -> None:
        """`timeout`: seconds for connecting and for each command. TCG under load is slow."""
        self._timeout = timeout
        self._lock = threading.Lock()
        self._socket = JsonSocket(path, time.monotonic() + timeout)
        self._socket.receive(time.monotonic() + timeout)  # the greeting
        self.command("qmp_capabilities")

    def close(self) -> None:
        self._socket.close()

    def command(self, name: str, /, **arguments: Any) -> Any:
        """Run a command and return its result; threads take turns. Raises `SiteError` with QEMU's own text."""
        deadline = time.monotonic() + self._timeout
        with self._lock:
            self._socket.send({"execute": name, "arguments": arguments})
            while True:
                answer = self._socket.receive(deadline)
                if "error" in answer:
                    raise SiteError(f"QEMU refused {name}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
                # Else an event; nobody waits for one.

    def set_link(self, device: str, up: bool) -> None:
        """Carrier of a network device (its netdev or device id)."""
        self.command("set_link", name=device, up=up)

    def reset(self) -> None:
        self.command("system_reset")

    def running(self) -> bool:
        return bool(self.command("query-status")["running"])
