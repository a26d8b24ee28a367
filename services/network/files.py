"""Writes networkd's files when they changed, and has networkd read them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from firmware.status import write_atomic
from services.network.core import PREFIX

RELOAD_S = 30.0


class ReloadError(Exception):
    """networkd did not take the files; the text is what it said."""


def write_changed(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Makes our files in `folder` these ones. Returns the names of those written or removed."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, text in files.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != text.encode():
            write_atomic(path, text.encode())
            path.chmod(0o644)  # whatever the umask: networkd is another process
            changed.append(name)
    for path in folder.glob(f"{PREFIX}*"):
        if path.name not in files:
            path.unlink()
            changed.append(path.name)
    return sorted(changed)


async def reload() -> None:
    """networkd reads its files again and reconfigures exactly the ports whose file changed (networkctl(1)).
    Raises ReloadError."""
    try:
        process = await asyncio.create_subprocess_exec(
            "networkctl", "reload", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise ReloadError(f"networkctl can't be started: {error}") from error
    try:
        _, said = await asyncio.wait_for(process.communicate(), RELOAD_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ReloadError(f"networkd did not answer within {RELOAD_S:.0f} s") from None
    if process.returncode:
        raise ReloadError(
            said.decode(errors="replace").strip() or f"networkctl ended with {process.returncode}"
        )
