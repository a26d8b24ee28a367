"""A Unix socket on which both sides write one JSON document a line: QMP and the guest agent."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

CHUNK = 65536


class JsonSocket:
    """Raises `TimeoutError` at a deadline (in `time.monotonic()`), `ConnectionError` when the other side left."""

    def __init__(self, path: Path, deadline: float) -> None:
        """Waits for a server that does not listen yet."""
        self._buffer = bytearray()
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                self._socket.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nobody listens on {path}") from error
                time.sleep(0.02)
            else:
                return

    def close(self) -> None:
        self._socket.close()

    def send(self, document: Any, *, prefix: bytes = b"") -> None:
        self._socket.sendall(prefix + json.dumps(document).encode() + b"\n")

    def receive(self, deadline: float) -> Any:
        while True:
            line = self._line(deadline)
            if line.strip():
                return json.loads(line)

    def skip_to(self, mark: bytes, deadline: float) -> None:
        """Throw away what was sent before `mark`."""
        while mark not in self._buffer:
            self._fill(deadline)
        del self._buffer[: self._buffer.index(mark) + len(mark)]

    def _line(self, deadline: float) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill(deadline)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _fill(self, deadline: float) -> None:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = self._socket.recv(CHUNK)
        if not chunk:
            raise ConnectionError("the other side closed the connection")
        self._buffer += chunk
