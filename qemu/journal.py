"""The guest's journal, as it arrives over virtio-serial: JSON lines in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAUSE_S = 0.05


@dataclass(frozen=True)
class Entry:
    """One journal entry. Fields: systemd.journal-fields(7)."""

    fields: dict[str, Any]

    @property
    def message(self) -> str:
        text = self.fields.get("MESSAGE", "")
        # journalctl writes what is not UTF-8 as an array of bytes.
        return bytes(text).decode(errors="replace") if isinstance(text, list) else str(text or "")

    @property
    def unit(self) -> str:
        return str(self.fields.get("_SYSTEMD_UNIT") or self.fields.get("UNIT") or "")

    @property
    def source(self) -> str:
        return str(self.fields.get("SYSLOG_IDENTIFIER") or self.unit or "kernel")

    @property
    def monotonic_s(self) -> float:
        """Seconds since this boot, by the sender's clock: the journal reads the kernel's first lines late."""
        fields = self.fields
        return (
            int(fields.get("_SOURCE_MONOTONIC_TIMESTAMP") or fields.get("__MONOTONIC_TIMESTAMP") or 0) / 1e6
        )

    @property
    def priority(self) -> int:
        """0 emergency .. 3 error, 4 warning, 6 information, 7 debug."""
        return int(self.fields.get("PRIORITY", 6))

    def __str__(self) -> str:
        return f"[{self.monotonic_s:9.3f}] {self.source}: {self.message}"


class Journal:
    """Follows one file. Every call first takes in what has arrived since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._entries: list[Entry] = []

    def entries(self) -> list[Entry]:
        """Everything so far."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return self._entries
        complete = data.rfind(b"\n") + 1
        self._offset += complete
        for line in data[:complete].splitlines():
            try:
                fields = json.loads(line)
            except ValueError:
                continue  # torn by a reset of the machine
            if isinstance(fields, dict):
                self._entries.append(Entry(fields))
        return self._entries

    def wait_for(self, matches: Callable[[Entry], bool] | str, timeout: float, *, after: int = 0) -> Entry:
        """The first entry that matches: a predicate, or a text that its message contains.

        `after`: skip that many entries (`len(journal.entries())` before the deed). Raises `TimeoutError`.
        """
        predicate = matches if callable(matches) else lambda entry: matches in entry.message
        deadline = time.monotonic() + timeout
        seen = after
        while True:
            entries = self.entries()
            for entry in entries[seen:]:
                if predicate(entry):
                    return entry
            seen = max(seen, len(entries))
            if time.monotonic() > deadline:
                last = "\n".join(f"  {entry}" for entry in entries[-10:]) or "  nothing"
                wanted = matches if isinstance(matches, str) else "what was waited for"
                raise TimeoutError(
                    f"the journal did not show {wanted!r} within {timeout:g} s. Its end:\n{last}"
                )
            time.sleep(PAUSE_S)

    def text(self, start: int = 0) -> str:
        """Readable lines from entry number `start` on, without our own questions to the guest agent."""
        return "".join(f"{entry}\n" for entry in self.entries()[start:] if entry.source != "qemu-ga")
