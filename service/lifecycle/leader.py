"""Leads the change of all replicas to another tokenizer (docs/decisions/0009).

One replica at a time holds the lease. The phases are `reading`, `joining` and `switched`. A change that
cannot be carried out ends as `failed`.
"""

import asyncio
import logging
from typing import assert_never

from service.errors import ChangeUnderWay, GlyphrecError, ServiceError, StoreFault, StoreUnavailable
from service.lifecycle.decide import Lost, Switch, Wait, decide_switch
from service.lifecycle.model import Model
from service.lifecycle.ownership import owner_of
from service.lifecycle.retokenizing import Retokenizer
from service.store.retry import retry
from service.store.rollout import Announced, RolloutStore
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

POLL_S = 0.5
PASSING = (StoreUnavailable, StoreFault)  # Redis answers again some time


class LostLead(GlyphrecError):
    """Another replica leads the change now."""


class Leader:
    """Leads a change when the rollout asks for it. It keeps no state between two changes."""

    def __init__(
        self,
        changes: RolloutStore,
        retokenizer: Retokenizer,
        *,
        join_timeout_s: float,
        keep_old_codes_s: int,
        metrics: Metrics,
    ) -> None:
        """`join_timeout_s`: how long replicas have to prepare. `keep_old_codes_s`: see `Settings`."""
        self._changes = changes
        self._retokenizer = retokenizer
        self._join_timeout_s = join_timeout_s
        self._keep_old_codes_s = keep_old_codes_s
        self._metrics = metrics

    async def lead(self, model: Model) -> None:
        """Lead the change to the tokenizer of `model`, until it is switched, failed or led by another one."""
        tokenizer_id, name = model.tokenizer_id, model.loaded.name
        try:
            # A leader that has just died holds its lease for some seconds.
            await retry(lambda: self._take_lead(model), on=(*PASSING, ChangeUnderWay))
            await retry(lambda: self._reread(model), on=PASSING)
            await retry(lambda: self._switch(model), on=PASSING)
        except LostLead:
            log.info("another replica leads the change to %s", name)
        except GlyphrecError as error:
            log.warning("the change to %s has failed: %s", name, error)
            self._metrics.bundle_swaps.labels("failed").inc()
            await self._changes.lead(tokenizer_id, phase="failed", reason=str(error))

    async def trail(self, model: Model, announced: Announced) -> None:
        """After the switch: take over what late replicas still write under the old tokenizer."""
        try:
            if await self._changes.lead(model.tokenizer_id):
                await self._retokenizer.take_over_log(model, announced.previous, announced.read_to)
        except ServiceError as error:
            log.warning("cannot follow the log of tokenizer %s: %s", announced.previous, error)

    async def _take_lead(self, model: Model) -> None:
        seen = await self._changes.look()
        if seen.active == model.tokenizer_id:
            raise LostLead
        if not await self._changes.announce(model.loaded.name, model.tokenizer_id):
            raise ChangeUnderWay

    async def _reread(self, model: Model) -> None:
        """Note where the old log ends, then read every item: what is written meanwhile is after that."""
        seen = await self._changes.look()
        read_to = await self._changes.log_version(seen.active) if seen.active else 0
        await self._keep_lead(model, phase="reading", read_to=read_to)
        await self._retokenizer.read_all(model)
        await self._keep_lead(model, phase="joining")

    async def _switch(self, model: Model) -> None:
        """Switch when every living replica hands on what it writes, and the old log is taken over."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._join_timeout_s
        while True:
            seen = await self._changes.look()
            step = decide_switch(seen, model.tokenizer_id, is_overdue=loop.time() > give_up_at)
            if isinstance(step, Lost):
                raise LostLead
            announced = seen.announced
            assert announced is not None, "only an announced change can be switched"
            # After the look: what a replica wrote before it was prepared is in the log by now.
            if announced.previous:
                await self._retokenizer.take_over_log(model, announced.previous, announced.read_to)
            match step:
                case Wait():
                    await asyncio.sleep(POLL_S)
                case Switch():
                    return await self._activate(model, announced, step)
                case _:
                    assert_never(step)

    async def _activate(self, model: Model, announced: Announced, switch: Switch) -> None:
        for each in switch.late:
            log.warning("replica %s did not get ready for %s in time", each.replica_id, announced.bundle)
        for each in switch.troubled:
            log.warning("replica %s stays behind: %s", each.replica_id, each.trouble)
        if not await self._changes.activate(owner_of(model.loaded), self._keep_old_codes_s):
            raise LostLead

    async def _keep_lead(self, model: Model, **fields: str | int) -> None:
        if not await self._changes.lead(model.tokenizer_id, **fields):
            raise LostLead
