"""What every process of the cloud shares: log lines on stderr, one `ready` line on stdout, a clean end on SIGTERM."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _Terminated(BaseException):
    pass


@contextmanager
def serve_until_terminated() -> Iterator[None]:
    """Runs its block until SIGTERM or SIGINT, which end it quietly."""
    log_to_stderr()

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        yield
    except _Terminated:
        return


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)


def ready() -> None:
    """Tell whoever started this process that it does its work."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
