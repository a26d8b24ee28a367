"""One squashfs from a tar archive and folders, later ones over earlier ones; needs no root."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from image.debian.steps import failed, find

TIME = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
"""Modification time of all that is ours: the same source gives the same image."""


def write(image: Path, base: Path, folders: Iterable[tuple[Path, str]], log: Path) -> None:
    """Pack `base` (tar), and each (folder, place in the root) over it, into `image`. Raises BuildError.

    What comes from a folder belongs to root.
    """
    over: dict[str, tuple[tarfile.TarInfo, Path | None]] = {}
    for folder, place in folders:
        for path in [folder, *sorted(folder.rglob("*"))]:
            name = str(PurePosixPath(place) / path.relative_to(folder).as_posix())
            if name != ".":
                over[name] = (_info(path, name), path)
    for name in list(over):
        for parent in PurePosixPath(name).parents:
            if str(parent) != "." and str(parent) not in over:
                over[str(parent)] = (_folder(str(parent)), None)

    command = [
        *(find("mksquashfs") or "mksquashfs", "-", str(image), "-tar", "-noappend", "-no-progress", "-quiet"),
        *("-comp", "zstd", "-Xcompression-level", "6", "-b", "64K"),
        *("-root-mode", "0755", "-root-time", str(TIME), "-mkfs-time", str(TIME), "-reproducible"),
    ]
    with log.open("ab") as output:
        packer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
        assert packer.stdin
        try:
            with tarfile.open(fileobj=packer.stdin, mode="w|", format=tarfile.GNU_FORMAT) as sink:
                _merge(sink, base, over)
            packer.stdin.close()
        except BrokenPipeError:
            pass  # its log says why
        finally:
            status = packer.wait()
    if status:
        raise failed("mksquashfs", status, log)


def _merge(sink: tarfile.TarFile, base: Path, over: dict[str, tuple[tarfile.TarInfo, Path | None]]) -> None:
    """Stream base and overlay in one go: a folder of the base keeps its mode and owner."""
    with tarfile.open(base) as source:
        for member in source:
            name = PurePosixPath(member.name).as_posix().removeprefix("./")
            if name == "." or member.ischr() or member.isblk():
                continue
            if name in over and member.isdir() and over[name][0].isdir():
                del over[name]
            if name in over:
                continue
            member.name = name
            if member.islnk():
                member.linkname = PurePosixPath(member.linkname).as_posix().removeprefix("./")
            sink.addfile(member, source.extractfile(member) if member.isreg() else None)
    for name in sorted(over):
        info, path = over[name]
        sink.addfile(info, io.BytesIO(path.read_bytes()) if path and info.isreg() else None)


def _info(path: Path, name: str) -> tarfile.TarInfo:
    if path.is_dir() and not path.is_symlink():
        return _folder(name)
    info = tarfile.TarInfo(name)
    info.mtime = TIME
    info.mode = 0o755 if path.lstat().st_mode & 0o100 else 0o644
    if path.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
        info.mode = 0o777
    else:
        info.size = path.stat().st_size
    return info


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, TIME
    return info
