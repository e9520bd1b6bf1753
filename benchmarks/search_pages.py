"""Ten queries and their pages: what POST /search finds among the groceries of the demo.

    python -m benchmarks.search_pages                         the newest bundle of the demo
    python -m benchmarks.search_pages --markdown FILE         the same as a page of the documentation

The queries are typed as people type: in small letters, abbreviated, with typos, with another unit, in another
order. A running service answers them over HTTP. An item is as asked if its title and categories have the
words in `Query.wanted`, whatever its size. Their first run showed that the
head's vectors find little, and led to those that are searched now (decision 24), so they are examples and no
proof. The last line is JSON: `as_asked_share`, of all items in the first five places, and beside it, as the
baseline, the same share of random items.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks import report
from benchmarks.workload import bundles
from model_export.local_service import local_service
from service.core.whole_files import write_whole

SHOWN = 5


class Query(NamedTuple):
    """What is typed, and what an item must say of itself to be meant."""

    text: str
    wanted: str  # a regular expression over title and categories, in small letters
    about: str  # what is special in it


QUERIES = (
    Query("soy sauce 15 oz", r"soy sauce", "words and a size"),
    Query("dry dog food 22 lb", r"dry dog food", "words and a size"),
    Query("56 ct baby diapers", r"diapers", "another order"),
    Query("ground cofee", r"coffee", "a typo"),
    Query("instant oatmeel", r"oatmeal", "a typo"),
    Query("alkalne batteris 4ct", r"batter", "two typos"),
    Query("yogurt 2 lb", r"yogurt", "32 oz in another unit"),
    Query("frzn pizza", r"pizza", "an abbreviation"),
    Query("ice cream sandwich", r"ice cream|novelt", "a singular"),
    Query("shampoo", r"shampoo", "one word"),
)


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    bundles.add_argument(parser)
    parser.add_argument("--markdown", type=Path, help="a file for the pages as a document")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundles.chosen(args, folder)
        items = [row["item"] for row in bundles.catalog_of(bundle)]
        with local_service(bundle.path, data_dir=folder / "redis", log=folder / "log") as service:
            pages = [_page(service.client, query.text) for query in QUERIES]
    known = {item["item_id"]: item for item in items}
    found = [
        [(known[each["item_id"]], each["score"]) for each in page] for page in pages
    ]  # of each query, best first
    for query, page in zip(QUERIES, found, strict=True):
        print(f"\n{query.text}  ({query.about})")
        for item, score in page:
            print(f"  {'✓' if as_asked(query, item) else ' '} {score:5.2f}  {described(item)}")
    print()
    if args.markdown:
        write_whole(args.markdown, lambda partial: partial.write_text(markdown(found), encoding="utf-8"))
    num_found = sum(map(len, found))
    num_right = sum(
        as_asked(query, item) for query, page in zip(QUERIES, found, strict=True) for item, _ in page
    )
    by_chance = sum(as_asked(query, item) for query in QUERIES for item in items) / len(QUERIES) / len(items)
    report.finish(
        "search_pages", argv, {"as_asked_share": num_right / max(1, num_found)}, {"random_share": by_chance}
    )
    return 0


def _page(client: httpx.Client, text: str) -> list[dict[str, Any]]:
    answer = client.post("/search", json={"query": text, "limit": SHOWN})
    answer.raise_for_status()
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def as_asked(query: Query, item: dict[str, Any]) -> bool:
    """Whether a person would say that this is the kind of thing that was asked for."""
    said = " ".join([str(item.get("title") or ""), *(item.get("categories") or [])]).lower()
    return re.search(query.wanted, said) is not None


def described(item: dict[str, Any]) -> str:
    """Title, and the narrowest category."""
    categories = item.get("categories") or []
    return f"{item.get('title') or item['item_id']}{f' ({categories[-1]})' if categories else ''}"


def markdown(pages: Sequence[Sequence[tuple[dict[str, Any], float]]]) -> str:
    """The pages as a document."""
    lines = [
        "# Ten searches and their pages",
        "",
        "`python -m benchmarks.search_pages --markdown FILE` asked `POST /search` of a service with the",
        "bundle that `make demo` makes, and wrote this page. The items are groceries. ✓ marks an item of the",
        "kind that was asked for, whatever its size. The score is the cosine of query and item.",
    ]
    for query, page in zip(QUERIES, pages, strict=True):
        lines += [
            "",
            f"## {query.text}",
            "",
            f"{query.about.capitalize()}.",
            "",
            "|  | score | item |",
            "|---|---|---|",
        ]
        lines += [
            f"| {'✓' if as_asked(query, item) else ''} | {score:.2f} | {_cell(described(item))} |"
            for item, score in page
        ]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    report.run(main)
