"""The gateway's two writable disks, as sparse raw ext4 images, made without root."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from image.debian.base import USERS
from image.debian.steps import BuildError, find, require

TOOLS = {"mke2fs": "e2fsprogs", "debugfs": "e2fsprogs"}
_USER = re.compile(r"^([ug])\s+(\S+)\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """One file or folder on a new disk."""

    path: str
    mode: int
    user: str
    group: str
    content: bytes | None = None
    """None makes a folder."""


def make_data(path: Path, identity: Path, provisioned: Path, *, mib: int = 256) -> None:
    """The data disk of a gateway as it leaves the factory.

    `identity` holds device.key, device.crt and ca.crt (PEM); `provisioned` is its first configuration (TOML).
    Replaces `path` as a whole. Raises BuildError, also for a missing file.
    """
    entries = [
        Entry("config", 0o700, "sallyport-config", "sallyport-config"),
        Entry("config/provisioned.toml", 0o640, "sallyport-config", "sallyport-config", _read(provisioned)),
        Entry("identity", 0o750, "root", "sallyport-identity"),
    ]
    for name in ("device.key", "device.crt", "ca.crt"):
        entries.append(Entry(f"identity/{name}", 0o640, "root", "sallyport-identity", _read(identity / name)))
    _make(path, "sallyport-data", mib, entries)


def make_flash(path: Path, mib: int = 512) -> None:
    """An empty log flash. Replaces `path` as a whole. Raises BuildError."""
    entries = [
        Entry("log", 0o3770, "root", "sallyport-log"),
        Entry("acks", 0o2750, "sallyport-uplink", "sallyport-log"),
    ]
    _make(path, "sallyport-log", mib, entries)


def numbers() -> dict[tuple[str, str], int]:
    """The image's fixed ids: ("u" or "g", name) -> number. A user has a group of its own with its number."""
    found = {("u", "root"): 0, ("g", "root"): 0}
    for kind, name, number in _USER.findall(USERS.read_text(encoding="utf-8")):
        found["g", name] = int(number)
        if kind == "u":
            found["u", name] = int(number)
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}; the data disk needs it") from error


def _make(path: Path, label: str, mib: int, entries: list[Entry]) -> None:
    require(TOOLS)
    ids = numbers()
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="sallyport-disk-") as folder:
        # mke2fs copies modes; owners are set in the image afterwards, for which no root is needed.
        commands = []
        for entry in entries:
            target = Path(folder, entry.path)
            if entry.content is None:
                target.mkdir()
            else:
                target.write_bytes(entry.content)
            user, group = ids["u", entry.user], ids["g", entry.group]
            kind = 0o040000 if entry.content is None else 0o100000
            commands += [
                f"set_inode_field /{entry.path} uid {user}",
                f"set_inode_field /{entry.path} gid {group}",
                f"set_inode_field /{entry.path} mode 0{kind | entry.mode:o}",
            ]
        script = Path(folder + ".debugfs")
        script.write_text("\n".join(commands) + "\n", encoding="ascii")
        try:
            _tool(
                *("mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-m", "0", "-d", folder),
                *("-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=1,nodiscard"),
                *(str(partial), f"{mib}M"),
            )
            _tool("debugfs", "-w", "-f", str(script), str(partial))
        finally:
            script.unlink()
    shutil.move(partial, path)


def _tool(name: str, *arguments: str) -> None:
    done = subprocess.run([find(name) or name, *arguments], capture_output=True, text=True, check=False)
    # debugfs ends with 0 whatever happens: what it couldn't do it says on stderr, after its banner.
    problems = [line for line in done.stderr.splitlines() if line and not line.startswith("debugfs 1.")]
    if done.returncode or (name == "debugfs" and problems):
        raise BuildError(f"{name} failed: " + (" ".join(problems) or f"status {done.returncode}"))
