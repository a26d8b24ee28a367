"""Keeps measured figures in docs/figures.json and renders docs/figures.md from them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.entry import Entry, Number

DOCS = Path(__file__).resolve().parent.parent / "docs"
STORE = DOCS / "figures.json"
PAGE = DOCS / "figures.md"


def table(entry: Entry, measured: Mapping[str, Number]) -> str:
    """Markdown table of one bench."""
    rows = ["| figure | value | unit | limit | what |", "|---|---:|---|---|---|"]
    for key, value in measured.items():
        figure = entry.FIGURES[key]
        mark = "" if figure.holds(value) else " **missed**"
        rows.append(f"| `{key}` | {value:g} | {figure.unit} | {figure.limit}{mark} | {figure.what} |")
    return "\n".join(rows)


def record(name: str, measured: Mapping[str, Number], *, quick: bool) -> None:
    """Put one bench's figures into the store, with where and how they were measured."""
    store: dict[str, Any] = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    store[name] = {
        "figures": dict(measured),
        "commit": _commit(),
        "machine": _machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"python -m bench {name}{' --quick' if quick else ''} --json",
    }
    STORE.write_text(json.dumps(store, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def render(entries: Mapping[str, Entry]) -> None:
    """Write docs/figures.md."""
    store: dict[str, Any] = json.loads(STORE.read_text(encoding="utf-8"))
    parts = [
        "# Figures",
        "",
        "Rendered from `figures.json` by `make bench`; do not edit. Absolute times are those of the machine named;",
        "limits are the project's own promises.",
    ]
    for name, entry in entries.items():
        if name in store:
            kept = store[name]
            parts += ["", f"## {name}", "", entry.ABOUT, "", table(entry, kept["figures"]), ""]
            parts.append(
                f"`{kept['command']}` · {kept['date']} · commit {kept['commit']} · {kept['machine']}"
            )
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _commit() -> str:
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=DOCS, capture_output=True, text=True, check=False
    )
    return git.stdout.strip() or "unknown"


def _machine() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = platform.release().split("-")[0]
    return f"{platform.machine()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, Linux {kernel}"
