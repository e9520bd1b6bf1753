"""The POST /items flow, in order: check -> hash -> known? -> render -> tokenize -> store -> follow the log.

Each item has its own outcome, and a bad item does not affect the others. Only new content is drawn and read.
If an id occurs twice in one request, its last item is stored, and both positions report that outcome.
"""

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from service.catalog.follower import CatalogFollower
from service.core.bundle import RenderSpec
from service.core.filters import DeclaredFields, UnusedValue
from service.core.items import Item, check_item
from service.core.render import Rendered, content_hash, item_text, render_text
from service.core.sid import Codes, Sid
from service.errors import (
    InvalidItem,
    ItemChanged,
    ItemNotFound,
    PreconditionFailed,
    ServiceError,
    SidSpaceFull,
    StoreUnavailable,
    TookTooLong,
)
from service.inference.batching import MicroBatcher
from service.inference.runtime import Tokenizer, TokenizerInput
from service.store.items import ItemStore
from service.store.records import IfMatch, ItemRecord, PutResult
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages

log = logging.getLogger(__name__)

T = TypeVar("T")

# Items that are drawn, read and stored together. Few, so that an item posted meanwhile does not wait long.
CHUNK = 32
# While one chunk is being read, the next is drawn.
CHUNKS_IN_FLIGHT = 2
# A photo takes about as long to encode as so many strips (benchmarks/pictures.py).
PICTURE_STRIPS = 8
# How long an answer waits until this replica has seen its own change. The log usually takes milliseconds.
FOLLOW_TIMEOUT_S = 5.0
# How often a patch begins anew because another writer changed the item meanwhile. Each time, a change of
# somebody is done, and one replica does one patch of an item at a time. The random pause before the next try
# keeps two replicas from meeting in step.
PATCH_TRIES = 30
PATCH_PAUSE_S = 0.01


class CheckedItem(NamedTuple):
    """An item that passed its checks, and the text that stands for it."""

    record: ItemRecord
    text: str
    unused: Sequence[UnusedValue]


@dataclass(frozen=True)
class Outcome:
    """The result for one item of a request. `error` is set if and only if `status` is failed."""

    item_id: str | None  # None where the item had no usable id
    status: Literal["created", "moved", "updated", "unchanged", "failed"]
    sid: Sid | None = None
    truncated: bool | None = None  # None where the item was not drawn
    missing: str | None = None
    error: ServiceError | None = None
    item: Item | None = None  # as it is stored; None if it failed
    unused: Sequence[UnusedValue] = ()  # values of the item that filters cannot use
    revision: str = ""  # of the stored item; '' for one that failed


class Indexed(NamedTuple):
    """The results of one request. A search on this replica finds every stored item from `version` on."""

    outcomes: list[Outcome]  # in the order of the request
    version: int  # of the catalog, as this replica now serves it


class Patched(NamedTuple):
    """An item after a patch. `outcome` has no error."""

    outcome: Outcome
    version: int  # of the catalog, as this replica now serves it


def work_of(item: TokenizerInput) -> int:
    """How much work the item is for the tokenizer, in strips."""
    return len(item.strips) + (0 if item.picture is None else PICTURE_STRIPS)


def tokenize_in_batches(tokenizer: Tokenizer) -> Callable[[list[TokenizerInput]], list[Codes]]:
    """The function that the tokenizer's batcher runs."""

    def run(items: list[TokenizerInput]) -> list[Codes]:
        return [tuple(codes) for codes in tokenizer.run(items).codes.tolist()]

    return run


