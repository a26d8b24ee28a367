"""Revisions of the desired document in one folder. A revision's state is in its file's name:

000007.json              confirmed; the highest of these is in force
000008.staged.json       in force until its deadline, unless confirmed
000006.rolled-back.json  was staged, never confirmed
000005.damaged.json      could not be read; kept for a look, never in force

Confirming is one rename, so a power cut leaves the old or the new state and nothing between. A staged
revision is worth nothing to a new `Store`: after a restart or a reboot the last confirmed one is in force.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from enum import StrEnum
from pathlib import Path

import msgspec

from firmware.config import check
from firmware.config.schema import Desired
from firmware.status import sync_folder, write_atomic

KEEP = 20

_NAME = re.compile(r"(\d{6,})(?:\.(staged|rolled-back|damaged))?\.json\Z")


class State(StrEnum):
    CONFIRMED = "confirmed"
    STAGED = "staged"
    ROLLED_BACK = "rolled-back"
    DAMAGED = "damaged"


class StoreError(Exception):
    """What was asked can't be done; nothing has changed. The text says why and what helps."""


class Revision(msgspec.Struct, frozen=True):
    number: int
    state: State
    made_s: int
    """Wall clock when it was made, seconds since 1970; may be wrong on a gateway without a clock."""
    origin: str
    """Where it comes from, for people: "set by root", "rollback to 4"."""


class _File(msgspec.Struct, frozen=True):
    """What is in a file. The sum tells a damaged file from a good one."""

    made_s: int
    origin: str
    sha256: str
    desired: msgspec.Raw


