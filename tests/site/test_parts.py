"""Parts of the pretend site that need no network: its description, packet parser, journal, command lines."""

from __future__ import annotations

import io
import ipaddress
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from firmware.config import check
from qemu import packets, plant, topology, view
from qemu.accel import Accelerator
from qemu.journal import Journal
from qemu.machine import Image, Wiring, qemu_command
from qemu.namespaces import SiteError
from qemu.promises import eventually
from qemu.site import PROJECT, PROVISIONED, Site


def test_the_description_is_what_the_architecture_says() -> None:
    """Every address that people are told is the one that is plugged in."""
    text = (PROJECT / "docs/architecture.md").read_text(encoding="utf-8")
    for network in topology.NETWORKS:
        assert f"| {network.name} | {network.ipv4}, {network.ipv6} |" in text
    for name, address in topology.NAMES.items():
        assert f"`{name}` {address}" in text
    for plug in topology.LINKS.values():
        assert f"`{plug.interface}` {plug.mac}" in text
    assert f"`{topology.DEVICE}`" in text


def test_every_plug_is_in_its_network() -> None:
    for plug in topology.PLUGS:
        network = topology.network(plug.network)
        for address in plug.addresses:
            inside = ipaddress.ip_interface(address)
            assert str(inside.network) in (network.ipv4, network.ipv6), plug
        assert len(plug.port) <= 15, "Linux has no longer interface names"


def test_the_provisioned_configuration_reads_what_the_plant_plays() -> None:
    """The gateway's first configuration is accepted, and each of its tags is a value that moves."""
    document = check.parse(PROVISIONED.read_text(encoding="utf-8"))
    assert [plc.host for plc in document.plc] == list(topology.PLCS.values())
    assert document.cloud.enabled
    assert document.cloud.host in topology.NAMES
    for plc, motion in zip(document.plc, ("press", "boiler"), strict=True):
        played = {(table, address) for table, address, _ in plant.MOTIONS[motion](1.0)}
        assert {(tag.table, tag.address) for tag in plc.tags} == played


def frame(kind: int, body: bytes) -> bytes:
    return bytes.fromhex("0253500000010253500000ff") + struct.pack("!H", kind) + body


def test_parses_tcp_in_a_vlan() -> None:
    tcp = struct.pack("!HHIIBBHHH", 4000, 443, 0, 0, 0x50, packets.SYN, 0, 0, 0) + b"hello"
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    )
    found = packets.parse(frame(packets.VLAN, struct.pack("!HH", 5, packets.IPV4) + ip + tcp + b"padding"))
    assert (found.source, found.source_port, found.destination, found.destination_port) == (
        "10.0.0.1",
        4000,
        "10.0.0.2",
        443,
    )
    assert found.opens_connection
    assert found.payload == b"hello"
    assert not found.multicast


def test_parses_udp_behind_ipv6_extensions() -> None:
    udp = struct.pack("!HHHH", 53, 9, 10, 0) + b"ab"
    body = bytes([17, 0, 0, 0, 0, 0, 0, 0]) + udp
    ip = struct.pack("!IHBB16s16s", 6 << 28, len(body), 0, 64, bytes(15) + b"\1", bytes(15) + b"\2")
    found = packets.parse(frame(packets.IPV6, ip + body))
    assert (found.source, found.destination, found.source_port, found.payload) == ("::1", "::2", 53, b"ab")


@given(
    st.binary(max_size=200), st.sampled_from([packets.ARP, packets.IPV4, packets.IPV6, packets.VLAN, 0x1234])
)
def test_no_frame_breaks_the_parser(body: bytes, kind: int) -> None:
    whole = packets.parse(frame(kind, body))
    assert body.endswith(whole.payload)
    assert str(whole)
    assert str(packets.parse(body))


def test_a_torn_capture_loses_its_last_packet_only(tmp_path: Path) -> None:
    record = frame(packets.ARP, bytes(28))
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    data = header + 2 * (struct.pack("<IIII", 5, 500_000, len(record), len(record)) + record)
    path = tmp_path / "x.pcap"
    for size, count in ((len(data), 2), (len(data) - 1, 1), (30, 0), (0, 0)):
        path.write_bytes(data[:size])
        assert [p.time_s for p in packets.read(path)] == [5.5] * count
    path.write_bytes(b"no capture at all, but long enough")
    with pytest.raises(ValueError, match="not a pcap file"):
        list(packets.read(path))


