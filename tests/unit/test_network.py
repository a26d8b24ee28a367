"""Files written only when they changed, and what is reported of ports, addresses and name servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from firmware.config.schema import Desired, Lan
from firmware.status import State
from hal import boards
from services.network import core, files
from services.network.observe import observe
from services.network.rtnetlink import Port

BOARD = boards.load(boards.BOARDS / "qemu-x86_64.toml")


def good() -> dict[str, Port]:
    return {
        "wan0": Port("wan0", "02:53:50:00:00:01", True, ["10.10.0.100/24", "fd00:10::1/64"], ["10.10.0.1"]),
        "lan0": Port("lan0", "02:53:50:00:00:02", True, ["192.168.10.1/24"]),
    }


def test_files_are_written_once_and_repaired(tmp_path: Path) -> None:
    rendered = core.render(Desired(), BOARD)
    assert files.write_changed(tmp_path, rendered) == sorted(rendered)
    assert files.write_changed(tmp_path, rendered) == []
    (tmp_path / "10-sallyport-lan0.network").write_text("edited")
    (tmp_path / "10-sallyport-old0.network").write_text("of another board")
    (tmp_path / "20-other.network").write_text("not ours")
    assert files.write_changed(tmp_path, rendered) == [
        "10-sallyport-lan0.network",
        "10-sallyport-old0.network",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*sorted(rendered), "20-other.network"]


def test_networkd_may_read_them_whatever_the_umask(tmp_path: Path) -> None:
    files.write_changed(tmp_path, core.render(Desired(), BOARD))
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())


def test_a_change_of_one_side_touches_one_file(tmp_path: Path) -> None:
    files.write_changed(tmp_path, core.render(Desired(), BOARD))
    changed = core.render(Desired(lan=Lan(address="192.168.20.1/24")), BOARD)
    assert files.write_changed(tmp_path, changed) == ["10-sallyport-lan0.network"]


def test_a_board_with_two_machine_ports_is_refused_by_name() -> None:
    board = boards.Board("two", "two", (*BOARD.ports, boards.Port("lan1", "lan", "x")))
    with pytest.raises(ValueError, match="2 ports of zone lan"):
        core.render(Desired(), board)


def test_all_well() -> None:
    """Shows: X74."""
    seen = observe(Desired(), BOARD, good(), ["10.10.0.1"], "")
    assert seen.state is State.OK
    assert seen.detail["dns"] == ["10.10.0.1"]
    assert seen.detail["ports"]["wan0"]["gateways"] == ["10.10.0.1"]
    assert "10.10.0.100/24" in seen.summary


def without(name: str, **changes: object) -> dict[str, Port]:
    ports = good()
    for key, value in changes.items():
        setattr(ports[name], key, value)
    return ports


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        (without("wan0", carrier=False), "wan0 has no link"),
        (without("wan0", addresses=[]), "no DHCP server answered"),
        (without("wan0", gateways=[]), "wan0 knows no router"),
        (without("wan0", addresses=["192.168.0.7/16"]), "overlaps the machine network"),
        ({"lan0": good()["lan0"]}, "wan0 is not there"),
    ],
)
def test_what_is_missing_is_told(ports: dict[str, Port], words: str) -> None:
    seen = observe(Desired(), BOARD, ports, [], "")
    assert seen.state is State.DEGRADED
    assert words in seen.summary


def test_settings_that_cannot_be_applied_are_a_failure() -> None:
    seen = observe(Desired(), BOARD, good(), [], "networkd did not answer")
    assert seen.state is State.FAILED
    assert "networkd did not answer" in seen.summary
