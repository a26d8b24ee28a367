"""The guest agent: run programs, read and write files inside the gateway. (QEMU documentation, "QEMU Guest Agent")

For tests and for people who look; nothing of the product depends on it.
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from qemu.jsonsocket import JsonSocket
from qemu.namespaces import Completed, SiteError

CHUNK = 32768
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.25


class Agent:
    def __init__(self, path: Path, *, timeout: float = 30.0) -> None:
        self._path = path
        self._timeout = timeout
        self._socket: JsonSocket | None = None
        self._lock = threading.RLock()

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Until the guest has started its agent."""
        deadline = time.monotonic() + timeout
        while not self.answers(min(2.0, max(0.1, deadline - time.monotonic()))):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest agent did not answer within {timeout:g} s")

    def answers(self, timeout: float = 1.0) -> bool:
        """Whether the guest's agent is there."""
        try:
            with self._lock:
                self._sync(time.monotonic() + timeout)
        except (OSError, ValueError):
            return False
        return True

    def command(self, name: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Run a command of the agent and return its result. Threads take turns."""
        with self._lock:
            return self._command(name, timeout, arguments)

    def _command(self, name: str, timeout: float | None, arguments: dict[str, Any]) -> Any:
        deadline = time.monotonic() + (timeout or self._timeout)
        if not self._socket:
            self._sync(deadline)
        assert self._socket
        try:
            self._socket.send({"execute": name, "arguments": arguments})
            answer = self._socket.receive(deadline)
        except (OSError, ValueError):
            self.close()  # an answer that comes later must not be taken for the next one
            raise
        if "error" in answer:
            raise SiteError(f"guest agent, {name}: {answer['error']['desc']}")
        return answer["return"]

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        timeout: float = 60.0,
        check: bool = True,
        env: tuple[str, ...] = (),
    ) -> Completed:
        """Run a program in the guest as root, to its end. With `check`, a failure raises `SiteError`."""
        arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        if env:
            arguments["env"] = list(env)
        pid = self.command("guest-exec", **arguments)["pid"]
        deadline = time.monotonic() + timeout
        pause = FIRST_PAUSE_S
        while not (state := self.command("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > deadline:
                self.command("guest-exec", path="kill", arg=["-9", str(pid)])
                raise TimeoutError(f"`{' '.join(argv)}` did not end within {timeout:g} s in the guest")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        out, err = (
            base64.b64decode(state.get(key, "")).decode(errors="replace") for key in ("out-data", "err-data")
        )
        completed = Completed(argv, state.get("exitcode", -state.get("signal", 0)), out, err)
        return completed.check() if check else completed

    def shell(self, script: str, *, timeout: float = 60.0, check: bool = True) -> str:
        """Standard output of a shell script in the guest."""
        return self.run("/bin/sh", "-c", script, timeout=timeout, check=check).stdout

    def read_file(self, path: str) -> bytes:
        handle = self.command("guest-file-open", path=path, mode="r")
        data = bytearray()
        try:
            while True:
                part = self.command("guest-file-read", handle=handle, count=CHUNK)
                data += base64.b64decode(part["buf-b64"])
                if part["eof"] or not part["count"]:
                    return bytes(data)
        finally:
            self.command("guest-file-close", handle=handle)

    def write_file(self, path: str, data: bytes) -> None:
        handle = self.command("guest-file-open", path=path, mode="w")
        try:
            while data:
                part, data = data[:CHUNK], data[CHUNK:]
                content: dict[str, Any] = {"buf-b64": base64.b64encode(part).decode()}
                self.command("guest-file-write", handle=handle, **content)
            self.command("guest-file-flush", handle=handle)
        finally:
            self.command("guest-file-close", handle=handle)

    def _sync(self, deadline: float) -> None:
        """A fresh connection whose next answer is ours, whatever an earlier client left unread."""
        self.close()
        sock = JsonSocket(self._path, deadline)
        try:
            number = secrets.randbits(31)
            # 0xFF makes the agent drop half a request, and marks the start of the answer for us.
            sock.send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, prefix=b"\xff")
            while True:
                sock.skip_to(b"\xff", deadline)
                if sock.receive(deadline).get("return") == number:
                    break
        except BaseException:
            sock.close()
            raise
        self._socket = sock