def test_the_journal_is_followed_through_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    assert journal.entries() == []
    path.write_bytes(b'{"MESSAGE": "one", "__MONOTONIC_TIMESTAMP": "1500000"}\n{"MESS')
    assert [str(e) for e in journal.entries()] == ["[    1.500] kernel: one"]
    with path.open("ab") as file:
        file.write(
            b'AGE": [116, 119, 111, 255], "PRIORITY": "3"}\ntorn by a reset {"MESSAGE": "x"}\n{"MESSAGE": null}\n'
        )
    assert journal.wait_for("two", 1).priority == 3
    assert [e.message for e in journal.entries()] == ["one", "two\ufffd", ""]
    with pytest.raises(TimeoutError, match=r"did not show 'three' within 0 s. Its end:\n.*one"):
        journal.wait_for("three", 0)


def test_eventually_reports_the_last_state_seen() -> None:
    states = iter(["booting", "starting", "ok"])
    assert eventually(lambda: next(states), done=lambda s: s == "ok", within=5, what="ok", pause=0) == "ok"
    with pytest.raises(AssertionError, match=r"online: not within 0 s; last seen: 'offline'"):
        eventually(lambda: "offline", done=lambda s: s == "online", within=0, what="online")
    with pytest.raises(AssertionError, match="last seen: OSError: no answer"):
        eventually(_raise, within=0, what="an answer")


def _raise() -> None:
    raise OSError("no answer")


def image(folder: Path) -> Image:
    for name in ("bzImage", "root.squashfs"):
        (folder / name).touch()
    (folder / "manifest.json").write_text(json.dumps({"cmdline": "root=/dev/vda ro"}))
    return Image(folder)


def test_the_command_line_wires_the_board(tmp_path: Path) -> None:
    """Ports sit where the board description says, disks come in order, commas in paths are escaped."""
    state = tmp_path / "a,b"
    wiring = Wiring(image(tmp_path), state, Accelerator("tcg", ""), 3, "quiet")
    command = " ".join(qemu_command(wiring))
    board = (PROJECT / "hal/boards/qemu-x86_64.toml").read_text()
    for name, slot in (("wan", 3), ("lan", 4)):
        mac = topology.LINKS[name].mac
        assert f"virtio-net-pci,netdev={name},bus=pcie.0,addr={slot},mac={mac}" in command
        assert f"pci-0000:00:{slot:02}.0" in board
    places = [
        command.index(f"file={path}")
        for path in ("", str(tmp_path / "root"), f"{tmp_path}/a,,b/data", f"{tmp_path}/a,,b/flash")
    ]
    assert places == sorted(places)
    assert "root=/dev/vda ro quiet" in command
    assert "journal-3.jsonl" in command
    assert "tcg,thread=multi" in command


def test_a_missing_image_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        SiteError, match=r"no bzImage, root.squashfs, manifest.json; `make image` builds them"
    ):
        Site(tmp_path, gateway="qemu", image=tmp_path)


def test_the_view_survives_what_does_not_answer() -> None:
    """A site of which nothing answers yet, and one with everything, can both be drawn."""
    broken = {"error": "no answer"}
    seen = {
        "gateway": broken,
        "links": {"wan": "silent", "lan": "plugged in"},
        "wan_address": None,
        "router": broken,
        "plcs": {"plc1": broken},
        "cloud": broken,
    }
    last = {"value": 1.5, "time_us": 1_700_000_000_000_000}
    whole = {
        **seen,
        "gateway": {
            "powered": True,
            "powered_s": 9.0,
            "boot": 1,
            "services": {
                "plc": {"state": "ok", "summary": "fine", "detail": {"plcs": {"a": {"samples": 5}}}}
            },
        },
        "router": {"passed_https": 1, "passed_dns": 2, "dropped_egress": 3, "dropped_ingress": 4},
        "cloud": {
            "url": "https://localhost:1/",
            "online": True,
            "counters": {"samples": 7},
            "tags": [
                {"tag": "plc-a/level", "count": 7, "last": last},
                {"tag": "x", "count": 0, "last": None},
            ],
        },
    }
    for one, wanted in ((seen, "no answer"), (whole, "1.50")):
        drawn = io.StringIO()
        Console(width=110, file=drawn).print(view.draw(one))
        assert wanted in drawn.getvalue()
    assert "samples logged 5  in the cloud 7" in view.line(whole)
