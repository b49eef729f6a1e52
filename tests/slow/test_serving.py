"""A server under load: 32 streams for a minute."""

from __future__ import annotations

import asyncio
import sys

import pytest

from scripts.bench.serve import put_under_load, server


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of another process is read from /proc")
def test_32_streams_for_a_minute_without_an_error_and_with_flat_memory():
    with server(context_length=64, d_model=32, n_layer=2, n_head=4) as (url, pid):
        load = asyncio.run(put_under_load(url, pid, 32, 60, tokens=100))
    assert load.errors == []
    assert load.requests >= 32
    settled = load.memory[len(load.memory) // 4 :]
    assert max(settled) - min(settled) < 10 * 2**20
