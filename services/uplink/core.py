"""What the uplink decides: when to connect, what may be sent, what to send again, what time it is. Pure: no I/O and
no clock of its own; `now_s` is any monotonic clock in seconds."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from firmware.clock import Instant
from firmware.wire.messages import Ack, ClockReport, TimeReply, TimeRequest

WINDOW_BLOCKS = 128
WINDOW_BYTES = 512 * 1024
"""Sent and not yet acknowledged: as much stays in memory. A single block may be larger."""
LIVE_SHARE = 4
"""One of so many parts of the window is kept free of history."""
RESEND_S = 30.0
RESEND_MOST_S = 600.0
TIME_EVERY_S = 600.0
TIME_RETRY_S = 3.0
TIME_WAIT_S = 5.0
"""Blocks wait at most this long for the first time exchange of a connection (X37)."""
STATUS_EVERY_S = 2.0
DETAIL_EVERY_S = 10.0


class Backoff:
    """Pauses between attempts to connect: full jitter below a ceiling that doubles from 1 to 60 s."""

    def __init__(
        self, least_s: float = 1.0, most_s: float = 60.0, rand: Callable[[], float] = random.random
    ) -> None:
        self._least_s = least_s
        self._most_s = most_s
        self._ceiling_s = least_s
        self._rand = rand

    def next_s(self) -> float:
        """The pause before the next attempt."""
        pause = self._rand() * self._ceiling_s
        self._ceiling_s = min(self._ceiling_s * 2, self._most_s)
        return pause

    def reset(self) -> None:
        """A connection did its work: the next pause is short again."""
        self._ceiling_s = self._least_s


class Key(NamedTuple):
    """A block of this gateway."""

    stream: str
    boot: bytes
    seq: int


@dataclass
class Flight:
    """A block that was sent and is not yet acknowledged."""

    key: Key
    lane: str
    data: bytes
    again_s: float
    """When it is sent again."""
    wait_s: float = RESEND_S


@dataclass
class Counts:
    """Since the service started."""

    sent: int = 0
    acknowledged: int = 0
    sent_again: int = 0
    refused: int = 0


class Outbox:
    """The window of blocks in flight, and the rate of the history behind the live data."""

    def __init__(self, backfill_bytes_s: float) -> None:
        self.counts = Counts()
        self._rate = Rate(backfill_bytes_s)
        self._flights: OrderedDict[Key, Flight] = OrderedDict()
        self._bytes = 0
        self._refused: set[Key] = set()

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Key]:
        """The blocks in flight."""
        return iter(self._flights)

    def __contains__(self, key: Key) -> bool:
        """In flight, or refused by the cloud: not to be sent."""
        return key in self._flights or key in self._refused

    def set_rate(self, backfill_bytes_s: float) -> None:
        self._rate = Rate(backfill_bytes_s)

    def live_room(self) -> bool:
        return not self._flights or self._below(1.0)

    def history_room(self, now_s: float) -> bool:
        return self._rate.free(now_s) and (not self._flights or self._below(1 - 1 / LIVE_SHARE))

    def _below(self, part: float) -> bool:
        return len(self._flights) < WINDOW_BLOCKS * part and self._bytes < WINDOW_BYTES * part

    def sent(self, now_s: float, key: Key, lane: str, data: bytes, *, history: bool) -> None:
        self._flights[key] = Flight(key, lane, data, now_s + RESEND_S)
        self._bytes += len(data)
        self.counts.sent += 1
        if history:
            self._rate.spend(len(data))

    def due(self, now_s: float) -> list[Flight]:
        """Blocks to send again now; each one's next wait is twice as long."""
        due = [f for f in self._flights.values() if f.again_s <= now_s]
        for flight in due:
            flight.wait_s = min(flight.wait_s * 2, RESEND_MOST_S)
            flight.again_s = now_s + flight.wait_s
        self.counts.sent_again += len(due)
        return due

    def acknowledged(self, ack: Ack) -> list[Key]:
        """The cloud has stored these blocks. Returns those that were in flight: nothing else is believed.

        Raises ValueError on a boot that is none.
        """
        boot = bytes.fromhex(ack.boot)
        landed = [
            key
            for key in self._flights
            if (key.stream, key.boot) == (ack.stream, boot)
            and any(first <= key.seq <= last for first, last in ack.seqs)
        ]
        for key in landed:
            self._land(key)
        self.counts.acknowledged += len(landed)
        return landed

    def refused(self, key: Key) -> bool:
        """The cloud will never take this block: not sent again. False if it wasn't in flight."""
        if key not in self._flights:
            return False
        self._land(key)
        self._refused.add(key)
        self.counts.refused += 1
        return True

    def disconnected(self) -> None:
        """What was in flight is unacknowledged history again."""
        self._flights.clear()
        self._bytes = 0

    def _land(self, key: Key) -> None:
        self._bytes -= len(self._flights.pop(key).data)


