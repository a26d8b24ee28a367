"""The uplink daemon as its unit starts it, but to another port than 443: `uplink_process.py PORT`."""

import sys
from collections.abc import Callable

from firmware import daemon
from services.uplink.__main__ import SERVICE, Uplink, clouds


async def body(ready: Callable[[], None]) -> None:
    await Uplink(port=int(sys.argv[1])).run(ready, clouds())


sys.exit(daemon.run(SERVICE, body))
