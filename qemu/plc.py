"""A Modbus TCP device: all four tables, preset values, and the faults that real ones have.

A program (`python -m qemu.plc --help`) that runs on a host of the site, and `Plc`, which steers it over a Unix socket
(JSON lines: `{"do": name, ...}` -> `{"ok": ...}` or `{"error": text}`). It serves with pyModbusTCP, so that the
gateway's client library is never tested against itself.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import socketserver
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyModbusTCP.server import DataBank, DataHandler, ModbusServer

from qemu.namespaces import Process, SiteError
from qemu.topology import MODBUS_PORT

if TYPE_CHECKING:
    from qemu.hosts import Host

Table = Literal["holding", "input", "coil", "discrete"]
TABLES = ("holding", "input", "coil", "discrete")
SIZE = 65536
START_S = 15.0


class Device(DataHandler):  # type: ignore[misc]
    """Values and faults. pyModbusTCP calls the read and write methods from one thread for each client."""

    def __init__(self) -> None:
        super().__init__(DataBank())
        self.requests: Counter[str] = Counter()
        """Requests by table, writes as `write-<table>`."""
        self._running = threading.Event()
        self._running.set()
        self._exceptions: dict[tuple[str, int], int] = {}
        self._counts: set[int] = set()
        self._counting = threading.Lock()

    def get(self, table: str, address: int, count: int) -> list[int]:
        bank = self.data_bank
        read = {
            "holding": bank.get_holding_registers,
            "input": bank.get_input_registers,
            "coil": bank.get_coils,
            "discrete": bank.get_discrete_inputs,
        }[table]
        values = read(address, count)
        if values is None:
            raise ValueError(f"{table} {address}..{address + count - 1} is outside of 0..{SIZE - 1}")
        return [int(value) for value in values]

    def set(self, table: str, address: int, values: Sequence[int]) -> None:
        """All values change at once: no reader sees half of them."""
        bank = self.data_bank
        limit = 65535 if table in ("holding", "input") else 1
        if bad := [value for value in values if not 0 <= value <= limit]:
            raise ValueError(f"{table} {address}: {bad[0]} is not in 0..{limit}")
        write = {
            "holding": bank.set_holding_registers,
            "input": bank.set_input_registers,
            "coil": bank.set_coils,
            "discrete": bank.set_discrete_inputs,
        }[table]
        if not write(address, list(values)):
            raise ValueError(f"{table} {address}..{address + len(values) - 1} is outside of 0..{SIZE - 1}")

    def stall(self, on: bool) -> None:
        """Requests are taken and not answered until it is switched off."""
        if on:
            self._running.clear()
        else:
            self._running.set()

    def fail(self, table: str, addresses: Sequence[int], code: int) -> None:
        """Requests that touch one of these addresses get exception `code`; 0 heals them."""
        for address in addresses:
            if code:
                self._exceptions[table, address] = code
            else:
                self._exceptions.pop((table, address), None)

    def count_reads(self, address: int) -> None:
        """From now on each read of holding register `address` is answered with the next number.

        32 bits, high word first.

        Whoever reads can then be held to account: a number that he lacks was lost, one that he has twice was doubled.
        """
        self._counts.add(address)

    def _count(self, address: int, count: int) -> None:
        with self._counting:
            for counted in self._counts:
                if address <= counted < address + count:
                    high, low = self.get("holding", counted, 2)
                    number = (high << 16 | low) + 1
                    self.set("holding", counted, [number >> 16 & 0xFFFF, number & 0xFFFF])

    def heal(self) -> None:
        self._exceptions.clear()
        self._running.set()

    def _refusal(self, table: str, address: int, count: int, kind: str = "") -> Any:
        self.requests[kind + table] += 1
        self._running.wait()
        if self._exceptions:
            for touched in range(address, address + count):
                if code := self._exceptions.get((table, touched)):
                    return DataHandler.Return(exp_code=code)
        return None

    def read_coils(self, address: int, count: int, srv_info: Any) -> Any:
        return self._refusal("coil", address, count) or super().read_coils(address, count, srv_info)

    def read_d_inputs(self, address: int, count: int, srv_info: Any) -> Any:
        return self._refusal("discrete", address, count) or super().read_d_inputs(address, count, srv_info)

    def read_h_regs(self, address: int, count: int, srv_info: Any) -> Any:
        refusal = self._refusal("holding", address, count)
        if not refusal:
            self._count(address, count)
        return refusal or super().read_h_regs(address, count, srv_info)

    def read_i_regs(self, address: int, count: int, srv_info: Any) -> Any:
        return self._refusal("input", address, count) or super().read_i_regs(address, count, srv_info)

    def write_coils(self, address: int, bits_l: list[bool], srv_info: Any) -> Any:
        refusal = self._refusal("coil", address, len(bits_l), "write-")
        return refusal or super().write_coils(address, bits_l, srv_info)

    def write_h_regs(self, address: int, words_l: list[int], srv_info: Any) -> Any:
        refusal = self._refusal("holding", address, len(words_l), "write-")
        return refusal or super().write_h_regs(address, words_l, srv_info)


class Simulator:
    """A device with its server and its control socket."""

    def __init__(self, address: str, port: int, motion: str = "") -> None:
        self.device = Device()
        self._address, self._port = address, port
        self._server: Any = None
        self._motion = motion
        self._orders: dict[str, Callable[..., Any]] = {
            "get": self.device.get,
            "set": self.device.set,
            "requests": lambda: dict(self.device.requests),
            "stall": self.device.stall,
            "fail": self.device.fail,
            "count_reads": self.device.count_reads,
            "heal": self.heal,
            "listen": self.listen,
        }

    def handle(self, order: dict[str, Any]) -> Any:
        do = order.pop("do")
        if do not in self._orders:
            raise ValueError(f"unknown order {do!r}")
        return self._orders[do](**order)

    def heal(self) -> None:
        self.device.heal()
        self.listen(True)

    def listen(self, on: bool) -> None:
        """Off: every connection is closed and new ones are refused, as with a device that restarts."""
        if on and not self._server:
            self._server = ModbusServer(self._address, self._port, no_block=True, data_hdl=self.device)
            self._server.start()
        elif not on and self._server:
            self._server.stop()
            self._server = None

    def move(self) -> None:
        """Play the plant: step its values ten times a second."""
        from qemu import plant  # noqa: PLC0415

        step = plant.MOTIONS[self._motion]
        began = time.monotonic()
        while True:
            for table, address, values in step(time.monotonic() - began):
                self.device.set(table, address, values)
            time.sleep(0.1)


def serve(simulator: Simulator, control: Path) -> None:
    class Orders(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                try:
                    answer = {"ok": simulator.handle(json.loads(line))}
                except (KeyError, TypeError, ValueError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                self.wfile.write(json.dumps(answer).encode() + b"\n")

    with socketserver.ThreadingUnixStreamServer(str(control), Orders) as server:
        server.daemon_threads = True
        server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m qemu.plc", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True, help="address to serve Modbus TCP on")
    parser.add_argument("--port", type=int, default=MODBUS_PORT)
    parser.add_argument("--control", type=Path, required=True, help="path of the control socket to make")
    parser.add_argument(
        "--motion", default="", help="plant to play (see qemu/plant.py); default: values rest"
    )
    options = parser.parse_args()
    options.control.unlink(missing_ok=True)
    simulator = Simulator(options.address, options.port, options.motion)
    simulator.listen(True)
    if options.motion:
        threading.Thread(target=simulator.move, daemon=True).start()
    serve(simulator, options.control)


class Plc:
    """Steers a device on a host of the site. Values are raw: registers 0..65535, bits 0 or 1."""

    def __init__(self, host: Host, address: str, state: Path, *, motion: str = "") -> None:
        self.host = host
        self.address = address
        self._control = state / f"{host.name}.plc"
        self._motion = motion
        self._process: Process | None = None

    def power(self) -> None:
        """Switch it on; returns when it answers."""
        if self._process and self._process.poll() is None:
            return
        self._control.unlink(missing_ok=True)
        self._process = self.host.start(
            sys.executable,
            "-m",
            "qemu.plc",
            f"--address={self.address}",
            f"--control={self._control}",
            f"--motion={self._motion}",
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
            log="plc",
        )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SiteError(f"{self.host} does not start; see {self.host.log_path('plc')}")
            time.sleep(0.02)

    def power_cut(self) -> None:
        """Switch it off at once; its values are lost, and nobody sends the other side a farewell."""
        if self._process:
            self._process.kill()
            self._process = None

    def get(self, table: Table, address: int, count: int = 1) -> list[int]:
        values: list[int] = self._order("get", table=table, address=address, count=count)
        return values

    def set(self, table: Table, address: int, *values: int) -> None:
        """Change neighbouring values at once: no reader sees half of them."""
        self._order("set", table=table, address=address, values=list(values))

    def requests(self) -> Counter[str]:
        """Requests so far by table; writes as `write-<table>`."""
        return Counter(self._order("requests"))

    def stall(self, on: bool = True) -> None:
        """Take requests and don't answer them, until `stall(False)`."""
        self._order("stall", on=on)

    def fail(self, table: Table, *addresses: int, code: int = 2) -> None:
        """Answer requests that touch an address with a Modbus exception; code 0 heals."""
        self._order("fail", table=table, addresses=list(addresses), code=code)

    def count_reads(self, address: int) -> None:
        """Let holding register `address` (and the next one) count the reads that were answered."""
        self._order("count_reads", address=address)

    def listen(self, on: bool = True) -> None:
        """`listen(False)` drops every connection and refuses new ones."""
        self._order("listen", on=on)

    def heal(self) -> None:
        """End every fault. Values stay."""
        self._order("heal")

    def _answers(self) -> bool:
        with suppress(OSError, SiteError):
            self._order("requests")
            return True
        return False

    def _order(self, do: str, **what: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self._control))
            sock.sendall(json.dumps({"do": do, **what}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        if "error" in answer:
            raise SiteError(f"{self.host}: {answer['error']}")
        return answer["ok"]


if __name__ == "__main__":
    main()
