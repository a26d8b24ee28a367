"""Text of a person or of a peer -> the desired document, or every error in it.

An error names the key, the value and the remedy: `plc[0].tags[2].type: "int12" is not allowed; did you mean
"int16"?`. Nothing but `ConfigError` is ever raised.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import msgspec

from firmware.config.schema import SCHEMA_VERSION, Cloud, Desired, Lan, Plc, Section, Tag, Wan

MAX_BYTES = 1024 * 1024
MAX_PROBLEMS = 100
MAX_LINE = 2000
"""Characters in a line of TOML."""
MAX_DOTS = 100
"""Dots in a line of TOML: the parts of a key cost tomllib time that grows with their square."""

REGISTERS = {"int32": 2, "uint32": 2, "float32": 2, "int64": 4, "uint64": 4, "float64": 4}
"""Modbus registers of one value, where it is not 1."""

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?\Z")


class Problem(msgspec.Struct, frozen=True):
    key: str
    """Path of the key, as `plc[0].tags[2].type`; empty when the whole text is meant."""
    message: str
    """What is wrong with which value, and what helps."""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class ConfigError(ValueError):
    """The document is refused; `problems` holds every reason (at least one)."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def parse(text: str | bytes) -> Desired:
    """Read and check a document in TOML, or in JSON if it starts with `{`. Raises ConfigError."""
    checker = _Checker()
    raw = _load(text)
    with contextlib.suppress(_TooMany):
        checker.struct(Desired, raw, "")
        checker.whole_document()
    if checker.problems:
        raise ConfigError(checker.problems)
    document: Desired = checker.built[""]
    return document


# Text -> plain data


def _refuse(message: str) -> NoReturn:
    raise ConfigError([Problem("", message)])


def _load(text: str | bytes) -> Any:
    if len(text) > MAX_BYTES:
        _refuse(f"the document has {len(text)} bytes; the most is {MAX_BYTES}")
    if isinstance(text, bytes):
        text = _decode(text)
    try:
        return _load_json(text) if text.lstrip().startswith("{") else _load_toml(text)
    except RecursionError:
        _refuse("the document is nested too deeply; tables and lists go four deep at most")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        _refuse(
            f"line {line}, column {column}: byte 0x{data[error.start]:02x} is not UTF-8; "
            "save the file with encoding UTF-8"
        )


def _load_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                _refuse(f"key {_show(key)} is there twice in one table; keep one")
            table[key] = value
        return table

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        _refuse(f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}")
    except ConfigError:
        raise
    except ValueError:
        _refuse("a number has too many digits")


def _load_toml(text: str) -> Any:
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            _refuse(f"line {number} has {len(line)} characters; the most is {MAX_LINE}: break it up")
        if line.count(".") > MAX_DOTS:
            _refuse(f"line {number} has {line.count('.')} dots; the most is {MAX_DOTS}: break it up")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = re.search(r"\(at (?:line (\d+), column (\d+)|end of document)\)\Z", message)
        reason = message[: place.start()].strip() if place else message
        if place and place[1]:
            _refuse(f"line {place[1]}, column {place[2]}: not valid TOML: {reason}")
        _refuse(f"line {text.count(chr(10)) + 1}: not valid TOML, the document ends too early: {reason}")
    except RecursionError:
        raise
    except (ValueError, OverflowError) as error:  # a date that does not exist, an endless number
        _refuse(f"not valid TOML: {error}")


# Plain data -> document


class _TooMany(Exception):  # noqa: N818  no error of its own, only the way out
    pass


