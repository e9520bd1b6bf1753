"""The rules for an item: an id, and fields with any JSON values within limits. Pure."""

import math
import re
from collections.abc import Mapping
from typing import Any

from service.core.render import MAX_DEPTH
from service.errors import InvalidItem

Item = dict[str, Any]  # as it is stored: item_id and fields without nulls

MAX_ID_CHARS = 256
MAX_FIELDS = 100
MAX_NAME_CHARS = 100
MAX_VALUES = 200  # of one list or one object inside an item

ID_NAMES = {"id", "itemid", "productid", "articleid", "movieid", "sku", "asin"}  # without case and signs

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode's categories Cc and Cs


def check_item(raw: object, max_chars: int) -> Item:
    """The item as it will be stored, without null fields. Raises InvalidItem with the field at fault."""
    if not isinstance(raw, dict):
        raise InvalidItem("item", f"must be an object with an item_id, not {_kind(raw)}")
    if raw.get("item_id") is None and (name := _misnamed_id(raw)) is not None:
        raise InvalidItem("item_id", f"is missing. Rename the field {name!r} to 'item_id'")
    item_id = check_item_id(raw.get("item_id"))
    if len(raw) > MAX_FIELDS:
        raise InvalidItem("item", f"has {len(raw)} fields; {MAX_FIELDS} is the limit")
    item: Item = {"item_id": item_id}
    for name, value in raw.items():
        _check_name("item", name)
        if name != "item_id" and value is not None:
            item[name] = _check_value(name, value)
    num_chars = _num_chars(item)
    if num_chars > max_chars:
        raise InvalidItem(
            "item", f"has {num_chars} characters in all; {max_chars} is the limit. Shorten its text"
        )
    return item


def check_item_id(item_id: object) -> str:
    """The id itself. Raises InvalidItem if it is not a valid id."""
    if item_id is None:
        raise InvalidItem("item_id", "is missing")
    if not isinstance(item_id, str):
        raise InvalidItem("item_id", f"must be text, not {_kind(item_id)}")
    if not item_id.strip():
        raise InvalidItem("item_id", "is blank")
    if len(item_id) > MAX_ID_CHARS:
        raise InvalidItem("item_id", f"has {len(item_id)} characters; {MAX_ID_CHARS} is the limit")
    if _NO_TEXT.search(item_id):
        raise InvalidItem("item_id", "has a control character or half a surrogate pair")
    return item_id


def merge(item: Mapping[str, Any], changes: Mapping[str, Any]) -> Item:
    """`item` with whole fields replaced by those of `changes`, and without those that are null there."""
    return {name: value for name, value in {**item, **changes}.items() if value is not None}


def merge_patch(item: Mapping[str, Any], patch: Mapping[str, Any]) -> Item:
    """`item` after a JSON merge patch: objects are merged at every depth, and all else is replaced.

    RFC 7396, section 2. Raises InvalidItem if the patch is nested deeper than an item may be.
    """
    return _patched(item, patch)


def _patched(target: object, patch: Mapping[str, Any], field: str = "item", depth: int = 0) -> Item:
    if depth > MAX_DEPTH:
        raise InvalidItem(field, f"is nested deeper than {MAX_DEPTH}; nobody would read that")
    patched = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            patched.pop(name, None)
        elif isinstance(value, Mapping):
            patched[name] = _patched(patched.get(name), value, name if depth == 0 else field, depth + 1)
        else:
            patched[name] = value
    return patched


def _misnamed_id(raw: Mapping[str, object]) -> str | None:
    """The first field that other services call the id."""
    plain = ((name, "".join(sign for sign in name.lower() if sign.isalnum())) for name in raw)
    return next((name[:MAX_NAME_CHARS] for name, spelled in plain if spelled in ID_NAMES), None)


def _check_name(where: str, name: str) -> None:
    if not name.strip() or len(name) > MAX_NAME_CHARS:
        raise InvalidItem(where, f"has a name of {len(name)} characters; 1 to {MAX_NAME_CHARS} are allowed")
    if _NO_TEXT.search(name):
        raise InvalidItem(where, "has a name with a control character or half a surrogate pair")


def _check_value(field: str, value: object, depth: int = 0) -> object:
    """The value without nulls inside."""
    if depth > MAX_DEPTH:
        raise InvalidItem(field, f"is nested deeper than {MAX_DEPTH}; nobody would read that")
    if isinstance(value, str):
        if _HALF_A_PAIR.search(value):
            raise InvalidItem(field, "has half a surrogate pair, which is no text")
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidItem(field, "is not a finite number")
    if isinstance(value, list | dict) and len(value) > MAX_VALUES:
        raise InvalidItem(field, f"has {len(value)} values; {MAX_VALUES} is the limit")
    if isinstance(value, list):
        return [_check_value(field, each, depth + 1) for each in value if each is not None]
    if isinstance(value, dict):
        for name in value:
            _check_name(field, name)
        return {
            name: _check_value(field, each, depth + 1) for name, each in value.items() if each is not None
        }
    return value


def _num_chars(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_num_chars, value))
    if isinstance(value, dict):
        return sum(len(name) + _num_chars(each) for name, each in value.items())
    return len(value) if isinstance(value, str) else len(str(value))


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
