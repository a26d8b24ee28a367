"""Layer `python` (locked dependencies) and the product itself: a virtual environment on its Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hal import boards
from image.debian import base
from image.debian.cache import Cache, digest
from image.debian.steps import BuildError, run, step

CHECKOUT = Path(__file__).parents[2]
LOCK = CHECKOUT / "requirements/gateway.txt"
ROOMS = ("firmware", "hal", "services")

PREFIX = "usr/lib/sallyport"
PACKAGES = f"{PREFIX}/lib/{base.PYTHON}/site-packages"
_PYVENV = """\
home = /usr/bin
include-system-site-packages = true
version = 3.13
"""
_COMMAND = f"""\
#!/{PREFIX}/bin/python -I
import sys
from firmware.cli import main
sys.exit(main())
"""


def dependencies(cache: Cache, base_layer: Path, *, refresh: bool = False) -> Path:
    """The folder of the layer `python`: `site-packages/`, compiled. Raises BuildError."""

    def build(out: Path) -> dict[str, Any]:
        target = out / "site-packages"
        with step("python: locked dependencies"):
            run(
                [
                    *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                    *("--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile"),
                    *("--python-version", base.PYTHON.removeprefix("python"), "--implementation", "cp"),
                    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64"),
                    *("--platform", "manylinux2014_x86_64"),
                    *("--target", target, "--requirement", LOCK),
                ],
                out / "log",
            )
            shutil.rmtree(target / "bin", ignore_errors=True)
            base.compile_modules(base_layer, target, f"/{PACKAGES}", out / "log")
        return {
            "packages": sorted(path.name.removesuffix(".dist-info") for path in target.glob("*.dist-info"))
        }

    return cache.layer("python", digest(LOCK, PREFIX, base.PYTHON, Path(__file__)), build, refresh=refresh)


def stage(out: Path, base_layer: Path, board: Path, log: Path) -> None:
    """Lay the product out under `out` as it will be on the gateway, for one board. Raises BuildError."""
    packages = out / PACKAGES
    for room in ROOMS:
        shutil.copytree(CHECKOUT / room, packages / room, ignore=shutil.ignore_patterns("__pycache__"))
    base.compile_modules(base_layer, packages, f"/{PACKAGES}", log)

    (out / PREFIX / "bin").mkdir()
    (out / PREFIX / "bin/python").symlink_to(f"/usr/bin/{base.PYTHON}")
    (out / PREFIX / "pyvenv.cfg").write_text(_PYVENV, encoding="utf-8")
    command = out / "usr/bin/sallyport"
    command.parent.mkdir(parents=True)
    command.write_text(_COMMAND, encoding="utf-8")
    command.chmod(0o755)

    etc = out / "etc/sallyport"
    etc.mkdir(parents=True)
    shutil.copyfile(board, etc / "board.toml")
    factory = CHECKOUT / "firmware/config/factory.toml"
    if not factory.is_file():
        raise BuildError(f"{factory} is missing: the image needs the factory configuration")
    shutil.copyfile(factory, etc / "factory.toml")
    # The service that fills these chains later says what the resting state is: one source for both.
    closed = subprocess.run(
        [sys.executable, "-m", "services.firewall", "closed", "--board", board],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        check=False,
    )
    if closed.returncode:
        raise BuildError(f"services.firewall gives no closed rule set:\n{closed.stderr}")
    (etc / "closed.nft").write_text(closed.stdout, encoding="utf-8")
    network = out / "usr/lib/systemd/network"
    network.mkdir(parents=True)
    for name, text in boards.links(boards.load(board)).items():
        (network / name).write_text(text, encoding="utf-8")