class _Checker:
    """Builds every part that is right by itself, and collects what is wrong."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.built: dict[str, Any] = {}
        """Every section that is right, by its path."""

    def wrong(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))
        if len(self.problems) == MAX_PROBLEMS:
            self.problems.append(Problem("", f"... and perhaps more; only the first {MAX_PROBLEMS} are told"))
            raise _TooMany

    def struct(self, cls: type[Section], raw: Any, path: str) -> bool:
        """Whether `raw` is right; the object is in `built` then."""
        if not isinstance(raw, dict):
            self.wrong(path, f"{_show(raw)} is not a table")
            return False
        before = len(self.problems)
        hints, fields = _shape(cls)
        for key in raw:
            if key not in hints:
                self.wrong(_join(path, key), f"unknown key; {_nearest(key, hints, 'known here')}")
        values = {}
        for info in fields:
            at = _join(path, info.name)
            if info.name in raw:
                if self.value(hints[info.name], raw[info.name], at):
                    values[info.name] = self.built.get(at, raw[info.name])
            elif info.required:
                self.wrong(at, f"missing; add {info.name} = {_expected(hints[info.name])}")
            elif isinstance(hints[info.name], type) and issubclass(hints[info.name], Section):
                self.built[at] = hints[info.name]()
        if len(self.problems) > before:
            return False
        self.built[path] = built = msgspec.convert(values, cls, from_attributes=True)
        for key, message in _RULES.get(cls, _no_rules)(built):
            self.wrong(f"{path}.{key}" if path else key, message)
        return len(self.problems) == before

    def value(self, hint: Any, raw: Any, path: str) -> bool:
        if isinstance(hint, type) and issubclass(hint, Section):
            return self.struct(hint, raw, path)
        if get_origin(hint) is list:
            if not isinstance(raw, list):
                self.wrong(path, f"{_show(raw)} is not a list; use [ ... ]")
                return False
            (item,) = get_args(hint)
            right = [self.value(item, one, f"{path}[{index}]") for index, one in enumerate(raw)]
            if all(right):
                self.built[path] = [self.built.get(f"{path}[{i}]", one) for i, one in enumerate(raw)]
            return all(right)
        if path == "schema" and type(raw) is int and raw > SCHEMA_VERSION:
            self.wrong(
                path, f"{_show(raw)} is newer than this gateway's {SCHEMA_VERSION}; update the gateway"
            )
            return False
        reason = _leaf_error(hint, raw)
        if reason:
            self.wrong(path, f"{_show(raw)} {reason}")
        return not reason

    def whole_document(self) -> None:
        """What two sections must agree on, for those that are right by themselves."""
        wan: Any = self.built.get("wan")
        lan: Any = self.built.get("lan")
        cloud: Any = self.built.get("cloud")
        machine = _interface(lan.address) if lan else None
        static = wan and wan.mode == "static"
        company = _interface(wan.address) if static else None
        if machine and company and machine.network.overlaps(company.network):
            self.wrong(
                "lan.address",
                f'"{machine}" overlaps the company side, wan.address "{company}"; give one of them '
                "another network",
            )
        by_name = cloud and cloud.enabled and not _is_address(cloud.host)
        if by_name and static and not wan.dns:
            self.wrong("wan.dns", f"empty, so {_show(cloud.host)} can't be found; name a DNS server")
        plcs = {path: plc for path, plc in self.built.items() if isinstance(plc, Plc)}
        for path, plc in plcs.items():
            self.plc_host(f"{path}.host", plc.host, machine)
        self.unique("name", plcs)
        tags: dict[str, dict[str, Tag]] = {}
        for path, tag in self.built.items():
            if isinstance(tag, Tag):
                tags.setdefault(path.partition(".")[0], {})[path] = tag
        for tags_of_one_plc in tags.values():
            self.unique("name", tags_of_one_plc)

    def plc_host(self, path: str, host: str, machine: ipaddress.IPv4Interface | None) -> None:
        if not _is_address(host) or machine is None:
            return
        address = ipaddress.ip_address(host)
        if address not in machine.network:
            self.wrong(
                path,
                f"{_show(host)} is not in the machine network {machine.network} (lan.address), "
                "so the gateway can't reach it; correct one of the two",
            )
        elif address == machine.ip:
            self.wrong(path, f"{_show(host)} is the gateway itself (lan.address); name the PLC's address")
        elif address in (machine.network.network_address, machine.network.broadcast_address):
            self.wrong(path, f"{_show(host)} is no host address of {machine.network}; name the PLC's address")

    def unique(self, key: str, sections: Mapping[str, Section]) -> None:
        seen: dict[str, str] = {}
        for path, section in sections.items():
            value = getattr(section, key)
            if value in seen:
                self.wrong(f"{path}.{key}", f"{_show(value)} is also at {seen[value]}; names must differ")
            else:
                seen[value] = f"{path}.{key}"


@cache
def _shape(cls: type[Section]) -> tuple[dict[str, Any], tuple[msgspec.structs.FieldInfo, ...]]:
    """Types and fields of a section by name."""
    return get_type_hints(cls, include_extras=True), msgspec.structs.fields(cls)


def _leaf_error(hint: Any, raw: Any) -> str:
    """Why a single value is refused, empty if it is right."""
    try:
        value = msgspec.convert(raw, hint)
    except (msgspec.ValidationError, OverflowError):
        allowed = get_args(hint) if get_origin(hint) is Literal else ()
        if isinstance(raw, str) and allowed:
            return f"is not allowed; {_nearest(raw, map(str, allowed), 'use one of')}"
        return f"is not allowed; use {_expected(hint)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a number; use a finite one"
    if isinstance(value, str) and not value.isprintable():
        return "has characters that can't be printed; remove them"
    return ""


def _expected(hint: Any) -> str:
    """What a value of this type looks like, for a person."""
    words = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(json.dumps(value) for value in sorted(get_args(hint)))
    if not hasattr(hint, "__metadata__"):
        return words.get(hint, "a table" if isinstance(hint, type) else "a list")
    kind = words[hint.__origin__]
    note = next((m.description for m in hint.__metadata__ if m.description), "")
    return f"{kind}: {note}" if note else kind


def _nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word[:100], known, n=1)
    allowed = f"{otherwise} {', '.join(known)}"
    return f'did you mean "{close[0]}"? {allowed[0].upper()}{allowed[1:]}' if close else allowed


def _show(value: Any) -> str:
    """A value for a message: as it was written, and short."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a very long number"
    text = json.dumps(value) if isinstance(value, bool | str | None) else str(value)
    return text if len(text) <= 80 else f"{text[:70]}... ({len(text)} characters)"


