"""The kernel configuration checker: a line that Kconfig dropped or changed is found and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from image.kernel import check

FRAGMENTS = Path(check.__file__).parent
CONFIG = """\
# Linux/x86 6.12.0 Kernel Configuration
CONFIG_NF_TABLES=y
CONFIG_VETH=m
CONFIG_LSM="landlock,yama"
# CONFIG_KEXEC is not set
# CONFIG_WIREGUARD is not set
"""


def found(tmp_path: Path, fragment: str) -> list[str]:
    config, theme = tmp_path / ".config", tmp_path / "theme.config"
    config.write_text(CONFIG, encoding="utf-8")
    theme.write_text(fragment, encoding="utf-8")
    return check.check(config, [theme])


def test_lines_that_survived_say_nothing(tmp_path: Path) -> None:
    kept = 'CONFIG_NF_TABLES=y\n\n# a remark\nCONFIG_LSM="landlock,yama"\n# CONFIG_KEXEC is not set\n'
    assert found(tmp_path, kept + "# CONFIG_NOT_MENTIONED is not set\n") == []


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ("CONFIG_GPIO_SIM=m", "no such symbol"),
        ("CONFIG_WIREGUARD=m", "# CONFIG_WIREGUARD is not set"),
        ("CONFIG_VETH=y", "CONFIG_VETH=m"),
        ("# CONFIG_NF_TABLES is not set", "CONFIG_NF_TABLES=y"),
        ('CONFIG_LSM="landlock"', 'CONFIG_LSM="landlock,yama"'),
    ],
)
def test_a_lost_line_is_named_with_its_fragment_and_what_came_instead(
    tmp_path: Path, line: str, has: str
) -> None:
    (message,) = found(tmp_path, f"\n{line}\n")
    assert message == f"theme.config:2: {line} was lost; the configuration has {has}"


def test_fragments_that_contradict_each_other_are_found(tmp_path: Path) -> None:
    (message,) = found(tmp_path, "CONFIG_VETH=m\nCONFIG_VETH=y\n")
    assert "theme.config:2" in message
    assert "contradicts theme.config:1" in message


@pytest.mark.parametrize(
    "line", ["CONFIG_VETH", "CONFIG_VETH =m", "VETH=m", "# CONFIG_VETH=m", "# CONFIG_VETH is unset"]
)
def test_a_misspelt_line_is_an_error_not_a_comment(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"theme\.config:1"):
        found(tmp_path, line + "\n")


def test_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, theme = tmp_path / ".config", tmp_path / "theme.config"
    config.write_text(CONFIG, encoding="utf-8")
    theme.write_text("CONFIG_VETH=m\n", encoding="utf-8")
    assert check.main([str(config), str(theme)]) == 0
    theme.write_text("CONFIG_VETH=y\n", encoding="utf-8")
    assert check.main([str(config), str(theme)]) == 1
    assert "theme.config:1" in capsys.readouterr().err
    assert check.main([str(config)]) == 2
    assert check.main([str(tmp_path / "absent"), str(theme)]) == 2


def test_our_fragments_are_well_formed_and_name_each_symbol_once() -> None:
    options = [
        option
        for path in sorted(FRAGMENTS.glob("*.config"))
        for option in check.parse(path.read_text(encoding="utf-8"), path.name)
    ]
    symbols = [option.symbol for option in options]
    assert len(options) > 100
    assert sorted(symbols) == sorted(set(symbols))
