"""The POST /items flow, in order: check -> decode pictures -> known? -> draw -> tokenize -> store -> follow.

Each item has its own outcome, and a bad item does not affect the others. Only new content is drawn and read.
If an id occurs twice in one request, its last item is stored, and both positions report that outcome.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from service.catalog.follower import CatalogFollower
from service.core.bundle import Manifest
from service.core.image_field import after_change, names_a_picture, reference_in
from service.core.items import Item
from service.core.pictures import KeptPicture
from service.core.render import item_text
from service.core.sid import Codes
from service.errors import (
    InvalidItem,
    ItemChanged,
    ItemNotFound,
    PreconditionFailed,
    ServiceError,
    SidSpaceFull,
    StoreUnavailable,
)
from service.flows.contents import CheckedItem, Content, ContentReader
from service.flows.deadlines import within
from service.flows.drawing import ItemDrawer, Tokenized
from service.flows.outcomes import Indexed, Outcome, Patched, answer_for, failed, outcomes_of
from service.inference.batching import Answer, MicroBatcher
from service.inference.runtime import TokenizerInput
from service.store.items import ItemStore
from service.store.records import HeldWithPicture, IfMatch, ItemRecord, PutResult, StoredItem
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages

log = logging.getLogger(__name__)

T = TypeVar("T")

WHAT = "Reading these items"  # the subject of an error about time

# Items that are drawn, read and stored together. Few, so that an item posted meanwhile does not wait long.
CHUNK = 32
# While one chunk is being read, the next is drawn.
CHUNKS_IN_FLIGHT = 2
# How long an answer waits until this replica has seen its own change. The log usually takes milliseconds.
FOLLOW_TIMEOUT_S = 5.0
# How often a patch begins anew because another writer changed the item meanwhile. Each time, a change of
# somebody is done, and one replica does one patch of an item at a time. The random pause before the next try
# keeps two replicas from meeting in step.
PATCH_TRIES = 30
PATCH_PAUSE_S = 0.01
# The same for an item whose text or picture was changed by another writer between its check and its put.
PUT_TRIES = 30


class Indexer:
    """Reads items with one tokenizer and stores them with their SIDs. `timeout_s` limits each `index`."""

    def __init__(
        self,
        store: ItemStore,
        follower: CatalogFollower,
        batcher: MicroBatcher[TokenizerInput, Tokenized],
        *,
        manifest: Manifest,
        contents: ContentReader,
        drawer: ItemDrawer,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._follower = follower
        self._batcher = batcher
        self._render = manifest.render
        self._picture_spec = manifest.pictures  # None: this tokenizer reads no photos
        self._contents = contents
        self._drawer = drawer
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
        async with within(deadline, self._timeout_s, WHAT) as deadline:
            checked = await asyncio.to_thread(lambda: [self._contents.check(item) for item in items])
            indexed = await self._index(items, checked, stages, deadline, if_match)
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
        kept: KeptPicture | None = None  # of the change, decoded once
        async with within(deadline, self._timeout_s, WHAT) as deadline, lock:
            for _ in range(PATCH_TRIES):
                stored = await self._store.get(item_id)
                if stored is None:
                    raise ItemNotFound(item_id)
                item = after_change(change(stored.item), stored.item)
                checked = self._contents.check(item)
                if isinstance(checked, CheckedItem) and checked.wish.kind == "replace":
                    with stages.time("picture"):
                        checked = await self._contents.decode(replace(checked, kept=kept))
                    kept = checked.kept if isinstance(checked, CheckedItem) else None
                is_allowed = if_match is None or if_match.allows(stored.revision)
                if not is_allowed and not self._is_done(checked, stored):
                    raise PreconditionFailed(item_id)
                as_read = IfMatch(frozenset({stored.revision}))
                indexed = await self._index([item], [checked], stages, deadline, as_read)
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

    def _is_done(self, checked: CheckedItem | ServiceError, stored: StoredItem) -> bool:
        """Whether the item is already as a patch makes it: an earlier try of this patch has done it."""
        if isinstance(checked, ServiceError):
            return False
        content = self._contents.content(checked, HeldWithPicture(None, reference_in(stored.item)))
        return isinstance(content, Content) and content.record.item == stored.item

    def _note(self, outcomes: Sequence[Outcome], stages: Stages) -> None:
        for outcome in outcomes:
            self._metrics.indexed_items.labels(outcome.status).inc()
            for value in outcome.unused:
                self._metrics.unused_values.labels(value.field).inc()
        stages.flow = "index"

    async def read(self, records: Sequence[ItemRecord]) -> list[Tokenized]:
        """The codes and vectors of items that are stored already, for a new tokenizer.

        An item whose picture is not kept, or damaged, is read by its text alone, and counted.
        """
        kept = await self._drawer.kept_of(records)
        texts = [item_text(record.item, self._render) for record in records]
        pictures = [kept.get(record.item_id) for record in records]
        drawn = await self._drawer.draw(records, texts, pictures)
        damaged = [place for place, each in enumerate(drawn) if isinstance(each.input, InvalidItem)]
        anew = await self._drawer.draw(
            [records[place] for place in damaged], [texts[place] for place in damaged], [None] * len(damaged)
        )
        for place, each in zip(damaged, anew, strict=True):
            drawn[place], pictures[place] = each, None
        inputs = []
        for each in drawn:
            assert not isinstance(each.input, InvalidItem)  # without a picture nothing is damaged
            inputs.append(each.input)
        if self._picture_spec is not None:
            by_text_alone = [
                record
                for record, picture in zip(records, pictures, strict=True)
                if picture is None and (names_a_picture(record.item) or reference_in(record.item))
            ]
            self._metrics.pictures.labels("missing").inc(len(by_text_alone))
        answers = await asyncio.gather(*(self._batcher.submit(each, is_admitted=True) for each in inputs))
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
            found: dict[str, Tokenized | None] = dict.fromkeys(held)
            found |= zip((each.item_id for each in unread), await self.read(unread), strict=True)
            taken = [_as_read(each, found[each.item_id]) for each in records]
            results = await self._store.assign(taken, tell=True)
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
        self,
        items: Sequence[object],
        checked: Sequence[CheckedItem | ServiceError],
        stages: Stages,
        deadline: float,
        if_match: IfMatch | None,
    ) -> Indexed:
        latest = {each.item_id: each for each in checked if isinstance(each, CheckedItem)}
        outcomes, versions = await self._put_checked(latest, stages, deadline, if_match)
        answers = [answer_for(each, item, outcomes) for each, item in zip(checked, items, strict=True)]
        errors = [answer.error for answer in answers]
        passing = [error for error in errors if error is not None and error.retry_after_s is not None]
        if passing and not versions and len(passing) == len(errors):
            raise passing[0]  # the whole request can be sent again
        if versions:
            with stages.time("follow"):
                await self._follow_to(max(versions))
        return Indexed(answers, self._follower.catalog.version)

    async def _put_checked(
        self,
        latest: Mapping[str, CheckedItem],
        stages: Stages,
        deadline: float,
        if_match: IfMatch | None,
    ) -> tuple[dict[str, Outcome], list[int]]:
        """Decode, read and store items. One that others change meanwhile is compared and read again."""
        pending, outcomes = await self._decode(latest, stages)
        versions: list[int] = []
        for tries in range(PUT_TRIES):
            found, new_versions = await self._put_once(
                pending, stages, deadline, if_match, is_admitted=tries > 0
            )
            outcomes |= found
            versions += new_versions
            pending = {i: pending[i] for i, each in found.items() if isinstance(each.error, ItemChanged)}
            if not pending:
                break
            if tries:
                await asyncio.sleep(random.uniform(0, PATCH_PAUSE_S))
        return outcomes, versions

    async def _decode(
        self, latest: Mapping[str, CheckedItem], stages: Stages
    ) -> tuple[dict[str, CheckedItem], dict[str, Outcome]]:
        """The items with their pictures decoded, and the outcomes of those whose pictures are refused."""
        if all(each.wish.kind != "replace" for each in latest.values()):
            return dict(latest), {}
        with stages.time("picture"):
            decoded = await asyncio.gather(*map(self._contents.decode, latest.values()))
        found, refused = {}, {}
        for item_id, each in zip(latest, decoded, strict=True):
            if isinstance(each, ServiceError):
                refused[item_id] = failed(item_id, each)
            else:
                found[item_id] = each
        return found, refused

    async def _put_once(
        self,
        pending: Mapping[str, CheckedItem],
        stages: Stages,
        deadline: float,
        if_match: IfMatch | None,
        *,
        is_admitted: bool,
    ) -> tuple[dict[str, Outcome], list[int]]:
        with stages.time("held"):
            present = await self._store.held_with_pictures(list(pending))
        outcomes: dict[str, Outcome] = {}
        known: list[Content] = []
        new: list[Content] = []
        for item_id, checked in pending.items():
            content = self._contents.content(checked, present[item_id])
            if isinstance(content, ServiceError):
                outcomes[item_id] = failed(item_id, content)
            else:
                (known if content.is_known else new).append(content)
        if new and not is_admitted:
            self._batcher.check_room(deadline=deadline)
        versions: list[int] = []
        if known:
            found, versions = await self._keep(known, stages, if_match)
            outcomes |= found
        chunks = [new[start : start + CHUNK] for start in range(0, len(new), CHUNK)]
        for found, version in await _bounded(
            [self._read_and_put(chunk, stages, deadline, if_match) for chunk in chunks]
        ):
            outcomes |= found
            versions = versions + version
        return outcomes, versions

    async def _keep(
        self, contents: Sequence[Content], stages: Stages, if_match: IfMatch | None
    ) -> tuple[dict[str, Outcome], list[int]]:
        """Store items whose content is unchanged. They keep their SIDs."""
        with stages.time("store"):
            results = await self._put([(content.record, None) for content in contents], if_match)
        return outcomes_of(contents, results)

    async def _read_and_put(
        self, contents: Sequence[Content], stages: Stages, deadline: float, if_match: IfMatch | None
    ) -> tuple[dict[str, Outcome], list[int]]:
        """Draw, tokenize and store one chunk."""
        kept = await self._drawer.kept_of(
            [each.record for each in contents if each.picture and each.data is None]
        )
        lost: dict[str, Outcome] = {}
        if self._picture_spec is not None:
            changed = [each for each in contents if each.picture and not (each.data or _id_of(each) in kept)]
            lost = {_id_of(each): failed(_id_of(each), ItemChanged(_id_of(each))) for each in changed}
        contents = [each for each in contents if _id_of(each) not in lost]
        with stages.time("render"):
            drawn = await self._drawer.draw(
                [each.record for each in contents],
                [each.text for each in contents],
                [each.data or kept.get(_id_of(each)) for each in contents],
            )
        answers = await asyncio.gather(
            *(self._submit(each.input, deadline) for each in drawn), return_exceptions=True
        )
        unread: dict[str, Outcome] = {}
        readable, rendered, records = [], [], []
        queue_s = run_s = 0.0
        for content, each, answer in zip(contents, drawn, answers, strict=True):
            if isinstance(answer, ServiceError):
                unread[_id_of(content)] = failed(_id_of(content), answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                readable.append(content)
                rendered.append(each.rendered)
                records.append(_as_read(content.record, answer.result))
                queue_s, run_s = max(queue_s, answer.queue_s), max(run_s, answer.run_s)
        stages.add_row(queue=queue_s, tokenise=run_s)
        if not records:
            return lost | unread, []
        try:
            with stages.time("store"):
                results: Sequence[PutResult | ServiceError] = await self._put(records, if_match)
        except ServiceError as error:  # only of this chunk; others may be stored
            results = [error] * len(records)
        outcomes, versions = outcomes_of(readable, results, rendered)
        return lost | unread | outcomes, versions

    async def _submit(self, item: TokenizerInput | InvalidItem, deadline: float) -> Answer[Tokenized]:
        if isinstance(item, InvalidItem):
            raise item
        return await self._batcher.submit(item, deadline=deadline)

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


def _as_read(record: ItemRecord, read: Tokenized | None) -> tuple[ItemRecord, Codes | None]:
    """The item as the store takes it. None: it was not read, as its content is known."""
    return (record, None) if read is None else (replace(record, vector=read.vector), read.codes)


def _id_of(content: Content) -> str:
    return content.record.item_id


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
