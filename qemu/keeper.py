"""Process 1 of a site: owns its namespaces and starts what runs in them.

Started by `namespaces.py` inside fresh namespaces. Single-threaded, standard library only.

- It ends when its lifeline (standard input) closes, however the owner died; with process 1 of a PID namespace the
  kernel ends every process of the site, and with the last of them the namespaces and mounts go.
- A *host* is a child that does nothing but hold a network, mount and UTS namespace.
- One connection to the keeper's socket is one process: the client sends `Start` as JSON with file descriptors
  attached, gets `{"pid"}` or `{"error"}`, then `{"status"}` when it ended (negative: the signal, as in subprocess).
  While it runs the client may send `{"signal": number}`. Closing the connection leaves the process alone, unless it
  was started with `"tied": true`.
"""

from __future__ import annotations

import array
import ctypes
import ctypes.util
import json
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
PR_SET_NAME = 15
MESSAGE_BYTES = 180_000
"""Longest message: below the default socket buffer."""
FDS = 16
GRACE_S = 3.0

libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0) -> None:
    check(
        libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), None),
        f"mount {kind or source} on {target}",
    )


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its descriptors; None at the end of the connection."""
    fds = array.array("i")
    data, ancillary, _, _ = sock.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(FDS * fds.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)


def send(sock: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(message).encode()], rights)


class Keeper:
    def __init__(self, path: str) -> None:
        self._hosts: dict[str, int] = {}
        self._processes: dict[int, socket.socket | None] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._selector.register(0, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Until the lifeline closes."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    if not os.read(0, 1):
                        self._end()
                        return
                elif key.fileobj == self._wake:
                    os.read(self._wake, 4096)
                    self._reap()
                elif key.fileobj is self._listener:
                    client, _ = self._listener.accept()
                    self._selector.register(client, selectors.EVENT_READ, {})
                else:
                    self._serve(key.fileobj, key.data)  # type: ignore[arg-type]

    def _serve(self, client: socket.socket, session: dict[str, Any]) -> None:
        fds: list[int] = []
        try:
            message, fds = receive(client)
            if message is None:
                self._forget(client, session)
            elif "signal" in message:
                if self._processes.get(session["pid"]) is client:
                    os.kill(session["pid"], message["signal"])
            elif "host" in message and "argv" not in message:
                send(client, {"pid": self._make_host(message["host"], message.get("files", {}))})
            else:
                pid = self._start(message, fds)
                session.update(pid=pid, tied=message.get("tied", False))
                self._processes[pid] = client
                send(client, {"pid": pid})
        except OSError as error:
            with suppress(OSError):
                send(client, {"error": error.strerror or str(error)})
        finally:
            for fd in fds:
                os.close(fd)

    def _forget(self, client: socket.socket, session: dict[str, Any]) -> None:
        self._selector.unregister(client)
        client.close()
        pid = session.get("pid")
        if pid and self._processes.get(pid) is client:
            self._processes[pid] = None
            if session["tied"]:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGTERM)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            client = self._processes.pop(pid, None)
            if client:
                with suppress(OSError):
                    send(client, {"status": os.waitstatus_to_exitcode(status)})

    def _make_host(self, name: str, files: dict[str, str]) -> int:
        """A child with its own network, mounts and host name. `files`: path seen by the host -> file shown there."""
        if name in self._hosts:
            return self._hosts[name]

        def become_host() -> None:
            check(libc.unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS), "unshare")
            socket.sethostname(name)
            libc.prctl(PR_SET_NAME, f"host-{name}".encode()[:15])
            mount("sysfs", "/sys", "sysfs")
            mount("tmpfs", "/run", "tmpfs")
            for seen, real in files.items():
                target = Path(seen).resolve()
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.touch()
                mount(real, str(target), flags=MS_BIND)

        def hold() -> None:
            while True:
                signal.pause()

        self._hosts[name] = self._fork(become_host, hold)
        return self._hosts[name]

    def _start(self, message: dict[str, Any], fds: list[int]) -> int:
        """Start `argv` in a host (or, without one, in the panel). The descriptors become 0, 1, 2, 3, ..."""
        host = message.get("host")
        if host is not None and host not in self._hosts:
            raise OSError(f"no host named {host!r}; there are {', '.join(self._hosts) or 'none yet'}")
        holder = self._hosts.get(host, 0) if host else 0
        argv: list[str] = message["argv"]

        def enter() -> None:
            os.setsid()
            if holder:
                spaces = [
                    os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                    for kind in ("net", "uts", "mnt")
                ]
                for space in spaces:
                    check(libc.setns(space, 0), f"enter host {host}")
            os.chdir(message["cwd"])
            high = [os.dup(fd) for fd in fds]
            for number, fd in enumerate(high):
                os.dup2(fd, number)

        def execute() -> None:
            os.execvpe(argv[0], argv, message["env"])  # noqa: S606

        return self._fork(enter, execute, keep=len(fds))

    def _fork(self, prepare: Any, then: Any, keep: int = 0) -> int:
        """Fork; in the child `prepare`, then `then`, which must not return. An error there is raised here."""
        report_read, report_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                # Out of the way of the descriptors that become 0, 1, 2, ...; closed by a successful exec.
                report_write = self._move_up(report_write)
                prepare()
                if keep:
                    os.closerange(keep, report_write)
                    os.closerange(report_write + 1, 65536)
                    then()
                else:
                    os.write(report_write, b"{}")
                    os.closerange(0, 65536)
                    then()
            except BaseException as error:
                said = getattr(error, "strerror", None) or str(error)
                os.write(report_write, json.dumps({"error": said}).encode())
            os._exit(127)
        os.close(report_write)
        with os.fdopen(report_read, "rb") as report:
            # A host says {} and holds on; a started program says nothing, as exec closes its end.
            said = json.loads(report.read() or b"{}")
        if "error" in said:
            raise OSError(said["error"])
        self._processes[pid] = None
        return pid

    @staticmethod
    def _move_up(fd: int) -> int:
        import fcntl  # noqa: PLC0415

        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 1000)

    def _end(self) -> None:
        """Ask every process to end, give them a moment; what is left dies with this process."""
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                return


def main() -> None:
    keeper = Keeper(sys.argv[1])
    # Nothing that happens in here may reach the machine's own mounts.
    mount("tmpfs", "/run", "tmpfs")
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1", encoding="ascii")
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1", encoding="ascii")
    os.write(1, b"ready\n")
    keeper.run()


if __name__ == "__main__":
    main()