class Rate:
    """At most so many bytes per second, in the long run; one second's worth may go at once."""

    def __init__(self, bytes_s: float) -> None:
        self._bytes_s = bytes_s
        self._left = bytes_s
        self._at_s: float | None = None

    def free(self, now_s: float) -> bool:
        if self._at_s is not None:
            self._left = min(self._bytes_s, self._left + (now_s - self._at_s) * self._bytes_s)
        self._at_s = now_s
        return self._left > 0

    def spend(self, size: int) -> None:
        """May run into debt, so that a block larger than a second's worth gets through too."""
        self._left -= size


@dataclass
class TimeExchange:
    """Measures the cloud's time against this boot's clock (X37), as SNTP does: RFC 5905, offset and delay."""

    boot: str
    _asked_us: int | None = None
    _next_s: float = 0.0
    _since_s: float | None = None
    measured: bool = field(default=False, init=False)
    """There was an answer on this connection."""

    def connected(self, now_s: float) -> None:
        self._asked_us = None
        self._next_s = now_s
        self._since_s = now_s
        self.measured = False

    def blocks_may_go(self, now_s: float) -> bool:
        return self.measured or (self._since_s is not None and now_s - self._since_s >= TIME_WAIT_S)

    def ask(self, now_s: float, now: Instant) -> TimeRequest | None:
        """The request that is due, if one is."""
        if now_s < self._next_s:
            return None
        self._next_s = now_s + TIME_RETRY_S
        self._asked_us = now.monotonic_us
        return TimeRequest(self.boot, now.monotonic_us)

    def answer(self, now_s: float, now: Instant, reply: TimeReply) -> ClockReport | None:
        """What was measured; None for an answer to any but the last question."""
        if reply.boot != self.boot or reply.sent_us != self._asked_us:
            return None
        self._asked_us = None
        self._next_s = now_s + TIME_EVERY_S
        self.measured = True
        middle_us = (reply.sent_us + now.monotonic_us) // 2
        boot_epoch_us = reply.cloud_epoch_us - middle_us
        return ClockReport(
            self.boot,
            middle_us,
            boot_epoch_us,
            (now.monotonic_us - reply.sent_us + 1) // 2,
            now.wall_offset_us - boot_epoch_us,
        )


class StatusPace:
    """When to send the status: what matters within 2 s, mere numbers every 10 s, nothing when nothing changed."""

    def __init__(self) -> None:
        self._sent: tuple[object, object] | None = None
        self._at_s = 0.0

    def connected(self) -> None:
        self._sent = None

    def due(self, now_s: float, important: object, all_of_it: object) -> bool:
        """Notes it as sent when it is due."""
        if self._sent is not None:
            if self._sent == (important, all_of_it):
                return False
            wait_s = DETAIL_EVERY_S if self._sent[0] == important else STATUS_EVERY_S
            if now_s - self._at_s < wait_s:
                return False
        self._sent = important, all_of_it
        self._at_s = now_s
        return True
