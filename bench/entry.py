"""What one bench looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

Number = int | float


class Figure(NamedTuple):
    """One number that a bench reports."""

    what: str
    unit: str
    at_most: Number | None = None
    at_least: Number | None = None

    def holds(self, value: Number) -> bool:
        """Whether a value keeps to the limits; without limits any does."""
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    @property
    def limit(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else ""


class Entry(Protocol):
    """A module of this room."""

    ABOUT: str
    """One sentence: what is measured, and how."""
    FIGURES: Mapping[str, Figure]

    @staticmethod
    def run(*, quick: bool) -> dict[str, Number]:
        """Measure; the keys are those of FIGURES."""
        ...
