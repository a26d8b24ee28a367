"""Acting on a running site from another terminal: orders over a Unix socket in its state folder.

One JSON document a line: `{"do": order, ...}` -> `{"ok": result}` or `{"error": text}`.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from qemu.namespaces import SiteError
from qemu.overview import overview
from qemu.plc import TABLES, Plc
from qemu.site import Site

NAME = "control"
ANSWER_S = 180.0


class Control:
    """Serves the orders of one site, in threads, until `close()`."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._path = site.state / NAME
        self._acting = threading.Lock()
        """One deed at a time; looking needs no turn."""
        self._path.unlink(missing_ok=True)
        control = self

        class Orders(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    with suppress(BrokenPipeError):
                        self.wfile.write(json.dumps(control.answer(line)).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(str(self._path), Orders)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)

    def answer(self, line: bytes) -> dict[str, Any]:
        try:
            order = json.loads(line)
            do = order.pop("do")
            if do not in ORDERS:
                return {"error": f"unknown order {do!r}"}
            with nullcontext() if do in LOOKS else self._acting:
                return {"ok": ORDERS[do](self._site, **order)}
        except (SiteError, OSError) as error:
            return {"error": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            return {"error": f"bad order: {type(error).__name__}: {error}"}


def ask(state: Path, do: str, **what: Any) -> Any:
    """Give an order to the site that runs in `state`. Raises `SiteError`."""
    path = state / NAME
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ANSWER_S)
        try:
            sock.connect(str(path))
        except OSError as error:
            raise SiteError(
                f"no site runs in {state}; start one with `make run`, or name its folder with --state"
            ) from error
        sock.sendall(json.dumps({"do": do, **what}).encode() + b"\n")
        with sock.makefile("rb") as lines:
            line = lines.readline()
    if not line:
        raise SiteError("the site ended before it answered")
    answer = json.loads(line)
    if "error" in answer:
        raise SiteError(answer["error"])
    return answer["ok"]


def _execute(site: Site, host: str, argv: list[str], timeout: float) -> dict[str, Any]:
    if host == "gateway":
        done = site.machine.agent.run(*argv, timeout=timeout, check=False)
    elif host in site.hosts:
        done = site.hosts[host].run(*argv, timeout=timeout, check=False)
    else:
        raise SiteError(f"no host {host!r}; there are gateway, {', '.join(site.hosts)}")
    return {"status": done.status, "stdout": done.stdout, "stderr": done.stderr}


def _plc(site: Site, name: str) -> Plc:
    if name not in site.plcs:
        raise SiteError(f"no PLC {name!r}; there are {', '.join(site.plcs)}")
    return site.plcs[name]


def _table(name: str) -> Any:
    if name not in TABLES:
        raise SiteError(f"no table {name!r}; there are {', '.join(TABLES)}")
    return name


def _port(site: Site, where: str) -> str:
    return site.port(where)


def _spaces(site: Site) -> dict[str, Any]:
    """The process that holds the site's namespaces (its PID out here) and each host's holder (its PID in there)."""
    return {"keeper": site.space.pid, "hosts": {name: host.holder for name, host in site.hosts.items()}}


ORDERS: dict[str, Callable[..., Any]] = {
    "status": overview,
    "spaces": _spaces,
    "powered": lambda site: site.machine.powered,
    "port": _port,
    "exec": _execute,
    "get": lambda site, plc, table, address, count: _plc(site, plc).get(_table(table), address, count),
    "set": lambda site, plc, table, address, values: _plc(site, plc).set(_table(table), address, *values),
    "plc-power": lambda site, plc, on: _plc(site, plc).power() if on else _plc(site, plc).power_cut(),
    "plc-stall": lambda site, plc, on: _plc(site, plc).stall(on),
    "cut": lambda site, link, silent: site.cut(link, silent=silent),
    "restore": lambda site, link: site.restore(link),
    "dns": lambda site, fault: site.router.dns_fault(fault),
    "boot": lambda site: site.power(),
    "power-cut": lambda site: site.power_cut(),
    "reset": lambda site: site.machine.reset(),
    "shut-down": lambda site: site.machine.shut_down(),
}
LOOKS = ("status", "spaces", "powered", "port", "exec", "get")
