"""HTTPS server (TLS 1.2 or higher). `python -m cloudstub.api STATE ADDRESS PORT BROKER_HOST BROKER_PORT`."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import uvicorn

from cloudstub.api.app import create
from cloudstub.process import log_to_stderr, ready
from cloudstub.state import State


class _Server(uvicorn.Server):
    async def startup(self, sockets: list | None = None) -> None:  # type: ignore[type-arg]
        await super().startup(sockets)
        if self.started:
            ready()


def main() -> None:
    log_to_stderr()
    state, address, port, host, broker_port = sys.argv[1:]
    folder = State(Path(state))
    config = uvicorn.Config(
        create(folder, host, int(broker_port)),
        host=address,
        port=int(port),
        ssl_keyfile=str(folder.certs / "portal.key"),
        ssl_certfile=str(folder.certs / "portal.crt"),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    config.load()
    assert config.ssl
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    _Server(config).run()


if __name__ == "__main__":
    main()