class Store:
    """The only writer of its folder. Times are seconds of a monotonic clock that the caller reads."""

    def __init__(self, folder: Path, *, first: tuple[Path, ...] = (), now_wall_s: int = 0) -> None:
        """Opens the store and rolls back what was left staged. An empty store takes the first good one of
        the files `first` (TOML) as its first revision. Raises StoreError if no revision can be had."""
        self.folder = folder
        self.notes: list[str] = []
        """What was out of order when the store was opened, for the status and the log."""
        self.deadline_s: float | None = None
        """When the staged revision is rolled back; None if none is staged."""
        self._tidy()
        for number, state in sorted(self._states().items()):
            if state is State.STAGED:
                self._mark(number, State.STAGED, State.ROLLED_BACK)
                self.notes.append(
                    f"revision {number} was not confirmed before the restart and is rolled back"
                )
        self.number, self.desired = self._last_confirmed() or self._first(first, now_wall_s)
        """The revision in force."""
        self._before = (self.number, self.desired)

    # What is asked

    def read(self, number: int) -> Desired:
        """Raises StoreError if there is no such revision or it can't be read."""
        state = self._states().get(number)
        if state is None:
            raise StoreError(f"there is no revision {number}; see `sallyport config history`")
        try:
            return self._read(self._path(number, state))
        except (OSError, ValueError) as error:
            raise StoreError(f"revision {number} can't be read: {error}") from error

    def history(self) -> list[Revision]:
        """Newest first."""
        found = []
        for number, state in sorted(self._states().items(), reverse=True):
            try:
                file = msgspec.json.decode(self._path(number, state).read_bytes(), type=_File)
                found.append(Revision(number, state, file.made_s, file.origin))
            except (OSError, ValueError):
                found.append(Revision(number, State.DAMAGED, 0, "can't be read"))
        return found

    # What changes it

    def set(self, desired: Desired, *, origin: str, now_wall_s: int) -> int:
        """A new revision, confirmed and in force at once. Returns its number."""
        return self._put(desired, State.CONFIRMED, origin, now_wall_s)

    def stage(self, desired: Desired, *, origin: str, now_wall_s: int, deadline_s: float) -> int:
        """A new revision in force until the deadline, unless confirmed before. Returns its number."""
        before = (self.number, self.desired)
        number = self._put(desired, State.STAGED, origin, now_wall_s)
        self._before, self.deadline_s = before, deadline_s
        return number

    def confirm(self) -> int:
        """Keep the staged revision. Returns its number."""
        if self.deadline_s is None:
            raise StoreError("nothing waits to be confirmed; if a change was made, its time was up")
        try:
            self._move(self.number, State.STAGED, State.CONFIRMED)
        except OSError as error:
            raise StoreError(f"revision {self.number} can't be confirmed: {error}; try again") from error
        self.deadline_s = None
        self._forget_old()
        return self.number

    def rollback(self, *, origin: str, now_wall_s: int, to: int | None = None) -> int:
        """Drops the staged revision. Without one: the content of revision `to`, by default of the one
        confirmed before, becomes a new revision. Returns the number that is in force then."""
        wanted = None if to is None else self.read(to)  # before anything is dropped
        if self.deadline_s is not None:
            self._unstage()
            if to is None:
                return self.number
        if to is None:
            older = [n for n, state in self._states().items() if state is State.CONFIRMED and n < self.number]
            if not older:
                raise StoreError(f"there is no confirmed revision before {self.number}")
            to = max(older)
        wanted = wanted or self.read(to)
        return self.set(wanted, origin=f"rollback to {to} {origin}".strip(), now_wall_s=now_wall_s)

    def expire(self, now_s: float) -> int | None:
        """Rolls the staged revision back if its time is up; returns its number then."""
        if self.deadline_s is None or now_s < self.deadline_s:
            return None
        number = self.number
        self._unstage()
        return number

    # How

    def _put(self, desired: Desired, state: State, origin: str, now_wall_s: int) -> int:
        if self.deadline_s is not None:
            raise StoreError(
                f"revision {self.number} still waits to be confirmed; first `sallyport config confirm` it or "
                "`sallyport config rollback`"
            )
        number = max(self._states(), default=0) + 1
        body = msgspec.json.encode(desired)
        file = _File(now_wall_s, origin, hashlib.sha256(body).hexdigest(), msgspec.Raw(body))
        try:
            write_atomic(self._path(number, state), msgspec.json.encode(file), mode=0o600, durable=True)
        except OSError as error:
            raise StoreError(f"revision {number} can't be written: {error}") from error
        self.number, self.desired = number, desired
        if state is State.CONFIRMED:
            self._forget_old()
        return number

    def _unstage(self) -> None:
        staged, self.deadline_s = self.number, None
        self.number, self.desired = self._before
        self._mark(staged, State.STAGED, State.ROLLED_BACK)
        self._forget_old()

    def _mark(self, number: int, old: State, new: State) -> None:
        """A mark that can't be written is only noted: the next start comes to the same result without it."""
        try:
            self._move(number, old, new)
        except OSError as error:
            self.notes.append(f"revision {number} can't be marked {new}: {error}")

    def _tidy(self) -> None:
        """A gateway whose data flash can't be written any more still gets its configuration."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.new"):  # a write that a power cut ended
                left.unlink()
        except OSError as error:
            self.notes.append(f"{self.folder} can't be written: {error}")

    def _last_confirmed(self) -> tuple[int, Desired] | None:
        for number, state in sorted(self._states().items(), reverse=True):
            if state is State.CONFIRMED:
                try:
                    return number, self._read(self._path(number, state))
                except (OSError, ValueError) as error:
                    self.notes.append(f"revision {number} is damaged ({error}); the one before is taken")
                    self._mark(number, State.CONFIRMED, State.DAMAGED)
        return None

    def _first(self, sources: tuple[Path, ...], now_wall_s: int) -> tuple[int, Desired]:
        for source in sources:
            try:
                desired = check.parse(source.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, check.ConfigError) as error:
                self.notes.append(f"{source} can't be used: {error}")
                continue
            try:
                return self._put(desired, State.CONFIRMED, f"from {source.name}", now_wall_s), desired
            except StoreError as error:
                self.notes.append(f"{source.name} is in force, but not stored: {error}")
                return 0, desired
        raise StoreError(
            f"no configuration to start from: {'; '.join(self.notes) or 'no file'} "
            f"(looked at {', '.join(map(str, sources))})"
        )

    def _read(self, path: Path) -> Desired:
        """Raises OSError or ValueError."""
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        if hashlib.sha256(bytes(file.desired)).hexdigest() != file.sha256:
            raise ValueError(f"{path.name}: the checksum is wrong")
        return check.parse(bytes(file.desired))

    def _states(self) -> dict[int, State]:
        return {
            int(match[1]): State(match[2] or "confirmed")
            for path in self.folder.glob("*.json")
            if (match := _NAME.match(path.name))
        }

    def _path(self, number: int, state: State) -> Path:
        return self.folder / f"{number:06}{'' if state is State.CONFIRMED else f'.{state}'}.json"

    def _move(self, number: int, old: State, new: State) -> None:
        self._path(number, old).rename(self._path(number, new))
        sync_folder(self.folder)

    def _forget_old(self) -> None:
        """Drops the oldest beyond `KEEP`; never the one in force nor the last confirmed one."""
        states = self._states()
        confirmed = max((n for n, s in states.items() if s is State.CONFIRMED), default=0)
        for number in sorted(states)[:-KEEP]:
            if number not in (self.number, confirmed):
                with contextlib.suppress(OSError):
                    self._path(number, states[number]).unlink()
