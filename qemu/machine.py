"""The gateway as a virtual machine: its command line, power, and the ways to talk to it.

How it is wired is told by image/debian/README.md. Everything of one machine is in one folder:

    data.img flash.img        its disks; they stay over power cuts
    qmp agent shell           Unix sockets
    console-<n>.log journal-<n>.jsonl qemu-<n>.log    of its n-th boot

**What a power cut is.** `power_cut()` kills QEMU with SIGKILL. The guest gets no chance to do anything; what it had
not yet written to its disks is lost, as with a real gateway. What it had written reached the host's page cache and
stays, flushed or not: a disk that loses its own write cache is not pretended.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qemu import topology
from qemu.accel import Accelerator
from qemu.agent import Agent
from qemu.journal import Journal
from qemu.namespaces import Namespaces, Process, SiteError
from qemu.qmp import Qmp

ARTIFACTS = ("bzImage", "root.squashfs", "manifest.json")
BOOT_S = 180.0
SHUTDOWN_S = 60.0


@dataclass(frozen=True)
class Image:
    """What `make image` built."""

    folder: Path

    def check(self) -> None:
        missing = [name for name in ARTIFACTS if not (self.folder / name).exists()]
        if missing:
            raise SiteError(f"{self.folder} has no {', '.join(missing)}; `make image` builds them")

    @property
    def kernel(self) -> Path:
        return self.folder / "bzImage"

    @property
    def root(self) -> Path:
        return self.folder / "root.squashfs"

    @property
    def command_line(self) -> str:
        text: str = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))["cmdline"]
        return text


@dataclass(frozen=True)
class Wiring:
    """What goes into QEMU's command line."""

    image: Image
    state: Path
    accelerator: Accelerator
    boot: int
    kernel_options: str = ""
    memory_mib: int = 512
    cpus: int = 2


