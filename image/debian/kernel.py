"""Layer `kernel`: Debian's Linux source with our configuration.

Fills `bzImage`, `config` and `modules/<release>/`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from image.debian import apt
from image.debian.cache import Cache, digest
from image.debian.steps import BuildError, require, run, step
from image.kernel import check

SOURCE = "linux-source-6.12"
FRAGMENTS = Path(check.__file__).parent
TOOLS = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "perl": "perl",
    "xz": "xz-utils",
    "/usr/include/gelf.h": "libelf-dev",
    "/usr/include/openssl/ssl.h": "libssl-dev",
}


def build(cache: Cache, *, refresh: bool = False) -> Path:
    """The layer's folder. Raises BuildError."""
    fragments = sorted(FRAGMENTS.glob("*.config"))
    key = digest(SOURCE, *fragments, Path(__file__))
    return cache.layer("kernel", key, lambda out: _build(cache, fragments, out), refresh=refresh)


def _build(cache: Cache, fragments: list[Path], out: Path) -> dict[str, Any]:
    require(TOOLS)
    package = apt.candidate(SOURCE)
    work = cache.work(SOURCE, package.version)
    log = out / "log"
    source, objects = work / SOURCE, work / "out"
    if not source.is_dir():
        with step(f"kernel: source {package.version}"):
            _unpack(package, work, log)

    with step("kernel: configuration"):
        objects.mkdir(exist_ok=True)
        wanted = work / "fragments.config"
        wanted.write_text("".join(path.read_text(encoding="utf-8") for path in fragments), encoding="utf-8")
        # Fixed names and times: the same source gives the same kernel.
        env = os.environ | {
            "KBUILD_BUILD_USER": "build",
            "KBUILD_BUILD_HOST": "sallyport",
            "KBUILD_BUILD_TIMESTAMP": "@0",
            "KBUILD_BUILD_VERSION": "1",
            "KCONFIG_ALLCONFIG": str(wanted),
        }
        make = ["make", "-C", str(source), f"O={objects}"]
        run([*make, "alldefconfig"], log, env=env)
        if messages := check.check(objects / ".config", fragments):
            raise BuildError("kernel: Kconfig dropped lines of the fragments:\n  " + "\n  ".join(messages))

    jobs = f"-j{os.cpu_count() or 1}"
    with step(f"kernel: compile with {jobs} (about 20 minutes on two cores; log: {log})"):
        run([*make, jobs, "bzImage", "modules"], log, env=env)
    with step("kernel: modules"):
        run(
            [*make, "modules_install", f"INSTALL_MOD_PATH={out / 'stage'}", "INSTALL_MOD_STRIP=1"],
            log,
            env=env,
        )
    (out / "stage/lib/modules").rename(out / "modules")
    shutil.rmtree(out / "stage")
    (release,) = (out / "modules").iterdir()
    for link in ("build", "source"):
        (release / link).unlink(missing_ok=True)
    shutil.copy2(objects / "arch/x86/boot/bzImage", out / "bzImage")
    shutil.copy2(objects / ".config", out / "config")
    return {"source": SOURCE, "version": package.version, "release": release.name}


def _unpack(package: apt.Package, work: Path, log: Path) -> None:
    deb = apt.download(package, work, log)
    run(["dpkg-deb", "-x", deb, work / "deb"], log)
    archive = work / f"deb/usr/src/{SOURCE}.tar.xz"
    # Unpacked aside and renamed: a broken run leaves no half of a source tree.
    aside = work / "unpacking"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    run(["tar", "-xf", archive, "-C", aside], log)
    (aside / SOURCE).rename(work / SOURCE)
    shutil.rmtree(work / "deb")
    deb.unlink()
