"""MQTT client of the cloud's own processes: TLS 1.2 or higher, own certificate, reconnects by itself."""

from __future__ import annotations

import ssl
from threading import Thread

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cloudstub.state import State

WINDOW = 500
"""Messages that the broker hands out before it waits for an acknowledgement."""


def client(state: State, name: str, *, manual_ack: bool = False) -> mqtt.Client:
    """A client with the certificate `certs/<name>`."""
    made = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"cloud-{name}",
        protocol=mqtt.MQTTv5,
        manual_ack=manual_ack,
    )
    context = ssl.create_default_context(cafile=str(state.ca / "ca.crt"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(state.certs / f"{name}.crt", state.certs / f"{name}.key")
    made.tls_set_context(context)
    made.reconnect_delay_set(1, 5)
    made.max_inflight_messages_set(10 * WINDOW)
    return made


def start(made: mqtt.Client, host: str, port: int, *, keep_session_s: int) -> Thread:
    """Connect in a thread of its own, again and again; it ends only with `disconnect`, or by a fault.

    With `keep_session_s` the broker keeps what is missed.
    """
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = keep_session_s
    properties.ReceiveMaximum = WINDOW
    made.connect_async(host, port, keepalive=20, clean_start=keep_session_s == 0, properties=properties)
    made.loop_start()
    return made._thread or Thread()  # without one it has ended already
