"""How late the event loop is: the first sign that something holds it."""

import asyncio

from service.telemetry.metrics import Metrics

TICK_S = 0.25


async def watch_event_loop(metrics: Metrics) -> None:
    """Measure how late a timer fires, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_at = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        metrics.event_loop_lag_seconds.observe(max(0.0, loop.time() - due_at))
