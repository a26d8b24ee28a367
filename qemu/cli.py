"""The `site` command: run the pretend site, and act on a running one from another terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from qemu import control, shell, topology
from qemu.namespaces import SiteError
from qemu.neighbours.router import DNS_FAULTS
from qemu.plc import TABLES
from qemu.site import IMAGE, PROJECT

OK, FAILED, USAGE = 0, 1, 2
EPILOG = """\
exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage; `site exec`: the program's own

examples:
  site run                              boot a gateway and watch its data arrive
  site cut wan; site restore wan        pull the WAN cable, plug it in again
  site power-cut; site boot             take the gateway's power, give it back
  site set plc1 holding 4 1234          change a register of a PLC
  site exec gateway sallyport status    run a program on the gateway
  site exec office nmap -Pn 10.10.0.101 attack it from the company network
  site watch wan                        see its packets
"""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    options.state = options.state.resolve()
    try:
        return int(options.act(options) or OK)
    except SiteError as error:
        print(f"site: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="site",
        description=(__doc__ or "").strip(),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(os.environ.get("SALLYPORT_SITE") or PROJECT / ".site"),
        help="folder of the site (default: .site in the checkout, or $SALLYPORT_SITE)",
    )
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)

    def verb(name: str, act: Any, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(act=act)
        return added

    run = verb("run", _run, "run a site with a gateway, a cloud and two PLCs, until Ctrl-C")
    run.add_argument("--image", type=Path, default=IMAGE, help="folder of the image (default: build/image)")
    run.add_argument("--provisioned", type=Path, help="the gateway's first configuration (TOML)")
    run.add_argument(
        "--page-port", type=int, default=8443, help="port of the cloud's page here (default: 8443)"
    )
    run.add_argument(
        "--keep", action="store_true", help="go on with the disks and the cloud's data of last time"
    )
    run.add_argument("--plain", action="store_true", help="lines instead of a live view")
    run.add_argument("--until-data", action="store_true", help="end when the first sample is in the cloud")

    status = verb("status", _status, "what the running site looks like")
    status.add_argument("--json", action="store_true", help="all of it, for programs")

    cut = verb("cut", _order("cut", "link", "silent"), "cut a link of the gateway")
    cut.add_argument("link", choices=topology.LINKS)
    cut.add_argument("--silent", action="store_true", help="no frame passes, but the carrier stays")
    restore = verb("restore", _order("restore", "link"), "undo a cut")
    restore.add_argument("link", choices=topology.LINKS)
    dns = verb("dns", _order("dns", "fault"), "a fault in the company's DNS; `none` ends it")
    dns.add_argument("fault", choices=DNS_FAULTS)

    verb("power-cut", _order("power-cut"), "take the gateway's power away at once")
    verb("boot", _order("boot"), "power the gateway on")
    verb("reset", _order("reset"), "press the gateway's reset button")
    verb("shut-down", _order("shut-down"), "ask the gateway to power off in order")

    for name, text in (("get", "values of a PLC"), ("set", "change values of a PLC, raw, in one go")):
        values = verb(name, _get if name == "get" else _order("set", *_VALUES, "values"), text)
        values.add_argument("plc", choices=topology.PLCS)
        values.add_argument("table", choices=TABLES)
        values.add_argument("address", type=int, help="0 to 65535")
        if name == "get":
            values.add_argument("count", type=int, nargs="?", default=1)
        else:
            values.add_argument("values", type=int, nargs="+", help="registers 0 to 65535, bits 0 or 1")
    plc = verb("plc", _plc, "power of a PLC, or let it take requests and not answer")
    plc.add_argument("plc", choices=topology.PLCS)
    plc.add_argument("what", choices=("on", "off", "stall", "answer"))

    execute = verb("exec", _exec, "run a program on a host; `gateway` is the machine itself")
    execute.add_argument("host", help="gateway, router, office, cloud, stranger, plc1, plc2 or laptop")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="PROGRAM ...")
    execute.add_argument("--timeout", type=float, default=120.0, help="seconds (default: 120)")
    shell_verb = verb("shell", _shell, "a root shell on the gateway (leave with Ctrl-]) or on a host")
    shell_verb.add_argument("host", nargs="?", default="gateway")
    watch = verb("watch", _watch, "packets on a cable, until Ctrl-C")
    watch.add_argument("where", help="wan, lan, internet, company, or a host")
    watch.add_argument("filter", nargs="*", help="as for tcpdump, for example: port 443")
    return parser


_VALUES = ("plc", "table", "address")


def _order(do: str, *names: str) -> Any:
    def act(options: argparse.Namespace) -> None:
        control.ask(options.state, do, **{name: getattr(options, name) for name in names})

    return act


def _run(options: argparse.Namespace) -> int:
    from qemu import run  # noqa: PLC0415  the other commands answer faster without it

    return run.main(
        options.state,
        image=options.image,
        provisioned=options.provisioned,
        page_port=options.page_port,
        keep=options.keep,
        plain=options.plain,
        until_data=options.until_data,
    )


def _status(options: argparse.Namespace) -> None:
    seen = control.ask(options.state, "status")
    if options.json:
        print(json.dumps(seen, indent=2))
        return
    from qemu import view  # noqa: PLC0415

    view.show(seen)


def _get(options: argparse.Namespace) -> None:
    what = {name: getattr(options, name) for name in (*_VALUES, "count")}
    for number, value in enumerate(control.ask(options.state, "get", **what)):
        print(f"{options.table} {options.address + number}: {value}")


def _plc(options: argparse.Namespace) -> None:
    if options.what in ("on", "off"):
        control.ask(options.state, "plc-power", plc=options.plc, on=options.what == "on")
    else:
        control.ask(options.state, "plc-stall", plc=options.plc, on=options.what == "stall")


def _exec(options: argparse.Namespace) -> int:
    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not argv:
        raise SiteError("which program? For example: site exec gateway sallyport status")
    done = control.ask(options.state, "exec", host=options.host, argv=argv, timeout=options.timeout)
    sys.stdout.write(done["stdout"])
    sys.stderr.write(done["stderr"])
    status = int(done["status"])
    return status if status >= 0 else 128 - status


def _shell(options: argparse.Namespace) -> int:
    if options.host == "gateway":
        if not control.ask(options.state, "powered"):
            raise SiteError("the gateway is powered off; `site boot` powers it on")
        return shell.attach(options.state / "gateway" / "shell")
    return shell.enter(_spaces(options, options.host), ["bash", "--norc"], prompt=options.host)


def _watch(options: argparse.Namespace) -> int:
    port = control.ask(options.state, "port", where=options.where)
    argv = ["tcpdump", "-i", port, "-n", "-l", "-e", "--relinquish-privileges=root", *options.filter]
    return shell.enter(_spaces(options), argv)


def _spaces(options: argparse.Namespace, host: str = "") -> list[str]:
    seen = control.ask(options.state, "spaces")
    if host and host not in seen["hosts"]:
        raise SiteError(f"no host {host!r}; there are gateway, {', '.join(seen['hosts'])}")
    return shell.into(seen["keeper"], seen["hosts"].get(host))


if __name__ == "__main__":
    sys.exit(main())
