"""Forwards connections: lets a browser outside of the site see a page inside. A program: `splice.py ADDRESS PORT`.

Its listening socket is descriptor 3, opened where the browser is and handed in by whoever starts it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress

LISTENER = 3
CHUNK = 65536


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()


async def serve(address: str, port: int) -> None:
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()

    server = await asyncio.start_server(forward, sock=socket.socket(fileno=LISTENER))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
