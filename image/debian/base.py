"""Layer `base`: Debian's userland with our users.

Fills `root.tar`, `packages.txt`, and `python/`: the image's own interpreter, unpacked, which compiles the
product's modules on the build machine.
"""

from __future__ import annotations

import fnmatch
import os
import tarfile
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

from image.debian import apt
from image.debian.cache import Cache, digest
from image.debian.steps import require, run, step

HERE = Path(__file__).parent
PACKAGES = HERE / "packages.toml"
USERS = HERE.parent / "rootfs/usr/lib/sysusers.d/sallyport.conf"
TOOLS = {"mmdebstrap": "mmdebstrap", "apt-get": "apt"} | (
    {} if os.geteuid() == 0 else {"newuidmap": "uidmap"}
)

PYTHON = "python3.13"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARIES}/ld-linux-x86-64.so.2"


def build(cache: Cache, *, refresh: bool = False) -> Path:
    """The layer's folder. Raises BuildError."""
    key = digest(PACKAGES, USERS, Path(__file__))
    return cache.layer("base", key, _build, refresh=refresh)


def compile_modules(base: Path, folder: Path, installed: str, log: Path) -> None:
    """Compile all modules under `folder`, which will be `installed` on the gateway, by its interpreter.

    It is started through its own loader, so neither root nor a chroot is needed. The hash in each .pyc is not
    checked at run time: the file system is read-only.
    """
    python = base / "python"
    run(
        [
            *(
                python / _LOADER,
                "--library-path",
                python / _LIBRARIES,
                python / "usr/bin" / PYTHON,
                "-I",
                "-m",
            ),
            *("compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"),
            *("-s", folder, "-p", installed, folder),
        ],
        log,
    )


def _build(out: Path) -> dict[str, Any]:
    require(TOOLS)
    wanted = tomllib.loads(PACKAGES.read_text(encoding="utf-8"))
    log, whole = out / "log", out / "whole.tar"
    hooks = [
        f'upload "{USERS}" /usr/lib/sysusers.d/sallyport.conf',
        'chroot "$1" systemd-sysusers',
        'chroot "$1" dpkg-query -W >"$1/packages.txt"',
        f'download /packages.txt "{out.absolute()}/packages.txt"',
        'rm "$1/packages.txt"',
        # Compiled once with hashes that are not checked, instead of with times that packing may change.
        'find "$1/usr/lib/python3.13" "$1/usr/lib/python3" -name __pycache__ -prune -exec rm -r {} +',
        f'chroot "$1" {PYTHON} -I -m compileall -q --invalidation-mode unchecked-hash'
        " /usr/lib/python3.13 /usr/lib/python3/dist-packages",
        'chroot "$1" ldconfig',
    ]
    with step(f"base: {wanted['suite']}, {len(wanted['gateway'] + wanted['development'])} packages"):
        run(
            [
                *(
                    "mmdebstrap",
                    "--variant=essential",
                    "--format=tar",
                ),
                f"--include={','.join(wanted['gateway'] + wanted['development'])}",
                '--aptopt=APT::Install-Recommends "false"',
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                *(f"--aptopt={line}" for line in apt.proxies()),
                *(f"--customize-hook={hook}" for hook in hooks),
                *(wanted["suite"], whole, *apt.sources(wanted["suite"])),
            ],
            log,
        )
    with step("base: trim"):
        with tarfile.open(whole) as archive, tarfile.open(out / "root.tar", "w") as kept:
            # Debian's own archive is trusted; Python 3.11.2 knows this attribute only, not the argument.
            archive.extraction_filter = lambda member, _: member
            for member in archive:
                name = PurePosixPath(member.name)
                if not unwanted(name, wanted["remove"]):
                    kept.addfile(member, archive.extractfile(member) if member.isreg() else None)
                    if name.is_relative_to(f"usr/lib/{PYTHON}") or name.is_relative_to(_LIBRARIES):
                        archive.extract(member, out / "python")
                if name == PurePosixPath("usr/bin", PYTHON):
                    archive.extract(member, out / "python")
        whole.unlink()
    return {"suite": wanted["suite"], "packages": len((out / "packages.txt").read_bytes().splitlines())}


def unwanted(name: PurePosixPath, patterns: list[str]) -> bool:
    """Whether a path or a folder above it matches one of the shell patterns; `*` stays in one folder."""
    return any(
        fnmatch.fnmatchcase("/".join(name.parts[:depth]), pattern)
        for pattern in patterns
        if len(name.parts) >= (depth := pattern.count("/") + 1)
    )
