"""`python -m cloudstub`: run the cloud, or act as its development CA."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from cloudstub import broker, ca, group
from cloudstub.process import log_to_stderr
from cloudstub.state import State


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.do(options))
    except (ca.CaError, broker.BrokerError) as error:
        sys.stderr.write(f"cloudstub: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"cloudstub: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudstub", description="The cloud counterpart of Sallyport gateways."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="broker, ingest, stores and API, until Ctrl-C")
    _state_option(run)
    run.add_argument(
        "--mqtt", required=True, metavar="ADDRESS:PORT", help="where the broker listens, as 0.0.0.0:443"
    )
    run.add_argument("--api", required=True, metavar="ADDRESS:PORT", help="where API and page listen")
    run.add_argument(
        "--mqtt-name", default="mqtt.sallyport.test", help="host name in the broker's certificate"
    )
    run.add_argument("--api-name", default="portal.sallyport.test", help="host name in the API's certificate")
    run.set_defaults(do=_run)

    authority = commands.add_parser("ca", help="development CA").add_subparsers(
        required=True, metavar="COMMAND"
    )
    init = authority.add_parser("init", help="make the CA when there is none")
    _state_option(init)
    init.set_defaults(do=_init)
    issue = authority.add_parser("issue-device", help="write device.key, device.crt and ca.crt of a gateway")
    issue.add_argument("device", metavar="ID", help="device id, as SP-000001")
    _state_option(issue)
    issue.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    issue.set_defaults(do=_issue)
    return parser


def _state_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(".cloud"),
        metavar="FOLDER",
        help="default: .cloud in the current folder",
    )


def _init(options: argparse.Namespace) -> int:
    folder = State(options.state.resolve()).ca
    ca.Authority.open(folder)
    sys.stdout.write(f"{folder / 'ca.crt'}\n")
    return 0


def _issue(options: argparse.Namespace) -> int:
    authority = ca.Authority.open(State(options.state.resolve()).ca)
    ca.issue_device(authority, options.device, options.out)
    return 0


def _run(options: argparse.Namespace) -> int:
    log_to_stderr()
    try:
        mqtt = group.Endpoint.parse(options.mqtt, options.mqtt_name)
        api = group.Endpoint.parse(options.api, options.api_name)
    except ValueError as error:
        sys.stderr.write(f"cloudstub: --mqtt and --api need ADDRESS:PORT, as 127.0.0.1:8443: {error}\n")
        return 2
    asyncio.run(_run_group(State(options.state.resolve()), mqtt, api))
    return 0


async def _run_group(state: State, mqtt: group.Endpoint, api: group.Endpoint) -> None:
    task = asyncio.create_task(group.run(state, mqtt, api, _say_ready))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("ended")


def _say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
