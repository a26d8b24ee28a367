"""Revisions: staged, confirmed, rolled back; and what a power cut or a damaged file leaves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from firmware.config import store as store_module
from firmware.config.schema import Desired
from firmware.config.store import KEEP, State, Store, StoreError


def document(name: str) -> Desired:
    return Desired(device_name=name)


def change(store: Store, name: str) -> int:
    return store.set(document(name), origin="test", now_wall_s=1)


def stage(store: Store, name: str, deadline_s: float = 100.0) -> int:
    return store.stage(document(name), origin="test", now_wall_s=1, deadline_s=deadline_s)


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "factory.toml"
    path.write_text('device_name = "factory"\n')
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "config"


@pytest.fixture
def store(folder: Path, factory: Path) -> Store:
    return Store(folder, first=(factory,))


def again(store: Store, *first: Path) -> Store:
    """What a reboot finds."""
    return Store(store.folder, first=first)


def test_an_empty_store_starts_from_the_factory_configuration(store: Store) -> None:
    assert (store.number, store.desired.device_name) == (1, "factory")
    assert store.notes == []


def test_a_provisioned_configuration_comes_before_the_factory_one(folder: Path, factory: Path) -> None:
    provisioned = factory.with_name("provisioned.toml")
    provisioned.write_text('device_name = "provisioned"\n')
    assert Store(folder, first=(provisioned, factory)).desired.device_name == "provisioned"
    provisioned.write_text('device_name = "another"\n')
    assert Store(folder, first=(provisioned, factory)).desired.device_name == "provisioned"


def test_a_wrong_provisioned_configuration_is_noted_and_the_factory_one_taken(
    folder: Path, factory: Path
) -> None:
    provisioned = factory.with_name("provisioned.toml")
    provisioned.write_text("device_name = 3\n")
    store = Store(folder, first=(provisioned, factory))
    assert store.desired.device_name == "factory"
    assert "provisioned.toml" in store.notes[0]
    assert "device_name" in store.notes[0]


def test_without_any_configuration_the_reason_is_told(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"absent\.toml"):
        Store(folder, first=(folder / "absent.toml",))


def test_a_change_survives_a_reboot(store: Store) -> None:
    """Shows: X77."""
    assert change(store, "a") == 2
    after = again(store)
    assert (after.number, after.desired) == (2, document("a"))


def test_a_staged_change_is_in_force_until_its_deadline(store: Store) -> None:
    stage(store, "trial", deadline_s=100)
    assert store.desired.device_name == "trial"
    assert store.expire(99.9) is None
    assert store.expire(100) == 2
    assert (store.number, store.desired.device_name) == (1, "factory")
    assert store.expire(200) is None


def test_a_confirmed_change_stays(store: Store) -> None:
    stage(store, "trial")
    assert store.confirm() == 2
    assert store.expire(1000) is None
    assert again(store).desired.device_name == "trial"


def test_an_unconfirmed_change_does_not_survive_a_reboot(store: Store) -> None:
    """Also twice in a row; nothing of it is lost from the history."""
    change(store, "good")
    stage(store, "trial")
    for after in (again(store), again(store)):
        assert (after.number, after.desired.device_name) == (2, "good")
    assert [(r.number, r.state) for r in after.history()] == [
        (3, State.ROLLED_BACK),
        (2, State.CONFIRMED),
        (1, State.CONFIRMED),
    ]
    assert change(after, "next") == 4


def test_one_change_at_a_time_waits(store: Store) -> None:
    stage(store, "trial")
    for again_ in (lambda: stage(store, "x"), lambda: change(store, "x")):
        with pytest.raises(StoreError, match="confirm"):
            again_()
    assert store.desired.device_name == "trial"


def test_rollback_drops_what_waits_or_goes_one_back(store: Store) -> None:
    change(store, "a")
    change(store, "b")
    stage(store, "trial")
    assert store.rollback(origin="", now_wall_s=1) == 3
    assert store.rollback(origin="", now_wall_s=1) == 5
    assert store.desired == document("a")
    assert store.rollback(origin="", now_wall_s=1, to=3) == 6
    assert again(store).desired == document("b")


def test_what_cannot_be_done_says_why_and_changes_nothing(store: Store) -> None:
    for act, words in (
        (store.confirm, "nothing waits"),
        (lambda: store.rollback(origin="", now_wall_s=1), "before 1"),
        (lambda: store.rollback(origin="", now_wall_s=1, to=7), "no revision 7"),
        (lambda: store.read(9), "no revision 9"),
    ):
        with pytest.raises(StoreError, match=words):
            act()
    assert [r.number for r in store.history()] == [1]
    assert store.number == 1


def test_old_revisions_are_forgotten_but_never_the_last_confirmed_one(store: Store) -> None:
    change(store, "good")
    for number in range(KEEP + 5):
        stage(store, f"trial {number}")
        store.expire(1e9)
    assert len(store.history()) <= KEEP + 1
    assert again(store).desired.device_name == "good"


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\0" * 300, b'{"made_s":0,"origin":"","sha256":"","desired":{}}']
)
def test_a_damaged_revision_gives_way_to_the_one_before_and_is_kept(store: Store, damage: bytes) -> None:
    change(store, "good")
    change(store, "newest")
    (store.folder / "000003.json").write_bytes(damage)
    after = again(store)
    assert (after.number, after.desired) == (2, document("good"))
    assert "revision 3 is damaged" in after.notes[0]
    assert (store.folder / "000003.damaged.json").read_bytes() == damage
    assert after.history()[0].state is State.DAMAGED
    assert change(after, "next") == 4


def test_a_flipped_bit_is_noticed(store: Store) -> None:
    change(store, "good")
    change(store, "newest")
    path = store.folder / "000003.json"
    path.write_bytes(path.read_bytes().replace(b"newest", b"newesu"))
    after = again(store)
    assert after.desired == document("good")
    assert "checksum" in after.notes[0]


def test_all_damaged_falls_back_to_the_factory_configuration(store: Store, factory: Path) -> None:
    for path in store.folder.glob("*.json"):
        path.write_bytes(b"")
    after = again(store, factory)
    assert after.desired.device_name == "factory"
    assert after.number == 2


def test_a_data_flash_that_takes_no_writes_still_gives_a_configuration(tmp_path: Path, factory: Path) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file")
    store = Store(tmp_path / "file/config", first=(factory,))
    assert store.desired.device_name == "factory"
    assert any("not stored" in note for note in store.notes)
    with pytest.raises(StoreError, match="can't be written"):
        change(store, "x")
    assert store.desired.device_name == "factory"


# Power cuts


@dataclass(frozen=True)
class Write:
    name: str
    data: bytes


@dataclass(frozen=True)
class Sync:
    name: str


@dataclass(frozen=True)
class Rename:
    old: str
    new: str


@dataclass(frozen=True)
class SyncFolder:
    pass


Operation = Write | Sync | Rename | SyncFolder


def record(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[Operation]:
    """What `act` does to files, in order, from the system calls that it makes."""
    done: list[Operation] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def on_fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            done.append(SyncFolder())
        else:
            done.extend([Write(path.name, path.read_bytes()), Sync(path.name)])
        fsync(fd)

    def on_rename(old: Path, new: Path) -> Path:
        done.append(Rename(old.name, new.name))
        return rename(old, new)

    def on_replace(old: Path, new: Path) -> Path:
        done.append(Rename(old.name, new.name))
        return replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", on_fsync)
        patch.setattr(Path, "rename", on_rename)
        patch.setattr(Path, "replace", on_replace)
        act()
    return done


def survivors(before: dict[str, bytes], done: list[Operation]) -> list[dict[str, bytes]]:
    """Every content that the folder can have after a power cut behind these operations: data that was not synced
    is there in part, in whole or not at all; renames since the folder was last synced happened or not."""
    states: list[dict[str, bytes]] = [before]
    files, unsynced, renames = dict(before), set[str](), list[Rename]()
    kept = dict(before)
    for operation in done:
        match operation:
            case Write(name, data):
                files[name] = data
                unsynced.add(name)
                states += [kept | {name: data[:size]} for size in range(0, len(data), 37)]
            case Sync(name):
                unsynced.discard(name)
                kept[name] = files[name]
            case Rename(old, new):
                assert old not in unsynced, "a file is renamed before its data is safe"
                files[new] = files.pop(old)
                renames.append(operation)
            case SyncFolder():
                kept = dict(files)
                renames.clear()
        states += [dict(kept), dict(files)]
    return states


@pytest.mark.parametrize("act", ["set", "stage", "stage and confirm", "stage and expire", "rollback"])
def test_a_power_cut_at_any_moment_leaves_the_old_or_the_new(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    change(store, "old")
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    acts: dict[str, Callable[[], object]] = {
        "set": lambda: change(store, "new"),
        "stage": lambda: stage(store, "new"),
        "stage and confirm": lambda: (stage(store, "new"), store.confirm()),
        "stage and expire": lambda: (stage(store, "new"), store.expire(1e9)),
        "rollback": lambda: store.rollback(origin="", now_wall_s=1),
    }
    done = record(monkeypatch, acts[act])
    assert any(isinstance(operation, Sync) for operation in done)
    assert isinstance(done[-1], SyncFolder), "the last rename is not safe"

    seen = set()
    for number, files in enumerate(survivors(before, done)):
        place = tmp_path / f"cut-{number}"
        place.mkdir()
        for name, data in files.items():
            (place / name).write_bytes(data)
        after = Store(place)
        seen.add(after.desired.device_name)
        assert not any("damaged" in note for note in after.notes)
        assert change(after, "next") == after.number
        shutil.rmtree(place)
    new = {"set": "new", "stage and confirm": "new", "rollback": "factory"}.get(act, "old")
    assert seen == {"old", new}


def test_the_store_writes_through_the_durable_path_only() -> None:
    """The test above sees what goes through fsync and rename; nothing may be written past them."""
    source = Path(store_module.__file__).read_text()
    assert "write_text" not in source
    assert "write_bytes" not in source
    assert "open(" not in source
