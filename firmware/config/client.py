"""Asks the configuration service over its Unix socket."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from firmware import paths
from firmware.config.protocol import Reply, Request

TIMEOUT_S = 30.0


class UnreachableError(Exception):
    """The service does not answer; the text says what helps."""


def ask(request: Request, path: Path | None = None) -> Reply:
    """One request, one reply. Raises UnreachableError."""
    path = path or paths.CONFIG_SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, sock.makefile("rb") as lines:
            sock.settimeout(TIMEOUT_S)
            sock.connect(str(path))
            sock.sendall(msgspec.json.encode(request) + b"\n")
            line = lines.readline()
        return msgspec.json.decode(line, type=Reply)
    except PermissionError as error:
        raise UnreachableError(
            f"{path}: not allowed; ask as root or as a member of group sallyport-admin"
        ) from error
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"the configuration service does not answer at {path} ({error}); "
            "see `systemctl status sallyport-config`"
        ) from error
