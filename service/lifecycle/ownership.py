"""Decides whether a bundle may use the catalog that a start finds (docs/decisions/0009). Changes nothing."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from service.core.bundle import RenderSpec
from service.core.render import item_text
from service.errors import ForeignCatalog
from service.lifecycle.bundles import LoadedBundle
from service.lifecycle.decide import may_activate
from service.store.items import ItemStore
from service.store.rollout import Seen
from service.store.standing import Owner, Standing

SAMPLE = 1_000  # items that are compared, of the bundle and of the catalog
RELATED_SHARE = 0.5

Items = Mapping[str, Mapping[str, Any]]  # by item id


class Plan(StrEnum):
    """What a start does with the catalog."""

    SEED = "seed"  # it is new: put the bundle's items into it
    SERVE = "serve"  # it is in use by the bundle's tokenizer
    SWITCH = "switch"  # read all items, then make the bundle's tokenizer the active one
    STAY_BEHIND = "stay behind"  # read all items, and leave the active tokenizer as it is


class Shared(NamedTuple):
    """How many of the items of two sets are the same."""

    num_of_bundle: int
    num_in_catalog: int  # of those of the bundle that were looked up
    num_of_catalog: int
    num_in_bundle: int  # of those of the catalog that were looked up

    @property
    def is_related(self) -> bool:
        """Whether most items of the one are in the other: another export of the same shop."""
        return (
            self.num_in_catalog > 0
            and self.num_in_catalog >= RELATED_SHARE * self.num_of_bundle
            or self.num_in_bundle > 0
            and self.num_in_bundle >= RELATED_SHARE * self.num_of_catalog
        )


def owner_of(loaded: LoadedBundle) -> Owner:
    """The bundle as Redis remembers it."""
    manifest = loaded.manifest
    return Owner(manifest.tokenizer_id, loaded.name, manifest.data_name, manifest.created_at)


def plan_without_reading(standing: Standing, tokenizer_id: str) -> Plan | None:
    """What a start with this tokenizer does if no items need to be compared; else None."""
    whose = standing.whose(tokenizer_id)
    is_unfinished = standing.active is None and standing.owner is not None and not standing.is_settled
    if whose is None or (whose == tokenizer_id and is_unfinished):
        return Plan.SEED
    return Plan.SERVE if whose == tokenizer_id else None


def plan_to_switch(standing: Standing, seen: Seen, mine: Owner, *, take_over: bool) -> Plan:
    """What a start does with a catalog that a related bundle may use, and that another tokenizer serves.

    A plain start switches to a newer export only, so that a forgotten replica does not undo a change.
    """
    if take_over:
        return Plan.SWITCH
    owner = standing.owner
    is_of_active = owner is not None and owner.tokenizer_id == standing.whose(mine.tokenizer_id)
    is_older = is_of_active and owner is not None and mine.created_at < owner.created_at
    return Plan.SWITCH if may_activate(seen, mine.tokenizer_id) and not is_older else Plan.STAY_BEHIND


async def shared_items(store: ItemStore, loaded: LoadedBundle) -> Shared:
    """Compare samples of the bundle's and of the catalog's items. Raises StoreUnavailable."""
    bundled = {each.item_id: each.item for each in loaded.items}
    step = max(1, len(loaded.items) // SAMPLE)
    asked = [each.item_id for each in loaded.items[::step][:SAMPLE]]
    found = {each.item_id: each.item for each in await store.records(asked)}
    drawn = {each.item_id: each.item for each in await store.some_records(SAMPLE)}
    render = loaded.manifest.render
    return Shared(
        len(asked), _num_same(found, bundled, render), len(drawn), _num_same(drawn, bundled, render)
    )


def _num_same(items: Items, others: Items, render: RenderSpec) -> int:
    return sum(
        item_id in others and _is_same(item, others[item_id], render) for item_id, item in items.items()
    )


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any], render: RenderSpec) -> bool:
    """The same title, as other fields change; without titles, the same text. Ids alone may be numbers."""
    if "title" in one and "title" in other:
        return bool(one["title"] == other["title"])
    return item_text(one, render) == item_text(other, render)


def foreign(catalog: str, standing: Standing, mine: Owner, shared: Shared) -> ForeignCatalog:
    """The error that says whose catalog it is, and both ways out."""
    whose, owner = standing.whose(mine.tokenizer_id), standing.owner
    if owner is None or owner.tokenizer_id != whose:
        who = f"a bundle with the tokenizer {whose}, which an earlier release of glyphrec put there"
    else:
        who = f"the bundle {owner.bundle!r} ({_told(owner)}){_since(standing.since_s)}"
    return ForeignCatalog(
        f"The catalog {catalog!r} in this Redis is in use by {who}. The bundle {mine.bundle!r} "
        f"({_told(mine)}) seems to be of another shop: {shared.num_in_catalog} of {shared.num_of_bundle} of "
        f"its items are in the catalog, and {shared.num_in_bundle} of {shared.num_of_catalog} of the "
        "catalog's items are in it. Nothing was changed. Set GLYPHREC_CATALOG to another name to give this "
        "bundle a catalog of its own, or set GLYPHREC_TAKE_OVER=true to read the catalog's items with it and "
        "switch all replicas to it."
    )


def _told(owner: Owner) -> str:
    known = (
        ("tokenizer", owner.tokenizer_id),
        ("data", owner.data_name),
        ("exported", owner.created_at),
    )
    return ", ".join(f"{what} {value}" for what, value in known if value)


def _since(since_s: int) -> str:
    return f" since {datetime.fromtimestamp(since_s, UTC):%Y-%m-%dT%H:%M:%SZ}" if since_s else ""
