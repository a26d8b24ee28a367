"""The desired document as TOML, for people. `check.parse` reads it back to the same document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from firmware.config.schema import Desired, Section


def dump(document: Desired) -> str:
    """All keys of the top sections; of PLCs and tags only what differs from the default."""
    return "\n".join(_section(document, "", full=True)) + "\n"


def _section(section: Section, path: str, *, full: bool) -> Iterator[str]:
    tables: list[str] = []
    for info in msgspec.structs.fields(section):
        value = getattr(section, info.name)
        below = f"{path}.{info.name}" if path else info.name
        if isinstance(value, Section):
            tables += ["", f"[{below}]", *_section(value, below, full=full)]
        elif _holds_sections(info):
            for item in value:
                tables += ["", f"[[{below}]]", *_section(item, below, full=False)]
        elif full or value != _default(info):
            yield f"{info.name} = {_value(value)}"
    yield from tables


def _default(info: msgspec.structs.FieldInfo) -> Any:
    if info.default_factory is not msgspec.NODEFAULT:
        return info.default_factory()
    return info.default


def _holds_sections(info: msgspec.structs.FieldInfo) -> bool:
    """A list of tables; when empty it is not written: `plc = []` can't be followed by `[[plc]]`."""
    return any(isinstance(item, type) and issubclass(item, Section) for item in get_args(info.type))


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that JSON leaves DEL alone and TOML has no surrogate pairs.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
