"""Blocks from a flash log reach the stores once each, whatever dies on the way. Real Mosquitto, TLS, processes."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from firmware.wire import messages, topics
from firmware.wire.messages import Ack
from services.flashlog import Reader
from services.uplink import core
from services.uplink.__main__ import Conversation
from tests.contract.cloud import Cloud, Gateway, counting, enabled, eventually


def values(cloud: Cloud) -> list[Any]:
    return [p.value for p in cloud.points("n")]


async def test_history_and_live_data_arrive_once_and_in_order(cloud: Cloud, gateway: Gateway) -> None:
    """What was logged before the connection and what is logged during it: exact count, order, acknowledged.

    Shows: X17, X35, X36, X88
    """
    gateway.log(counting(40))
    async with gateway.running() as uplink:
        await gateway.connected()
        gateway.log(counting(10, start=400))
        await eventually(lambda: values(cloud) == list(range(500)), what="500 samples in the series store")
        await eventually(lambda: uplink.outbox.counts.acknowledged >= 50, what="50 blocks acknowledged")
        assert uplink.outbox.counts.refused == 0
        assert cloud.counters().get("duplicates", 0) == 0
    assert all(uplink.acks.has("plc-press", gateway.boot, seq) for seq in _seqs(gateway))
    # A second run with the saved acknowledgements sends nothing again.
    async with gateway.running() as uplink:
        await gateway.connected()
        gateway.log(counting(1, start=500))
        await eventually(lambda: len(values(cloud)) == 510, what="10 more samples")
        assert cloud.counters().get("duplicates", 0) == 0


async def test_lost_acknowledgements_make_no_duplicates(
    cloud: Cloud, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acknowledgements of the first seconds get lost: blocks are sent again, the stores hold each once.

    Shows: X88
    """
    monkeypatch.setattr(core, "RESEND_S", 0.5)
    real, lost = Conversation.receive, []

    def deaf(self: Conversation, topic: str, payload: bytes) -> None:
        if topic.endswith("/ack") and len(lost) < 3:
            lost.append(payload)
        else:
            real(self, topic, payload)

    monkeypatch.setattr(Conversation, "receive", deaf)
    monkeypatch.setattr(core.Flight, "__init__", _short_wait(core.Flight.__init__))
    gateway.log(counting(30))
    async with gateway.running() as uplink:
        await eventually(lambda: uplink.outbox.counts.acknowledged >= 30, what="all acknowledged in the end")
        assert uplink.outbox.counts.sent_again > 0
    assert cloud.counters()["duplicates"] > 0
    await eventually(lambda: values(cloud) == list(range(300)), what="300 samples")


def _short_wait(init: Any) -> Any:
    def short(self: Any, *args: Any) -> None:
        init(self, *args)
        self.wait_s = 0.5

    return short


async def test_ingest_killed_in_the_middle(cloud: Cloud, gateway: Gateway) -> None:
    """kill -9 of the ingest and of the series worker while blocks stream in: exact count in the end.

    Shows: L01, X36, X88
    """
    gateway.log(counting(400, 50))
    async with gateway.running(backfill_kib_s=40):
        for already in (1, 50, 100):
            await eventually(
                lambda n=already: cloud.counters().get("blocks", 0) >= n, what=f"{already} blocks"
            )
            killed = cloud.pids()
            cloud.kill("ingest")
            cloud.kill("series")
            await eventually(
                lambda old=killed: all(
                    cloud.pids().get(name, old[name]) != old[name] for name in ("ingest", "series")
                ),
                what="both run again",
            )
        gateway.configure(enabled())
        await eventually(lambda: values(cloud) == list(range(20_000)), 60, "20,000 samples")
    await eventually(lambda: cloud.counters()["buffer_rows"] == 0, what="the buffer is empty")


async def test_broker_restarted(cloud: Cloud, gateway: Gateway) -> None:
    """kill -9 of the broker: gateway and ingest come back by themselves, nothing is lost, messages pass both ways.

    Shows: L01, L12, X88
    """
    gateway.log(counting(20))
    async with gateway.running():
        await eventually(lambda: len(values(cloud)) == 200, what="200 samples")
        cloud.kill("broker")
        await eventually(lambda: gateway.observed().detail.get("trouble"), what="the loss is reported")
        gateway.log(counting(20, start=200))
        await eventually(lambda: values(cloud) == list(range(400)), 40, "400 samples")
        await gateway.connected()
        assert gateway.uplink
        events = await eventually(
            lambda: (
                {e.name for e in cloud.platform().events(gateway.device)} >= {"connected", "lost"} or None
            ),
            what="events of the loss",
        )
        assert events


