"""What the configuration service does with a request. No sockets and no clocks here."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import msgspec

from firmware.clock import Instant
from firmware.config import check
from firmware.config.protocol import Reply, Request
from firmware.config.schema import Desired
from firmware.config.store import Store, StoreError
from firmware.status import State


class Service:
    """`publish` puts a document in force; it is called at the start and after every change."""

    def __init__(self, store: Store, publish: Callable[[Desired], None]) -> None:
        self._store = store
        self._publish = publish
        self._publish(store.desired)

    def seconds_left(self, now: Instant) -> float | None:
        """Until the staged revision is rolled back; None if none is staged."""
        deadline = self._store.deadline_s
        return None if deadline is None else max(0.0, deadline - now.monotonic_us / 1e6)

    def tick(self, now: Instant) -> None:
        """To be called when `seconds_left` is over."""
        expired = self._store.expire(now.monotonic_us / 1e6)
        if expired is not None:
            self._store.notes.append(
                f"revision {expired} was not confirmed in time; {self._store.number} is in force again"
            )
            self._publish(self._store.desired)

    def status(self) -> tuple[State, str, dict[str, object]]:
        """State, summary and detail of the observed document."""
        store = self._store
        staged = store.deadline_s is not None
        summary = f"revision {store.number} in force"
        if staged:
            summary += ", not confirmed yet: it is rolled back when its time is up"
        summary = "; ".join([summary, *store.notes])
        detail: dict[str, object] = {"revision": store.number, "staged": staged, "notes": list(store.notes)}
        return State.DEGRADED if store.notes else State.OK, summary, detail

    def handle(self, request: Request, now: Instant) -> Reply:
        try:
            return self._answer(request, now)
        except check.ConfigError as error:
            return Reply(ok=False, message="refused, nothing is changed", problems=error.problems)
        except StoreError as error:
            return Reply(ok=False, message=str(error))

    def _answer(self, request: Request, now: Instant) -> Reply:
        store = self._store
        match request.op:
            case "show":
                number = store.number if request.revision is None else request.revision
                desired = store.desired if number == store.number else store.read(number)
                return Reply(ok=True, revision=number, desired=msgspec.to_builtins(desired))
            case "check":
                check.parse(request.text)
                return Reply(ok=True, message="the document is right")
            case "history":
                return Reply(ok=True, revision=store.number, history=store.history())
            case "set":
                return self._set(check.parse(request.text), request, now)
            case "confirm":
                return Reply(
                    ok=True, revision=store.confirm(), message=f"revision {store.number} is confirmed"
                )
            case "rollback":
                try:
                    number = store.rollback(
                        origin=f"by {request.origin}", now_wall_s=_wall_s(now), to=request.revision
                    )
                finally:  # also when only the staged one could be dropped
                    self._publish(store.desired)
                return Reply(ok=True, revision=number, message=f"revision {number} is in force")
            case _:
                assert_never(request.op)

    def _set(self, desired: Desired, request: Request, now: Instant) -> Reply:
        store, before = self._store, self._store.number
        if desired == store.desired and store.deadline_s is None:
            return Reply(ok=True, revision=before, message=f"revision {before} says this already")
        origin = f"set by {request.origin}"
        if request.confirm_within_s is None:
            number = store.set(desired, origin=origin, now_wall_s=_wall_s(now))
            message = f"revision {number} is in force"
        else:
            deadline_s = now.monotonic_us / 1e6 + request.confirm_within_s
            number = store.stage(desired, origin=origin, now_wall_s=_wall_s(now), deadline_s=deadline_s)
            message = (
                f"revision {number} is in force for {request.confirm_within_s} s; keep it with "
                f"`sallyport config confirm`, else revision {before} comes back"
            )
        store.notes.clear()
        self._publish(desired)
        return Reply(ok=True, revision=number, message=message)


def _wall_s(now: Instant) -> int:
    return now.wall_us // 1_000_000
