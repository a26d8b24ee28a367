"""The routes, version 1. Reads the stores, never writes them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from cloudstub.api.models import EventOut, GatewayOut, HealthOut, PingOut, PointOut, TagOut, live
from cloudstub.api.ping import Pinger
from cloudstub.ingest.buffer import health
from cloudstub.state import State
from cloudstub.stores.platform import PlatformReader
from cloudstub.stores.series import SqliteSeriesReader
from cloudstub.stores.sqlite import connect_readonly

PAGE = Path(__file__).parent.parent / "page"
LIVE_S = 0.25
"""How often the live stream looks for news."""
COMMENT_S = 15.0
"""An idle live stream says something this often, so that a broken one is noticed."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def create(state: State, host: str, port: int) -> FastAPI:
    """`host` and `port` are the broker's, for pings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.pinger = Pinger(state, host, port)
        yield
        await asyncio.to_thread(app.state.pinger.close)

    app = FastAPI(
        title="Sallyport cloud",
        version="1",
        description="Machine data, presence and events of gateways. Times are microseconds since 1970 (UTC).",
        lifespan=lifespan,
        docs_url=None,  # the usual documentation pages load scripts from elsewhere; the document is /openapi.json
        redoc_url=None,
    )

    @app.middleware("http")
    async def headers(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(sqlite3.OperationalError)
    async def store_trouble(_request: Request, error: sqlite3.OperationalError) -> Any:
        return JSONResponse({"detail": f"a store can't be read now: {error}; try again"}, status_code=503)

    _gateway_routes(app, state)
    _data_routes(app, state)

    @app.get("/api/v1/health", summary="Counters, and what waits")
    def get_health() -> HealthOut:
        counters: dict[str, int] = {}
        trouble = []
        try:
            with closing(connect_readonly(state.buffer)) as db:
                counters |= health(db)
        except sqlite3.Error as error:
            trouble.append(f"buffer: {error}")
        try:
            with _series(state) as series:
                counters["samples"] = series.count()
        except sqlite3.Error as error:
            trouble.append(f"series store: {error}")
        try:
            with _platform(state) as platform:
                counters["gateways"] = len(platform.gateways())
        except sqlite3.Error as error:
            trouble.append(f"platform store: {error}")
        return HealthOut(ok=not trouble, counters=counters, trouble=trouble)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/page.js", include_in_schema=False)
    def script() -> FileResponse:
        return FileResponse(PAGE / "page.js", media_type="text/javascript")

    @app.get("/page.css", include_in_schema=False)
    def style() -> FileResponse:
        return FileResponse(PAGE / "page.css", media_type="text/css")

    return app


def _gateway_routes(app: FastAPI, state: State) -> None:
    @app.get("/api/v1/gateways", summary="All gateways")
    def gateways() -> list[GatewayOut]:
        with _platform(state) as store:
            return [GatewayOut.of(g) for g in store.gateways()]

    @app.get("/api/v1/gateways/{device}", summary="One gateway")
    def gateway(device: str) -> GatewayOut:
        with _platform(state) as store:
            return _one(store, device)

    @app.get("/api/v1/gateways/{device}/events", summary="Events, newest first")
    def events(
        device: str,
        before: Annotated[int | None, Query(description="only events before this time")] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> list[EventOut]:
        with _platform(state) as store:
            _one(store, device)
            return [EventOut.of(e) for e in store.events(device, before_us=before, limit=limit)]

    @app.post("/api/v1/gateways/{device}/ping", summary="Round trip to the gateway through the broker")
    async def ping(device: str, timeout_s: Annotated[float, Query(gt=0, le=60)] = 10) -> PingOut:
        with _platform(state) as store:
            _one(store, device)
        try:
            ms, pong = await app.state.pinger.ping(device, timeout_s)
        except TimeoutError:
            raise HTTPException(
                504, f"no answer from {device} within {timeout_s} s: it or the broker is offline"
            ) from None
        return PingOut(ms=round(ms, 1), boot=pong.boot)


def _data_routes(app: FastAPI, state: State) -> None:
    @app.get("/api/v1/gateways/{device}/tags", summary="Tags with their latest sample")
    def tags(device: str) -> list[TagOut]:
        with _series(state) as store:
            return [TagOut.of(t) for t in store.tags(device)]

    @app.get("/api/v1/gateways/{device}/series", summary="Samples of one tag, oldest first")
    def series(
        device: str,
        tag: Annotated[str, Query(description='"<stream>/<name>", as /tags gives it')],
        start: Annotated[
            int | None,
            Query(alias="from", description="first time; without it the latest samples are given"),
        ] = None,
        end: Annotated[int | None, Query(alias="to", description="time before which to stop")] = None,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 1000,
    ) -> list[PointOut]:
        stream, _, name = tag.partition("/")
        with _series(state) as store:
            points = store.read(device, stream, name, start_us=start, end_us=end, limit=limit)
        return [PointOut.of(p) for p in points]

    @app.get(
        "/api/v1/gateways/{device}/live",
        summary="Server-sent events: `samples` and `gateway` as they come",
        response_class=StreamingResponse,
    )
    async def live_stream(device: str) -> StreamingResponse:
        with _platform(state) as store:
            _one(store, device)
        return StreamingResponse(_live(state, device), media_type="text/event-stream")


async def _live(state: State, device: str) -> AsyncIterator[bytes]:
    cursor: int | None = None
    shown: GatewayOut | None = None
    quiet = 0.0
    while True:
        cursor, samples, gateway = await asyncio.to_thread(_news, state, device, cursor)
        if gateway != shown:
            shown = gateway
            yield _event("gateway", gateway.model_dump() if gateway else None)
            quiet = 0
        if samples:
            yield _event("samples", samples)
            quiet = 0
        if quiet >= COMMENT_S:
            yield b": still here\n\n"
            quiet = 0
        await asyncio.sleep(LIVE_S)
        quiet += LIVE_S


def _news(
    state: State, device: str, cursor: int | None
) -> tuple[int | None, list[dict[str, Any]], GatewayOut | None]:
    try:
        with _series(state) as series, _platform(state) as platform:
            found = platform.gateways(device)
            if cursor is None:
                cursor = series.position()
            cursor, points = series.newer(device, cursor)
            return cursor, [live(p) for p in points], GatewayOut.of(found[0]) if found else None
    except sqlite3.OperationalError:  # not there yet, or away for a moment
        return cursor, [], None


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


def _one(store: PlatformReader, device: str) -> GatewayOut:
    found = store.gateways(device)
    if not found:
        raise HTTPException(404, f"no gateway {device!r} has connected yet")
    return GatewayOut.of(found[0])


@contextmanager
def _series(state: State) -> Iterator[SqliteSeriesReader]:
    with closing(SqliteSeriesReader(state.series)) as store:
        yield store


@contextmanager
def _platform(state: State) -> Iterator[PlatformReader]:
    with closing(PlatformReader(state.platform)) as store:
        yield store
