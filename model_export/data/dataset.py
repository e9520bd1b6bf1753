"""The common form of all sources: items with text, and for each user a sequence of items.

A sequence holds item *indices*, so that no later step has to look up an id.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.bundle import sha256_of
from service.errors import GlyphrecError

Item = dict[str, Any]
ItemSequence = NDArray[np.int32]  # [position] item indices, oldest first

MIN_ITEMS_PER_USER = 2  # a shorter sequence has no next item to learn from
MAX_DOUBLED_SHARE = 0.2  # above it, a log is more likely doubled than users are that loyal


class DataError(GlyphrecError):
    """The data cannot be read. The message names the file, the line and a remedy."""


@dataclass(frozen=True)
class Dataset:
    """Items and the users' sequences."""

    name: str
    items: list[Item]  # each with "item_id"
    sequences: list[ItemSequence]  # one per user
    user_ids: list[str]
    exclusions: dict[str, int]  # what was left out, in words -> how often
    # Per user the times [position] in milliseconds since 1970, ascending. None where they are not kept.
    times: list[NDArray[np.int64]] | None = None
    notes: tuple[str, ...] = ()  # sentences about the source that its user should know
    # The picture's file of each item that has one, by the item's index. They are read when they are needed.
    images: Mapping[int, Path] = field(default_factory=dict)

    @property
    def item_ids(self) -> list[str]:
        """The id of each item [item]."""
        return [item["item_id"] for item in self.items]

    @property
    def num_items(self) -> int:
        """The number of items, also of those that nobody bought."""
        return len(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of items, their pictures, users and sequences, in hex. Nothing else is part of it.

        Raises DataError if a picture cannot be read any more.
        """
        digest = self._digest_of_items()
        for user_id, sequence in zip(self.user_ids, self.sequences, strict=True):
            digest.update(json.dumps(user_id).encode() + b"\n")
            digest.update(len(sequence).to_bytes(4, "little") + sequence.astype("<i4").tobytes())
        return digest.hexdigest()

    @cached_property
    def items_fingerprint(self) -> str:
        """SHA-256 of the items in their order, with the bytes of their pictures, in hex."""
        return self._digest_of_items().hexdigest()

    def _digest_of_items(self) -> "hashlib._Hash":
        digest = hashlib.sha256()
        for place, item in enumerate(self.items):
            digest.update(json.dumps(item, sort_keys=True, ensure_ascii=True).encode() + b"\n")
            if place in self.images:
                digest.update(f"image {self.image_hashes[place]}\n".encode())
        return digest

    @cached_property
    def image_hashes(self) -> dict[int, str]:
        """SHA-256 of the bytes of each picture, in hex, by the item's index.

        Raises DataError if a picture cannot be read any more.
        """
        hashes: dict[Path, str] = {}
        for path in self.images.values():
            if path not in hashes:
                try:
                    hashes[path] = sha256_of(path)
                except OSError as error:
                    raise DataError(
                        f"{path}: cannot be read any more ({error.strerror or error}). Keep the pictures "
                        "where they are until the command has ended."
                    ) from None
        return {item: hashes[path] for item, path in self.images.items()}

    @property
    def doubled_share(self) -> float:
        """The share of interactions that repeat the user's interaction before."""
        num_doubled = sum(int((items[1:] == items[:-1]).sum()) for items in self.sequences)
        return num_doubled / sum(map(len, self.sequences))

    def summary(self) -> str:
        """A few lines for the terminal, with the counts, all exclusions, and what looks wrong."""
        lengths = [len(sequence) for sequence in self.sequences]
        head = (
            f"{self.name}: {self.num_items:,} items, {len(self.user_ids):,} users, "
            f"{sum(lengths):,} interactions "
            f"({min(lengths):,} to {max(lengths):,} a user, median {np.median(lengths):,.0f})"
        )
        pictures = [f"  pictures: {len(self.images):,} items have one"] if self.images else []
        left_out = [f"  left out: {num:,} {what}" for what, num in self.exclusions.items()]
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join([head, *pictures, *left_out, *notes, *self._warnings()])

    def _warnings(self) -> list[str]:
        if self.doubled_share <= MAX_DOUBLED_SHARE:
            return []
        return [
            f"  warning: {self.doubled_share:.0%} of the interactions repeat the one before. If the log has "
            "events twice, keep one of each: a model learns the repeats."
        ]


def make_dataset(
    name: str,
    items: list[Item],
    histories: Iterable[tuple[str, Iterable[int]]],
    exclusions: Mapping[str, int],
    *,
    times: Iterable[NDArray[np.int64]] | None = None,
    notes: tuple[str, ...] = (),
    images: Mapping[int, Path] | None = None,
) -> Dataset:
    """Make a dataset from pairs (user id, item indices, oldest first), and the times of each user in `times`.

    `images`: the picture's file of each item that has one, by the item's index.
    Users with fewer than MIN_ITEMS_PER_USER items are left out and counted. Raises DataError if no items or
    no users remain.
    """
    user_ids, sequences, kept_times, num_short = [], [], [], 0
    for (user_id, history), its_times in zip(
        histories, repeat(None) if times is None else times, strict=False
    ):
        sequence = np.fromiter(history, dtype=np.int32)
        if len(sequence) < MIN_ITEMS_PER_USER:
            num_short += 1
            continue
        user_ids.append(user_id)
        sequences.append(sequence)
        kept_times.append(its_times)
    counted = dict(exclusions) | {f"users with fewer than {MIN_ITEMS_PER_USER} known items": num_short}
    kept = {what: int(count) for what, count in counted.items() if count}
    if not items or not sequences:
        missing = "users" if items else "items"
        why = "; ".join(f"{count:,} {what}" for what, count in kept.items()) or "the source is empty"
        raise DataError(
            f"{name}: no {missing} remain ({why}). Check that items and interactions belong together."
        )
    return Dataset(
        name=name,
        items=items,
        sequences=sequences,
        user_ids=user_ids,
        exclusions=kept,
        times=None if times is None else [each for each in kept_times if each is not None],
        notes=notes,
        images=images or {},
    )
