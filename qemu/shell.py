"""A person's terminal inside the site: a shell on a host, or on the gateway's own console line."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from pathlib import Path

from qemu.namespaces import SiteError

LEAVE = b"\x1d"
"""Ctrl-]"""
CHUNK = 65536


def into(keeper: int, holder: int | None = None) -> list[str]:
    """An nsenter(1) command line into the patch panel, or on into a host (its holder's PID inside the site)."""
    command = ["nsenter", f"--target={keeper}"]
    if os.geteuid():
        command += ["--user", "--preserve-credentials"]
    command += ["--mount", "--pid", "--net", "--uts", "--ipc", "--"]
    if holder:
        command += ["nsenter", f"--target={holder}", "--mount", "--net", "--uts", "--"]
    return command


def enter(spaces: list[str], argv: list[str], *, prompt: str = "") -> int:
    """Become `argv` inside. Does not return, unless nsenter can't be started."""
    environment = {**os.environ, **({"PS1": f"{prompt}# "} if prompt else {})}
    try:
        os.execvpe(spaces[0], [*spaces, *argv], environment)  # noqa: S606
    except OSError as error:
        raise SiteError(f"{spaces[0]}: {error.strerror}") from error


def attach(path: Path) -> int:
    """Connect this terminal to the gateway's root shell until Ctrl-] or its end."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError as error:
            raise SiteError(f"the gateway's shell does not answer: {error.strerror}") from error
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal) if os.isatty(terminal) else None
        if before:
            print("root shell on the gateway; leave with Ctrl-]", flush=True)
            tty.setraw(terminal)
        try:
            sock.sendall(b"\r")
            _relay(sock, terminal)
        finally:
            if before:
                termios.tcsetattr(terminal, termios.TCSADRAIN, before)
                print()
    return 0


def _relay(sock: socket.socket, terminal: int) -> None:
    while True:
        for source in select.select([sock.fileno(), terminal], [], [])[0]:
            if source != terminal:
                data = sock.recv(CHUNK)
                if not data:
                    return
                os.write(1, data)
            else:
                data = os.read(terminal, CHUNK)
                if not data or LEAVE in data:
                    return
                sock.sendall(data)
