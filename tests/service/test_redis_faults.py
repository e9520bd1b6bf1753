"""What a whole service answers in each state of Redis: the table in docs/reliability.md, row by row."""

import logging
from pathlib import Path

import pytest

from service.redis_server import start_server
from tests.service.running import running


async def test_the_service_warns_of_a_redis_that_keeps_nothing(
    bundle: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "glyphrec"):
        async with running(bundle, redis_url) as client:
            shown = (await client.get("/info")).json()["redis"]
            metrics = (await client.get("/metrics")).text
    assert "--appendonly yes" in caplog.text
    assert shown["append_only"] is False
    assert shown["loss_window_s"] is None
    assert "since the last snapshot" in shown["loss_window"]
    assert "glyphrec_redis_loss_window_seconds +Inf" in metrics


async def test_the_service_says_how_safe_an_acknowledged_item_is(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_server(tmp_path / "redis") as server, caplog.at_level(logging.WARNING, "glyphrec"):
        async with running(bundle, server.url) as client:
            shown = (await client.get("/info")).json()["redis"]
            metrics = (await client.get("/metrics")).text
    assert "appendonly" not in caplog.text
    assert (shown["append_only"], shown["append_fsync"]) == (True, "everysec")
    assert shown["loss_window_s"] == 2
    assert "about one second" in shown["loss_window"]
    assert "glyphrec_redis_loss_window_seconds 2.0" in metrics
