"""How much memory an upstream can make the relay take: measured in a process of its own."""

import asyncio
import subprocess
import sys

import pytest

from tests.proxy.chaos_upstream import endless_headers, flood

PROGRAM = """
import asyncio, resource, sys
from proxy.errors import UpstreamError
from tests.proxy import chaos_upstream as chaos
from tests.proxy.upstreams import connected

BYTES = 512 * 2**20

async def main():
    async with chaos.chaos_upstream(chaos.answer()) as server, connected(server.url) as upstream:
        async with upstream.send("GET", "/v1/models", []) as reply:
            assert [chunk async for chunk in reply.chunks]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        server.mode, taken = getattr(chaos, sys.argv[1]), 0
        try:
            async with upstream.send("GET", "/v1/models", []) as reply:
                async for chunk in reply.chunks:
                    taken += len(chunk)
                    if taken > BYTES:
                        break
            print("taken", end=" ")
        except UpstreamError:
            print("refused", end=" ")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("mode", "outcome"), [(flood, "taken"), (endless_headers, "refused")])
async def test_a_flood_and_a_head_without_end_take_little_memory(mode: object, outcome: str) -> None:
    name = getattr(mode, "__name__", "")
    result = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=True
    )

    [told, kilobytes] = result.stdout.split()
    assert told == outcome
    assert int(kilobytes) < 32 * 1024
