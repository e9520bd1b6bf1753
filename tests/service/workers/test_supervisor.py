"""The supervisor with real processes without models: what it starts, starts again, gives up and stops."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.workers.supervisor import INTERRUPTED, MAX_FAILURES, REFUSED, Supervisor, Times
from tests.service.catalogs import until
from tests.service.workers import small_worker

TIMES = Times(stop_s=60, first_wait_s=0.01, steady_s=600)


class Service:
    """Two workers; each process of a worker behaves as the next word of its list says, the last one on."""

    def __init__(self, folder: Path, ways: dict[int, list[str]], times: Times = TIMES) -> None:
        self.path = folder / "ready"
        self.path.touch()
        self.starts: list = []
        self._ways = ways
        self.supervisor = Supervisor(len(ways), self._command, times=times)

    def _command(self, start):
        ways = self._ways[start.number]
        num_before = sum(each.number == start.number for each in self.starts)
        self.starts.append(start)
        way = ways[min(num_before, len(ways) - 1)]
        return [sys.executable, small_worker.__file__, str(start.channel_fd), str(self.path), way]

    def ready(self) -> list[int]:
        """Pids of processes that were ready, in that order."""
        return [int(line.split()[0]) for line in self.path.read_text().splitlines()]

    @property
    def pids(self) -> list[int | None]:
        return [each.pid for each in self.supervisor.hub.workers]


@pytest.fixture
def service(tmp_path):
    @asynccontextmanager
    async def run(ways, times=TIMES):
        made = Service(tmp_path, ways, times)
        made.running = asyncio.create_task(made.supervisor.run())
        try:
            yield made
        finally:
            if not made.running.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(made.running, return_exceptions=True), 120)

    return run


async def until_ready(made, num):
    await until(lambda: made.running.done() or len(made.ready()) >= num, timeout_s=120)
    assert not made.running.done()


async def test_the_first_worker_is_ready_before_the_second_starts_and_sigterm_ends_both(service):
    async with service({1: ["serves"], 2: ["serves"]}) as made:
        await until_ready(made, 2)
        assert made.ready() == made.pids
        assert [each.opens_when_ready for each in made.starts] == [False, True]
        os.kill(os.getpid(), signal.SIGTERM)
        assert await made.running == 0
    assert made.pids == [None, None]


async def test_a_killed_worker_starts_again_and_what_it_counted_stays_counted(service):
    async with service({1: ["serves"], 2: ["serves"]}) as made:
        await until_ready(made, 2)
        hub = made.supervisor.hub
        assert "glyphrec_requests_total 2.0" in await hub.exposition()
        killed = made.pids[1]
        os.kill(killed, signal.SIGKILL)
        await until_ready(made, 3)
        assert killed not in made.pids
        text = await hub.exposition()
        assert "glyphrec_requests_total 3.0" in text
        assert 'glyphrec_worker_restarts_total{worker="2"} 1.0' in text
        assert 'glyphrec_worker_up{worker="2"} 1.0' in text
        assert made.starts[-1].opens_when_ready


async def test_a_service_whose_first_worker_refuses_to_start_ends_at_once(service):
    async with service({1: ["refuses"], 2: ["serves"]}) as made:
        assert await asyncio.wait_for(made.running, 120) == REFUSED
        assert [each.number for each in made.starts] == [1]


async def test_a_worker_that_ends_over_and_over_ends_the_service(service):
    async with service({1: ["serves"], 2: ["fails"]}) as made:
        made.supervisor._times = Times(stop_s=60, first_wait_s=0.001, steady_s=600)
        assert await asyncio.wait_for(made.running, 170) == REFUSED
        assert [each.number for each in made.starts] == [1] + MAX_FAILURES * [2]


async def test_a_worker_that_does_not_end_is_killed(service):
    async with service({1: ["hangs"]}, Times(stop_s=0.5)) as made:
        await until_ready(made, 1)
        os.kill(os.getpid(), signal.SIGINT)
        assert await made.running == INTERRUPTED


async def test_readiness_names_the_worker_that_is_silent_and_the_one_that_is_not_there(service):
    async with service({1: ["serves"], 2: ["refuses"]}, Times(stop_s=60, first_wait_s=30)) as made:
        hub = made.supervisor.hub
        await until(lambda: "starts again" in hub.workers[1].phase, timeout_s=120)
        first, second = await hub.readiness()
        assert (first["worker"], first["status"]) == (1, "ready")
        assert (second["worker"], second["pid"], second["status"]) == (2, None, "starting")
        assert "worker 2 ended with status 2; starts again in 30 s" in second["phase"]
        os.kill(first["pid"], signal.SIGSTOP)
        try:
            assert (await hub.readiness())[0]["status"] == "silent"
            text = await hub.exposition()
            assert 'glyphrec_worker_up{worker="1"} 0.0' in text
        finally:
            os.kill(first["pid"], signal.SIGCONT)


async def test_a_change_of_the_model_reaches_the_others_and_processes_that_start_later(service):
    async with service({1: ["serves"], 2: ["serves"]}) as made:
        await until_ready(made, 2)
        hub = made.supervisor.hub
        assert await hub.change(hub.workers[0], {"name": "good", "path": "/bundles/good"}) == []
        said = await hub.change(hub.workers[0], {"name": "bad", "path": "/bundles/bad"})
        assert said == ["worker 2: bad is refused"]
        await hub.change(hub.workers[0], {"name": "good", "path": "/bundles/good"})
        os.kill(made.pids[0], signal.SIGKILL)
        await until_ready(made, 3)
        assert made.starts[-1].bundle == Path("/bundles/good")
