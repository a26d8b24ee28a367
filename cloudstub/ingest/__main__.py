"""First stage: broker -> durable buffer -> acknowledgement. `python -m cloudstub.ingest STATE HOST PORT`."""

from __future__ import annotations

import logging
import queue
import sqlite3
import sys
import time
from collections import defaultdict
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt

from cloudstub.ingest.buffer import Buffer, Received
from cloudstub.ingest.core import AnswerTime, Refuse, StoreBlock, decide, ranges
from cloudstub.mqtt import client, start
from cloudstub.process import ready, serve_until_terminated
from cloudstub.state import State
from firmware.wire import messages, topics
from firmware.wire.messages import Ack

log = logging.getLogger(__name__)

GROUP = 500
GROUP_S = 0.005
"""A commit waits this long for company: one sync for many blocks."""
KEEP_SESSION_S = 7 * 86400
RETRY_S = (0.5, 10.0)
ALIVE_S = 1.0
"""How often it is looked whether the thread of the MQTT client still runs."""


class Item(NamedTuple):
    mid: int
    qos: int
    received: Received


class Ingest:
    """Thread of the MQTT client: decide, answer time requests. Main thread: commit, then acknowledge."""

    def __init__(self, state: State) -> None:
        # Bounded by the client's receive maximum: an unacknowledged message holds its place at the broker.
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._buffer = Buffer(state.buffer)
        self._client = client(state, "ingest", manual_ack=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def run(self, host: str, port: int) -> None:
        """Raises SystemExit when the client's thread has ended: the group starts this process again."""
        network = start(self._client, host, port, keep_session_s=KEEP_SESSION_S)
        while True:
            self._commit(self._group(network))

    def _on_connect(self, *args: Any) -> None:
        reason = args[3]
        if reason.is_failure:
            log.error("the broker refuses the ingest: %s", reason)
            return
        log.info("connected to the broker")
        self._client.subscribe(topics.ALL_UP, qos=1)
        ready()

    def _on_disconnect(self, *args: Any) -> None:
        log.warning("connection to the broker lost: %s", args[3])

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        try:
            waits = self._take(message)
        except Exception:
            # Left unacknowledged it would come back, and end this thread each time.
            log.exception("a message on %r is left out by a fault of this program", message.topic)
            waits = False
        if not waits:
            self._client.ack(message.mid, message.qos)

    def _take(self, message: mqtt.MQTTMessage) -> bool:
        """Whether it waits for the commit, which acknowledges it."""
        now_us = time.time_ns() // 1000
        reference = getattr(message.properties, "CorrelationData", None)
        match decide(message.topic, message.payload, reference, now_us):
            case AnswerTime(device, reply):
                self._client.publish(topics.down(device, "time"), messages.encode(reply), qos=0)
            case None:
                pass
            case what:
                self._queue.put(Item(message.mid, message.qos, Received(now_us, what)))
                return True
        return False

    def _group(self, network: Thread) -> list[Item]:
        """At least one item, and what else comes within a few milliseconds."""
        items = [self._first(network)]
        until = time.monotonic() + GROUP_S
        while len(items) < GROUP:
            try:
                items.append(self._queue.get(timeout=max(0, until - time.monotonic())))
            except queue.Empty:
                break
        return items

    def _first(self, network: Thread) -> Item:
        while True:
            ended = not network.is_alive()  # looked at first: what it queued before it ended is still taken
            try:
                return self._queue.get(timeout=ALIVE_S)
            except queue.Empty:
                if ended:
                    sys.exit("the MQTT client's thread has ended")

    def _commit(self, items: list[Item]) -> None:
        pause = RETRY_S[0]
        while True:
            try:
                self._buffer.commit(item.received for item in items)
                break
            except sqlite3.Error as error:
                log.error("the buffer can't be written (%s); nothing is acknowledged until it can", error)  # noqa: TRY400
                time.sleep(pause)
                pause = min(pause * 2, RETRY_S[1])
        stored: dict[tuple[str, str, bytes], list[int]] = defaultdict(list)
        for item in items:
            match item.received.what:
                case StoreBlock(identity):
                    stored[identity[:3]].append(identity.seq)
                case Refuse(device, reason, nack):
                    log.warning("%s: refused: %s", device, reason)
                    if nack:
                        self._client.publish(topics.down(device, "nack"), messages.encode(nack), qos=1)
        for (device, stream, boot), seqs in stored.items():
            ack = Ack(stream, boot.hex(), ranges(seqs))
            self._client.publish(topics.down(device, "ack"), messages.encode(ack), qos=1)
        for item in items:
            self._client.ack(item.mid, item.qos)


def main() -> None:
    state, host, port = State(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    with serve_until_terminated():
        Ingest(state).run(host, port)


if __name__ == "__main__":
    main()
