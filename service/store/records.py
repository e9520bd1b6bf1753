"""The records of the store, and their encoding as bytes in Redis. Pure.

A value that another program wrote is skipped and counted. It must not stop the catalog.
"""

import base64
import hashlib
import json
import logging
import operator
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from service.core.filters import NO_ATTRIBUTES, Attributes, DeclaredFields
from service.core.image_field import PictureReference
from service.core.json_lines import parse_json
from service.core.sid import Codes, Sid, SidSpec
from service.errors import InvalidCursor
from service.store.picture_records import PictureChange

log = logging.getLogger(__name__)

HASH_LENGTH = 32

T = TypeVar("T")
Status = Literal["created", "moved", "updated", "unchanged"]


class RedisKeys(NamedTuple):
    """The names of a catalog's keys. All tokenizers share `items`, `pictures` and `active`."""

    items: str
    codes: str
    trie: str
    log: str
    pictures: str
    vectors: str
    active: str

    @classmethod
    def of(cls, catalog: str, tokenizer_id: str) -> "RedisKeys":
        """The keys of a catalog and a tokenizer. Raises ValueError if the name is empty or has braces."""
        if not catalog or set("{}") & set(catalog):
            raise ValueError(f"a catalog's name must not be empty or have braces, got {catalog!r}")
        # One hash tag, so that Redis Cluster keeps all keys in one slot for the scripts.
        tag = f"{{{catalog}}}"
        kinds = ("codes", "trie", "log", "vectors")
        codes, trie, log, vectors = (f"{tag}:{kind}:{tokenizer_id}" for kind in kinds)
        return cls(f"{tag}:items", codes, trie, log, f"{tag}:pictures", vectors, f"{tag}:active")

    @property
    def changed(self) -> tuple[str, ...]:
        """The keys that every change of an item concerns: items, codes, trie and log."""
        return self[:4]

    @property
    def of_items(self) -> tuple[str, ...]:
        """The keys that lua/put.lua and lua/drop.lua change together."""
        return self[:6]


@dataclass(frozen=True)
class ItemRecord:
    """An item as it is written to Redis."""

    item_id: str
    content_hash: str  # 32 characters: the hash of the text and the picture that the tokenizer reads
    item: Mapping[str, Any]  # as posted, with its item_id, and a reference in place of its picture
    picture: PictureChange = PictureChange()
    vector: bytes = b""  # of this content, see core/vectors.py; empty: not at hand, or none is kept


@dataclass(frozen=True)
class PutResult:
    """The outcome of a put. `status` says whether the item is new, has other codes, or only other fields."""

    item_id: str
    sid: Sid
    status: Status
    version: int  # a replica with this version of the catalog knows the item
    revision: str = field(default="", compare=False)  # of the stored item; '' after `ItemStore.assign`


@dataclass(frozen=True)
class DropResult:
    """The outcome of a drop. Dropping an absent item is not an error; it leaves `existed` false."""

    item_id: str
    existed: bool
    version: int


@dataclass(frozen=True)
class Held:
    """An item's sid, and the hash of the content from which it was read."""

    content_hash: str
    sid: Sid


class HeldWithPicture(NamedTuple):
    """What is there of an item before it is put."""

    held: Held | None  # None: this tokenizer has not read it
    picture: PictureReference | None  # which picture is kept for it


@dataclass(frozen=True)
class StoredItem:
    """An item as read from Redis, with its Semantic ID under this store's tokenizer."""

    item_id: str
    item: dict[str, Any]
    sid: Sid
    revision: str = field(default="", compare=False)  # another one after each change of item or sid


@dataclass(frozen=True)
class IfMatch:
    """Which revisions of an item a change may replace. `revisions` None: any, but the item must exist."""

    revisions: frozenset[str] | None

    def allows(self, revision: str) -> bool:
        """Whether an item of this revision may be replaced."""
        return self.revisions is None or revision in self.revisions

    def pack(self) -> str:
        """As lua/put.lua takes it. No revision at all is a name that no item has."""
        return "*" if self.revisions is None else ",".join(sorted(self.revisions)) or "none"


class ItemListing(NamedTuple):
    """One page of items, in trie order."""

    items: list[StoredItem]
    next_cursor: str | None  # None after the last page


class TrieEntry(NamedTuple):
    """One item of a snapshot, with everything that the in-memory catalog keeps of it."""

    item_id: str
    sid: Sid
    attributes: Attributes = NO_ATTRIBUTES
    vector: bytes = b""  # of its present content; empty: there is none


