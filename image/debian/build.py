"""All layers, and the image from them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hal import boards
from image.debian import base, disks, kernel, product, squash
from image.debian.cache import Cache, digest, facts
from image.debian.steps import require, say, step

OVERLAYS = (product.CHECKOUT / "image/rootfs", product.CHECKOUT / "image/debian/rootfs")
BOARD = boards.BOARDS / "qemu-x86_64.toml"
OUT = product.CHECKOUT / "build/image"
TOOLS = {**kernel.TOOLS, **base.TOOLS, **disks.TOOLS, "mksquashfs": "squashfs-tools"}

CMDLINE = (
    "root=/dev/vda rootfstype=squashfs ro console=ttyS0 quiet systemd.show_status=no "
    "random.trust_cpu=on fsck.repair=yes panic=5 mitigations=off init=/usr/lib/systemd/systemd"
)


@dataclass(frozen=True)
class Image:
    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "bzImage"

    @property
    def root(self) -> Path:
        return self.folder / "root.squashfs"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"


def build(cache: Cache, out: Path = OUT, *, refresh: bool = False) -> Image:
    """Build the image into `out`, unless it is up to date. Raises BuildError; `out` is unchanged then."""
    image = Image(out)
    require(TOOLS)
    with cache.lock("image"), ThreadPoolExecutor() as pool:
        kernel_layer = pool.submit(kernel.build, cache, refresh=refresh)
        base_folder = base.build(cache, refresh=refresh)
        python_folder = product.dependencies(cache, base_folder, refresh=refresh)
        kernel_folder = kernel_layer.result()
        layers = (kernel_folder, base_folder, python_folder)

        rooms = [product.CHECKOUT / room for room in product.ROOMS]
        builder = sorted(Path(__file__).parent.glob("*.py"))
        stamps = [str((layer / "layer.json").stat().st_mtime_ns) for layer in layers]
        key = digest(CMDLINE, *map(str, layers), *stamps, *rooms, *OVERLAYS, BOARD, *builder)
        if _is(image, key):
            say("image: up to date")
            return image
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".building-") as scratch:
            _assemble(Path(scratch), out, layers, key)
    return image


def _assemble(scratch: Path, out: Path, layers: tuple[Path, Path, Path], key: str) -> None:
    kernel_folder, base_folder, python_folder = layers
    log, stage = scratch / "log", scratch / "product"
    with step("image: product"):
        product.stage(stage, base_folder, BOARD, log)
    with step("image: squashfs"):
        folders = [
            (kernel_folder / "modules", "usr/lib/modules"),
            (python_folder / "site-packages", product.PACKAGES),
            *((overlay, ".") for overlay in OVERLAYS),
            (stage, "."),
            (_mount_points(scratch / "mounts", "data", "flash", "var/tmp"), "."),
        ]
        squash.write(scratch / "root.squashfs", base_folder / "root.tar", folders, log)
    shutil.copyfile(kernel_folder / "bzImage", scratch / "bzImage")
    shutil.copyfile(base_folder / "packages.txt", scratch / "packages.txt")
    files = ("bzImage", "root.squashfs", "packages.txt")
    manifest = {
        "key": key,
        "cmdline": CMDLINE,
        "board": boards.load(BOARD).name,
        "kernel": facts(kernel_folder),
        "base": facts(base_folder),
        "python": facts(python_folder),
        "files": {name: _file(scratch / name) for name in files},
    }
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    # The manifest goes first and comes last: without it the image counts as absent.
    (out / "manifest.json").unlink(missing_ok=True)
    for name in (*files, "manifest.json"):
        (scratch / name).replace(out / name)
    sizes = ", ".join(f"{name} {(out / name).stat().st_size / 1e6:.1f} MB" for name in files)
    say(f"image: {out}: {sizes}")


def _is(image: Image, key: str) -> bool:
    try:
        return bool(json.loads(image.manifest.read_text(encoding="utf-8"))["key"] == key)
    except (OSError, ValueError, KeyError):
        return False


def _file(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _mount_points(root: Path, *names: str) -> Path:
    """Git keeps no empty folder."""
    for name in names:
        (root / name).mkdir(parents=True)
    return root
