"""`python -m services.plc`: the daemon that reads machines."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

from firmware import daemon
from firmware.identity import IdentityError, device_id
from firmware.status import Reporter, State
from services.plc.service import Service

log = logging.getLogger(__name__)


async def body(ready: Callable[[], None]) -> None:
    await Service(await _identity(ready)).run(daemon.desired_documents(), ready)


async def _identity(ready: Callable[[], None]) -> str:
    """The device id. Waits while there is none: blocks without an owner would be of no use to anyone."""
    told = ""
    while True:
        try:
            return device_id()
        except IdentityError as error:
            if str(error) != told:
                told = str(error)
                log.error("%s", told)  # noqa: TRY400
                Reporter("plc").report(State.FAILED, told)
            ready()
            await asyncio.sleep(daemon.POLL_S)


if __name__ == "__main__":
    sys.exit(daemon.run("sallyport-plc", body))
