"""Which accelerator QEMU may use: KVM where it really works, else TCG (software emulation).

`/dev/kvm` can exist and not work. A guest of a few instructions is no proof: on one nested host it ran, and the kernel
hung while it unpacked itself. So the trial boots the gateway's own kernel without a root disk: it must get as far as
to complain about that. The answer is kept until the host boots again. `SALLYPORT_ACCEL=kvm|tcg` skips the trial.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
DEADLINE_S = 5.0
REACHED = b"Kernel panic"
"""What the kernel says when it has run through its whole start and finds no root."""


@dataclass(frozen=True)
class Accelerator:
    name: str
    reason: str
    """One line for a person."""

    @property
    def option(self) -> str:
        """For QEMU's `-accel`."""
        return "kvm" if self.name == "kvm" else "tcg,thread=multi"


def choose(kernel: Path) -> Accelerator:
    asked = os.environ.get("SALLYPORT_ACCEL", "")
    if asked in ("kvm", "tcg"):
        return Accelerator(asked, f"{asked.upper()}: SALLYPORT_ACCEL says so")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        why = "not ours to open" if DEVICE.exists() else "not there"
        return Accelerator("tcg", f"TCG (software emulation): {DEVICE} is {why}")
    note = _note()
    try:
        works = note.read_text(encoding="ascii") == "works"
    except FileNotFoundError:
        works = boots("kvm", kernel)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("works" if works else "fails", encoding="ascii")
    if works:
        return Accelerator("kvm", "KVM: a trial guest ran")
    return Accelerator(
        "tcg", f"TCG (software emulation): a trial guest on {DEVICE} did not run (noted in {note})"
    )


def boots(accelerator: str, kernel: Path, deadline_s: float = DEADLINE_S) -> bool:
    """Whether a kernel gets through its start within the deadline."""
    with tempfile.NamedTemporaryFile(suffix=".log") as console:
        process = subprocess.Popen(
            [
                "qemu-system-x86_64",
                *("-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"),
                *("-machine", "q35", "-m", "256", "-nodefaults", "-no-user-config"),
                *("-display", "none", "-serial", f"file:{console.name}", "-no-reboot"),
                *("-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            # Not even that ends it while it is stuck in the kernel; then it goes when that lets it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            return False
        return REACHED in Path(console.name).read_bytes()


def _note() -> Path:
    cache = Path(os.environ.get("SALLYPORT_CACHE") or Path.home() / ".cache/sallyport")
    return cache / f"kvm-{BOOT_ID.read_text(encoding='ascii').strip()}"