class Indexer:
    """Reads items with one tokenizer and stores them with their SIDs. `timeout_s` limits each `index`."""

    def __init__(
        self,
        store: ItemStore,
        follower: CatalogFollower,
        batcher: MicroBatcher[TokenizerInput, Codes],
        *,
        render: RenderSpec,
        filter_fields: DeclaredFields,
        max_item_chars: int,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._follower = follower
        self._batcher = batcher
        self._render = render
        self._filter_fields = filter_fields
        self._max_item_chars = max_item_chars
        self._timeout_s = timeout_s
        self._metrics = metrics
        # The indexer of the model that will replace this one, or has: it takes over all changes made here.
        self.successor: Indexer | None = None
        # Patches of one item take turns on this replica, so they do not make each other begin anew.
        self._patching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def index(
        self,
        items: Sequence[object],
        stages: Stages,
        deadline: float = math.inf,
        if_match: IfMatch | None = None,
    ) -> Indexed:
        """Store the items and give each a SID. The next search on this replica knows them.

        The limit is the deadline (by the event loop's clock) or the timeout, whichever is first. Items that
        were stored before stay, and may be sent again. With `if_match`, the error of an item that is of
        another revision, or absent, is PreconditionFailed.

        Raises Overloaded, StoreUnavailable or TookTooLong if nothing was stored because of it, and
        StoreUnavailable if this replica does not see the stored items in time.
        """
        async with self._within(deadline) as deadline:
            indexed = await self._index(items, stages, deadline, if_match)
        outcomes = [
            replace(each, error=PreconditionFailed(str(each.item_id)))
            if isinstance(each.error, ItemNotFound)
            else each
            for each in indexed.outcomes
        ]
        self._note(outcomes, stages)
        return indexed._replace(outcomes=outcomes)

    async def patch(
        self,
        item_id: str,
        change: Callable[[Item], Item],
        stages: Stages,
        deadline: float = math.inf,
        if_match: IfMatch | None = None,
    ) -> Patched:
        """Replace an item by what `change` makes of it. Other changes made meanwhile are kept.

        `change` is called again if the item was changed while its new text was read. With `if_match`, no
        other change is merged: PreconditionFailed is raised if the item is of another revision then.

        Raises ItemNotFound, also if the item was deleted meanwhile; InvalidItem and the other errors of an
        item; ItemChanged if others change the item all the time; and what `index` raises.
        """
        lock = self._patching.setdefault(item_id, asyncio.Lock())
        async with self._within(deadline) as deadline, lock:
            for _ in range(PATCH_TRIES):
                stored = await self._store.get(item_id)
                if stored is None:
                    raise ItemNotFound(item_id)
                item = change(stored.item)
                is_allowed = if_match is None or if_match.allows(stored.revision)
                if not is_allowed and item != stored.item:  # else an earlier try of this patch has done it
                    raise PreconditionFailed(item_id)
                as_read = IfMatch(frozenset({stored.revision}))
                indexed = await self._index([item], stages, deadline, as_read)
                (outcome,) = indexed.outcomes
                if if_match is not None or not isinstance(outcome.error, PreconditionFailed):
                    break
                await asyncio.sleep(random.uniform(0, PATCH_PAUSE_S))
            else:
                raise ItemChanged(item_id)
        self._note([outcome], stages)
        if outcome.error is not None:
            raise outcome.error
        return Patched(outcome, indexed.version)

    @asynccontextmanager
    async def _within(self, deadline: float) -> AsyncIterator[float]:
        """Limits the time of a request; gives its deadline. Raises TookTooLong."""
        started_at = asyncio.get_running_loop().time()
        deadline = min(deadline, started_at + self._timeout_s)
        try:
            async with asyncio.timeout_at(deadline):
                yield deadline
        except TimeoutError:
            raise TookTooLong("Reading these items", deadline - started_at) from None

    def _note(self, outcomes: Sequence[Outcome], stages: Stages) -> None:
        for outcome in outcomes:
            self._metrics.indexed_items.labels(outcome.status).inc()
            for value in outcome.unused:
                self._metrics.unused_values.labels(value.field).inc()
        stages.flow = "index"

    async def read(self, records: Sequence[ItemRecord]) -> list[Codes]:
        """The codes of items that are stored already, for a new tokenizer."""
        texts = [item_text(record.item, self._render) for record in records]
        drawn = await self._draw(texts)
        answers = await asyncio.gather(
            *(self._batcher.submit(TokenizerInput(each.strips), is_admitted=True) for each in drawn)
        )
        return [answer.result for answer in answers]

    async def drop(self, item_id: str, if_match: IfMatch | None = None) -> int | None:
        """Remove an item. Returns the catalog's version without it, or None if there was no such item.

        In both cases the next search on this replica does not know it. Raises StoreUnavailable, and
        PreconditionFailed if the item is of another revision than `if_match` wants.
        """
        dropped = (await self._store.drop([item_id], if_match))[0]
        if dropped.existed:
            await self._hand_on([item_id])
        await self._follow_to(dropped.version)
        return dropped.version if dropped.existed else None

    async def take_over(self, item_ids: Sequence[str]) -> None:
        """Update these items in this tokenizer's catalog after they were put or dropped under another one.

        Safe to repeat. The next search of this model knows them if it follows its log already. Raises
        ServiceError. SidSpaceFull is raised after all other items are done.
        """
        version = 0
        full: SidSpaceFull | None = None
        records = await self._store.records(item_ids)
        present = {record.item_id for record in records}
        for dropped in await self._store.forget([each for each in item_ids if each not in present]):
            version = max(version, dropped.version)
        for last_try in (False, True):
            held = await self._store.held([record.item_id for record in records])
            unread = [
                each
                for each in records
                if each.item_id not in held or held[each.item_id].content_hash != each.content_hash
            ]
            codes: dict[str, Codes | None] = dict.fromkeys(held)
            codes |= zip((each.item_id for each in unread), await self.read(unread), strict=True)
            results = await self._store.assign([(each, codes[each.item_id]) for each in records], tell=True)
            changed = []
            for record, result in zip(records, results, strict=True):
                if isinstance(result, PutResult):
                    version = max(version, result.version)
                elif isinstance(result, ItemChanged) and not last_try:
                    changed.append(record.item_id)
                elif isinstance(result, SidSpaceFull):
                    full = result
                elif not isinstance(result, ItemChanged):  # the writer that changed it again handles it
                    raise result
            records = await self._store.records(changed)
        if self._follower.is_loaded:
            await self._follow_to(version)
        if self.successor is not None:
            await self.successor.take_over(item_ids)
        if full is not None:
            raise full

    async def _index(
        self, items: Sequence[object], stages: Stages, deadline: float, if_match: IfMatch | None
    ) -> Indexed:
        checked = await asyncio.to_thread(lambda: [self._check(item) for item in items])
        latest = {each.record.item_id: each for each in checked if isinstance(each, CheckedItem)}
        with stages.time("held"):
            held = await self._store.held(list(latest))
        known: list[CheckedItem] = []
        new: list[CheckedItem] = []
        for item_id, reading in latest.items():
            same = item_id in held and held[item_id].content_hash == reading.record.content_hash
            (known if same else new).append(reading)
        if new:
            self._batcher.check_room(deadline=deadline)

        outcomes, versions = await self._keep(known, stages, if_match) if known else ({}, [])
        # These changed after `held` was read, so they are read like new items.
        new += [latest[i] for i, outcome in outcomes.items() if isinstance(outcome.error, ItemChanged)]
        chunks = [new[start : start + CHUNK] for start in range(0, len(new), CHUNK)]
        for found, version in await _bounded(
            [self._read_and_put(chunk, stages, deadline, if_match) for chunk in chunks]
        ):
            outcomes |= found
            versions += version

        answers = [_answer_for(each, item, outcomes) for each, item in zip(checked, items, strict=True)]
        errors = [answer.error for answer in answers]
        passing = [error for error in errors if error is not None and error.retry_after_s is not None]
        if passing and not versions and len(passing) == len(errors):
            raise passing[0]  # the whole request can be sent again
        if versions:
            with stages.time("follow"):
                await self._follow_to(max(versions))
        return Indexed(answers, self._follower.catalog.version)

    def _check(self, item: object) -> CheckedItem | ServiceError:
        try:
            fields: Item = check_item(item, self._max_item_chars)
            text = item_text(fields, self._render)
            if not text:
                raise InvalidItem("item", "has no text to read. Give it a title")
        except ServiceError as error:
            return error
        record = ItemRecord(fields["item_id"], content_hash(text), fields)
        return CheckedItem(record, text, self._filter_fields.unused_in(fields))

    async def _keep(
        self, readings: Sequence[CheckedItem], stages: Stages, if_match: IfMatch | None
    ) -> tuple[dict[str, Outcome], list[int]]:
        """Store items whose text is unchanged. They keep their SIDs."""
        with stages.time("store"):
            results = await self._put([(reading.record, None) for reading in readings], if_match)
        return _outcomes(readings, results)

    async def _read_and_put(
        self, readings: Sequence[CheckedItem], stages: Stages, deadline: float, if_match: IfMatch | None
    ) -> tuple[dict[str, Outcome], list[int]]:
        """Draw, tokenize and store one chunk."""
        with stages.time("render"):
            drawn = await self._draw([reading.text for reading in readings])
        answers = await asyncio.gather(
            *(self._batcher.submit(TokenizerInput(each.strips), deadline=deadline) for each in drawn),
            return_exceptions=True,
        )
        failed: dict[str, Outcome] = {}
        readable, pictures, records = [], [], []
        queue_s = run_s = 0.0
        for reading, picture, answer in zip(readings, drawn, answers, strict=True):
            if isinstance(answer, ServiceError):
                item_id = reading.record.item_id
                failed[item_id] = Outcome(item_id, "failed", error=answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                readable.append(reading)
                pictures.append(picture)
                records.append((reading.record, answer.result))
                queue_s, run_s = max(queue_s, answer.queue_s), max(run_s, answer.run_s)
        stages.add_row(queue=queue_s, tokenise=run_s)
        if not records:
            return failed, []
        try:
            with stages.time("store"):
                results: Sequence[PutResult | ServiceError] = await self._put(records, if_match)
        except ServiceError as error:  # only of this chunk; others may be stored
            results = [error] * len(records)
        outcomes, versions = _outcomes(readable, results, pictures)
        return failed | outcomes, versions

    async def _put(
        self, records: Sequence[tuple[ItemRecord, Codes | None]], if_match: IfMatch | None
    ) -> Sequence[PutResult | ServiceError]:
        results = await self._store.put(records, if_match)
        await self._hand_on([result.item_id for result in results if isinstance(result, PutResult)])
        return results

    async def _hand_on(self, item_ids: Sequence[str]) -> None:
        """Tell the successor. Call it after the change is in Redis: a later successor finds it in the log."""
        successor = self.successor
        if successor is None or not item_ids:
            return
        try:
            await successor.take_over(item_ids)
        except ServiceError as error:
            if self.successor is successor and not isinstance(error, SidSpaceFull):
                raise
            log.warning("the next tokenizer could not take over a change: %s", error)

    async def _follow_to(self, version: int) -> None:
        """Wait until this replica sees the change: only then is it acknowledged. Raises StoreUnavailable."""
        if not await self._follower.wait_for(version, FOLLOW_TIMEOUT_S):
            raise StoreUnavailable("This replica does not see the change yet.")

    async def _draw(self, texts: Sequence[str]) -> list[Rendered]:
        return await asyncio.to_thread(lambda: [render_text(text, self._render) for text in texts])


def _outcomes(
    readings: Sequence[CheckedItem],
    results: Sequence[PutResult | ServiceError],
    pictures: Sequence[Rendered] | None = None,
) -> tuple[dict[str, Outcome], list[int]]:
    """The outcome of each item by its id, and the versions of the catalog that have them."""
    outcomes, versions = {}, []
    for place, (reading, result) in enumerate(zip(readings, results, strict=True)):
        item_id = reading.record.item_id
        if isinstance(result, ServiceError):
            outcomes[item_id] = Outcome(item_id, "failed", error=result)
            continue
        picture = pictures[place] if pictures else None
        outcomes[item_id] = Outcome(
            item_id,
            result.status,
            sid=result.sid,
            truncated=picture.truncated if picture else None,
            missing=picture.missing if picture else None,
            item=dict(reading.record.item),
            unused=reading.unused,
            revision=result.revision,
        )
        versions.append(result.version)
    return outcomes, versions


def _answer_for(checked: CheckedItem | ServiceError, item: object, outcomes: dict[str, Outcome]) -> Outcome:
    if isinstance(checked, CheckedItem):
        return outcomes[checked.record.item_id]
    given_id: Any = item.get("item_id") if isinstance(item, dict) else None
    usable = isinstance(given_id, str) and not (
        isinstance(checked, InvalidItem) and checked.field == "item_id"
    )
    return Outcome(given_id if usable else None, "failed", error=checked)


async def _bounded(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order, with few coroutines at once. If one raises, the others are cancelled."""
    waiting: Iterator[tuple[int, Coroutine[Any, Any, T]]] = iter(list(enumerate(work)))
    results: dict[int, T] = {}

    async def worker() -> None:
        for place, each in waiting:
            results[place] = await each

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CHUNKS_IN_FLIGHT):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        for _, each in waiting:
            each.close()  # never started; without this, Python warns that it was not awaited
    return [results[place] for place in range(len(work))]
