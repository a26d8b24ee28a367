"""One squashfs from a tar and folders: the later wins, owners stay, the same input gives the same bytes."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path, PurePosixPath

import pytest

from image.debian import base, squash
from image.debian.steps import BuildError, find

pytestmark = pytest.mark.skipif(not find("mksquashfs"), reason="needs squashfs-tools")


def make_base(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, mode, uid in (("./", 0o755, 0), ("./etc", 0o755, 0), ("./etc/private", 0o700, 810)):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid = tarfile.DIRTYPE, mode, uid
            tar.addfile(info)
        for name, text, uid in (("./etc/hosts", b"base", 0), ("./etc/keep", b"kept", 810)):
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mode = len(text), uid, 0o640
            tar.addfile(info, io.BytesIO(text))
        hard = tarfile.TarInfo("./etc/hard")
        hard.type, hard.linkname = tarfile.LNKTYPE, "./etc/keep"
        tar.addfile(hard)
    return path


def listing(image: Path) -> dict[str, tuple[str, str]]:
    text = subprocess.run(["unsquashfs", "-lln", image], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) >= 6:
            found[parts[5].removeprefix("squashfs-root").lstrip("/")] = (parts[0], parts[1])
    return found


def test_folders_lie_over_the_base_and_belong_to_root(tmp_path: Path) -> None:
    over = tmp_path / "over"
    (over / "etc/private").mkdir(parents=True)
    (over / "etc/hosts").write_text("ours", encoding="ascii")
    (over / "etc/private/new").write_text("new", encoding="ascii")
    (over / "etc/link").symlink_to("/dev/null")
    (over / "tool").write_text("#!/bin/sh\n", encoding="ascii")
    (over / "tool").chmod(0o700)
    image = tmp_path / "image"
    squash.write(
        image, make_base(tmp_path / "base.tar"), [(over, "."), (over / "etc", "opt/a/b")], tmp_path / "log"
    )
    files = listing(image)
    assert files[""] == ("drwxr-xr-x", "0/0")
    assert files["etc/private"] == ("drwx------", "810/0")
    assert files["etc/keep"] == files["etc/hard"] == ("-rw-r-----", "810/0")
    assert files["etc/private/new"] == files["etc/hosts"] == files["opt/a/b/hosts"] == ("-rw-r--r--", "0/0")
    assert files["tool"] == ("-rwxr-xr-x", "0/0")
    assert files["opt/a"] == ("drwxr-xr-x", "0/0")
    shown = subprocess.run(["unsquashfs", "-cat", image, "etc/hosts"], capture_output=True, check=True)
    assert shown.stdout == b"ours"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    over = tmp_path / "over"
    over.mkdir()
    (over / "a").write_text("a", encoding="ascii")
    packed = make_base(tmp_path / "base.tar")
    squash.write(tmp_path / "one", packed, [(over, ".")], tmp_path / "log")
    (over / "a").touch()
    squash.write(tmp_path / "two", packed, [(over, ".")], tmp_path / "log")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_packer_that_fails_is_reported_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="mksquashfs"):
        squash.write(tmp_path / "absent/image", make_base(tmp_path / "base.tar"), [], tmp_path / "log")


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        ("usr/share/doc", True),
        ("./usr/share/doc/bash/README", True),
        ("usr/share/docs", False),
        ("var", False),
        ("var/lib", True),
        ("var/lib/dpkg/status", True),
        ("etc/passwd-", True),
        ("etc/deep/passwd-", False),
    ],
)
def test_patterns_of_what_is_not_wanted(path: str, gone: bool) -> None:
    assert base.unwanted(PurePosixPath(path), ["usr/share/doc", "var/*", "etc/*-"]) is gone
