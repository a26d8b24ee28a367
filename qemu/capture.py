"""tcpdump(8) on a port of the patch panel: everything that passes one cable, into a pcap file."""

from __future__ import annotations

import os
import selectors
import signal
from pathlib import Path

from qemu import packets
from qemu.namespaces import Namespaces, Process, SiteError
from qemu.packets import Packet

START_S = 15.0
OPTIONS = (
    "--immediate-mode",
    "--packet-buffered",
    "--no-promiscuous-mode",
    "--buffer-size=8192",
    "--snapshot-length=65535",
    "--relinquish-privileges=root",
)


class Capture:
    """Runs from the constructor's return until `stop()`; `packets()` reads also while it runs."""

    def __init__(self, space: Namespaces, port: str, path: Path, expression: str = "") -> None:
        """`expression`: pcap-filter(7). Raises `SiteError` if tcpdump does not start."""
        self.path = path
        self.port = port
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        # Open as long as tcpdump runs: it may still have something to say.
        self._said = open(read_end, "rb", buffering=0)  # noqa: PTH123, SIM115
        try:
            with Path(os.devnull).open("rb") as null:
                argv = ["tcpdump", f"--interface={port}", *OPTIONS, "-w", str(path), *expression.split()]
                self._process: Process = space.start(argv, fds=(null, write_end, write_end))
        except BaseException:
            self._said.close()
            raise
        finally:
            os.close(write_end)
        self._await_ready()

    def _await_ready(self) -> None:
        text = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._said, selectors.EVENT_READ)
            while b"listening on" not in text:
                chunk = self._said.read(4096) if selector.select(START_S) else b""
                if not chunk:
                    self._process.kill()
                    self._said.close()
                    raise SiteError(
                        f"tcpdump on {self.port} does not start: {text.decode().strip() or 'no answer'}"
                    )
                text += chunk

    def stop(self) -> list[Packet]:
        """End it and return what it saw."""
        self._process.signal(signal.SIGINT)
        self._process.wait(START_S)
        self._said.close()
        return self.packets()

    def packets(self) -> list[Packet]:
        return list(packets.read(self.path))

    def size(self) -> int:
        """Bytes so far; `slice(size)` later gives what came after."""
        return self.path.stat().st_size if self.path.exists() else 0

    def slice(self, start: int) -> bytes:
        """A pcap file of what came after the file had `start` bytes."""
        data = self.path.read_bytes()
        return data[: packets.FILE_HEADER_BYTES] + data[max(start, packets.FILE_HEADER_BYTES) :]
