"""What the configuration service and its clients say to each other: one JSON line each way, then the end.

A newer side may add fields; the older one ignores them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from firmware.config.check import MAX_BYTES, Problem
from firmware.config.store import Revision

MAX_LINE = 8 * MAX_BYTES
"""Bytes; a document grows when it is escaped."""

ConfirmWithin = Annotated[int, Meta(ge=1, le=3600)]
"""Seconds until an unconfirmed change is rolled back."""


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    op: Literal["show", "check", "set", "confirm", "rollback", "history"]
    text: str = ""
    """check, set: the document."""
    confirm_within_s: ConfirmWithin | None = None
    """set: None is in force for good at once."""
    revision: int | None = None
    """show, rollback: None is the one in force, or the one before it."""
    origin: Annotated[str, Meta(max_length=80)] = ""
    """set, rollback: who asks, for the history."""


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    ok: bool
    message: str = ""
    """One line for a person."""
    problems: list[Problem] = []
    """check, set: why a document is refused."""
    revision: int = 0
    """The one in force, or shown."""
    desired: dict[str, Any] | None = None
    """show: the document."""
    history: list[Revision] = []
    """history: newest first."""
