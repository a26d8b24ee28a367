"""A Modbus TCP device as a process of its own, on pyModbusTCP's server: not the library that the gateway uses.

`python modbus_device.py PORT` prints `ready` and then takes JSON lines on stdin, each answered by one line:
`["set", table, address, [values]]` writes, `["refuse", table, address]` makes an address answer exception 2,
`["requests"]` gives the number of requests so far.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from pyModbusTCP.server import DataBank, DataHandler, ModbusServer


class Device:
    """Handle of a running device. `kill`, `hang` and `go_on` act on the process, as real faults do."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line == "ready\n", line

    def ask(self, *command: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def set(self, table: str, address: int, values: list[int]) -> None:
        assert self.ask("set", table, address, values) is True

    def hang(self) -> None:
        """The kernel still takes connections and data; nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class _Handler(DataHandler):
    def __init__(self) -> None:
        super().__init__(DataBank())
        self.refused: set[tuple[str, int]] = set()
        self.requests = 0

    def _read(self, table: str, address: int, count: int, read: Any) -> Any:
        self.requests += 1
        if any(t == table and address <= a < address + count for t, a in self.refused):
            return DataHandler.Return(exp_code=2)
        return DataHandler.Return(exp_code=0, data=read(address, count))

    def read_coils(self, address: int, count: int, srv_info: Any) -> Any:
        return self._read("coil", address, count, self.data_bank.get_coils)

    def read_d_inputs(self, address: int, count: int, srv_info: Any) -> Any:
        return self._read("discrete", address, count, self.data_bank.get_discrete_inputs)

    def read_h_regs(self, address: int, count: int, srv_info: Any) -> Any:
        return self._read("holding", address, count, self.data_bank.get_holding_registers)

    def read_i_regs(self, address: int, count: int, srv_info: Any) -> Any:
        return self._read("input", address, count, self.data_bank.get_input_registers)


def main(port: int) -> None:
    handler = _Handler()
    bank = handler.data_bank
    write = {
        "holding": bank.set_holding_registers,
        "input": bank.set_input_registers,
        "coil": bank.set_coils,
        "discrete": bank.set_discrete_inputs,
    }
    server = ModbusServer(host="127.0.0.1", port=port, no_block=True, data_hdl=handler)
    for _ in range(100):  # the port may still be held by the one that was killed
        try:
            server.start()
            break
        except ModbusServer.NetworkError:
            time.sleep(0.02)
    print("ready", flush=True)
    for line in sys.stdin:
        answer: Any = True
        match json.loads(line):
            case ["set", table, address, values]:
                answer = bool(write[table](address, values))
            case ["refuse", table, address]:
                handler.refused.add((table, address))
            case ["allow"]:
                handler.refused.clear()
            case ["requests"]:
                answer = handler.requests
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
