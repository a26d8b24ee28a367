"""Modbus TCP by pymodbus 3.11.4. The only file that knows it: minor releases change its interface."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import Any

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException, ModbusIOException
from pymodbus.pdu import ExceptionResponse

# What it has to say is said here, with the reason, and not at each poll.
logging.getLogger("pymodbus").setLevel(logging.CRITICAL + 1)

_CODES = {
    1: "illegal function: the device does not know this table",
    2: "illegal data address: check address, type and table",
    3: "illegal data value: check max_registers",
    4: "server device failure",
    5: "acknowledge: the device takes longer",
    6: "server device busy",
    8: "memory parity error",
    10: "gateway path unavailable: check the unit",
    11: "gateway target device failed to respond: check the unit",
}


class DeviceError(Exception):
    """The device is there and refuses (Modbus exception reply)."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"exception {code} ({_CODES.get(code, 'unknown')})")

    @property
    def may_be_one_address(self) -> bool:
        """Smaller requests may get answers; other codes speak of the device as a whole."""
        return self.code in (2, 3, 4)


class LinkError(Exception):
    """No usable answer: not reachable, timed out, closed, or garbage. The text says which."""


class Link:
    """One connection to one device. Times in seconds. Not for two tasks at once."""

    def __init__(self, host: str, port: int, unit: int, timeout_s: float) -> None:
        self._host, self._port, self._unit, self._timeout_s = host, port, unit, timeout_s
        self._client: AsyncModbusTcpClient | None = None

    async def connect(self) -> None:
        """Connect anew. Raises LinkError."""
        self.close()
        client = AsyncModbusTcpClient(
            self._host,
            port=self._port,
            timeout=self._timeout_s,
            retries=0,
            reconnect_delay=0,
            trace_connect=lambda up: None if up else fail("closed the connection"),
        )

        def fail(reason: str) -> None:
            """A request that waits learns it now and not at its timeout."""
            if not client.ctx.response_future.done():
                client.ctx.response_future.set_exception(ModbusException(reason))  # type: ignore[no-untyped-call]

        parse = client.ctx.callback_data

        def parse_or_fail(data: bytes, addr: Any = None) -> int:
            try:
                return parse(data, addr)
            except Exception as error:
                fail(f"sent what is not Modbus ({error})")
                return len(data)

        client.ctx.callback_data = parse_or_fail  # type: ignore[method-assign]
        try:
            # client.connect() would swallow the reason and sleep 100 ms.
            transport, _ = await asyncio.wait_for(client.ctx.call_create(), self._timeout_s)
        except TimeoutError:
            raise LinkError(
                f"{self._host}:{self._port} is silent for {self._timeout_s:g} s: check address and cable"
            ) from None
        except OSError as error:
            raise LinkError(f"{self._host}:{self._port}: {_reason(error)}") from error
        self._client = client
        _keep_alive(transport.get_extra_info("socket"))

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.connected

    async def read(self, table: str, address: int, count: int) -> Sequence[int]:
        """`count` registers (0 to 65535) or bits (0, 1) from an address (from 0) on.

        Raises DeviceError, or LinkError, after which only `connect` helps.
        """
        client = self._client
        if client is None or not client.connected:
            raise LinkError(f"{self._host}:{self._port} closed the connection")
        read: Any = {
            "holding": client.read_holding_registers,
            "input": client.read_input_registers,
            "coil": client.read_coils,
            "discrete": client.read_discrete_inputs,
        }[table]
        try:
            reply = await read(address, count=count, device_id=self._unit)
        except ModbusException as error:
            task = asyncio.current_task()
            if task and task.cancelling():  # pymodbus turns a cancellation into an error of its own
                raise asyncio.CancelledError from error
            self.close()
            silent = isinstance(error, ModbusIOException) and "No response" in error.string
            reason = f"gave no answer within {self._timeout_s:g} s" if silent else error.string
            raise LinkError(f"{self._host}:{self._port} {reason}") from error
        if isinstance(reply, ExceptionResponse):
            raise DeviceError(reply.exception_code)
        bits = table in ("coil", "discrete")
        answer = list(reply.bits[:count] if bits else reply.registers)
        if len(answer) != count or reply.function_code != _FUNCTIONS[table]:
            self.close()
            raise LinkError(f"{self._host}:{self._port} answered {len(answer)} instead of {count} values")
        return answer

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


_FUNCTIONS = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}


def _keep_alive(sock: socket.socket | None) -> None:
    """Notice a peer that went away between two polls that lie far apart."""
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"its name can't be resolved ({error.strerror}): use an IP address or check DNS"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: check the port, and that the device serves Modbus TCP"
    return f"{error.strerror or error}: check address, netmask and cable"
