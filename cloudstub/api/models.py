"""What the API answers. Times are integers: microseconds since 1970 (UTC), unless the name says otherwise."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, Field

from cloudstub.stores.platform import Gateway, StoredEvent
from cloudstub.stores.series import LivePoint, Point, Tag

Value = bool | int | float | str | None


class GatewayOut(BaseModel):
    """One gateway, its presence, and what its services report."""

    id: str
    online: bool
    since_us: int = Field(description="since when it is online or offline")
    seen_us: int = Field(description="when it was heard of last")
    version: str
    boot: str = Field(description="id of its present boot")
    observed: dict[str, Any] = Field(
        description="observed documents of its services, by name: state, summary, detail; the last known ones"
    )
    observed_us: int = Field(description="when `observed` arrived")

    @classmethod
    def of(cls, gateway: Gateway) -> GatewayOut:
        fields = gateway._asdict()
        return cls(id=fields.pop("device"), **fields)


class PointOut(BaseModel):
    """One sample."""

    time_us: int = Field(description="true time, corrected for the gateway's clock")
    original_us: int = Field(description="what the gateway's own clock said")
    value: Value = Field(
        description='integers up to 64 bits in full; floats that JSON lacks are "NaN", "Infinity", "-Infinity"; '
        "null exactly when quality is 128 or more"
    )
    quality: int = Field(description="0 good, 64 uncertain, 128 bad, 129 no connection, 130 device error")
    type: str = Field(description="type letter: ? bool, bBhHiIqQ integers, f d floats, s text")
    estimated: bool = Field(
        description="the true time is estimated: the gateway has not reported its clock yet"
    )

    @classmethod
    def of(cls, point: Point) -> PointOut:
        return cls.model_construct(
            time_us=point.time_us,
            original_us=point.original_us,
            value=json_value(point.value),
            quality=point.quality,
            type=point.type,
            estimated=point.estimated,
        )


class TagOut(BaseModel):
    """One value of a machine."""

    tag: str = Field(description='"<stream>/<name>", as `series` takes it')
    stream: str
    name: str
    type: str
    count: int = Field(description="samples stored")
    last: PointOut | None

    @classmethod
    def of(cls, tag: Tag) -> TagOut:
        return cls(
            tag=f"{tag.stream}/{tag.name}",
            stream=tag.stream,
            name=tag.name,
            type=tag.type,
            count=tag.samples,
            last=PointOut.of(tag.last) if tag.last else None,
        )


class EventOut(BaseModel):
    time_us: int
    service: str
    name: str
    severity: str = Field(description="info, warning or error")
    data: dict[str, Any]

    @classmethod
    def of(cls, event: StoredEvent) -> EventOut:
        return cls(**event._asdict())


class PingOut(BaseModel):
    """A round trip API -> broker -> gateway -> broker -> API."""

    ms: float
    boot: str


class HealthOut(BaseModel):
    """Counters since the beginning, and what waits now."""

    ok: bool = Field(description="buffer and both stores can be read")
    counters: dict[str, int] = Field(
        description="blocks, duplicates, refused, unreadable, bytes, statuses, clock_reports; buffer_rows and "
        "buffer_bytes wait for a store now; samples are stored"
    )
    trouble: list[str]


def json_value(value: Value) -> Value:
    """A value as JSON can carry it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def live(point: LivePoint) -> dict[str, Any]:
    """A sample of the live stream."""
    return {
        "tag": f"{point.stream}/{point.name}",
        "time_us": point.point.time_us,
        "value": json_value(point.point.value),
        "quality": point.point.quality,
    }
