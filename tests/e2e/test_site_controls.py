"""What the pretend site can do to a booted gateway: ask it, cut its cables, take its power, and leave nothing behind.

Network: the pretend site. Steps: use each control once, from inside and from another terminal.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from qemu import accel, cli
from qemu.control import Control
from qemu.namespaces import SiteError
from qemu.promises import eventually
from qemu.site import IMAGE, PROJECT, Site


def test_agent_runs_programs_and_moves_files(site: Site) -> None:
    """Output, errors, exit status, standard input, files with any bytes; failures name the program."""
    agent = site.machine.agent
    done = agent.run("sh", "-c", "cat; echo problem >&2; exit 3", stdin=b"question", check=False)
    assert (done.status, done.stdout, done.stderr) == (3, "question", "problem\n")
    with pytest.raises(SiteError, match=r"status 3"):
        agent.run("sh", "-c", "exit 3")
    with pytest.raises(SiteError, match="no-such-program"):
        agent.run("/no-such-program")
    data = bytes(range(256)) * 300
    agent.write_file("/tmp/bytes", data)
    assert agent.read_file("/tmp/bytes") == data


def test_journal_arrives_line_by_line(site: Site) -> None:
    """What is logged in the guest is seen outside at once, from the kernel's first line on."""
    entries = site.machine.journal.entries()
    assert entries[0].monotonic_s < 60
    assert any(e.source == "kernel" and "Linux version" in e.message for e in entries)
    site.machine.agent.shell("echo '<4>sallyport test: hello' > /dev/kmsg")
    found = site.machine.journal.wait_for("sallyport test: hello", 15, after=len(entries))
    assert (found.source, found.priority) == ("kernel", 4)


@pytest.mark.parametrize("link", ["wan", "lan"])
def test_a_cut_takes_the_carrier_unless_silent(site: Site, link: str) -> None:
    """The guest loses the carrier of a cut link; of a silently cut one it keeps it."""

    def carrier() -> bytes:
        return site.machine.agent.read_file(f"/sys/class/net/{link}0/carrier").strip()

    site.cut(link, silent=True)  # type: ignore[arg-type]
    assert carrier() == b"1"
    site.cut(link)  # type: ignore[arg-type]
    eventually(carrier, done=lambda c: c == b"0", within=15, what="the carrier is gone")
    site.restore(link)  # type: ignore[arg-type]
    eventually(carrier, done=lambda c: c == b"1", within=15, what="the carrier is back")


def test_root_shell_on_the_console_line(site: Site) -> None:
    """What `site shell` connects to is a root shell."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(site.machine.state / "shell"))
        sock.settimeout(30)
        sock.sendall(b"\r echo uid-$(id -u)-\r")
        said = b""
        while b"uid-0-" not in said and (part := sock.recv(4096)):
            said += part
    assert b"uid-0-" in said


def test_the_site_command_reaches_the_gateway(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """`site exec gateway` and `site status` from another terminal."""
    with closing(Control(site)):
        assert (
            cli.main(["--state", str(site.state), "exec", "gateway", "cat", "/proc/sys/kernel/hostname"]) == 0
        )
        assert capsys.readouterr().out.strip() == site.machine.agent.shell("hostname").strip()
        assert cli.main(["--state", str(site.state), "status"]) == 0
        assert "closed both ways" in capsys.readouterr().out
        assert cli.main(["--state", str(site.state), "boot"]) == 1
        assert "powered on already" in capsys.readouterr().err


def test_an_accelerator_is_tried_with_the_real_kernel() -> None:
    """TCG runs the kernel; an accelerator that is not there, and a kernel that hangs, are told from that."""
    assert accel.boots("tcg", IMAGE / "bzImage", 60)
    assert not accel.boots("no-such-accelerator", IMAGE / "bzImage", 60)
    assert not accel.boots("tcg", IMAGE / "bzImage", 0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_a_run_stays_behind(state_folder: Path, number: signal.Signals) -> None:
    """`site run` with gateway, cloud and PLCs: Ctrl-C or kill -9, and no process of it is left, nor a mount."""
    mounts = Path("/proc/self/mountinfo").read_text()
    folder = state_folder / f"run-{number}"
    command = [sys.executable, "-m", "qemu.cli", "--state", str(folder), "run", "--plain", "--page-port", "0"]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": "200"}
    ) as run:
        assert run.stdout
        for line in run.stdout:
            if b"the cloud's page" in line:
                break
        eventually(lambda: _named(folder), done=lambda n: len(n) > 8, within=20, what="the site runs")
        run.send_signal(number)
        began = time.monotonic()
        run.stdout.read()
    assert run.returncode == (0 if number == signal.SIGINT else -number)
    eventually(lambda: _named(folder), done=lambda n: not n, within=10, what="its processes end")
    assert time.monotonic() - began < 20
    assert Path("/proc/self/mountinfo").read_text() == mounts


def _named(folder: Path) -> list[str]:
    """Processes that have the folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found
