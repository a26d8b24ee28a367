"""What is rendered for the kernel and for networkd, word by word.

`UPDATE_GOLDEN=1 pytest tests/golden` writes the files anew; read the difference before you keep it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from firmware.config.schema import Desired, Lan, Wan
from hal import boards
from services.firewall import core as firewall
from services.network import core as network

HERE = Path(__file__).parent
BOARD = boards.load(boards.BOARDS / "qemu-x86_64.toml")

STATIC = Desired(
    wan=Wan(mode="static", address="10.10.0.50/24", gateway="10.10.0.1", dns=["10.10.0.1", "fd00:10::1"]),
    lan=Lan(address="172.20.0.1/16"),
)
POLICY = firewall.Policy(("wan0",), ("lan0",), IPv4Network("192.168.10.0/24"), 812)

RENDERED = {
    **{f"network-factory/{name}": text for name, text in network.render(Desired(), BOARD).items()},
    **{f"network-static/{name}": text for name, text in network.render(STATIC, BOARD).items()},
    "firewall/closed.nft": firewall.render_closed(("wan0",)),
    "firewall/full.nft": firewall.render(POLICY),
    "firewall/static.nft": firewall.render(replace(POLICY, dhcp=False)),
}


@pytest.mark.parametrize("name", RENDERED)
def test_the_rendering_is_the_one_that_was_reviewed(name: str) -> None:
    """The factory's WAN asks by DHCP; a static one is written down. Shows: X74, X77, X78."""
    path = HERE / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RENDERED[name])
    assert RENDERED[name] == path.read_text()


def test_no_reviewed_file_is_left_over() -> None:
    files = {str(path.relative_to(HERE)) for path in HERE.glob("*/*") if path.suffix in (".network", ".nft")}
    assert files == set(RENDERED)


def test_every_base_chain_that_refuses_ends_with_drop() -> None:
    """A policy alone lets packets through while rules are swapped."""
    for name in ("firewall/closed.nft", "firewall/full.nft"):
        chains = RENDERED[name].split("\tchain ")[1:]
        refusing = [chain for chain in chains if "policy drop" in chain]
        assert len(refusing) == 5
        for chain in refusing:
            body = chain.split("\t}")[0].strip().splitlines()
            assert body[-1].endswith("drop"), chain
