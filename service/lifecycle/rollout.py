"""How a replica comes from one bundle to another while it answers requests (docs/decisions/0009).

A bundle with the tokenizer that is served needs only this replica. For another tokenizer one replica leads:

    reading   it gives codes of the new tokenizer to every item of the catalogue, slowly
    joining   every replica loads the new catalogue and hands on to it what it writes under the old one
    switched  the new tokenizer is the active one, and every replica that sees this swaps its model

Nothing that is acknowledged can be missing after the switch. What a replica wrote before it began to hand on
is in the log of the old tokenizer, which the leader takes over to its end before the switch, and later goes
on with, for replicas that are late; what it wrote after that, it has handed on before it answered.
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import (
    BundleRefused,
    ChangeUnderWay,
    GlyphrecError,
    ServiceError,
    SidSpaceFull,
    StoreFault,
    StoreUnavailable,
)
from service.lifecycle.bundles import BundleFolder, LoadedBundle
from service.lifecycle.model import Model, Readiness, end, persist
from service.lifecycle.seeding import read_the_unread
from service.settings import Settings
from service.store.rollout import Announced, LogGap, Report, RolloutStore, Seen
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

POLL_S = 0.5
TRY_AGAIN_S = 10  # after a bundle that could not be loaded
MAX_YIELD_S = 5.0  # that a chunk waits for items being posted


class LostLead(GlyphrecError):
    """Another replica leads the change now."""


@dataclass(frozen=True)
class Progress:
    """The change that was announced last."""

    announced: Announced
    num_read: int  # items that the new tokenizer has read
    num_items: int
    replicas: list[Report]


class Rollout:
    def __init__(
        self,
        store: RolloutStore,
        make: Callable[[LoadedBundle], Model],
        settings: Settings,
        metrics: Metrics,
        readiness: Readiness,
    ) -> None:
        self._store = store
        self._make = make
        self._settings = settings
        self._metrics = metrics
        self._readiness = readiness
        self._folder = BundleFolder(settings)
        self._seen = Seen(None, None, None, [], {})
        self._looked = asyncio.Condition()
        self._acting = asyncio.Lock()  # so that nobody acts on what was seen before a change was announced
        self._loading = asyncio.Lock()
        self._model: Model | None = None  # serves
        self._candidate: Model | None = None  # loaded beside the model that serves
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by what they do: load, prepare, lead, trail
        self._retiring: dict[asyncio.Task[None], Model] = {}
        self._trouble = ""
        self._was_behind = False
        self._num_read = self._num_items = 0

    # --- what routes ask ---

    async def change(self, name: str) -> bool:
        """Go over to the bundle `name`. True: done here; False: begun, for all replicas.

        Raises NoBundlesFolder, BundleNotFound, BundleRefused, ChangeUnderWay; then nothing has changed.
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
            tokenizer_id = loaded.manifest.tokenizer_id
            if tokenizer_id in (self._serving.tokenizer_id, self._seen.active):
                await self._change_here(loaded)
                return True
            async with self._acting:
                await self._change_everywhere(loaded)
            await self.look()
            return False

    async def _change_here(self, loaded: LoadedBundle) -> None:
        """The codes of its tokenizer are there, so it takes this replica alone, and no time."""
        if "prepare" in self._tasks:
            raise ChangeUnderWay
        if loaded.manifest != self._serving.manifest:
            await asyncio.shield(self._prepare(loaded))

    async def _change_everywhere(self, loaded: LoadedBundle) -> None:
        tokenizer_id, announced, candidate = (
            loaded.manifest.tokenizer_id,
            self._seen.announced,
            self._candidate,
        )
        is_mine = candidate is not None and candidate.tokenizer_id == tokenizer_id
        if "lead" in self._tasks:
            if is_mine:
                return
            raise ChangeUnderWay
        is_announced = announced is not None and announced.tokenizer_id == tokenizer_id
        # A leader that has just died holds its lease for some seconds; `_lead` waits for that.
        if not await self._store.announce(loaded.name, tokenizer_id) and not is_announced:
            raise ChangeUnderWay
        if candidate is None or not is_mine:
            await self._give_up()
            self._prepare(loaded)
        assert self._candidate is not None
        self._begin("lead", self._lead(self._candidate))

    def progress(self) -> Progress | None:
        announced = self._seen.announced
        if announced is None:
            return None
        return Progress(announced, self._num_read, self._num_items, self._seen.replicas)

    # --- what a replica does by itself ---

    async def begin(self, model: Model) -> None:
        """Serve `model`. The other replicas know of this one before its first request, unless Redis takes no
        writes: then no model can change either, and `run` tells them as soon as it does.
        """
        self._model = model
        try:
            await self.look()
        except ServiceError as error:
            log.warning("the other replicas do not know of this one yet: %s", error)
        self._readiness.parts = self._serving
        self._serving.show()

    def also(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this beside all else, to its end or to `stop`."""
        self._begin("start", work)

    async def run(self) -> None:
        """Look twice a second at what was announced, and do this replica's part; until cancelled."""
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
        async with self._acting:
            self._seen = await self._store.look()
            await self._act(self._seen)
            await self._store.report(self._report())
        async with self._looked:
            self._looked.notify_all()

    async def stop(self) -> None:
        for task in list(self._tasks.values()):
            await end(task)
        await self._give_up()
        for task, model in list(self._retiring.items()):
            await end(task)
            await model.stop()
        self._readiness.parts = None
        if self._model is not None:
            await self._model.stop()
        try:
            await self._store.leave()
        except ServiceError:
            log.info("the others will notice within seconds that this replica is gone")

    @property
    def _serving(self) -> Model:
        assert self._model is not None, "`begin` comes first"
        return self._model

    def _report(self) -> Report:
        candidate, serving = self._candidate, self._serving
        in_use = {serving.tokenizer_id, *(model.tokenizer_id for model in self._retiring.values())}
        is_prepared = candidate is not None and candidate.has_joined
        return Report(
            replica_id=self._store.replica_id,
            tokenizer_id=serving.tokenizer_id,
            in_use=tuple(sorted(in_use)),
            prepared=candidate.tokenizer_id
            if candidate is not None and is_prepared
            else serving.tokenizer_id,
            trouble=self._trouble,
        )

    async def _act(self, seen: Seen) -> None:
        serving, announced = self._serving, seen.announced
        is_behind = seen.active not in (None, serving.tokenizer_id)
        self._note_whether_behind(is_behind, seen)
        if (
            self._was_behind and not is_behind
        ):  # they came back to us, and wrote meanwhile what we did not see
            await serving.follower.load()
        self._was_behind = is_behind
        if self._candidate is not None and not self._is_wanted(self._candidate, seen):
            await self._give_up()
        if self._candidate is None and not {"load", "prepare"} & self._tasks.keys():
            if seen.active is not None and is_behind:
                hint = announced.bundle if announced and announced.tokenizer_id == seen.active else ""
                self._begin("load", self._load(seen.active, hint))
            elif announced and announced.is_under_way and announced.tokenizer_id != serving.tokenizer_id:
                if seen.leader is not None:  # a change that nobody leads may be what killed its leader
                    self._begin("load", self._load(announced.tokenizer_id, announced.bundle))
            else:
                self._trouble = ""
        if "lead" in self._tasks and announced and not await self._store.lead(announced.tokenizer_id):
            log.info("another replica leads the change to %s", announced.bundle)
        if announced and announced.is_under_way:
            self._num_read, self._num_items = await self._store.progress(announced.tokenizer_id)
            self._metrics.rollout_items.set(self._num_items)
            self._metrics.rollout_read_items.set(self._num_read)
        has_switched = announced is not None and announced.tokenizer_id == serving.tokenizer_id == seen.active
        if announced and has_switched and announced.previous in seen.retired and "trail" not in self._tasks:
            self._begin("trail", self._trail(serving, announced))
        in_use = {tokenizer_id for each in seen.replicas for tokenizer_id in each.in_use}
        for tokenizer_id, is_due in seen.retired.items():
            if is_due and tokenizer_id not in in_use and await self._store.purge(tokenizer_id):
                log.info("deleted the codes of tokenizer %s, long out of use", tokenizer_id)

    def _note_whether_behind(self, is_behind: bool, seen: Seen) -> None:
        self._metrics.behind.set(is_behind)
        phase = "ready"
        if is_behind:
            phase = (
                f"ready, but with tokenizer {self._serving.tokenizer_id} while {seen.active} is active. "
                + (self._trouble or "Going over to it.")
            )
        if phase != self._readiness.phase and self._trouble:
            log.warning("%s", phase)
        self._readiness.phase = phase

    def _is_wanted(self, model: Model, seen: Seen) -> bool:
        announced = seen.announced
        if model.tokenizer_id in (self._serving.tokenizer_id, seen.active):
            return True
        return bool(announced and announced.is_under_way and announced.tokenizer_id == model.tokenizer_id)

    def _may_join(self, model: Model) -> bool:
        announced = self._seen.announced
        if model.tokenizer_id in (self._serving.tokenizer_id, self._seen.active):
            return True
        return bool(
            announced and announced.tokenizer_id == model.tokenizer_id and announced.phase == "joining"
        )

    # --- becoming another model ---

    async def _load(self, tokenizer_id: str, hint: str) -> None:
        """Find the bundle that the others go over to, and prepare it."""
        try:
            name = await asyncio.to_thread(self._folder.with_tokenizer, tokenizer_id, hint)
            if name is None:
                raise GlyphrecError(
                    f"No bundle {hint!r} with tokenizer {tokenizer_id} is in GLYPHREC_BUNDLES_DIR of this "
                    "replica. Copy it there."
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
        return self._begin("prepare", self._become(model))

    async def _become(self, model: Model) -> None:
        await self._until(lambda: self._may_join(model))
        await persist(model.join, _log_only)
        await self._until(lambda: model.tokenizer_id in (self._serving.tokenizer_id, self._seen.active))
        await persist(lambda: self._bring_level(model), _log_only)
        old = self._serving
        while model.tokenizer_id == old.tokenizer_id and model.catalog.version < old.catalog.version:
            await model.follower.wait_for(old.catalog.version, POLL_S)
        self._model = self._readiness.parts = model  # the swap: no await since the look at the versions
        self._candidate, self._trouble, self._was_behind = None, "", False
        model.show()
        self._metrics.bundle_swaps.labels("switched").inc()
        retiring = asyncio.create_task(_retire(old, list(self._retiring)), name="retiring")
        self._retiring[retiring] = old
        retiring.add_done_callback(lambda task: self._retiring.pop(task, None))
        log.info("serving bundle %s, tokenizer %s", model.loaded.name, model.tokenizer_id)

    async def _bring_level(self, model: Model) -> None:
        """The catalogue that is to serve has all that was acknowledged here before it."""
        announced, old = self._seen.announced, self._serving
        if old.tokenizer_id != model.tokenizer_id:
            if announced and announced.previous == old.tokenizer_id:
                await self._take_over_log(model, old.tokenizer_id, announced.read_to)
            else:  # so long ago that nobody follows that log any more
                await self._read_all(model)
        if not await model.level():
            raise StoreUnavailable("The log of changes does not come.")

    async def _give_up(self) -> None:
        """Of a change that will not be: the model that was prepared for it ends."""
        model, self._candidate = self._candidate, None
        for what in ("lead", "prepare"):
            if what in self._tasks:
                await end(self._tasks[what])
        if model is None:
            return
        if self._model is not None and self._model.indexer.successor is model.indexer:
            self._model.indexer.successor = None
        await model.stop()

    # --- leading ---

    async def _lead(self, model: Model) -> None:
        tokenizer_id, name = model.tokenizer_id, model.loaded.name
        passing = (StoreUnavailable, StoreFault)
        try:
            await persist(lambda: self._take_lead(model), _log_only, (*passing, ChangeUnderWay))
            await persist(lambda: self._reread(model), _log_only, passing)
            await persist(lambda: self._switch(model), _log_only, passing)
        except LostLead:
            log.info("another replica leads the change to %s", name)
        except GlyphrecError as error:
            log.warning("the change to %s has failed: %s", name, error)
            self._metrics.bundle_swaps.labels("failed").inc()
            await self._store.lead(tokenizer_id, phase="failed", reason=str(error))

    async def _take_lead(self, model: Model) -> None:
        seen = await self._store.look()
        if seen.active == model.tokenizer_id:
            raise LostLead
        if not await self._store.announce(model.loaded.name, model.tokenizer_id):
            raise ChangeUnderWay

    async def _reread(self, model: Model) -> None:
        seen = await self._store.look()
        read_to = await self._store.log_version(seen.active) if seen.active else 0
        await self._keep_lead(model, phase="reading", read_to=read_to)
        await self._read_all(model)
        await self._keep_lead(model, phase="joining")

    async def _read_all(self, model: Model) -> None:
        loaded = model.loaded
        await read_the_unread(model.store, model.indexer, loaded.items, loaded.manifest.render, self._pace)
        await model.store.forget_dropped()

    async def _pace(self, spent_s: float) -> None:
        """Leave the machine to live traffic."""
        share = self._settings.reread_share
        await asyncio.sleep(spent_s * (1 - share) / share)
        waited_s = 0.0
        while self._serving.strips.queued_units and waited_s < MAX_YIELD_S:
            await asyncio.sleep(0.02)
            waited_s += 0.02

    async def _switch(self, model: Model) -> None:
        """As soon as every living replica hands on what it writes, and all of the old log is taken over."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._settings.join_timeout_s
        while True:
            seen = await self._store.look()
            announced = seen.announced
            if announced is None or announced.tokenizer_id != model.tokenizer_id:
                raise LostLead
            late = [
                each for each in seen.replicas if each.prepared != model.tokenizer_id and not each.trouble
            ]
            if announced.previous:
                await self._take_over_log(model, announced.previous, announced.read_to)
            if not late or loop.time() > give_up_at:
                break
            await asyncio.sleep(POLL_S)
        for each in late:
            log.warning("replica %s did not get ready for %s in time", each.replica_id, announced.bundle)
        for each in seen.replicas:
            if each.trouble:
                log.warning("replica %s stays behind: %s", each.replica_id, each.trouble)
        if not await self._store.activate(model.tokenizer_id, self._settings.keep_old_codes_s):
            raise LostLead

    async def _trail(self, model: Model, announced: Announced) -> None:
        """After the switch: what replicas that are late still write under the old tokenizer."""
        try:
            if await self._store.lead(model.tokenizer_id):
                await self._take_over_log(model, announced.previous, announced.read_to)
        except ServiceError as error:
            log.warning("cannot follow the log of tokenizer %s: %s", announced.previous, error)

    async def _take_over_log(self, model: Model, previous: str, read_to: int) -> None:
        """All changes that the previous tokenizer's log has now. May be done by several replicas at once."""
        goal, first = await self._store.log_version(previous), read_to
        while read_to < goal:
            try:
                touched = await self._store.touched(previous, read_to)
            except LogGap:
                await self._read_all(model)
                read_to = goal
                break
            if touched is None:
                break
            try:
                await model.indexer.take_over(touched.item_ids)
            except SidSpaceFull as error:
                log.warning("an item of the old tokenizer is lost to the new one: %s", error)
            read_to = touched.version
        if read_to > first:
            await self._store.lead(model.tokenizer_id, read_to=read_to)  # without effect unless we lead

    async def _keep_lead(self, model: Model, **fields: str | int) -> None:
        if not await self._store.lead(model.tokenizer_id, **fields):
            raise LostLead

    # --- tasks ---

    def _begin(self, what: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks[what] = asyncio.create_task(self._logged(what, work), name=f"rollout: {what}")
        task.add_done_callback(lambda done: self._tasks.pop(what) if self._tasks.get(what) is done else None)
        return task

    async def _logged(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # outermost loop of a task that nobody awaits
            log.exception("what a replica does beside its requests has stopped: %s", what)

    async def _until(self, claim: Callable[[], bool]) -> None:
        async with self._looked:
            await self._looked.wait_for(claim)


async def _retire(model: Model, earlier: Sequence[asyncio.Task[None]]) -> None:
    """After the models before it, as requests that began with those still hand on to it."""
    if earlier:
        await asyncio.wait(earlier)
    await model.retire()


def _log_only(_trouble: str) -> None:
    """The log has it, and it passes."""


def new_replica_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
