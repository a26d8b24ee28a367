"""Board files: every shipped one loads, every wrong one is refused with its place and remedy."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from hal import boards

GOOD = """
name = "box"
compatible = "sallyport-box"

[[port]]
name = "wan0"
zone = "wan"
path = "pci-0000:00:03.0"

[[port]]
name = "lan0"
zone = "lan"
path = "pci-0000:00:04.0"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(boards.BOARDS.glob("*.toml")), ids=lambda path: path.stem)
def test_each_shipped_board_loads_and_has_both_zones(path: Path) -> None:
    board = boards.load(path)
    assert board.name == path.stem
    assert all(board.zone(zone) for zone in boards.ZONES)


def test_a_board_is_what_its_file_says(tmp_path: Path) -> None:
    board = boards.load(write(tmp_path, GOOD))
    assert board == boards.Board(
        "box",
        "sallyport-box",
        (boards.Port("wan0", "wan", "pci-0000:00:03.0"), boards.Port("lan0", "lan", "pci-0000:00:04.0")),
    )
    assert [port.name for port in board.zone("lan")] == ["lan0"]


def test_each_port_gets_one_link_file_that_matches_its_place(tmp_path: Path) -> None:
    links = boards.links(boards.load(write(tmp_path, GOOD)))
    assert sorted(links) == ["10-lan0.link", "10-wan0.link"]
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(links["10-wan0.link"])
    assert dict(parser["Match"]) == {"Path": "pci-0000:00:03.0"}
    assert parser["Link"]["Name"] == "wan0"


@pytest.mark.parametrize(
    ("old", "new", "place", "remedy"),
    [
        ('name = "box"', "", "name", "missing"),
        ('name = "box"', "name = 7", "name", "7 can't be used"),
        ('name = "box"', 'name = "a b"', "name", "letters"),
        ('compatible = "sallyport-box"', "", "compatible", "missing"),
        ('zone = "lan"', 'zone = "lan "', "port[1].zone", "use one of wan, lan"),
        ('zone = "wan"', 'zone = "dmz"', "port[0].zone", "use one of wan, lan"),
        ('name = "wan0"', 'name = "a-name-far-too-long"', "port[0].name", "1 to 15"),
        ('name = "wan0"', 'name = "eth0"', "port[0].name", "gives to other devices"),
        ('name = "wan0"', 'name = "enp0s3"', "port[0].name", "gives to other devices"),
        ('name = "lan0"', 'name = "wan0"', "port[1].name", "used twice"),
        ('path = "pci-0000:00:04.0"', 'path = "pci-0000:00:03.0"', "port[1].path", "used twice"),
        ('path = "pci-0000:00:04.0"', 'path = "a\\nName=b"', "port[1].path", "ID_PATH"),
        (
            'path = "pci-0000:00:04.0"',
            'mac = "02:00:00:00:00:01"',
            "port[1].mac",
            "known are name, zone, path",
        ),
        ('name = "box"', 'name = "box"\nports = 2', "ports", "known are name, compatible, port"),
        (GOOD[GOOD.index("[[port]]") :], "", "port", "no port"),
        (GOOD[GOOD.index("[[port]]") :], "port = []", "port", "no port"),
        (GOOD[GOOD.index("[[port]]") :], "port = [1]", "port[0]", "[[port]]"),
    ],
)
def test_a_wrong_board_is_refused_with_place_and_remedy(
    tmp_path: Path, old: str, new: str, place: str, remedy: str
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(boards.BoardError) as caught:
        boards.load(path)
    assert str(caught.value).startswith(f"{path}: {place}: ")
    assert remedy in str(caught.value)


def test_a_file_that_is_no_toml_or_not_there_is_a_board_error(tmp_path: Path) -> None:
    with pytest.raises(boards.BoardError, match="line 2"):
        boards.load(write(tmp_path, "\nname = box\n"))
    with pytest.raises(boards.BoardError, match="built for this board"):
        boards.load(tmp_path / "absent.toml")
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"name = '\xff'")
    with pytest.raises(boards.BoardError, match="not TOML"):
        boards.load(bad)
