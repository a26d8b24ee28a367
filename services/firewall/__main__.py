"""The firewall service; `python -m services.firewall closed` prints the rule set that is loaded at boot."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import pwd
import sys
from collections.abc import Callable
from pathlib import Path

from firmware import daemon, paths
from firmware.config.schema import Desired
from firmware.status import Reporter
from hal import boards
from services.firewall import core

CHECK_S = 30.0
"""The rule set is looked at this often, and at once when the kernel says that one changed."""
MACHINE_USER = "sallyport-plc"


def policy(desired: Desired, board: boards.Board) -> core.Policy:
    return core.Policy(
        wan=_names(board, "wan"),
        lan=_names(board, "lan"),
        lan_network=ipaddress.IPv4Interface(desired.lan.address).network,
        machine_uid=_uid(MACHINE_USER),
        dhcp=desired.wan.mode == "dhcp",
    )


def closed(board: boards.Board) -> str:
    return core.render_closed(_names(board, "wan"))


async def body(ready: Callable[[], None]) -> None:
    # The bindings come with the operating system; printing the boot set needs none.
    from services.firewall.keeper import Keeper  # noqa: PLC0415
    from services.firewall.kernel import Kernel  # noqa: PLC0415

    board = boards.load(paths.BOARD)
    kernel = Kernel()
    keeper = Keeper(kernel, closed(board))
    reporter = Reporter("firewall")

    def report() -> None:
        state, summary, detail = keeper.status()
        reporter.report(state, summary, **detail)

    def changed() -> None:
        kernel.drain()
        keeper.check()
        report()

    async def follow() -> None:
        async for desired in daemon.desired_documents():
            keeper.want(core.render(policy(desired, board)))
            report()

    async def look() -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            changed()

    report()
    asyncio.get_running_loop().add_reader(kernel.changes, changed)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        tasks.create_task(look())
        ready()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.firewall", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    command = commands.add_parser("closed", help="print the closed rule set, for `nft -f`")
    command.add_argument("--board", type=Path, default=paths.BOARD, help="board description")
    options = parser.parse_args()
    if options.command == "closed":
        try:
            print(closed(boards.load(options.board)), end="")
        except boards.BoardError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    return daemon.run("firewall", body)


def _names(board: boards.Board, zone: str) -> tuple[str, ...]:
    names = tuple(port.name for port in board.zone(zone))
    if not names:
        raise boards.BoardError(f"board {board.name} has no port of zone {zone}")
    return names


def _uid(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


if __name__ == "__main__":
    sys.exit(main())
