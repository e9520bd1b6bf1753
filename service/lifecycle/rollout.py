"""How a replica changes from one bundle to another while it answers requests (docs/decisions/0009).

A bundle with the tokenizer that is served concerns this replica only. For another one, one replica leads:

    reading   it gives codes of the new tokenizer to every item of the catalog, slowly
    joining   every replica loads the new catalog, and hands on to it what it writes under the old tokenizer
    switched  the new tokenizer is the active one, and every replica that sees this swaps its model

After the switch no acknowledged write is missing. What a replica wrote before it began to hand on is in the
log of the old tokenizer. The leader takes that log over to its end before the switch, and goes on afterwards
for replicas that are late. What a replica wrote later, it has handed on before it answered.

decide.py says what a replica does, leader.py leads, retokenizing.py fills the new catalog.
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from service.errors import BundleRefused, ChangeUnderWay, GlyphrecError, ServiceError, StoreUnavailable
from service.lifecycle.bundles import BundleFolder, LoadedBundle
from service.lifecycle.decide import (
    Action,
    ClearTrouble,
    CountProgress,
    GiveUpCandidate,
    Job,
    Load,
    Mine,
    Purge,
    ReloadCatalog,
    RenewLease,
    ShowPhase,
    Trail,
    decide,
    may_join,
    may_serve,
)
from service.lifecycle.leader import Leader
from service.lifecycle.model import Model, Readiness
from service.lifecycle.retokenizing import Retokenizer
from service.lifecycle.tasks import cancel
from service.store.retry import retry
from service.store.rollout import Announced, ReplicaReport, RolloutStore, Seen
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

POLL_S = 0.5
TRY_AGAIN_S = 10  # after a bundle that could not be loaded


@dataclass(frozen=True)
class Progress:
    """The change that was announced last."""

    announced: Announced
    num_read: int  # items that the new tokenizer has read
    num_items: int
    replicas: list[ReplicaReport]


class Rollout:
    """The serving model of this replica, and its part in every change."""

    def __init__(
        self,
        changes: RolloutStore,
        make: Callable[[LoadedBundle], Model],
        folder: BundleFolder,
        retokenizer: Retokenizer,
        leader: Leader,
        metrics: Metrics,
        readiness: Readiness,
    ) -> None:
        self._changes = changes
        self._make = make
        self._folder = folder
        self._retokenizer = retokenizer
        self._leader = leader
        self._metrics = metrics
        self._readiness = readiness
        self._seen = Seen(None, None, None, [], {})
        self._looked = asyncio.Condition()
        self._acting = asyncio.Lock()  # no action may rest on a look from before an announcement
        self._loading = asyncio.Lock()
        self._model: Model | None = None  # answers requests
        self._candidate: Model | None = None  # is prepared beside it
        self._jobs: dict[Job, asyncio.Task[None]] = {}
        self._retiring: dict[asyncio.Task[None], Model] = {}
        self._trouble = ""
        self._was_behind = False
        self._num_read = self._num_items = 0

    # --- what routes ask ---

    async def change(self, name: str) -> bool:
        """Change to the bundle `name`. True: done on this replica. False: begun for all replicas.

        Raises NoBundlesFolder, BundleNotFound, BundleRefused or ChangeUnderWay; then nothing has changed.
        """
        if self._loading.locked():
            raise ChangeUnderWay
        async with self._loading:
            try:
                loaded = await asyncio.to_thread(self._folder.load, name)
            except BundleRefused:
                self._metrics.bundle_swaps.labels("failed").inc()
                raise
            await self.look()
            if may_serve(self._seen, self._serving.tokenizer_id, loaded.manifest.tokenizer_id):
                await self._change_here(loaded)
                return True
            async with self._acting:
                await self._change_everywhere(loaded)
            await self.look()
            return False

    async def _change_here(self, loaded: LoadedBundle) -> None:
        """The tokenizer's codes exist already, so the change concerns this replica only and is quick."""
        if Job.PREPARE in self._jobs:
            raise ChangeUnderWay
        if loaded.manifest != self._serving.manifest:
            await asyncio.shield(self._prepare(loaded))

    async def _change_everywhere(self, loaded: LoadedBundle) -> None:
        """Announce the change and begin to lead it."""
        tokenizer_id, announced = loaded.manifest.tokenizer_id, self._seen.announced
        candidate = self._candidate
        is_mine = candidate is not None and candidate.tokenizer_id == tokenizer_id
        if Job.LEAD in self._jobs:
            if is_mine:
                return
            raise ChangeUnderWay
        is_announced = announced is not None and announced.tokenizer_id == tokenizer_id
        # A leader that has just died holds its lease for some seconds. `Leader.lead` waits for that.
        if not await self._changes.announce(loaded.name, tokenizer_id) and not is_announced:
            raise ChangeUnderWay
        if candidate is None or not is_mine:
            await self._give_up()
            self._prepare(loaded)
        assert self._candidate is not None
        self._begin(Job.LEAD, self._leader.lead(self._candidate))

    def progress(self) -> Progress | None:
        """How far the last change is; None before the first one."""
        announced = self._seen.announced
        if announced is None:
            return None
        return Progress(announced, self._num_read, self._num_items, self._seen.replicas)

    # --- what a replica does by itself ---

    async def begin(self, model: Model) -> None:
        """Serve `model`.

        The other replicas know of this one before its first request, unless Redis takes no writes. Then no
        model can change either, and `run` tells them as soon as Redis takes writes again.
        """
        self._model = model
        try:
            await self.look()
        except ServiceError as error:
            log.warning("the other replicas do not know of this one yet: %s", error)
        self._readiness.model = self._serving
        self._serving.show()

    def finish_start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what the start has left to do in the background, to its end or to `stop`."""
        self._begin(Job.START, work)

    async def run(self) -> None:
        """Look twice a second for an announced change and do this replica's part; until cancelled."""
        trouble = ""
        while True:
            try:
                await self.look()
                trouble = ""
            except ServiceError as error:
                if str(error) != trouble:
                    log.warning("cannot see whether the model is to change: %s", error)
                trouble = str(error)
            self._serving.check()
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """See what was announced, do what follows from it, and report this replica."""
        async with self._acting:
            self._seen = await self._changes.look()
            for action in decide(self._seen, self._mine()):
                await self._carry_out(action)
            await self._changes.report(self._report())
        async with self._looked:
            self._looked.notify_all()

    async def stop(self) -> None:
        """End all work and every model. The other replicas learn that this one is gone."""
        for task in list(self._jobs.values()):
            await cancel(task)
        await self._give_up()
        for task, model in list(self._retiring.items()):
            await cancel(task)
            await model.stop()
        self._readiness.model = None
        if self._model is not None:
            await self._model.stop()
        try:
            await self._changes.leave()
        except ServiceError:
            log.info("the others will notice within seconds that this replica is gone")

    @property
    def _serving(self) -> Model:
        assert self._model is not None, "`begin` comes first"
        return self._model

    def _mine(self) -> Mine:
        candidate = self._candidate
        return Mine(
            serving=self._serving.tokenizer_id,
            in_use=self._in_use(),
            candidate=None if candidate is None else candidate.tokenizer_id,
            was_behind=self._was_behind,
            jobs=frozenset(self._jobs),
        )

    def _in_use(self) -> frozenset[str]:
        models = [self._serving, *self._retiring.values()]
        return frozenset(model.tokenizer_id for model in models)

    def _report(self) -> ReplicaReport:
        candidate, serving = self._candidate, self._serving
        prepared = candidate if candidate is not None and candidate.has_joined else serving
        return ReplicaReport(
            replica_id=self._changes.replica_id,
            tokenizer_id=serving.tokenizer_id,
            in_use=tuple(sorted(self._in_use())),
            prepared=prepared.tokenizer_id,
            trouble=self._trouble,
        )

    async def _carry_out(self, action: Action) -> None:
        match action:
            case ShowPhase(active):
                self._show_phase(active)
            case ReloadCatalog():
                await self._serving.follower.load()
                self._was_behind = False
            case GiveUpCandidate():
                await self._give_up()
            case Load(tokenizer_id, preferred):
                self._begin(Job.LOAD, self._load(tokenizer_id, preferred))
            case ClearTrouble():
                self._trouble = ""
            case RenewLease(announced):
                if not await self._changes.lead(announced.tokenizer_id):
                    log.info("another replica leads the change to %s", announced.bundle)
            case CountProgress(tokenizer_id):
                self._num_read, self._num_items = await self._changes.progress(tokenizer_id)
                self._metrics.rollout_items.set(self._num_items)
                self._metrics.rollout_read_items.set(self._num_read)
            case Trail(announced):
                self._begin(Job.TRAIL, self._leader.trail(self._serving, announced))
            case Purge(tokenizer_id):
                if await self._changes.purge(tokenizer_id):
                    log.info("deleted the codes of tokenizer %s, long out of use", tokenizer_id)
            case _:
                assert_never(action)

    def _show_phase(self, active: str | None) -> None:
        self._metrics.behind.set(active is not None)
        phase = "ready"
        if active is not None:
            self._was_behind = True
            reason = self._trouble or "Changing to it."
            serving = self._serving.tokenizer_id
            phase = f"ready, but with tokenizer {serving} while {active} is active. {reason}"
        if phase != self._readiness.phase and self._trouble:
            log.warning("%s", phase)
        self._readiness.phase = phase

    # --- changing to another model ---

    async def _load(self, tokenizer_id: str, preferred: str) -> None:
        """Find the bundle that the others change to, and prepare it."""
        try:
            name = await asyncio.to_thread(self._folder.with_tokenizer, tokenizer_id, preferred)
            if name is None:
                raise GlyphrecError(
                    f"No bundle {preferred!r} with tokenizer {tokenizer_id} is in GLYPHREC_BUNDLES_DIR of "
                    "this replica. Copy it there."
                )
            loaded = await asyncio.to_thread(self._folder.load, name)
        except GlyphrecError as error:
            if self._trouble != str(error):
                log.warning("this replica cannot follow a change of the model: %s", error)
                self._metrics.bundle_swaps.labels("failed").inc()
            self._trouble = str(error)
            await asyncio.sleep(TRY_AGAIN_S)
            return
        self._trouble = ""
        if self._candidate is None and tokenizer_id != self._serving.tokenizer_id:
            self._prepare(loaded)

    def _prepare(self, loaded: LoadedBundle) -> asyncio.Task[None]:
        model = self._make(loaded)
        model.start()
        self._candidate = model
        self._serving.indexer.successor = model.indexer
        return self._begin(Job.PREPARE, self._become(model))

    async def _become(self, model: Model) -> None:
        """Load the candidate's catalog, catch up, and let it answer requests, each as soon as it may."""
        await self._until(lambda: may_join(self._seen, self._serving.tokenizer_id, model.tokenizer_id))
        await retry(model.join, on=(GlyphrecError,))
        await self._until(lambda: may_serve(self._seen, self._serving.tokenizer_id, model.tokenizer_id))
        await retry(lambda: self._catch_up(model), on=(GlyphrecError,))
        old = self._serving
        while model.tokenizer_id == old.tokenizer_id and model.catalog.version < old.catalog.version:
            await model.follower.wait_for(old.catalog.version, POLL_S)
        # The swap. No await may come between the comparison of the versions and this line.
        self._model = self._readiness.model = model
        self._candidate, self._trouble, self._was_behind = None, "", False
        model.show()
        self._metrics.bundle_swaps.labels("switched").inc()
        retiring = asyncio.create_task(_retire(old, list(self._retiring)), name="retiring")
        self._retiring[retiring] = old
        retiring.add_done_callback(lambda task: self._retiring.pop(task, None))
        log.info("serving bundle %s, tokenizer %s", model.loaded.name, model.tokenizer_id)

    async def _catch_up(self, model: Model) -> None:
        """Bring everything that was acknowledged before into the candidate's catalog."""
        announced, old = self._seen.announced, self._serving
        if old.tokenizer_id != model.tokenizer_id:
            if announced and announced.previous == old.tokenizer_id:
                await self._retokenizer.take_over_log(model, old.tokenizer_id, announced.read_to)
            else:  # the change is so long ago that nobody follows that log any more
                await self._retokenizer.read_all(model)
        if not await model.catch_up():
            raise StoreUnavailable("The log of changes does not come.")

    async def _give_up(self) -> None:
        """End the candidate, and the jobs that need it."""
        model, self._candidate = self._candidate, None
        for job in (Job.LEAD, Job.PREPARE):
            if job in self._jobs:
                await cancel(self._jobs[job])
        if model is None:
            return
        if self._model is not None and self._model.indexer.successor is model.indexer:
            self._model.indexer.successor = None
        await model.stop()

    # --- jobs ---

    def _begin(self, job: Job, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._jobs[job] = asyncio.create_task(_logged(job, work), name=f"rollout: {job}")
        task.add_done_callback(lambda done: self._jobs.pop(job) if self._jobs.get(job) is done else None)
        return task

    async def _until(self, claim: Callable[[], bool]) -> None:
        async with self._looked:
            await self._looked.wait_for(claim)


async def _logged(job: Job, work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:  # outermost loop of a task that nobody awaits
        log.exception("background work of this replica has stopped: %s", job)


async def _retire(model: Model, earlier: Sequence[asyncio.Task[None]]) -> None:
    """End `model` after the models before it, as their last requests still hand on to it."""
    if earlier:
        await asyncio.wait(earlier)
    await model.retire()


def new_replica_id() -> str:
    """A name that no other replica has: the host, the process, and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
