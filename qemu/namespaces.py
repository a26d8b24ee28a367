"""The namespaces that a site lives in, and running processes there.

As root: new network, mount, PID, UTS and IPC namespaces. As anybody else: a user namespace around them, in which the
user is root. `keeper.py` is process 1 inside; everything there ends with it, and it ends with us.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qemu import keeper

START_S = 20.0
SO_PEERCRED_FORMAT = "3i"
OUTPUT_LIMIT = 64 << 20


class SiteError(Exception):
    """Something about the pretend site; the text says what and, where we know, the remedy."""


@dataclass(frozen=True)
class Completed:
    """A process that ended: exit status (negative: the signal), what it wrote."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    def check(self) -> Completed:
        if self.status:
            said = (self.stderr or self.stdout).strip()[-2000:]
            raise SiteError(f"`{' '.join(self.argv)}` ended with status {self.status}: {said}")
        return self


class Process:
    """A process in the site, started by `Namespaces.start`."""

    def __init__(self, argv: Sequence[str], pid: int, channel: socket.socket) -> None:
        self.argv = tuple(argv)
        self.pid = pid
        """In the site's PID namespace."""
        self.status: int | None = None
        self._channel = channel

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        with contextlib.suppress(TimeoutError):
            self.wait(0)
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        """Exit status. Raises `TimeoutError`; the process runs on."""
        if self.status is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._channel, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise TimeoutError(f"`{' '.join(self.argv)}` still runs after {timeout} s")
            message, _ = keeper.receive(self._channel)
            # The keeper closes the connection when the whole site ends.
            self.status = message["status"] if message else -signal.SIGKILL
            self._channel.close()
        return self.status

    def signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(OSError):
                keeper.send(self._channel, {"signal": number})

    def terminate(self, grace: float = 5.0) -> int:
        """SIGTERM, after `grace` seconds SIGKILL. Returns the exit status."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(grace)
        except TimeoutError:
            return self.kill()

    def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return self.wait(10)


class Namespaces:
    """A running keeper. `state`: a folder for its socket (short: a socket's path has at most 107 bytes)."""

    def __init__(self, state: Path) -> None:
        self._socket = state / "keeper"
        if len(os.fsencode(self._socket)) > 107:
            raise SiteError(f"{state} is too long a path for a Unix socket; choose a shorter state folder")
        self._socket.unlink(missing_ok=True)
        argv = [*_unshare(), sys.executable, "-I", "-S", keeper.__file__, str(self._socket)]
        # A session of its own: Ctrl-C reaches the owner only, who then ends the site in order.
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._await_ready()
            with self._connect() as channel:
                # The socket's listener is the keeper: the kernel tells its PID as we see it.
                credentials = channel.getsockopt(
                    socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(SO_PEERCRED_FORMAT)
                )
            self.pid: int = struct.unpack(SO_PEERCRED_FORMAT, credentials)[0]
            """The keeper, in our PID namespace (for nsenter)."""
        except BaseException:
            self.close()
            raise

    def _await_ready(self) -> None:
        assert self._process.stdout and self._process.stderr
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(START_S) and self._process.stdout.readline()
        if not ready:
            self._process.kill()
            said = self._process.stderr.read().decode(errors="replace").strip()
            raise SiteError(f"namespaces can't be made: {said or 'no answer'}. {_remedy()}")

    def close(self) -> None:
        """End every process of the site; its namespaces and mounts go with them."""
        process = self._process
        assert process.stdin
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(keeper.GRACE_S + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
        self._socket.unlink(missing_ok=True)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _connect(self) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            channel.connect(str(self._socket))
        except OSError as error:
            channel.close()
            raise SiteError(f"the site does not answer on {self._socket}: {error.strerror}") from error
        return channel

    def make_host(self, name: str, files: Mapping[str, Path] | None = None) -> int:
        """A namespace of its own for a host; returns its holder's PID inside the site.

        `files`: paths that the host sees with another file's content, e.g. /etc/resolv.conf.
        """
        shown = {seen: str(real) for seen, real in (files or {}).items()}
        with self._connect() as channel:
            keeper.send(channel, {"host": name, "files": shown})
            pid: int = _answer(channel, f"host {name}")["pid"]
            return pid

    def start(
        self,
        argv: Sequence[str],
        *,
        host: str | None = None,
        fds: Sequence[int | IO[Any]] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        tied: bool = False,
    ) -> Process:
        """Start a program in a host, or in the patch panel if none is named.

        `fds` become descriptors 0, 1, 2, 3, ... (default: /dev/null three times). `tied`: ends when we forget it.
        """
        numbers = [fd if isinstance(fd, int) else fd.fileno() for fd in fds]
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        channel = self._connect()
        environment = dict(os.environ if env is None else env)
        # Debian gives only root the sbin folders; nft and dnsmasq live there.
        environment["PATH"] = f"{environment.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
        try:
            numbers += [null] * (3 - len(numbers))
            message = {
                "host": host,
                "argv": [os.fspath(arg) for arg in argv],
                "env": environment,
                "cwd": str(cwd or Path.cwd()),
                "tied": tied,
            }
            keeper.send(channel, message, numbers)
            return Process(argv, _answer(channel, argv[0])["pid"], channel)
        except BaseException:
            channel.close()
            raise
        finally:
            os.close(null)

    def run(
        self,
        argv: Sequence[str],
        *,
        host: str | None = None,
        stdin: str = "",
        timeout: float = 30.0,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program to its end. Raises `TimeoutError` (and ends it) after `timeout` seconds."""
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        (child_in, our_in), (our_out, child_out), (our_err, child_err) = pipes
        try:
            process = self.start(argv, host=host, fds=(child_in, child_out, child_err), env=env, tied=True)
        except BaseException:
            for fd in (our_in, our_out, our_err):
                os.close(fd)
            raise
        finally:
            for fd in (child_in, child_out, child_err):
                os.close(fd)
        try:
            deadline = time.monotonic() + timeout
            output = _communicate(our_in, [our_out, our_err], stdin.encode(), deadline)
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            process.kill()
            raise TimeoutError(f"`{' '.join(argv)}` did not end within {timeout} s") from error
        return Completed(tuple(argv), status, *(data.decode(errors="replace") for data in output))


def _unshare() -> list[str]:
    if not shutil.which("unshare"):
        raise SiteError("unshare(1) is missing; install the package util-linux")
    command = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--uts",
        "--ipc",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    if os.geteuid():
        # More than one id is needed: servers in the site change their user.
        command += ["--user", "--map-root-user", "--map-auto"]
    return command


def _remedy() -> str:
    if not os.geteuid():
        return "Is this a container? It needs CAP_SYS_ADMIN."
    return (
        "Without root it takes user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone), "
        "the package uidmap, and a range for you in /etc/subuid and /etc/subgid"
    )


def _answer(channel: socket.socket, what: str) -> dict[str, Any]:
    message, _ = keeper.receive(channel)
    if message is None:
        raise SiteError(f"{what}: the site has ended")
    if "error" in message:
        raise SiteError(f"{what}: {message['error']}")
    return message


def _communicate(sink: int, sources: Iterable[int], data: bytes, deadline: float) -> list[bytes]:
    """Write `data` to `sink` and read `sources` to their ends; closes them all."""
    buffers = {source: bytearray() for source in sources}
    waiting = {sink, *buffers}
    with selectors.DefaultSelector() as selector:
        os.set_blocking(sink, False)
        selector.register(sink, selectors.EVENT_WRITE)
        for source in buffers:
            selector.register(source, selectors.EVENT_READ)
        try:
            while selector.get_map():
                events = selector.select(max(0.0, deadline - time.monotonic()))
                if not events:
                    raise TimeoutError
                for key, _ in events:
                    if key.fd == sink:
                        with contextlib.suppress(BrokenPipeError):
                            data = data[os.write(sink, data) :] if data else b""
                            if data:
                                continue
                        finished = True
                    else:
                        chunk = os.read(key.fd, 65536)
                        buffers[key.fd] += chunk
                        finished = not chunk or len(buffers[key.fd]) > OUTPUT_LIMIT
                    if finished:
                        selector.unregister(key.fd)
                        waiting.remove(key.fd)
                        os.close(key.fd)
        finally:
            for fd in waiting:
                os.close(fd)
    return [bytes(buffer) for buffer in buffers.values()]
