"""What tests promise about a network: `must_reach`, `must_not_reach`, `eventually`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from qemu.hosts import Host, Protocol

T = TypeVar("T")
PAUSE_S = 0.1


def must_reach(
    host: Host, address: str, port: int = 0, protocol: Protocol = "tcp", *, timeout: float = 3.0
) -> None:
    """An answer comes back from (address, port)."""
    outcome = host.probe(address, port, protocol, timeout)
    if outcome != "answered":
        raise AssertionError(f"{host} must reach {_name(address, port, protocol)}, but: {outcome}")


def must_not_reach(
    host: Host, address: str, port: int = 0, protocol: Protocol = "tcp", *, timeout: float = 1.0
) -> None:
    """Nothing comes back from (address, port), not even a refusal.

    A probe that never left the host proves nothing, and fails too: give the host a route there.
    """
    must_not_reach_any(host, [(address, port, protocol)], timeout=timeout)


def must_not_reach_any(
    host: Host, targets: Sequence[tuple[str, int, Protocol]], *, timeout: float = 1.0
) -> None:
    """As `must_not_reach`, for many targets at the same time."""
    outcomes = host.probe_all(targets, timeout)
    wrong = [
        f"{_name(*target)}: {outcome}"
        for target, outcome in zip(targets, outcomes, strict=True)
        if outcome not in ("silent", "unreachable")
    ]
    if wrong:
        raise AssertionError(f"{host} must not reach {', '.join(wrong)}")


def eventually(
    look: Callable[[], T],
    *,
    within: float,
    what: str,
    done: Callable[[T], bool] = bool,
    pause: float = PAUSE_S,
) -> T:
    """Look again and again until `done(look())`, at most `within` seconds; the failure reports the last state seen.

    Errors while looking count as "not yet".
    """
    deadline = time.monotonic() + within
    while True:
        try:
            state = look()
            if done(state):
                return state
            seen = repr(state)
        except Exception as error:
            seen = f"{type(error).__name__}: {error}"
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {within:g} s; last seen: {seen}")
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))


def _name(address: str, port: int, protocol: Protocol) -> str:
    return f"{address} by ping" if protocol == "ping" else f"{protocol} {address} port {port}"
