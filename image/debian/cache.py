"""Layers kept by the hash of what they are built from.

`<root>/<layer>/<key>/` appears by one rename when it is complete; a broken build leaves a `.partial` one.
A lock per layer lets two builds at once share the work.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from image.debian.steps import say

KEEP = 3
"""So many versions of each layer stay."""


def default_root() -> Path:
    return Path(os.environ.get("SALLYPORT_CACHE") or Path.home() / ".cache/sallyport")


def digest(*parts: str | Path) -> str:
    """Hex SHA-256 over strings, and over files and folders with their names, modes and links."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(f"s{len(part.encode())}:".encode() + part.encode())
            continue
        for path in [part, *sorted(part.rglob("*"))] if part.is_dir() else [part]:
            if "__pycache__" in path.parts:
                continue
            name = path.relative_to(part.parent).as_posix()
            if path.is_symlink():
                total.update(f"l{name}>{path.readlink()}\0".encode())
            elif path.is_dir():
                total.update(f"d{name}\0".encode())
            else:
                content = path.read_bytes()
                total.update(f"f{name}:{path.stat().st_mode & 0o111:o}:{len(content)}:".encode() + content)
    return total.hexdigest()


class Cache:
    def __init__(self, root: Path) -> None:
        self.root = root

    def layer(
        self, name: str, key: str, build: Callable[[Path], dict[str, Any]], *, refresh: bool = False
    ) -> Path:
        """The folder of a layer, built if it isn't there (or anew with `refresh`).

        `build` fills the folder that it is given; what it returns is kept in `layer.json`.
        """
        folder = self.root / name
        done = folder / key[:16]
        with self.lock(name):
            if not refresh and (done / "layer.json").is_file():
                os.utime(done)
                return done
            partial = folder / f"{key[:16]}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            facts = build(partial)
            (partial / "layer.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            if done.exists():
                shutil.rmtree(done)
            partial.rename(done)
            self._forget(folder)
            return done

    def work(self, name: str, version: str) -> Path:
        """A folder for what makes the next build of a layer quicker.

        May be deleted at any time, and is when another version comes.
        """
        folder = self.root / "work" / name / version
        for other in folder.parent.glob("*"):
            if other != folder:
                shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock between processes; the kernel frees it when the holder dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f"{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{name}: another build is at it, waiting ...")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _forget(self, folder: Path) -> None:
        layers = [path for path in folder.iterdir() if (path / "layer.json").is_file()]
        for path in sorted(layers, key=lambda path: path.stat().st_mtime)[:-KEEP]:
            shutil.rmtree(path)


def facts(layer: Path) -> dict[str, Any]:
    """What the build of a layer said about it."""
    found: dict[str, Any] = json.loads((layer / "layer.json").read_text(encoding="utf-8"))
    return found
