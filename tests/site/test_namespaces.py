"""A site's namespaces: processes run in them, and nothing stays behind, however the owner ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu.namespaces import Namespaces, SiteError
from qemu.promises import eventually
from qemu.site import PROJECT

pytestmark = pytest.mark.netns

OWNER = """
import sys, time
from pathlib import Path
from qemu.site import Site
site = Site(Path(sys.argv[1]), gateway="netns")
site.capture("wan")
print(site.space.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def space(site_folder: Path) -> Iterator[Namespaces]:
    folder = site_folder / "space"
    folder.mkdir(exist_ok=True)
    namespaces = Namespaces(folder)
    yield namespaces
    namespaces.close()


def test_a_host_has_its_own_network_name_and_files(space: Namespaces, tmp_path: Path) -> None:
    """Two hosts share nothing; both see their own interfaces in /sys and the files that they were given."""
    (tmp_path / "resolv").write_text("nameserver 192.0.2.1\n")
    for host in ("a", "b"):
        space.make_host(host, {"/etc/resolv.conf": tmp_path / "resolv"})
    space.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"], host="a").check()
    look = ["sh", "-c", "hostname; ls /sys/class/net; cat /etc/resolv.conf; cat"]
    assert space.run(look, host="a", stdin="x").stdout.split() == [
        "a",
        "eth0",
        "eth1",
        "lo",
        "nameserver",
        "192.0.2.1",
        "x",
    ]
    assert "eth0" not in space.run(look, host="b").stdout.split()


def test_a_process_tells_how_it_ended(space: Namespaces) -> None:
    """Exit status, signal, output of a process; one that takes too long is ended."""
    done = space.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with pytest.raises(SiteError, match=r"status 3: err"):
        done.check()
    process = space.start(["sleep", "60"])
    assert process.poll() is None
    assert process.terminate() == -signal.SIGTERM
    with pytest.raises(TimeoutError, match="sleep 60"):
        space.run(["sleep", "60"], timeout=0.2)


def test_much_output_both_ways_does_not_hang(space: Namespaces) -> None:
    text = "0123456789abcde\n" * 100_000
    assert space.run(["cat"], stdin=text).stdout == text


@pytest.mark.parametrize(
    ("argv", "host", "said"),
    [(["no-such-program"], None, "No such file"), (["true"], "nowhere", "no host named 'nowhere'")],
)
def test_what_can_not_start_is_told(space: Namespaces, argv: list[str], host: str | None, said: str) -> None:
    with pytest.raises(SiteError, match=said):
        space.run(argv, host=host)


def test_a_state_folder_with_a_long_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="shorter state folder"):
        Namespaces(tmp_path / ("x" * 100))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_behind_when_the_owner_dies(site_folder: Path, number: signal.Signals) -> None:
    """The owner of a whole running site is killed: no process, namespace or mount of it is left."""
    folder = site_folder / f"dies-{number}"
    mounts = _mounts()
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, cwd=PROJECT
    ) as owner:
        assert owner.stdout
        keeper = int(owner.stdout.readline())
        spaces = {str(Path(f"/proc/{keeper}/ns/{kind}").readlink()) for kind in ("pid", "mnt", "net")}
        for holder in _members(str(Path(f"/proc/{keeper}/ns/pid").readlink())):
            spaces |= {str(Path(f"/proc/{holder}/ns/{kind}").readlink()) for kind in ("mnt", "net")}
        assert len(spaces) > 15, "hosts have namespaces of their own"
        owner.send_signal(number)
        began = time.monotonic()
    eventually(
        lambda: [pid for space in spaces for pid in _members(space)],
        done=lambda left: not left,
        within=8,
        what="the site's processes and namespaces end",
    )
    assert time.monotonic() - began < 8
    assert _mounts() == mounts


def _members(space: str) -> list[int]:
    """Processes in a namespace, as pid:[...], mnt:[...] or net:[...] names it."""
    kind = space.split(":", maxsplit=1)[0]
    found = []
    for path in Path("/proc").glob(f"[0-9]*/ns/{kind}"):
        try:
            if str(path.readlink()) == space:
                found.append(int(path.parts[2]))
        except OSError:
            continue
    return found


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if "site-" in line or "nsfs" in line]


def test_programs_of_root_are_found_by_everybody(space: Namespaces) -> None:
    """Debian gives an ordinary user no /usr/sbin, where nft and dnsmasq live."""
    assert space.run(["nft", "--version"], env={"PATH": "/usr/bin:/bin"}).status == 0
