"""The results of indexing, one for each item of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from service.core.filters import UnusedValue
from service.core.items import Item
from service.core.render import Rendered
from service.core.sid import Sid
from service.errors import InvalidItem, ServiceError
from service.flows.contents import CheckedItem, Content
from service.store.records import PutResult


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
    unused: Sequence[UnusedValue] = ()  # values of the item that nobody uses, and why
    revision: str = ""  # of the stored item; '' for one that failed


class Indexed(NamedTuple):
    """The results of one request. A search on this replica finds every stored item from `version` on."""

    outcomes: list[Outcome]  # in the order of the request
    version: int  # of the catalog, as this replica now serves it


class Patched(NamedTuple):
    """An item after a patch. `outcome` has no error."""

    outcome: Outcome
    version: int  # of the catalog, as this replica now serves it


def failed(item_id: str, error: ServiceError) -> Outcome:
    """The outcome of an item that is not stored."""
    return Outcome(item_id, "failed", error=error)


def outcomes_of(
    contents: Sequence[Content],
    results: Sequence[PutResult | ServiceError],
    drawn: Sequence[Rendered | None] | None = None,
) -> tuple[dict[str, Outcome], list[int]]:
    """The outcome of each item by its id, and the versions of the catalog that have them."""
    outcomes, versions = {}, []
    for place, (content, result) in enumerate(zip(contents, results, strict=True)):
        item_id = content.record.item_id
        if isinstance(result, ServiceError):
            outcomes[item_id] = failed(item_id, result)
            continue
        rendered = drawn[place] if drawn else None
        outcomes[item_id] = Outcome(
            item_id,
            result.status,
            sid=result.sid,
            truncated=rendered.truncated if rendered else None,
            missing=rendered.missing if rendered else None,
            item=dict(content.record.item),
            unused=content.unused,
            revision=result.revision,
        )
        versions.append(result.version)
    return outcomes, versions


def answer_for(checked: CheckedItem | ServiceError, item: object, outcomes: Mapping[str, Outcome]) -> Outcome:
    """The outcome of one item of the request, given those of the checked items by their ids."""
    if isinstance(checked, CheckedItem):
        return outcomes[checked.item_id]
    given_id: Any = item.get("item_id") if isinstance(item, dict) else None
    usable = isinstance(given_id, str) and not (
        isinstance(checked, InvalidItem) and checked.field == "item_id"
    )
    return Outcome(given_id if usable else None, "failed", error=checked)
