"""The cloud on its host of the site: started, watched, asked."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemu import splice, topology
from qemu.namespaces import Process, SiteError

if TYPE_CHECKING:
    from qemu.hosts import Host

PORTAL_NAME = "portal.sallyport.test"
READY_S = 60.0
REQUEST_S = 10.0
PAGE_PORT = 8443


class Cloud:
    """`state`: where the cloud keeps its data; it stays over `stop` and `start`."""

    def __init__(self, host: Host, state: Path, *, page_port: int = 0) -> None:
        """`page_port`: port on 127.0.0.1, outside of the site, on which its page is seen; 0 takes a free one."""
        self.host = host
        self.state = state
        self.identity = state.parent / "identity"
        """The gateway's: device.key, device.crt, ca.crt."""
        self._process: Process | None = None
        self._environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._listener = _listen(page_port)
        self.page_port: int = self._listener.getsockname()[1]
        state.mkdir(parents=True, exist_ok=True)
        self._command("ca", "init", "--state", str(state))
        if not (self.identity / "device.crt").exists():
            self.issue(topology.DEVICE, self.identity)
        with Path(os.devnull).open("rb") as null, host.log_path("splice").open("ab") as log:
            host.start(
                *(sys.executable, "-I", "-S", splice.__file__, topology.CLOUD_PORTAL, "443"),
                fds=(null, log, log, self._listener.fileno()),
            )

    @property
    def url(self) -> str:
        return f"https://localhost:{self.page_port}/"

    def issue(self, device: str, folder: Path) -> None:
        """Make a device's key and certificate (device.key, device.crt, ca.crt) in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self._command("ca", "issue-device", device, "--state", str(self.state), "--out", str(folder))

    def start(self) -> None:
        """Returns when all of it answers."""
        ready = self.state / "ready"
        ready.unlink(missing_ok=True)
        self._process = self.host.start(
            *(sys.executable, "-m", "cloudstub", "run", "--state", str(self.state)),
            *("--mqtt", f"{topology.CLOUD_MQTT}:443", "--api", f"{topology.CLOUD_PORTAL}:443"),
            env=self._environment,
            log="cloudstub",
        )
        deadline = time.monotonic() + READY_S
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SiteError(f"the cloud does not start; see {self.host.log_path('cloudstub')}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process:
            self._process.terminate(15)
            self._process = None

    def close(self) -> None:
        self.stop()
        self._listener.close()

    def get(self, path: str) -> Any:
        """A document of its HTTP API, e.g. `get("/api/v1/gateways")`. Raises `SiteError` on another status than 200."""
        return self.request("GET", path)

    def request(self, method: str, path: str, body: Any = None) -> Any:
        context = ssl.create_default_context(cafile=str(self.identity / "ca.crt"))
        with socket.create_connection(("127.0.0.1", self.page_port), REQUEST_S) as plain:
            connection = http.client.HTTPSConnection(PORTAL_NAME, timeout=REQUEST_S)
            connection.sock = context.wrap_socket(plain, server_hostname=PORTAL_NAME)
            try:
                text = None if body is None else json.dumps(body)
                connection.request(method, path, text, {"Content-Type": "application/json"})
                response = connection.getresponse()
                data = response.read()
            except http.client.HTTPException as error:
                raise SiteError(f"the cloud's answer to {method} {path} is broken: {error!r}") from error
            finally:
                connection.close()
        if response.status != 200:
            raise SiteError(f"the cloud answered {method} {path} with {response.status}: {data[:500]!r}")
        return json.loads(data)

    def _command(self, *arguments: str) -> None:
        self.host.run(sys.executable, "-m", "cloudstub", *arguments, env=self._environment)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise SiteError(f"port {port} on 127.0.0.1 is taken; choose another with --page-port") from error
    listener.listen(64)
    return listener