def _join(path: str, key: str) -> str:
    plain = key if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) else _show(key)
    return f"{path}.{plain}" if path else plain


# Rules of one section: (key, message) for each thing wrong


Rule = Iterator[tuple[str, str]]


def _no_rules(_section: Any) -> Rule:
    return iter(())


def _cloud_rules(cloud: Cloud) -> Rule:
    if not _is_host(cloud.host):
        yield "host", f"{_show(cloud.host)} is neither a host name nor an IP address"
    elif cloud.enabled and cloud.host == Cloud().host:
        yield "host", f"{_show(cloud.host)} is only a placeholder; name your cloud's MQTT broker"


def _wan_rules(wan: Wan) -> Rule:
    for index, server in enumerate(wan.dns):
        if not _is_address(server):
            yield f"dns[{index}]", f'{_show(server)} is not an IP address; use one, as "10.10.0.1"'
    if wan.mode == "dhcp":
        for key in ("address", "gateway"):
            if getattr(wan, key):
                yield (
                    key,
                    f'{_show(getattr(wan, key))} has no meaning with DHCP; remove it, or set mode = "static"',
                )
        return
    address = _interface(wan.address)
    if not address:
        yield "address", _bad_interface(wan.address, "10.10.0.50/24")
    else:
        yield from (("address", message) for message in _unusable(address))
    if not _is_ipv4(wan.gateway):
        yield "gateway", f'{_show(wan.gateway)} is not an IPv4 address; static needs one, as "10.10.0.1"'
    elif address:
        gateway = ipaddress.IPv4Address(wan.gateway)
        if gateway not in address.network:
            yield (
                "gateway",
                f"{_show(wan.gateway)} is not in {address.network}, the network of wan.address; "
                "correct one of the two",
            )
        elif gateway == address.ip:
            yield (
                "gateway",
                f"{_show(wan.gateway)} is the address of this gateway itself; name the company's router",
            )


