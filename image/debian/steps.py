"""Running tools with progress: a line when a step starts and when it ends, all output in a log file."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_START = time.monotonic()
_lock = threading.Lock()


class BuildError(Exception):
    """The image can't be built. The text says why and what helps."""


def say(text: str) -> None:
    with _lock:
        print(f"[{time.monotonic() - _START:6.1f} s] {text}", flush=True)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Name a step while it runs, then its duration."""
    began = time.monotonic()
    say(f"{name} ...")
    yield
    say(f"{name}: done in {time.monotonic() - began:.1f} s")


def run(
    arguments: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a tool, its output appended to `log`. Raises BuildError with the log's last lines."""
    with log.open("ab") as output:
        done = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=env, check=False
        )
    if done.returncode:
        raise failed(" ".join(map(str, arguments)), done.returncode, log)


def failed(command: str, status: int, log: Path) -> BuildError:
    """What to raise for a tool that failed: with the last lines of its log."""
    tail = "\n    ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
    return BuildError(f"{command[:200]}\n  ended with status {status}; the end of {log}:\n    {tail}")


def require(tools: Mapping[str, str]) -> None:
    """Check that each command or header file is there: its name -> Debian package.

    Raises BuildError naming all that are missing.
    """
    absent = {package for tool, package in tools.items() if not find(tool)}
    if absent:
        raise BuildError(f"tools are missing; install them with: apt-get install {' '.join(sorted(absent))}")


def find(tool: str) -> str | None:
    """The tool's path; also looks where only root's PATH leads. A name that is a path stands for that file."""
    if tool.startswith("/"):
        return tool if Path(tool).exists() else None
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
