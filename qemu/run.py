"""The main job behind `make run`: a site with everything in it, and a view of it, until Ctrl-C."""

from __future__ import annotations

import fcntl
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from qemu import control, view
from qemu.namespaces import SiteError
from qemu.overview import overview
from qemu.site import Site

LOOK_S = 1.0
PLAIN_S = 5.0
MINE = ("cloud", "identity", "gateway", "logs")
"""What a run leaves in its state folder."""


def main(
    state: Path,
    *,
    image: Path,
    provisioned: Path | None,
    page_port: int,
    keep: bool,
    plain: bool,
    until_data: bool,
) -> int:
    """Returns the exit status. `until_data`: end with 0 when the cloud has the first sample."""
    # kill(1) and a closed terminal end it as Ctrl-C does; that too where a shell started us with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    console = Console()
    began = time.monotonic()

    def say(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/dim]  {step}", highlight=False)

    try:
        text = provisioned.read_text(encoding="utf-8") if provisioned else None
    except OSError as error:
        raise SiteError(f"{provisioned}: {error.strerror}") from error
    try:
        with (
            _alone(state),
            Site(
                _tidied(state, keep),
                gateway="qemu",
                image=image,
                provisioned=text,
                moving=True,
                page_port=page_port,
                say=say,
            ) as site,
            closing(control.Control(site)),
        ):
            say(
                f"the cloud's page: {site.cloud.url} (its certificate is from {site.cloud.identity / 'ca.crt'})"
            )
            live = console.is_terminal and not plain
            (_watch_live if live else _watch_plain)(site, console, until_data, began)
    except KeyboardInterrupt:
        if not until_data:
            return 0
        raise
    finally:
        console.print(f"[dim]ended; logs are in {state / 'logs'}[/dim]", highlight=False)
    return 0


def _tidied(state: Path, keep: bool) -> Path:
    if not keep:
        for name in MINE:
            shutil.rmtree(state / name, ignore_errors=True)
    return state


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """One site at a time lives in a state folder."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SiteError(
                f"a site runs in {state} already; end it with Ctrl-C, or use another --state"
            ) from error
        yield


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _watch_live(site: Site, console: Console, until_data: bool, began: float) -> None:
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while site.space.alive:
            seen = overview(site)
            live.update(view.draw(seen, log=_journal(site)), refresh=True)
            if until_data and _arrived(seen):
                return
            time.sleep(LOOK_S)
    raise SiteError("the site ended by itself")


def _watch_plain(site: Site, console: Console, until_data: bool, began: float) -> None:
    while site.space.alive:
        seen = overview(site)
        console.print(f"{time.monotonic() - began:6.1f} s  {view.line(seen)}", highlight=False)
        sys.stdout.flush()
        if until_data and _arrived(seen):
            return
        time.sleep(PLAIN_S if not until_data else LOOK_S)
    raise SiteError("the site ended by itself")


def _arrived(seen: dict[str, Any]) -> bool:
    return bool(seen["cloud"].get("counters", {}).get("samples"))


def _journal(site: Site) -> list[str]:
    """The last things that the gateway found worth a warning."""
    entries = site.machine.journal.entries()
    worth = [entry for entry in entries if entry.priority <= (3 if entry.source == "kernel" else 4)]
    return [str(entry)[:150] for entry in worth][-4:]
