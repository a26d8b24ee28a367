"""What the portal answers about a real gateway's uplink. Real broker, ingest, stores, HTTPS."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from firmware.status import Reporter, State
from firmware.wire.block import Sample
from tests.contract.cloud import START_US, Cloud, Gateway, counting, eventually


@pytest.fixture
def cloud(shared_cloud: Cloud) -> Cloud:
    return shared_cloud


@pytest.fixture
async def api(cloud: Cloud) -> AsyncIterator[httpx.AsyncClient]:
    context = ssl.create_default_context(cafile=str(cloud.state.ca / "ca.crt"))
    async with httpx.AsyncClient(base_url=f"https://localhost:{cloud.api_port}", verify=context) as client:
        yield client


EXACT: list[tuple[str, object, int]] = [
    ("Q", 2**64 - 1, 0),
    ("q", -(2**63), 0),
    ("?", True, 0),
    ("s", "Grüße 🙂", 0),
    ("d", 0.1, 0),
    ("d", float("nan"), 0),
    ("d", float("-inf"), 64),
    ("d", None, 129),
]


async def test_everything_about_a_gateway(cloud: Cloud, api: httpx.AsyncClient, tmp_path: Path) -> None:
    """Presence, status, exact values of every kind, events, live stream and ping, over HTTPS.

    Shows: L12, L19, L20, X35, X41
    """
    gateway = Gateway(tmp_path, cloud, "SP-API")
    Reporter("firewall", tmp_path / "run/sallyport/status").report(State.OK, "closed both ways", rules=7)
    for n, (type_, value, quality) in enumerate(EXACT):
        gateway.log([[Sample("v", START_US + n * 1000, value, quality, type_)]], f"plc-{n}")  # type: ignore[arg-type]
    assert (await api.get("/api/v1/gateways/SP-API")).status_code == 404
    async with gateway.running():
        await eventually(lambda: len(cloud.points("v", "SP-API", "plc-7")) == 1, what="the last value")
        await eventually(lambda: cloud.platform().gateways("SP-API")[0].observed, what="status arrived")
        found = (await api.get("/api/v1/gateways/SP-API")).json()
        assert found["online"] is True
        assert found["observed"]["firewall"]["summary"] == "closed both ways"
        assert found["observed"]["firewall"]["detail"] == {"rules": 7}
        assert found["boot"] == gateway.boot.hex()
        assert "SP-API" in [g["id"] for g in (await api.get("/api/v1/gateways")).json()]

        tags = (await api.get("/api/v1/gateways/SP-API/tags")).json()
        assert [t["tag"] for t in tags] == [f"plc-{n}/v" for n in range(len(EXACT))]
        answers = [
            (await api.get("/api/v1/gateways/SP-API/series", params={"tag": t["tag"]})).json() for t in tags
        ]
        assert [a[0]["value"] for a in answers] == [
            2**64 - 1, -(2**63), True, "Grüße 🙂", 0.1, "NaN", "-Infinity", None,
        ]  # fmt: skip
        assert [a[0]["quality"] for a in answers] == [quality for _, _, quality in EXACT]

        await eventually(lambda: cloud.platform().events("SP-API"), what="the first event")
        ping = await api.post("/api/v1/gateways/SP-API/ping")
        assert ping.status_code == 200
        assert ping.json()["boot"] == gateway.boot.hex()
        assert 0 < ping.json()["ms"] < 5000

        async with api.stream("GET", "/api/v1/gateways/SP-API/live") as live:
            lines = live.aiter_lines()
            assert await anext(lines) == "event: gateway"
            gateway.log(counting(1, 3), "plc-live")
            async for line in lines:
                if line == "event: samples":
                    break
            samples = json.loads((await anext(lines)).removeprefix("data: "))
            assert [(s["tag"], s["value"]) for s in samples] == [("plc-live/n", n) for n in range(3)]
    await eventually(lambda: not cloud.platform().gateways("SP-API")[0].online, what="offline is known")
    events = (await api.get("/api/v1/gateways/SP-API/events")).json()
    (event,) = [e for e in events if e["name"] == "connected"]
    assert (event["service"], event["severity"], event["data"]["host"]) == ("uplink", "info", "localhost")
    assert abs(event["time_us"] - time.time_ns() // 1000) < 60_000_000
    late = await api.post("/api/v1/gateways/SP-API/ping", params={"timeout_s": 0.2})
    assert late.status_code == 504


async def test_series_ranges(cloud: Cloud, api: httpx.AsyncClient, tmp_path: Path) -> None:
    """`from`, `to` and `limit`: half-open range, first ones from a start, latest ones without."""
    gateway = Gateway(tmp_path, cloud, "SP-RANGE")
    gateway.log(counting(10))
    async with gateway.running():
        points = await eventually(
            lambda: len(p := cloud.points("n", "SP-RANGE")) == 100 and p, what="100 samples"
        )

    async def ask(**query: int) -> list[int]:
        answer = await api.get("/api/v1/gateways/SP-RANGE/series", params={"tag": "plc-press/n", **query})
        return [p["value"] for p in answer.json()]

    assert await ask() == list(range(100))
    assert await ask(limit=3) == [97, 98, 99]
    assert await ask(**{"from": points[10].time_us, "to": points[20].time_us}) == list(range(10, 20))
    assert await ask(**{"from": points[10].time_us, "limit": 2}) == [10, 11]
    assert await ask(**{"to": points[10].time_us, "limit": 2}) == [8, 9]


async def test_page_health_and_documentation(api: httpx.AsyncClient) -> None:
    """The page comes whole from here (no other host), the API describes itself, health counts."""
    page = await api.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for part in ("/page.js", "/page.css"):
        text = (await api.get(part)).text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    health = (await api.get("/api/v1/health")).json()
    assert health["ok"] is True
    assert "buffer_rows" in health["counters"]
    paths = (await api.get("/openapi.json")).json()["paths"]
    assert {"/api/v1/gateways", "/api/v1/gateways/{device}/series", "/api/v1/health"} <= paths.keys()


async def test_each_process_may_die(cloud: Cloud, api: httpx.AsyncClient) -> None:
    """Each process but the API killed in turn: the API answers all the time, the process comes back.

    Shows: L01
    """
    for name in ("ingest", "series", "platform", "broker"):
        old = cloud.pids()[name]
        cloud.kill(name)
        assert (await api.get("/api/v1/health")).status_code == 200
        await eventually(lambda n=name, o=old: cloud.pids().get(n, o) != o, what=f"{name} runs again")
        assert (await api.get("/api/v1/gateways")).status_code == 200