async def test_corrupted_block_is_refused_and_not_sent_again(
    cloud: Cloud, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that was damaged on its way (after the log was read): refused, counted, the others arrive.

    Shows: X35
    """
    gateway.log(counting(10))
    bad = _seqs(gateway)[4]
    real = Conversation._send

    def damage(self: Conversation, key: core.Key, lane: str, data: bytes) -> None:
        real(self, key, lane, data[:-1] + bytes([data[-1] ^ 1]) if key.seq == bad else data)

    monkeypatch.setattr(Conversation, "_send", damage)
    async with gateway.running() as uplink:
        await eventually(lambda: uplink.outbox.counts.refused == 1, what="one block refused")
        await eventually(lambda: len(values(cloud)) == 90, what="the other 90 samples")
        await eventually(
            lambda: not any(k.stream == "plc-press" for k in list(uplink.outbox)), what="all acknowledged"
        )
        assert not uplink.acks.has("plc-press", gateway.boot, bad)
    assert cloud.counters()["refused"] == 1


def _seqs(gateway: Gateway) -> list[int]:
    return [r.seq for r in Reader(gateway.root / "flash/log").records("plc-press")]


async def test_locked_series_store(cloud: Cloud, gateway: Gateway) -> None:
    """While the series store can't be written, data waits in the buffer and is acknowledged; status goes on.

    Shows: X36, L01
    """
    gateway.log(counting(1))
    async with gateway.running() as uplink:
        await eventually(lambda: len(values(cloud)) == 10, what="first samples")
        blocker = sqlite3.connect(cloud.state.series, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        gateway.log(counting(5, start=10))
        await eventually(lambda: uplink.outbox.counts.acknowledged >= 6, what="acknowledged by the buffer")
        assert len(values(cloud)) == 10
        assert cloud.counters()["buffer_rows"] >= 5
        blocker.execute("ROLLBACK")
        blocker.close()
        await eventually(lambda: values(cloud) == list(range(60)), 30, "all samples")


async def test_whole_cloud_killed_and_started(tmp_path: Path, cloud: Cloud, gateway: Gateway) -> None:
    """kill -9 of the group ends all its processes; started again, it goes on where it was.

    Shows: X88
    """
    gateway.log(counting(20))
    async with gateway.running():
        await eventually(lambda: len(values(cloud)) == 200, what="200 samples")
        pids = cloud.pids()
        assert len(pids) == 5
        cloud.stop(9)
        await eventually(
            lambda: (
                not any(
                    Path(f"/proc/{p}/cmdline").exists() and Path(f"/proc/{p}/cmdline").read_bytes()
                    for p in pids.values()
                )
            ),
            what="no process left",
        )
        gateway.log(counting(20, start=200))
        await asyncio.to_thread(cloud.start)
        await eventually(lambda: values(cloud) == list(range(400)), 60, "400 samples")


NESTED = b'{"x":' + b"[" * 100_000
HOSTILE = [
    ("time", NESTED),
    ("ack", NESTED),
    ("ping", b"\xff"),
    ("ack", b'{"stream":"../../etc","boot":"' + b"00" * 16 + b'","seqs":[[0,999999999999999999999]]}'),
    ("ack", b'{"stream":"plc-press","boot":"zz","seqs":[[0,1]]}'),
    ("nack", b'{"stream":"plc-press","boot":"zz","seq":0,"reason":""}'),
]


async def test_hostile_messages_of_the_cloud_change_nothing(cloud: Cloud, gateway: Gateway) -> None:
    """Nested, cut, foreign and lying messages: nothing is taken for stored, and the next blocks arrive.

    Shows: X88
    """
    async with gateway.running() as uplink:
        await gateway.connected()
        lie = Ack("plc-press", gateway.boot.hex(), [(0, 2**63)])
        talk = await eventually(lambda: uplink.talk, what="a conversation")
        for topic, payload in [*HOSTILE, ("ack", messages.encode(lie))]:
            talk.receive(topics.down(gateway.device, topic), payload)
        gateway.log(counting(10))
        await eventually(lambda: values(cloud) == list(range(100)), what="100 samples")
    assert not list((gateway.root / "flash").glob("**/etc*"))


async def test_a_fault_in_the_conversation_ends_the_connection_not_the_uplink(
    cloud: Cloud, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with this program: the connection begins again."""
    real, faults = Conversation._flash_work, [RuntimeError("a fault")]

    def faulty(self: Conversation) -> None:
        if faults:
            raise faults.pop()
        real(self)

    monkeypatch.setattr(Conversation, "_flash_work", faulty)
    gateway.log(counting(10))
    async with gateway.running():
        await eventually(lambda: values(cloud) == list(range(100)), what="100 samples")
    assert not faults
