"""Text -> document or errors: each names the key, the value and the remedy, and nothing else is ever raised."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.config import check, toml
from firmware.config.schema import Desired, Plc, Tag, Wan
from tests.unit.malformed import MALFORMED, PLC, TAG


@pytest.mark.parametrize(
    ("document", "key", "words"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED]
)
def test_a_malformed_document_is_refused_with_key_value_and_remedy(
    document: str | bytes, key: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(check.ConfigError) as caught:
        check.parse(document)
    problems = {problem.key: problem.message for problem in caught.value.problems}
    assert key in problems, problems
    for word in words:
        assert word in problems[key]
    assert len(problems[key]) < 400


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(check.ConfigError) as caught:
        check.parse(f"foo = 1\n[wan]\nmode = 'x'\n[lan]\naddress = 'y'\n{TAG}type = 'z'\n{PLC}unit = -1")
    assert [problem.key for problem in caught.value.problems] == [
        "foo",
        "wan.mode",
        "lan.address",
        "plc[0].tags[0].type",
        "plc[1].unit",
    ]


def test_very_many_errors_are_cut_short() -> None:
    with pytest.raises(check.ConfigError) as caught:
        check.parse("".join(f"k{number} = 1\n" for number in range(50_000)))
    assert len(caught.value.problems) == check.MAX_PROBLEMS + 1


def test_what_is_left_out_has_its_default() -> None:
    """A new gateway asks for an address by DHCP, and the cloud is off. Shows: X78, L08."""
    assert check.parse("") == check.parse("{}") == Desired()
    assert Desired().wan.mode == "dhcp"
    assert not Desired().cloud.enabled


def test_the_factory_configuration() -> None:
    """Shows: X78, L08."""
    factory = check.parse(Path(check.__file__).with_name("factory.toml").read_bytes())
    assert factory.wan.mode == "dhcp"
    assert not factory.cloud.enabled
    assert not factory.plc


def test_toml_and_json_of_one_document_are_the_same() -> None:
    """Also with a byte order mark and Windows line ends. Shows: X77."""
    document = "[wan]\nmode = 'static'\naddress = '10.1.0.5/24'\ngateway = '10.1.0.1'\ndns = ['10.1.0.1', 'fd00::1']\n"
    desired = check.parse(document)
    assert desired.wan == Wan(
        mode="static", address="10.1.0.5/24", gateway="10.1.0.1", dns=["10.1.0.1", "fd00::1"]
    )
    assert check.parse(b"\xef\xbb\xbf" + document.replace("\n", "\r\n").encode()) == desired
    assert check.parse(msgspec.json.encode(desired)) == desired


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
KEYS = st.sampled_from(
    [*Desired.__struct_fields__, *Wan.__struct_fields__, *Plc.__struct_fields__, *Tag.__struct_fields__]
)
LIKELY = st.recursive(
    JSON
    | st.sampled_from(["static", "192.168.10.1/24", "10.0.0.1", "coil", "string", "bool", 0, 65535, 1e400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=30,
)


def check_accepts_or_refuses(document: str | bytes) -> None:
    try:
        desired = check.parse(document)
    except check.ConfigError as error:
        assert error.problems
        str(error).encode()
    else:
        assert check.parse(toml.dump(desired)) == desired
        assert msgspec.json.decode(msgspec.json.encode(desired), type=Desired) == desired


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_accepted_or_refused(document: str | bytes) -> None:
    check_accepts_or_refuses(document)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(KEYS | st.text(max_size=5), LIKELY, max_size=6))
def test_any_json_is_accepted_or_refused(document: dict[str, object]) -> None:
    check_accepts_or_refuses(json.dumps(document))


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,10}", fullmatch=True)
TAGS = st.builds(
    Tag,
    name=NAMES,
    address=st.integers(0, 65000),
    type=st.sampled_from(["int16", "uint64", "float32"]),
    scale=st.floats(allow_nan=False, allow_infinity=False).filter(bool),
    offset=st.floats(allow_nan=False, allow_infinity=False),
    unit=st.text(max_size=20).filter(str.isprintable),
)
PLCS = st.builds(
    Plc,
    name=NAMES,
    host=st.integers(2, 254).map(lambda last: f"192.168.10.{last}"),
    tags=st.lists(TAGS, max_size=3, unique_by=lambda tag: tag.name),
)


@settings(deadline=None)
@given(
    st.builds(
        Desired,
        device_name=st.text(max_size=60).filter(str.isprintable),
        plc=st.lists(PLCS, max_size=3, unique_by=lambda plc: plc.name),
    )
)
def test_what_show_prints_is_the_same_document_again(desired: Desired) -> None:
    assert check.parse(toml.dump(desired)) == desired
