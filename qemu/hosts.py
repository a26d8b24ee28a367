"""A host of the site: run programs there, probe from there, answer there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from qemu import probe, responder, wires
from qemu.namespaces import Completed, Namespaces, Process, SiteError
from qemu.topology import Plug

if TYPE_CHECKING:
    from collections.abc import Iterator

Protocol = Literal["tcp", "udp", "ping"]
Outcome = Literal["answered", "refused", "silent", "unreachable", "no route"]


class Host:
    def __init__(
        self, space: Namespaces, name: str, logs: Path, files: Mapping[str, Path] | None = None
    ) -> None:
        self.name = name
        self.holder = space.make_host(name, files)
        """The process that holds its namespaces; a PID inside the site."""
        self._space = space
        self._logs = logs

    def __repr__(self) -> str:
        return self.name

    def log_path(self, log: str) -> Path:
        """Where the output of a program started here goes."""
        return self._logs / f"{self.name}-{log}.log"

    def run(
        self,
        *argv: str,
        stdin: str = "",
        timeout: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program to its end; `env` is added to ours. With `check`, a failure raises `SiteError`."""
        environment = {**os.environ, **(env or {})}
        completed = self._space.run(argv, host=self.name, stdin=stdin, timeout=timeout, env=environment)
        return completed.check() if check else completed

    def start(
        self,
        *argv: str,
        fds: Sequence[int | IO[Any]] = (),
        env: Mapping[str, str] | None = None,
        log: str = "",
    ) -> Process:
        """Start a program. `env` is added to ours; output goes to `log` (default: the program's name) unless `fds`."""
        with (
            self.log_path(log or Path(argv[0]).name).open("ab") as output,
            Path(os.devnull).open("rb") as null,
        ):
            return self._space.start(
                argv, host=self.name, fds=fds or (null, output, output), env={**os.environ, **(env or {})}
            )

    def ip(self, *lines: str) -> None:
        """Lines of ip(8), e.g. `route add 192.168.10.0/24 via 10.10.0.100`."""
        wires.batch(self._space, lines, self.name)

    def configure(self, plugs: Sequence[Plug]) -> None:
        self.ip(*wires.configure(plugs), *wires.routes(self.name))

    def addresses(self, interface: str) -> list[str]:
        """Its addresses without prefix, link-local ones left out."""
        found = json.loads(self.run("ip", "-json", "address", "show", "dev", interface).stdout)
        return [
            entry["local"] for item in found for entry in item["addr_info"] if entry.get("scope") != "link"
        ]

    def probe(self, address: str, port: int = 0, protocol: Protocol = "tcp", timeout: float = 1.0) -> Outcome:
        return self.probe_all([(address, port, protocol)], timeout)[0]

    def probe_all(self, targets: Sequence[tuple[str, int, Protocol]], timeout: float = 1.0) -> list[Outcome]:
        """Try all targets at the same time: (address, port, protocol). Takes `timeout` seconds if one is silent."""
        asked = json.dumps({"targets": list(targets), "timeout": timeout})
        answer = self.run(sys.executable, "-I", "-S", probe.__file__, stdin=asked, timeout=timeout + 20)
        outcomes: list[Outcome] = json.loads(answer.stdout)
        return outcomes

    @contextmanager
    def answering(self, *, tcp: Sequence[int] = (), udp: Sequence[int] = ()) -> Iterator[None]:
        """While inside, the host answers on these ports of all its addresses, so that a probe has somebody to reach."""
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        with open(ready_read, "rb") as ready:  # noqa: PTH123
            try:
                ports = json.dumps({"tcp": list(tcp), "udp": list(udp)})
                with Path(os.devnull).open("rb") as null:
                    process = self._space.start(
                        [sys.executable, "-I", "-S", responder.__file__, ports],
                        host=self.name,
                        fds=(null, ready_write, ready_write),
                    )
            finally:
                os.close(ready_write)
            said = ready.readline().decode()
            if said != "ready\n":
                raise SiteError(f"{self.name} can't answer on {ports}: {said}{ready.read().decode()}")
            try:
                yield
            finally:
                process.kill()
