"""The gateway's disks: right owners and modes without root, nothing half."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from image.debian import disks
from image.debian.steps import BuildError, find

pytestmark = pytest.mark.skipif(not find("debugfs"), reason="needs e2fsprogs")


def stat(image: Path, path: str) -> tuple[str, int, int]:
    """(mode, uid, gid) of a path on an ext4 image."""
    text = subprocess.run(
        [find("debugfs") or "debugfs", "-R", f"stat {path}", image],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mode = re.search(r"Mode:\s+(\d+)", text)
    owner = re.search(r"User:\s+(\d+)\s+Group:\s+(\d+)", text)
    assert mode and owner, text
    return mode[1].lstrip("0"), int(owner[1]), int(owner[2])


def checked(image: Path) -> None:
    subprocess.run([find("e2fsck") or "e2fsck", "-fn", image], check=True, capture_output=True)


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    folder = tmp_path / "identity"
    folder.mkdir()
    for name in ("device.key", "device.crt", "ca.crt"):
        (folder / name).write_text(f"{name}\n", encoding="ascii")
    return folder


def test_the_data_disk_lets_only_the_uplink_read_the_key(tmp_path: Path, identity: Path) -> None:
    provisioned = tmp_path / "site.toml"
    provisioned.write_text("[cloud]\nenabled = true\n", encoding="utf-8")
    image = tmp_path / "data.img"
    disks.make_data(image, identity, provisioned)
    checked(image)
    ids = disks.numbers()
    config, secret = ids["u", "sallyport-config"], ids["g", "sallyport-identity"]
    assert stat(image, "/") == ("755", 0, 0)
    assert stat(image, "/config") == ("700", config, ids["g", "sallyport-config"])
    assert stat(image, "/config/provisioned.toml") == ("640", config, ids["g", "sallyport-config"])
    assert stat(image, "/identity") == ("750", 0, secret)
    for name in ("device.key", "device.crt", "ca.crt"):
        assert stat(image, f"/identity/{name}") == ("640", 0, secret)
    shown = subprocess.run(
        [find("debugfs") or "debugfs", "-R", "cat /config/provisioned.toml", image],
        capture_output=True,
        check=True,
    )
    assert shown.stdout == provisioned.read_bytes()


def test_the_log_flash_has_its_size_and_is_sparse(tmp_path: Path) -> None:
    image = tmp_path / "flash.img"
    disks.make_flash(image, mib=64)
    checked(image)
    assert image.stat().st_size == 64 << 20
    assert image.stat().st_blocks * 512 < 16 << 20
    ids = disks.numbers()
    assert stat(image, "/log") == ("3770", 0, ids["g", "sallyport-log"])
    assert stat(image, "/acks") == ("2750", ids["u", "sallyport-uplink"], ids["g", "sallyport-log"])


def test_a_missing_identity_is_named_and_leaves_the_old_disk(tmp_path: Path, identity: Path) -> None:
    provisioned, image = tmp_path / "site.toml", tmp_path / "data.img"
    provisioned.write_bytes(b"")
    image.write_bytes(b"old")
    (identity / "device.key").unlink()
    with pytest.raises(BuildError, match=r"device\.key: No such file"):
        disks.make_data(image, identity, provisioned)
    assert image.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.img", "identity", "site.toml"]
