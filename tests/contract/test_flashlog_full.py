"""The flash log on a real file system that is too small for its quota."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
    import json, pathlib, random, sys
    from firmware.clock import Instant
    from firmware.wire import block
    from firmware.wire.block import Sample
    from services.flashlog import Reader, Writer

    root = pathlib.Path(sys.argv[1])
    writer = Writer(root, "plc-a", "SP-1", bytes(16), quota=1 << 30, segment_bytes=32768)
    failed, rng = 0, random.Random(1)
    for i in range(600):
        writer.extend(Sample(f"t{j}", i * 1000 + j, rng.random(), 0, "d") for j in range(200))
        failed += writer.seal() is None
    reader = Reader(root)
    records = list(reader.records("plc-a"))
    stats = writer.stats
    print(json.dumps({
        "failed": failed,
        "lost": stats.lost_entries,
        "dropped": stats.dropped_blocks,
        "left": len(records),
        "gapless": [r.seq for r in records] == list(range(stats.next_seq - len(records), stats.next_seq)),
        "readable": sum(len(block.decode(r.raw).samples) for r in records),
        "error": stats.error,
    }))
"""


def unshared(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-rm", *command], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.netns
def test_disk_smaller_than_the_quota(tmp_path: Path) -> None:
    """The disk runs full long before the quota: the oldest goes, counted; the newest is always safe and whole."""
    if unshared(["true"]).returncode:
        pytest.skip("no mount namespaces here")
    inner = 'mount -t tmpfs -o size=512k none "$0" && exec "$1" -c "$2" "$0"'
    done = unshared(["sh", "-c", inner, str(tmp_path), sys.executable, textwrap.dedent(SCRIPT)])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["failed"] == 0
    assert result["error"] == ""
    assert result["lost"] == 0
    assert result["gapless"]
    assert result["left"] + result["dropped"] == 600
    assert result["dropped"] > 100
    assert result["left"] > 100
    assert result["readable"] == result["left"] * 200
