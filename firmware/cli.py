"""`sallyport`: the gateway's command line.

Exit status: 0 done, 1 refused or failed (the reason is on stderr), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from firmware import clock, paths, status
from firmware.config import check, toml
from firmware.config.client import UnreachableError, ask
from firmware.config.protocol import Reply, Request
from firmware.config.schema import Desired


class CommandError(Exception):
    """Ends the command with exit status 1 and this text."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except (CommandError, UnreachableError) as error:
        print(f"sallyport: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `sallyport config show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sallyport",
        description="Look after this gateway.",
        epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("status", help="what every service sees")
    command.add_argument("--json", action="store_true", help="the observed documents as JSON")
    command.set_defaults(run=_status)

    command = commands.add_parser("version", help="the version of the software")
    command.set_defaults(run=_version)

    config = commands.add_parser("config", help="read and change the configuration")
    verbs = config.add_subparsers(required=True, metavar="VERB")

    command = verbs.add_parser("show", help="the configuration in force, as TOML that `set` takes back")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--revision", type=int, metavar="N", help="an earlier one, see `history`")
    which.add_argument("--default", action="store_true", help="every key with its default")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_show)

    command = verbs.add_parser("check", help="say what is wrong in a file; change nothing")
    command.add_argument("file", metavar="FILE", help="TOML or JSON, - for stdin")
    command.set_defaults(run=_check)

    command = verbs.add_parser("set", help="put a new configuration in force")
    command.add_argument("file", metavar="FILE", help="TOML or JSON, - for stdin")
    command.add_argument(
        "--confirm-within",
        type=_seconds,
        metavar="SECONDS",
        help="roll back after 1 to 3600 s unless `confirm` comes: for any change that could cut you off",
    )
    command.set_defaults(run=_set)

    command = verbs.add_parser("confirm", help="keep the change that waits for it")
    command.set_defaults(run=_confirm)

    command = verbs.add_parser("rollback", help="drop the change that waits, or go back one revision")
    command.add_argument("--to", type=int, metavar="N", help="to this revision, see `history`")
    command.set_defaults(run=_rollback)

    command = verbs.add_parser("history", help="the last revisions, newest first")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_history)
    return parser


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 3600")
    return int(text)


# config


def _show(options: argparse.Namespace) -> int:
    if options.default:
        desired = Desired()
    else:
        reply = _done(ask(Request("show", revision=options.revision)))
        desired = msgspec.convert(reply.desired, Desired)
    print(_pretty(desired) if options.json else toml.dump(desired), end="")
    return 0


def _check(options: argparse.Namespace) -> int:
    try:
        check.parse(_read(options.file))
    except check.ConfigError as error:
        raise CommandError(_refusal(options.file, error.problems)) from error
    print(f"{options.file} is right")
    return 0


def _set(options: argparse.Namespace) -> int:
    data = _read(options.file)
    try:
        check.parse(data)  # here too: what isn't UTF-8 can't be sent
    except check.ConfigError as error:
        raise CommandError(_refusal(options.file, error.problems)) from error
    reply = ask(
        Request("set", text=data.decode("utf-8-sig"), confirm_within_s=options.confirm_within, origin=_user())
    )
    if reply.problems:
        raise CommandError(_refusal(options.file, reply.problems))
    print(_done(reply).message)
    return 0


def _confirm(_options: argparse.Namespace) -> int:
    print(_done(ask(Request("confirm", origin=_user()))).message)
    return 0


def _rollback(options: argparse.Namespace) -> int:
    print(_done(ask(Request("rollback", revision=options.to, origin=_user()))).message)
    return 0


def _history(options: argparse.Namespace) -> int:
    reply = _done(ask(Request("history")))
    if options.json:
        print(_pretty(reply.history), end="")
        return 0
    rows = [("REVISION", "STATE", "MADE", "ORIGIN")]
    for revision in reply.history:
        state = "in force" if revision.number == reply.revision else str(revision.state)
        if revision.number == reply.revision and revision.state == "staged":
            state = "in force, not confirmed"
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(revision.made_s)) if revision.made_s else "-"
        rows.append((str(revision.number), state, made, revision.origin))
    _table(rows)
    return 0


def _done(reply: Reply) -> Reply:
    if not reply.ok:
        raise CommandError(reply.message)
    return reply


def _refusal(file: str, problems: Sequence[check.Problem]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{file} is refused, nothing is changed: {count}", *(f"  {one}" for one in problems)])


def _read(file: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read(check.MAX_BYTES + 1)
        with Path(file).open("rb") as data:
            return data.read(check.MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{file} can't be read: {error.strerror}") from error


def _user() -> str:
    """The person, also behind sudo."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


# status, version


def _status(options: argparse.Namespace) -> int:
    observed = status.read_all()
    if not observed:
        raise CommandError(f"no service has reported yet (looked in {paths.STATUS})")
    for name in status.SERVICES:
        if name not in observed:
            remedy = f"does not run; see `systemctl status sallyport-{name}`"
            observed[name] = status.Observed(name, status.State.FAILED, remedy, 0, 0)
    if options.json:
        print(_pretty(observed), end="")
    else:
        now_us = clock.now().monotonic_us
        rows = [("SERVICE", "STATE", "SINCE", "WHAT")]
        rows += [
            (one.service, str(one.state), _ago(now_us - one.since_us), one.summary)
            for one in observed.values()
        ]
        _table(rows)
    return 1 if any(one.state is status.State.FAILED for one in observed.values()) else 0


def _ago(microseconds: int) -> str:
    seconds = max(0, microseconds // 1_000_000)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _version(_options: argparse.Namespace) -> int:
    from importlib.metadata import version  # noqa: PLC0415  slow to import, and only needed here

    print(f"sallyport {version('sallyport')}")
    return 0


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _pretty(value: object) -> str:
    return json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
