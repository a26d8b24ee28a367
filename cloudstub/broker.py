"""Mosquitto as the broker: one TLS listener, a client certificate for everyone, topics by certificate name.

There is no plaintext listener and no password. The certificate's CN is the user name and the client id, so a
device can neither read nor write another's topics, nor take over its session.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cloudstub import ca
from cloudstub.state import State
from firmware.wire import topics
from firmware.wire.block import MAX_BLOCK

ACCESS = f"""\
# Devices: their own topics, by certificate name (%u).
pattern write {topics.up("%u", "#")}
pattern read {topics.down("%u", "#")}

user {ca.INGEST}
topic read {topics.ALL_UP}
topic write {topics.PREFIX}/+/down/#

user {ca.API}
topic read {topics.ALL_PONGS}
topic write {topics.PREFIX}/+/down/ping
"""


class BrokerError(RuntimeError):
    """The broker can't be started; the text says what is missing."""


def program() -> str:
    """Path of mosquitto. Raises BrokerError."""
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise BrokerError("mosquitto is not installed; on Debian: apt-get install mosquitto")
    return path


def configure(state: State, address: str, port: int) -> Path:
    """Write configuration and access list below the state folder. Returns the configuration file."""
    folder = state.broker
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    access = folder / "access"
    access.write_text(ACCESS, encoding="ascii")
    access.chmod(0o600)
    file = folder / "mosquitto.conf"
    file.write_text(configuration(state, address, port, root=os.geteuid() == 0), encoding="utf-8")
    return file


def configuration(state: State, address: str, port: int, *, root: bool) -> str:
    """The text of mosquitto.conf."""
    lines = [
        # Started by root it would change to a user that can't read the state folder.
        *(["user root"] if root else []),
        f"listener {port} {address}",
        f"cafile {state.ca / 'ca.crt'}",
        f"certfile {state.certs / 'mqtt.crt'}",
        f"keyfile {state.certs / 'mqtt.key'}",
        "tls_version tlsv1.2",  # the lowest that is accepted
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        f"acl_file {state.broker / 'access'}",
        "persistence true",
        f"persistence_location {state.broker / 'data'}/",
        "autosave_interval 60",
        # While the ingest is away the broker holds this much; what exceeds it the gateways send again.
        "max_inflight_messages 1000",
        "max_queued_messages 20000",
        f"max_queued_bytes {256 * 1024 * 1024}",
        f"max_packet_size {MAX_BLOCK + 65536}",
        "set_tcp_nodelay true",
        "connection_messages true",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_type information",
    ]
    return "\n".join(lines) + "\n"