def qemu_command(wiring: Wiring) -> list[str]:
    state, boot = wiring.state, wiring.boot

    def disk(name: str, path: Path, slot: int, *, read_only: bool = False) -> list[str]:
        # writeback: the guest's flushes reach the host's disk, its other writes the host's page cache.
        drive = f"if=none,id={name},file={_escape(path)},format=raw,cache=writeback"
        return [
            "-drive",
            drive + (",read-only=on" if read_only else ""),
            "-device",
            f"virtio-blk-pci,drive={name},addr={slot}",
        ]

    def port(name: str, plug: topology.Plug, slot: int) -> list[str]:
        return [
            "-netdev",
            f"tap,id={name},ifname={plug.port},script=no,downscript=no",
            "-device",
            f"virtio-net-pci,netdev={name},bus=pcie.0,addr={slot},mac={plug.mac},romfile=",
        ]

    def channel(name: str) -> list[str]:
        return ["-chardev", f"socket,id={name},path={_escape(state / name)},server=on,wait=off"]

    return [
        "qemu-system-x86_64",
        *("-machine", "q35"),
        *("-accel", wiring.accelerator.option),
        *("-cpu", "host" if wiring.accelerator.name == "kvm" else "max"),
        *("-smp", str(wiring.cpus)),
        *("-m", str(wiring.memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(wiring.image.kernel)),
        *("-append", f"{wiring.image.command_line} {wiring.kernel_options}".strip()),
        *disk("root", wiring.image.root, 5, read_only=True),
        *disk("data", state / "data.img", 6),
        *disk("flash", state / "flash.img", 7),
        *port("wan", topology.WAN, 3),
        *port("lan", topology.LAN, 4),
        *("-device", "virtio-serial-pci,id=serial,addr=8"),
        *channel("shell"),
        *("-device", "virtconsole,chardev=shell"),
        *channel("agent"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-chardev", f"file,id=journal,path={_escape(state / f'journal-{boot}.jsonl')}"),
        *("-device", "virtserialport,chardev=journal,name=sallyport.journal"),
        *("-chardev", f"file,id=console,path={_escape(state / f'console-{boot}.log')}"),
        *("-serial", "chardev:console"),
        *channel("qmp"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-device", "i6300esb,addr=9"),
        *("-action", "watchdog=reset"),
        *("-device", "virtio-rng-pci,addr=10"),
    ]


def _escape(path: Path) -> str:
    """A comma in a value of QEMU's command line is written twice."""
    return str(path).replace(",", ",,")


class Machine:
    """One gateway. `prepare` makes its disks (data.img, flash.img) in the folder that it is given."""

    def __init__(
        self,
        space: Namespaces,
        image: Image,
        state: Path,
        accelerator: Accelerator,
        prepare: Callable[[Path], None],
    ) -> None:
        image.check()
        self.image = image
        self.state = state
        self.accelerator = accelerator
        self.boot = 0
        """How often it was powered on."""
        self.powered_at = 0.0
        """`time.monotonic()` of the last power-on."""
        self.agent = Agent(state / "agent")
        self._space = space
        self._process: Process | None = None
        self._qmp: Qmp | None = None
        self._journal = Journal(state / "journal-0.jsonl")
        state.mkdir(parents=True, exist_ok=True)
        if not (state / "data.img").exists() or not (state / "flash.img").exists():
            prepare(state)

    @property
    def powered(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def journal(self) -> Journal:
        """Of the current boot, or of the last one when it is off."""
        return self._journal

    @property
    def console(self) -> Path:
        return self.state / f"console-{self.boot}.log"

    @property
    def qmp(self) -> Qmp:
        if not self.powered or not self._qmp:
            raise SiteError("the gateway is powered off")
        return self._qmp

    @property
    def pid(self) -> int:
        """QEMU's, inside the site."""
        if not self._process:
            raise SiteError("the gateway is powered off")
        return self._process.pid

    def power(self, *, kernel_options: str = "") -> None:
        """Switch it on; returns when QEMU runs. `kernel_options` are added to the kernel's command line."""
        if self.powered:
            raise SiteError("the gateway is powered on already")
        self.boot += 1
        wiring = Wiring(self.image, self.state, self.accelerator, self.boot, kernel_options)
        for name in ("qmp", "agent", "shell"):
            (self.state / name).unlink(missing_ok=True)
        self._journal = Journal(self.state / f"journal-{self.boot}.jsonl")
        self.powered_at = time.monotonic()
        log = self.state / f"qemu-{self.boot}.log"
        with log.open("wb") as output, Path("/dev/null").open("rb") as null:
            self._process = self._space.start(qemu_command(wiring), fds=(null, output, output))
        try:
            self._qmp = Qmp(self.state / "qmp")
        except (OSError, ValueError) as error:
            status = self._process.kill()
            said = log.read_text(errors="replace").strip() or "nothing"
            raise SiteError(f"QEMU does not start (status {status}); it said: {said}") from error

    def wait_booted(self, timeout: float = BOOT_S) -> None:
        """Until the guest agent answers. An error shows the console's end."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.agent.wait_ready(2.0)
            except TimeoutError as error:
                why = "" if self.powered else f"QEMU ended; see {self.state}/qemu-{self.boot}.log. "
                if why or time.monotonic() > deadline:
                    end = "\n".join(self.console_text().splitlines()[-15:])
                    raise SiteError(
                        f"the gateway did not boot within {timeout:g} s. {why}Its console's end:\n{end}"
                    ) from error
            else:
                return

    def console_text(self) -> str:
        try:
            return self.console.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def power_cut(self) -> None:
        """Pull the plug (see above)."""
        if self._process:
            self._process.kill()
        self._forget()

    def shut_down(self, timeout: float = SHUTDOWN_S) -> None:
        """Ask the guest to power off in order, and wait for it."""
        process = self._process
        if not process or not self.powered:
            return
        with suppress(OSError, ValueError, SiteError):
            self.agent.command("guest-shutdown", timeout=1.0, mode="powerdown")
        try:
            process.wait(timeout)
        except TimeoutError as error:
            raise SiteError(f"the gateway did not power off within {timeout:g} s") from error
        self._forget()

    def reset(self) -> None:
        """The reset button: as a power cut, but QEMU and its files go on."""
        self.agent.close()
        self.qmp.reset()

    def _forget(self) -> None:
        self.agent.close()
        if self._qmp:
            self._qmp.close()
        self._qmp = self._process = None

    def keep_logs(self, folder: Path) -> None:
        """Copy console, journal and QEMU's output of every boot."""
        for pattern in ("console-*.log", "journal-*.jsonl", "qemu-*.log"):
            for path in self.state.glob(pattern):
                shutil.copy(path, folder / path.name)
        for path in self.state.glob("journal-*.jsonl"):
            (folder / f"{path.stem}.txt").write_text(Journal(path).text(), encoding="utf-8")