class Position(NamedTuple):
    """The end of the log. The same version with another mark is another history: Redis lost changes."""

    version: int
    mark: str


class Change(NamedTuple):
    """One entry of the log. An entry that cannot be decoded has the op `unreadable` and an empty item id."""

    version: int
    op: Literal["put", "drop", "unreadable"]
    item_id: str
    sid: Sid
    after: str  # the mark of the previous change
    mark: str
    attributes: Attributes = NO_ATTRIBUTES  # only of a put
    vector: bytes = b""  # only of a put; empty: there is none


class RecordCodec:
    """Encodes and decodes the values that lua/put.lua describes. Counts those that it cannot decode.

    Attributes in the log are a JSON list: the declared fields, categories, available, a value for each field.
    So a replica that declares other fields, as happens while settings change, does not use them.
    """

    def __init__(self, spec: SidSpec, fields: DeclaredFields) -> None:
        self._spec = spec
        self._fields = fields
        self._names = sorted(fields.kinds)
        self._declared = _to_json(str(fields))
        self._codes = struct.Struct(f">{spec.num_levels}H")
        self._sid = struct.Struct(f">{spec.num_levels + 1}H")
        self.num_unreadable = 0

    @property
    def sid_length(self) -> int:
        """Bytes of a packed sid."""
        return self._sid.size

    def pack_codes(self, codes: Codes) -> bytes:
        """Big-endian, so that trie members sort by code. Raises ValueError if the codes do not fit."""
        self._spec.check(codes)
        return self._codes.pack(*codes)

    def pack_item(self, record: ItemRecord) -> bytes:
        """The content hash, a space, and the item as JSON with sorted fields."""
        # Sorted, so that the order of the fields does not matter.
        return self.pack_hash(record) + b" " + _to_json(record.item)

    def pack_attributes(self, record: ItemRecord) -> bytes:
        """The item's attributes as the JSON list that the log holds."""
        found = self._fields.attributes_of(record.item)
        values = [found.values.get(name) for name in self._names]
        told = _to_json([found.categories, found.available, values])
        return b"[" + self._declared + b"," + told[1:]

    def pack_hash(self, record: ItemRecord) -> bytes:
        """The content hash as ASCII. Raises ValueError unless it has HASH_LENGTH characters."""
        packed = record.content_hash.encode("ascii")
        if len(packed) != HASH_LENGTH:
            raise ValueError(f"a content hash has {HASH_LENGTH} characters, got {record.content_hash!r}")
        return packed

    def pack_cursor(self, member: bytes) -> str:
        """A trie member as text that is safe in a URL. `read_cursor` is the inverse."""
        return base64.urlsafe_b64encode(member).decode().rstrip("=")

    def unpack_sid(self, raw: bytes) -> Sid:
        """Raises ValueError if a code exceeds its level, and struct.error if the number of bytes is wrong."""
        values = self._sid.unpack(raw)
        if any(
            map(operator.ge, values, self._spec.levels)
        ):  # `spec.check` would be the slowest part of a load
            raise ValueError(f"codes {values[:-1]} do not fit the levels {self._spec.levels}")
        return Sid(values[:-1], values[-1])

    def revision_of(self, value: bytes, sid: bytes) -> str:
        """The revision of an item with this value and this packed sid, as lua/put.lua computes it."""
        return hashlib.sha1(value + sid, usedforsecurity=False).hexdigest()

    def read_cursor(self, cursor: str | None) -> bytes | None:
        """The trie member in the cursor. Raises InvalidCursor."""
        if cursor is None:
            return None
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            member = base64.b64decode(padded, altchars=b"-_", validate=True)
            self.unpack_sid(member[: self._sid.size])
        except (ValueError, struct.error) as error:
            raise InvalidCursor(cursor) from error
        return member

    def read_member(self, member: bytes) -> TrieEntry | None:
        """A member of the trie, without attributes. None, and counted, if another program wrote it."""

        def read() -> TrieEntry:
            item_id, sid = to_str(member[self._sid.size :]), self.unpack_sid(member[: self._sid.size])
            if not item_id:
                raise ValueError("no item id")
            return TrieEntry(item_id, sid)

        return self._readable("the trie", member, read)

    def read_held(self, value: bytes) -> Held | None:
        """A value of the hash of codes. None, and counted, if another program wrote it."""

        def read() -> Held:
            return Held(value[-HASH_LENGTH:].decode("ascii"), self.unpack_sid(value[:-HASH_LENGTH]))

        return self._readable("the codes", value, read)

    def read_id(self, raw: bytes) -> str | None:
        """An item id from a field of a hash."""
        return self._readable("an item id", raw, lambda: to_str(raw))

    def read_item(self, item_id: str, value: bytes) -> ItemRecord | None:
        """A value of the hash of items. None, and counted, if it is unreadable or holds another item's id."""

        def read() -> ItemRecord:
            item = _item(value)
            if item["item_id"] != item_id:
                raise ValueError("another item's id")
            return ItemRecord(item_id, value[:HASH_LENGTH].decode("ascii"), item)

        return self._readable("the items", value, read)

    def read_attributes(self, value: bytes) -> Attributes | None:
        """The attributes in an item's value."""
        return self._readable("the items", value, lambda: self._fields.attributes_of(_item(value)))

    def tells_attributes(self, fields: Mapping[bytes, bytes]) -> bool:
        """Whether this entry of the log has attributes of the fields that are declared here."""
        return fields.get(b"attrs", b"").startswith(b"[" + self._declared + b",")

    def read_change(
        self,
        entry_id: bytes,
        fields: Mapping[bytes, bytes],
        present: Mapping[bytes, Attributes],
        vectors: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> Change:
        """A change. `present` has the attributes of items whose entries lack them, `vectors` all vectors.

        A put that lacks attributes, of an item that is not in `present` either, is read as a drop.
        """
        version = version_of(entry_id)

        def read() -> Change:
            op = _OPS[fields[b"op"]]
            sid = self.unpack_sid(fields[b"sid"])
            after, mark = fields[b"after"].decode(), fields[b"mark"].decode()
            attributes = NO_ATTRIBUTES
            if op == "put" and self.tells_attributes(fields):
                attributes = self._unpack_attributes(fields[b"attrs"])
            elif op == "put" and fields[b"id"] in present:
                attributes = present[fields[b"id"]]
            else:
                op = "drop"  # also a put of an item that Redis no longer has
            vector = vectors.get(fields[b"id"], b"") if op == "put" else b""
            return Change(version, op, to_str(fields[b"id"]), sid, after, mark, attributes, vector)

        found = self._readable("the log", entry_id, read)
        return found or Change(version, "unreadable", "", Sid((), 0), "", "")

    def _unpack_attributes(self, raw: bytes) -> Attributes:
        _, categories, available, values = json.loads(to_str(raw))
        item = dict(zip(self._names, values, strict=True))
        return self._fields.attributes_of({**item, "categories": categories, "available": available})

    def _readable(self, where: str, value: bytes, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (ValueError, TypeError, KeyError, RecursionError, struct.error) as error:
            self.num_unreadable += 1
            log.warning("%s: a value that is not ours, skipped: %r (%s)", where, value[:80], error)
            return None


_OPS: dict[bytes, Literal["put", "drop"]] = {b"put": "put", b"drop": "drop"}


def version_of(entry_id: bytes) -> int:
    """The version in a stream entry's id, which has the form `version-0`."""
    return int(entry_id.split(b"-")[0])


# Made once: json.dumps makes one at each call, which takes as long as encoding a small item.
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _to_json(value: object) -> bytes:
    return to_bytes(_ENCODER.encode(value))


def _item(value: bytes) -> dict[str, Any]:
    """Raises ValueError or KeyError if the value is not an item that an answer can hold."""
    item = parse_json(to_str(value[HASH_LENGTH:]))
    if not isinstance(item, dict):
        raise ValueError("not a JSON object")
    if not isinstance(item["item_id"], str):
        raise ValueError("its item_id is no text")
    return item


def to_bytes(text: str) -> bytes:
    """Encode as UTF-8, also half a surrogate pair."""
    # No item's name has half a surrogate pair, but asking for one is not an error.
    return text.encode("utf-8", "surrogatepass")


def to_str(raw: bytes) -> str:
    """Raises ValueError if this is not UTF-8, also for half a surrogate pair: no answer could hold it."""
    return raw.decode("utf-8")


def shown_id(raw: bytes) -> str:
    """An item id for a report, also if it is not text."""
    try:
        return to_str(raw)
    except UnicodeDecodeError:
        return repr(raw)
