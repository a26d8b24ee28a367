"""One connection to the broker, from name resolution to its end. Adapter on paho-mqtt 2.1.

Resolving, connecting and the TLS handshake block, so they run in a thread, and paho's network loop in one after
it; the event loop only gets news. paho neither reconnects nor keeps messages over connections: that is decided in
`core`, from what the cloud has acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from firmware.wire import topics
from services.uplink import trouble
from services.uplink.trouble import Trouble

CONNECT_S = 10.0
KEEPALIVE_S = 10
"""An idle link that died is noticed after at most twice this; a busy one after USER_TIMEOUT_S."""
USER_TIMEOUT_S = 15
GOODBYE_S = 1.0


class Connected(NamedTuple):
    address: str
    """Where the name led to."""
    tls: str
    """Protocol version, as "TLSv1.3"."""


class Message(NamedTuple):
    topic: str
    payload: bytes


class Ended(NamedTuple):
    """The last news of a session; it never came to a connection, or lost it."""

    trouble: Trouble


News: TypeAlias = Connected | Message | Ended


class Session:
    """Starts at once. `on_news` is called in the event loop in which this is made."""

    def __init__(
        self,
        host: str,
        port: int,
        device: str,
        context: ssl.SSLContext,
        *,
        will: tuple[str, bytes],
        on_news: Callable[[News], None],
    ) -> None:
        self._at = f"{host}:{port}"
        self._host, self._port, self._device = host, port, device
        self._will_topic = will[0]
        self._on_news = on_news
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._ended = False
        self._closing = False
        self._answered = False
        self._complaint = ""
        self._client = client = _Client(
            CallbackAPIVersion.VERSION2, client_id=device, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        client.tls_set_context(context)
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(1000)  # the window is ours
        client.will_set(*will, qos=1, retain=True)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_log = self._on_log
        client.on_garbage = self._on_garbage
        threading.Thread(target=self._connect, name="connect", daemon=True).start()

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        reference: bytes | None = None,
    ) -> None:
        """Hand a message to the network loop; never blocks. `reference` becomes the correlation data."""
        properties = None
        if reference is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = reference
        self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)

    async def close(self, farewell: bytes) -> None:
        """Say goodbye with a last retained message on the will's topic, and disconnect; no news after this."""
        self._closing = True
        self._tell_nothing_more()
        if self._answered:
            info = self._client.publish(self._will_topic, farewell, qos=1, retain=True)
            await asyncio.to_thread(_wait, info)
        await asyncio.to_thread(self._disconnect)

    def _disconnect(self) -> None:
        """Politely if that works at once, else by cutting the connection."""
        self._client.disconnect()
        stopping = threading.Thread(target=self._client.loop_stop, name="stop", daemon=True)
        stopping.start()
        stopping.join(GOODBYE_S)
        sock: Any = self._client.socket()
        if stopping.is_alive() and sock is not None:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as raw:
                raw.shutdown(socket.SHUT_RDWR)  # beside the TLS object, which belongs to paho's thread

    def _connect(self) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0
        try:
            self._client.connect(self._host, self._port, KEEPALIVE_S, clean_start=True, properties=properties)
        except _ClosedMeanwhileError:
            return
        except (OSError, ValueError) as error:  # ValueError: a host name that can't be one (IDNA)
            self._end(trouble.explain(error, self._host, self._port))
            return
        self._client.loop_start()
        if self._closing:
            self._client.disconnect()

    # In paho's threads:

    def _on_socket_open(self, _client: mqtt.Client, _userdata: Any, sock: Any) -> None:
        if self._closing:
            sock.close()
            raise _ClosedMeanwhileError
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_S * 1000)

    def _on_connect(
        self, client: mqtt.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        self._answered = True
        if reason.is_failure:
            self._end(trouble.refused(str(reason), self._at))
            client.disconnect()
            return
        client.subscribe(topics.all_down(self._device), qos=1)
        sock: Any = client.socket()
        self._post(Connected(sock.getpeername()[0], sock.version() or ""))

    def _on_disconnect(
        self, _client: mqtt.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        self._end(trouble.lost(self._complaint, str(reason), self._at, answered=self._answered))

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        self._post(Message(message.topic, message.payload))

    def _on_log(self, _client: mqtt.Client, _userdata: Any, level: int, text: str) -> None:
        if level == mqtt.MQTT_LOG_ERR:  # the only place where paho tells why a socket failed
            self._complaint = text

    def _on_garbage(self, error: Exception) -> None:
        self._end(trouble.no_mqtt(self._at, error))

    def _end(self, why: Trouble) -> None:
        with self._lock:
            if self._ended:
                return
            self._post(Ended(why))
            self._ended = True

    def _tell_nothing_more(self) -> None:
        with self._lock:
            self._ended = True

    def _post(self, news: News) -> None:
        if not self._ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_news, news)


class _Client(mqtt.Client):
    """paho's thread would die without a word of what is not MQTT."""

    on_garbage: Callable[[Exception], None]

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> Any:
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception as error:
            self.on_garbage(error)


class _ClosedMeanwhileError(Exception):
    pass


def _wait(info: mqtt.MQTTMessageInfo) -> None:
    try:
        info.wait_for_publish(GOODBYE_S)
    except (ValueError, RuntimeError):  # queue full, or the connection is gone: the will says it as well
        return