def _lan_rules(lan: Lan) -> Rule:
    address = _interface(lan.address)
    if not address:
        yield "address", _bad_interface(lan.address, "192.168.10.1/24")
    else:
        yield from (("address", message) for message in _unusable(address))


def _plc_rules(plc: Plc) -> Rule:
    if not _is_host(plc.host):
        yield "host", f"{_show(plc.host)} is neither an IP address nor a host name"
    for index, tag in enumerate(plc.tags):
        if tag.table in ("holding", "input") and registers(tag) > plc.max_registers:
            yield (
                f"tags[{index}].type",
                f"one value takes {registers(tag)} registers, and max_registers allows "
                f"{plc.max_registers} a request; raise max_registers",
            )


def _tag_rules(tag: Tag) -> Rule:
    bits = tag.table in ("coil", "discrete")
    if bits and tag.type != "bool":
        yield "type", f'{_show(tag.type)} does not fit table "{tag.table}" of single bits; use type = "bool"'
    if tag.type != "string" and tag.length != 1:
        yield "length", f'{tag.length} has no meaning for type "{tag.type}"; only strings have one: remove it'
    if tag.type in ("bool", "string"):
        for key, neutral in (("scale", 1.0), ("offset", 0.0), ("deadband", 0.0)):
            if getattr(tag, key) != neutral:
                yield key, f'{getattr(tag, key)} has no meaning for type "{tag.type}"; remove it'
    if tag.scale == 0:
        yield "scale", "0 would make every value the same; use another number"
    if 0 < tag.interval_ms < 50:
        yield "interval_ms", f"{tag.interval_ms} is too short; use 0 (the device's) or 50 to 86400000 ms"
    if not bits and tag.address + registers(tag) > 65536:
        yield (
            "address",
            f"{tag.address} and the {registers(tag)} registers of the value end beyond 65535; "
            "use a lower address",
        )


_RULES: dict[type[Section], Callable[[Any], Rule]] = {
    Cloud: _cloud_rules,
    Wan: _wan_rules,
    Lan: _lan_rules,
    Plc: _plc_rules,
    Tag: _tag_rules,
}


def registers(tag: Tag) -> int:
    """How many registers one value takes."""
    return tag.length if tag.type == "string" else REGISTERS.get(tag.type, 1)


# Addresses


def _interface(text: str) -> ipaddress.IPv4Interface | None:
    """Address with prefix, as 10.10.0.50/24; the prefix must be written, as a number."""
    try:
        return ipaddress.IPv4Interface(text) if re.search(r"/[0-9]{1,2}\Z", text) else None
    except ValueError:
        return None


def _bad_interface(text: str, example: str) -> str:
    return f'{_show(text)} is not an IPv4 address with prefix; use one, as "{example}"'


def _unusable(address: ipaddress.IPv4Interface) -> Iterator[str]:
    if not 1 <= address.network.prefixlen <= 30:
        yield f'"{address}" has a prefix that leaves no neighbours; use /1 to /30'
    elif address.ip in (address.network.network_address, address.network.broadcast_address):
        yield f'"{address}" is the network or broadcast address of {address.network}; use a host address'
    elif address.is_loopback or address.is_multicast or address.is_link_local or address.is_reserved:
        yield f'"{address}" is loopback, link-local, multicast or reserved; use a host address'
    elif address.ip in ipaddress.IPv4Network("0.0.0.0/8"):
        yield f'"{address}" is in 0.0.0.0/8; use a host address'


def _is_address(text: str) -> bool:
    try:
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _is_ipv4(text: str) -> bool:
    return _is_address(text) and ":" not in text


def _is_host(text: str) -> bool:
    if re.fullmatch(r"[0-9.]+", text):  # what looks like an IPv4 address must be one
        return _is_address(text)
    return _is_address(text) or bool(_HOST_NAME.match(text))
