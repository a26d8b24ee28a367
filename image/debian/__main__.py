"""Build the development image, or the disks of a gateway."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hal.boards import BoardError
from image.debian import build, disks
from image.debian.cache import Cache, default_root
from image.debian.steps import BuildError


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: built; 1: not built, with the reason; 2: wrong use; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="python -m image.debian", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=build.OUT, help="folder for the image (default: build/image)"
    )
    parser.add_argument(
        "--refresh", action="store_true", help="take the newest Debian packages; builds all layers"
    )
    commands = parser.add_subparsers(dest="command")
    maker = commands.add_parser("disks", help="make the data disk and the log flash of one gateway")
    maker.add_argument("data", type=Path)
    maker.add_argument("flash", type=Path)
    maker.add_argument(
        "--identity", type=Path, required=True, help="folder with device.key, device.crt, ca.crt"
    )
    maker.add_argument("--provisioned", type=Path, required=True, help="first configuration (TOML)")
    maker.add_argument("--flash-mib", type=int, default=512)
    options = parser.parse_args(arguments)
    try:
        if options.command == "disks":
            disks.make_data(options.data, options.identity, options.provisioned)
            disks.make_flash(options.flash, options.flash_mib)
        else:
            build.build(Cache(default_root()), options.out, refresh=options.refresh)
    except (BuildError, BoardError) as error:
        print(f"image.debian: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("image.debian: interrupted; the next run goes on from what is done", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
