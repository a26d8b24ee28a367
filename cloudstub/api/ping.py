"""A message to a gateway and its answer, through the broker (L12)."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import paho.mqtt.client as mqtt

from cloudstub.mqtt import client, start
from cloudstub.state import State
from firmware.wire import messages, topics
from firmware.wire.messages import MessageError, Ping, Pong


class Pinger:
    """Lives in an event loop; the MQTT client has its own thread."""

    def __init__(self, state: State, host: str, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, tuple[str, asyncio.Future[Pong]]] = {}
        self._client = client(state, "api")
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        start(self._client, host, port, keep_session_s=0)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    async def ping(self, device: str, timeout_s: float) -> tuple[float, Pong]:
        """Milliseconds there and back, and the answer. Raises TimeoutError."""
        nonce = secrets.token_hex(8)
        answer: asyncio.Future[Pong] = self._loop.create_future()
        self._waiting[nonce] = device, answer
        started = time.monotonic()
        try:
            self._client.publish(topics.down(device, "ping"), messages.encode(Ping(nonce)), qos=0)
            pong = await asyncio.wait_for(answer, timeout_s)
        finally:
            del self._waiting[nonce]
        return (time.monotonic() - started) * 1000, pong

    def _on_connect(self, *_: Any) -> None:
        self._client.subscribe(topics.ALL_PONGS, qos=1)

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        up = topics.parse_up(message.topic)
        try:
            pong = messages.decode(message.payload, Pong)
        except MessageError:
            return
        if up:
            self._loop.call_soon_threadsafe(self._answer, up.device, pong)

    def _answer(self, device: str, pong: Pong) -> None:
        asked, answer = self._waiting.get(pong.nonce, ("", None))
        if answer and asked == device and not answer.done():
            answer.set_result(pong)
