"""Prove that each line of the fragments survived Kconfig.

Kconfig drops, without a word, what lacks a dependency: a firewall option that is silently gone is found here,
not in the field.

    python -m image.kernel.check .config image/kernel/*.config
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

_SET = re.compile(r"(CONFIG_\w+)=(.+)")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")
UNSET = "n"


@dataclass(frozen=True)
class Option:
    """One line of a fragment."""

    symbol: str
    value: str
    """As written after `=`; "n" for a line "# CONFIG_X is not set"."""
    place: str
    """`file:line`."""

    def __str__(self) -> str:
        return f"# {self.symbol} is not set" if self.value == UNSET else f"{self.symbol}={self.value}"


def parse(text: str, name: str) -> list[Option]:
    """The options of a fragment or of a `.config`. Raises ValueError naming the line that is neither option,
    comment nor blank: a misspelt line must not pass as a comment."""
    options = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{name}:{number}"
        if match := _SET.fullmatch(line):
            options.append(Option(match[1], match[2], place))
        elif match := _UNSET.fullmatch(line):
            options.append(Option(match[1], UNSET, place))
        elif (line.strip() and not line.startswith("#")) or "CONFIG_" in line:
            raise ValueError(f"{place}: {line!r}; write CONFIG_X=value or '# CONFIG_X is not set'")
    return options


def lost(config: list[Option], fragments: list[Option]) -> list[str]:
    """A message for each fragment line that the built configuration doesn't hold, or that another fragment
    contradicts. A symbol that the configuration doesn't mention counts as not set."""
    built = {option.symbol: option for option in config}
    asked: dict[str, Option] = {}
    messages = []
    for option in fragments:
        first = asked.setdefault(option.symbol, option)
        if first.value != option.value:
            messages.append(f"{option.place}: {option} contradicts {first.place}: {first}")
            continue
        found = built.get(option.symbol)
        if (found.value if found else UNSET) != option.value:
            messages.append(
                f"{option.place}: {option} was lost; the configuration has {found or 'no such symbol'}"
            )
    return messages


def check(config: Path, fragments: list[Path]) -> list[str]:
    """`lost` on files. Raises OSError and ValueError."""
    wanted = [option for path in fragments for option in parse(path.read_text(encoding="utf-8"), path.name)]
    # Kconfig's own comments may hold anything; only its options count.
    lines = config.read_text(encoding="utf-8").splitlines()
    built = [line for line in lines if _SET.fullmatch(line) or _UNSET.fullmatch(line)]
    return lost(parse("\n".join(built), config.name), wanted)


def main(arguments: list[str]) -> int:
    """Exit status 0: all there; 1: lines lost, each printed; 2: wrong use."""
    if len(arguments) < 2:
        print("usage: python -m image.kernel.check CONFIG FRAGMENT...", file=sys.stderr)
        return 2
    try:
        messages = check(Path(arguments[0]), [Path(name) for name in arguments[1:]])
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for message in messages:
        print(message, file=sys.stderr)
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
