"""The `site` command acts on a running site from outside."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from qemu import cli
from qemu.control import Control
from qemu.promises import must_reach
from qemu.site import Site

pytestmark = pytest.mark.netns

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(netns_site: Site, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs `site ...`: exit status, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(["--state", str(netns_site.state), *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    with closing(Control(netns_site)):
        yield run


def test_cut_and_restore(netns_site: Site, command: Command) -> None:
    assert command("cut", "wan", "--silent") == (0, "", "")
    assert netns_site.gateway.probe("10.10.0.1", 53) != "answered"
    assert json.loads(command("status", "--json")[1])["links"] == {"wan": "silent", "lan": "plugged in"}
    assert "cut (silent)" in command("status")[1]
    assert command("restore", "wan")[0] == 0
    must_reach(netns_site.gateway, "10.10.0.1", 53)


def test_values_of_a_plc(netns_site: Site, command: Command) -> None:
    assert command("set", "plc1", "holding", "3", "7", "8")[0] == 0
    assert netns_site.plc1.get("holding", 3, 2) == [7, 8]
    assert command("get", "plc1", "holding", "3", "2") == (0, "holding 3: 7\nholding 4: 8\n", "")


def test_exec_gives_output_and_status_of_the_program(command: Command) -> None:
    script = "hostname; echo problem >&2; exit 7"
    assert command("exec", "office", "sh", "-c", script) == (7, "office\n", "problem\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "plc1", "coil", "0", "2"), "coil 0: 2 is not in 0..1"),
        (("exec", "nobody", "true"), "no host 'nobody'; there are gateway, router"),
        (("exec", "office"), "which program?"),
        (("exec", "office", "no-such-program"), "No such file"),
        (("power-cut",), "no virtual machine"),
        (("watch", "nothing"), "no cable 'nothing'; there are wan, lan"),
    ],
)
def test_what_goes_wrong_is_told(command: Command, arguments: tuple[str, ...], said: str) -> None:
    """Exit status 1 and one line that names the remedy; nothing is changed."""
    status, out, err = command(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("site: ")
    assert said in err
    assert err.count("\n") == 1


def test_without_a_site_it_says_how_to_start_one(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--state", str(tmp_path_factory.mktemp("none")), "status"]) == 1
    assert "no site runs in" in (err := capsys.readouterr().err)
    assert "make run" in err


def test_wrong_usage_has_its_own_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["cut", "wifi"], ["set", "plc1", "holding", "x", "1"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert "usage: site" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one's files are left alone."""
    state = tmp_path_factory.mktemp("taken")
    (state / "logs").mkdir()
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(["--state", str(state), "run", "--image", str(state)]) == 1
    assert "a site runs in" in capsys.readouterr().err
    assert (state / "logs").exists()
