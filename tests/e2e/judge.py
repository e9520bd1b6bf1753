"""What a catalog may say, given what was acknowledged: a model in memory that answers are held against.

A version of the catalog is the same on every replica, and an acknowledgement names one that has the change.
So an answer that names this version or a later one must show the change, on whichever replica; an earlier one
need not. What is being changed just now may be seen as it was or as it will be.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.core.sid import Codes
from tests.known_bundle import ranking

Item = dict[str, Any]
FIELDS_READ = ("title", "categories")  # of the bundles here: the others change what filters say, and no codes
FILTER_FIELDS = "price:number"
LIVING = ("created", "updated", "moved", "unchanged")


@dataclass(frozen=True)
class Known:
    """An item as it was acknowledged last."""

    item: Item | None  # None: deleted
    sid: str | None
    version: int | None  # of a catalog that has it, as all later ones do; None: not told


def codes_in(sid: str) -> Codes:
    return tuple(int(code) for code in sid.split("-")[:-1])


def text_of(item: Item) -> Item:
    """What the tokenizer sees of it."""
    return {name: item[name] for name in FIELDS_READ if name in item}


def passes(item: Item, asked: Mapping[str, Any]) -> bool:
    """The filters that are asked here, item by item."""
    price, bounds = item.get("price"), asked.get("attributes", {}).get("price")
    return (
        ("item_ids" not in asked or item["item_id"] in asked["item_ids"])
        and ("available" not in asked or item.get("available", True) == asked["available"])
        and (
            "categories_any" not in asked or bool({*asked["categories_any"]} & {*item.get("categories", [])})
        )
        and (bounds is None or (price is not None and bounds["gte"] <= price < bounds["lt"]))
    )


class Judge:
    """Any number of threads may ask and tell, but one at a time changes an item."""

    def __init__(self, codes_of: Callable[[Item], Codes] | None = None) -> None:
        """`codes_of` is what the tokenizer reads; without it the same text must only have the same codes."""
        self.known: dict[str, Known] = {}  # without those that are being changed
        self.ids: set[str] = set()
        self.codes_of = codes_of
        self._codes_seen: dict[str, Codes] = {}
        self._lock = threading.Lock()

    # --- what clients tell ---

    def begin(self, item_ids: Sequence[str]) -> dict[str, Known | None]:
        """From now on these are being changed -> what they were; None for a new one."""
        with self._lock:
            self.ids.update(item_ids)
            return {each: self.known.pop(each, None) for each in item_ids}

    def settle(self, item_id: str, known: Known) -> None:
        with self._lock:
            self.ids.add(item_id)
            self.known[item_id] = known

    def now(self) -> dict[str, Known]:
        with self._lock:
            return dict(self.known)

    @property
    def living(self) -> dict[str, Known]:
        return {item_id: known for item_id, known in self.now().items() if known.item is not None}

    # --- what is wrong with an answer; `before` is what was known when its request was sent ---

    def of_row(self, item: Item, row: Item, before: Known | None, *, is_first: bool) -> Iterator[str]:
        """The outcome of one put; `is_first` where it was not sent before: then its status is known too."""
        if row["status"] not in LIVING or row["item_id"] != item["item_id"]:
            yield f"not the outcome of {item}: {row}"
            return
        codes = tuple(row["codes"])
        yield from self._of_codes(item, row["semantic_id"], codes)
        if is_first:
            expected = self._status(item, codes, before)
            if row["status"] != expected:
                yield f"{row['status']} where it was {expected}: {item} after {before}"
            if expected in ("updated", "unchanged") and before and row["semantic_id"] != before.sid:
                yield f"its SID was {before.sid} and became {row['semantic_id']}: {item}"

    @staticmethod
    def _status(item: Item, codes: Codes, before: Known | None) -> str:
        if before is None or before.item is None or before.sid is None:
            return "created"
        if before.item == item:
            return "unchanged"
        return "updated" if codes_in(before.sid) == codes else "moved"

    def of_item(self, item_id: str, answer: Item | None, before: Mapping[str, Known]) -> Iterator[str]:
        """One item as Redis has it, of which there is one version for all; `answer` None: there is none."""
        known = self._stable(item_id, before)
        if known is None:
            return
        if (answer is None) != (known.item is None):
            yield f"{item_id} is {known.item}, but was answered as {answer}"
        elif answer is not None:
            if answer["item"] != known.item or answer["semantic_id"] != known.sid:
                yield f"{item_id} is {known}, but was answered as {answer}"
            yield from self._of_codes(answer["item"], answer["semantic_id"], tuple(answer["codes"]))

    def of_listing(self, rows: Sequence[Item], before: Mapping[str, Known]) -> Iterator[str]:
        """All pages: what lived through all of them, unmoved, is on exactly one."""
        places: dict[str, list[Item]] = {}
        for row in rows:
            places.setdefault(row["item"]["item_id"], []).append(row)
        for item_id in before:
            known = self._stable(item_id, before)
            if known is not None:
                rows_of_it = places.get(item_id, [])
                if len(rows_of_it) != (known.item is not None):
                    yield f"{item_id} is on {len(rows_of_it)} pages: {known}"
                for row in rows_of_it:
                    yield from self.of_item(item_id, row, before)
        for item_id in places.keys() - set(self.ids):
            yield f"{item_id} was never put"

    def of_page(self, asked: Mapping[str, Any], page: Item, before: Mapping[str, Known]) -> Iterator[str]:
        """A recommendation of any replica, by the version that it names."""
        version, found = page["catalog_version"], {row["item_id"]: row for row in page["items"]}
        condition = asked.get("filter", {})
        hidden = {*asked["history"], *asked.get("exclude_item_ids", [])}
        if len(found) != len(page["items"]) or len({row["semantic_id"] for row in page["items"]}) != len(
            found
        ):
            yield f"an item or a SID comes twice: {page}"
        if len(found) > asked["limit"] or found.keys() & hidden:
            yield f"too many items, or excluded ones, for {asked}: {page}"
        for item_id, row in found.items():
            known = self._seen_at(version, item_id, before)
            if item_id not in self.ids:
                yield f"{item_id} was never put"
            elif known is not None:
                if known.item is None or row["semantic_id"] != known.sid:
                    yield f"{item_id} is {known}, but was recommended: {row}, version {version}"
                elif not passes(known.item, condition):
                    yield f"{item_id} does not pass {condition}: {known.item}, version {version}"
        for item_id in asked["history"]:
            known = self._seen_at(version, item_id, before)
            if known is not None and (known.item is None) != (item_id in page["unknown_item_ids"]):
                yield f"{item_id} of the history is {known}: {page}"
        everything = {
            each: self._seen_at(version, each, before) for each in condition.get("item_ids", tuple(self.ids))
        }
        if None not in everything.values():
            yield from self._of_whole_page(asked, page, {k: v for k, v in everything.items() if v})

    def _of_whole_page(
        self, asked: Mapping[str, Any], page: Item, all_of_it: Mapping[str, Known]
    ) -> Iterator[str]:
        """Where everything is known that could be on it."""
        condition = asked.get("filter", {})
        passing = {k: v for k, v in all_of_it.items() if v.item is not None and passes(v.item, condition)}
        if condition and page["matching_items"] != len(passing):
            yield f"{len(passing)} items pass {condition}: {page}"
        hidden = {*asked["history"], *asked.get("exclude_item_ids", [])}
        allowed = passing.keys() - hidden
        ids = [row["item_id"] for row in page["items"]]
        if len(ids) != min(asked["limit"], len(allowed)):
            yield f"{len(ids)} of {len(allowed)} items, limit {asked['limit']}: {page}"
        known = [self.known.get(each) for each in asked["history"]]
        if None in known or page["source"] != "model" or not page["exact"] or self.codes_of is None:
            return
        history = [codes_in(each.sid) for each in known if each is not None and each.sid]
        sid_of = {each: passing[each].sid or "" for each in allowed}
        ranks = {codes: n for n, (_, codes) in enumerate(ranking(history, {*map(codes_in, sid_of.values())}))}
        best = sorted(
            allowed, key=lambda each: (ranks[codes_in(sid_of[each])], int(sid_of[each].split("-")[-1]))
        )
        if ids != best[: asked["limit"]]:
            yield f"the best are {best[: asked['limit']]}: {page}"

    def _of_codes(self, item: Item, sid: str, codes: Codes) -> Iterator[str]:
        if codes_in(sid) != codes:
            yield f"codes {codes} with SID {sid}"
        text = repr((text_of(item), item.get("image")))
        expected = self.codes_of(item) if self.codes_of else self._codes_seen.setdefault(text, codes)
        if codes != expected:
            yield f"codes {codes} where this text has {expected}: {item}"

    def _stable(self, item_id: str, before: Mapping[str, Known]) -> Known | None:
        """What is known of it, where that has not changed since."""
        known = before.get(item_id)
        return known if known is not None and self.known.get(item_id) is known else None

    def _seen_at(self, version: int, item_id: str, before: Mapping[str, Known]) -> Known | None:
        known = self._stable(item_id, before)
        if known is None or known.version is None or known.version > version:
            return None
        return known
