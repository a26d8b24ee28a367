"""`python -m bench NAME [--quick] [--json]`, `python -m bench all`, `python -m bench --list`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import cast

from bench import figures
from bench.entry import Entry

NAMES = ("boot", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "all"], help="which figures")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, within 50 s (except boot)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    failed = False
    for name in NAMES if args.name == "all" else [args.name]:
        entry = cast(Entry, importlib.import_module(f"bench.{name}"))
        print(f"bench {name}: {entry.ABOUT}", file=sys.stderr, flush=True)
        measured = entry.run(quick=args.quick)
        if args.json:
            print(json.dumps(measured))
        else:
            print(figures.table(entry, measured))
        failed |= any(not entry.FIGURES[key].holds(value) for key, value in measured.items())
        if args.name == "all":
            figures.record(name, measured, quick=args.quick)
    if args.name == "all":
        figures.render({name: cast(Entry, importlib.import_module(f"bench.{name}")) for name in NAMES})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
