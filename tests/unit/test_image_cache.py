"""The image builder's layers: built once, never half, never for other inputs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from image.debian.cache import KEEP, Cache, digest, facts


def writer(text: str, calls: list[str]) -> Any:
    def build(out: Path) -> dict[str, Any]:
        calls.append(text)
        (out / "content").write_text(text, encoding="utf-8")
        return {"text": text}

    return build


def test_a_layer_is_built_once_per_key(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), list[str]()
    first = cache.layer("base", digest("a"), writer("a", calls))
    again = cache.layer("base", digest("a"), writer("b", calls))
    other = cache.layer("base", digest("c"), writer("c", calls))
    assert first == again != other
    assert calls == ["a", "c"]
    assert (first / "content").read_text(encoding="utf-8") == "a"
    assert facts(other) == {"text": "c"}


def test_refresh_builds_anew_in_place(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), list[str]()
    cache.layer("base", digest("a"), writer("old", calls))
    path = cache.layer("base", digest("a"), writer("new", calls), refresh=True)
    assert (path / "content").read_text(encoding="utf-8") == "new"


def test_a_broken_build_leaves_no_layer_and_keeps_the_old_one(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), list[str]()

    def broken(out: Path) -> dict[str, Any]:
        (out / "content").write_text("half", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.layer("base", digest("a"), broken)
    path = cache.layer("base", digest("a"), writer("whole", calls))
    with pytest.raises(OSError, match="disk full"):
        cache.layer("base", digest("a"), broken, refresh=True)
    assert (path / "content").read_text(encoding="utf-8") == "whole"


def test_two_builds_at_once_share_one_run(tmp_path: Path) -> None:
    calls: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def slow(out: Path) -> dict[str, Any]:
        calls.append("slow")
        inside.set()
        assert go_on.wait(10)
        return {}

    one = threading.Thread(target=lambda: Cache(tmp_path).layer("base", "k", slow))
    two = threading.Thread(target=lambda: Cache(tmp_path).layer("base", "k", writer("second", calls)))
    one.start()
    assert inside.wait(10)
    two.start()
    two.join(0.2)
    assert two.is_alive(), "the second build did not wait for the first"
    go_on.set()
    one.join(10)
    two.join(10)
    assert calls == ["slow"]


def test_old_layers_are_forgotten(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), list[str]()
    for number in range(KEEP + 2):
        cache.layer("base", digest(str(number)), writer(str(number), calls))
    assert len(list((tmp_path / "base").iterdir())) == KEEP


def test_a_digest_sees_content_names_links_and_modes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "a"
    file.write_text("x", encoding="utf-8")
    seen = [digest(folder)]
    file.write_text("y", encoding="utf-8")
    seen.append(digest(folder))
    file.rename(folder / "b")
    seen.append(digest(folder))
    (folder / "b").chmod(0o755)
    seen.append(digest(folder))
    (folder / "link").symlink_to("b")
    seen.append(digest(folder))
    (folder / "empty").mkdir()
    seen.append(digest(folder))
    assert len(set(seen)) == len(seen)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/b.pyc").write_bytes(b"")
    assert digest(folder) == seen[-1]
    assert digest("ab", "c") != digest("a", "bc")
