"""Amazon's product metadata (McAuley Lab) of 2014, 2018 and 2023, as items.

    2014  asin; Python literals in place of JSON; `categories` is a list of paths, `description` a text
    2018  asin; `category`, `feature` and `description` are lists; some fields hold code scraped from the page
    2023  parent_asin, sometimes beside asin; `store`, `features`, `details`, `subtitle` and `author`

The fields of a line tell the layout, so a product without a description or categories is no exception.
"""

import html
import json
import re
from typing import Any

from model_export.data.dataset import Item
from model_export.data.jsonl import Line

# Our name of a field -> the files' names, of which the first that holds words counts.
FIELDS = {
    "title": ("title",),
    "brand": ("brand", "store"),
    "categories": ("category", "categories"),
    "features": ("feature", "features"),
    "description": ("description",),
    "price": ("price",),
    "subtitle": ("subtitle",),
    "author": ("author",),
    "details": ("details",),
}
# Facts about the sales and not about the product.
SALES = {"best sellers rank", "best seller rank", "customer reviews", "date first available"}
TAG_NAMES = (
    "a|abbr|b|big|blockquote|body|br|center|code|dd|div|dl|dt|em|embed|font|form|h[1-6]|head|hr|html|i|iframe|img|"
    "input|label|li|link|meta|object|ol|option|p|param|pre|script|section|select|small|span|strike|strong|style|sub|"
    "sup|table|tbody|td|th|thead|title|tr|tt|u|ul|video"
)
# A tag has a name of HTML and attributes with values, so "size <b and c> 5" is text.
TAG = re.compile(
    rf"<!--.*?-->|</?(?:{TAG_NAMES})(?:\s+[\w:-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>]+))*\s*/?>",
    re.IGNORECASE | re.DOTALL,
)
# Some fields hold a script or a style from the page instead of text.
PAGE_CODE = re.compile(
    r"getTime\b|<script\b|<style\b|\bfunction\s*\w*\s*\(|\bvar \w+ ?=|P\.when\(|[.#][\w-]+\s*\{[^{}]*\}"
)
BARE_PRICE = re.compile(r"\s*(?:[$€£¥]|USD|EUR|GBP)?\s*\d[\d.,]*\s*(?:[$€£¥]|USD|EUR|GBP)?\s*")


def product_id(line: Line) -> str:
    """The id that the reviews name. Raises DataError if the line has none."""
    return line.text("parent_asin" if "parent_asin" in line.record else "asin")


def is_product(record: dict[str, Any]) -> bool:
    """Whether a line has an id of Amazon's metadata."""
    return "asin" in record or "parent_asin" in record


def product(line: Line) -> Item:
    """The item of a line, with the fields that hold words."""
    record = line.record
    item: Item = {"item_id": product_id(line)}
    for ours, theirs in FIELDS.items():
        value = next((words for name in theirs if (words := _field(ours, record.get(name)))), None)
        if value is not None:
            item[ours] = value
    return item


def _field(name: str, value: Any) -> Any:
    if name == "details":
        return _details(value)
    if name == "author" and isinstance(value, dict):  # with a biography and a picture
        value = value.get("name")
    words = _words(value)
    if name == "categories" and isinstance(words, list):  # of 2014: the path to each category
        return list(
            dict.fromkeys(part for path in words for part in (path if isinstance(path, list) else [path]))
        )
    if name in ("description", "features"):
        parts = [part for part in (words if isinstance(words, list) else [words]) if not _is_price(part)]
        if name == "features" or not parts:
            return parts or None
        return " ".join(str(part) for part in parts)
    return words


def _is_price(value: Any) -> bool:
    """Whether a description is only a price, which is scraped from the wrong place, or nothing."""
    return value is None or (isinstance(value, str) and BARE_PRICE.fullmatch(value) is not None)


def _details(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):  # some copies hold the object as JSON
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, dict):
        return None
    return {
        str(name): words
        for name, part in value.items()
        if str(name).strip().lower() not in SALES and (words := _words(part))
    } or None


def _words(value: Any) -> Any:
    """Text without markup. A list keeps its parts. None if there is no text."""
    if isinstance(value, list):
        return [words for part in value if (words := _words(part))] or None
    if isinstance(value, dict):
        return {str(name): words for name, part in value.items() if (words := _words(part))} or None
    if isinstance(value, str):
        text = html.unescape(value)
        if PAGE_CODE.search(text):
            return None
        words = " ".join(TAG.sub(" ", text).split())
        return None if words in ("", "None", "nan", "null") else words
    return value
