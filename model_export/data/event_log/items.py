"""The items of an event log: from a table of their own, from columns of the events, or by their ids alone."""

import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from model_export.data.amazon import described_products
from model_export.data.amazon_products import is_product
from model_export.data.dataset import DataError, Item
from model_export.data.event_log.columns import guessed, plain
from model_export.data.event_log.engine import NOTHING, Engine, name_of, present
from model_export.data.event_log.files import TableFile
from model_export.data.event_log.options import EventOptions
from model_export.data.jsonl import parse_literal, read_lines
from model_export.data.picture_files import FIELD, PictureFiles
from service.core.bundle import RenderSpec
from service.core.json_lines import shown
from service.core.render import item_text

TITLES = "title name prodname productname producttitle itemname movietitle appname displayname"
DESCRIPTIONS = "detaildesc longdescription productdescription text"
LISTS = {"genres", "categories", "tags"}  # whose parts `|` separates
# Columns of the events that describe items where the items have no table.
IN_EVENTS = "title name productname itemname brand category categorycode description price"
# Numbers that H&M's articles.csv has beside the words for the same.
CODES_OF_HM = re.compile(r".*_(no|code)|perceived_\w+_id")
GENRES = (  # the last columns of u.item
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *(
        "Fantasy",
        "Film-Noir",
        "Horror",
        "Musical",
        "Mystery",
        "Romance",
        "Sci-Fi",
        "Thriller",
        "War",
        "Western",
    ),
)
NO_GENRES = {"unknown", "(no genres listed)"}
WHOLE = re.compile(r"0|-?[1-9]\d{0,14}")
DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)\.\d+")
WHOLE_WITH_POINT = re.compile(r"(-?\d+)\.0")

Rows = Iterable[tuple[str, Item]]  # (id, fields)


class Described(NamedTuple):
    """The items of a table by id, and the files of their pictures."""

    items: dict[str, Item]
    images: dict[str, Path]
    words: str  # what the columns were taken for


def read_items(
    engine: Engine,
    files: list[TableFile],
    options: EventOptions,
    wanted: Container[str],
    left_out: Counter[str],
) -> Described:
    """The items with text or a picture. Paths of pictures start at the table's folder. Raises DataError."""
    first = files[0]
    if first.kind == "json" and is_product(first.head[0]) and options.item_id is None:
        found: dict[str, Item] = {}
        for file in files:
            found |= described_products(file.path, wanted, left_out)
        return Described(found, {}, "Amazon's product metadata")
    properties = _properties(first)
    rows: Rows
    if properties is not None:
        rows, words = _from_properties(engine, files, properties), "the newest value of each property"
    elif first.kind == "text" and not first.header and not options.columns and len(first.columns) != 3:
        rows, words = _from_u_item(engine, files), "id, title, release date and genres of MovieLens"
    else:
        names = ("item_id", "title", "genres") if not first.header and first.kind == "text" else first.columns
        item_id = _column(first, names, options.item_id, guessed(names, "item") or _id_of(names), "item-id")
        title = options.title or _first(names, TITLES)
        if title is not None and title not in names:
            raise DataError(
                f"{first.path}: has no column {title!r} (--title-column). It has {', '.join(names)}."
            )
        kept = _kept(first, names, options, item_id, title)
        new_names = _new_names(kept, title)
        rows = _from_table(engine, files, names, item_id, new_names)
        words = "; ".join([f"id = {item_id}", *_in_words(new_names)])
    return _usable(rows, words, first.path, left_out)


def items_in_events(
    engine: Engine, files: list[TableFile], item: str, time: str
) -> tuple[dict[str, Item], tuple[str, ...]]:
    """The fields of items that the events' own columns tell, each from its newest event; and the columns.

    `time` is SQL for the time of a row.
    """
    by_plain = {plain(name): name for name in files[0].columns}
    columns = tuple(
        by_plain[name] for name in IN_EVENTS.split() if name in by_plain and by_plain[name] != item
    )
    if not columns:
        return {}, ()
    values = ", ".join(
        f"max(CASE WHEN {present(name)} IS NULL THEN NULL "
        f"ELSE struct_pack(t := {time}, v := {name_of(name)}) END).v"
        for name in columns
    )
    found = engine.rows(
        f"SELECT {name_of(item)}, {values} FROM {engine.scan_all(files)} "
        f"WHERE {present(item)} IS NOT NULL GROUP BY 1",
        files,
    )
    new_names = _new_names(columns, _first(columns, TITLES))
    cells = [dict(zip(new_names.values(), row[1:], strict=True)) for row in found]
    _find_numbers(cells)
    return {str(row[0]): _filled(fields) for row, fields in zip(found, cells, strict=True)}, columns


def _usable(rows: Rows, words: str, path: Path, left_out: Counter[str]) -> Described:
    found = Described({}, {}, words)
    pictures = PictureFiles(path.parent, paths_only=False)
    for item_id, fields in rows:
        if item_id in found.items:
            left_out["repeated rows of items, of which the first counts"] += 1
            continue
        item = {"item_id": item_id} | fields
        place = f"item {shown(item_id)}"
        image = pictures.take(item, place, partial(_wrong, path, place))
        if image is None and not item_text(item, RenderSpec()):
            left_out["items without any text or picture"] += 1
            continue
        found.items[item_id] = item
        if image is not None:
            found.images[item_id] = image
    left_out.update(pictures.exclusions)
    return found


def _wrong(path: Path, place: str, problem: str) -> DataError:
    return DataError(f"{path}: {place}: {problem}")


def _column(file: TableFile, names: tuple[str, ...], flag: str | None, guess: str | None, what: str) -> str:
    chosen = flag or guess
    if chosen is None or chosen not in names:
        problem = f"has no column {chosen!r}" if chosen else "no column looks like the id of the item"
        raise DataError(
            f"{file.path}: {problem} among {', '.join(names)}. Name it with --{what}-column NAME."
        )
    return chosen


def _id_of(names: tuple[str, ...]) -> str | None:
    return _first(names, "id")


def _first(names: Iterable[str], guesses: str) -> str | None:
    by_plain = {plain(name): name for name in names}
    return next((by_plain[guess] for guess in guesses.split() if guess in by_plain), None)


def _kept(
    file: TableFile, names: tuple[str, ...], options: EventOptions, item_id: str, title: str | None
) -> tuple[str, ...]:
    if missing := [name for name in options.fields if name not in names]:
        raise DataError(f"{file.path}: has no column {missing[0]!r} (--fields). It has {', '.join(names)}.")
    if options.fields:
        return tuple(name for name in names if name in {*options.fields, title})
    of_hm = {"article_id", "prod_name", "detail_desc"} <= set(names)
    return tuple(name for name in names if name != item_id and not (of_hm and CODES_OF_HM.fullmatch(name)))


def _new_names(columns: tuple[str, ...], title: str | None) -> dict[str, str]:
    """Our name of each column: title, description and image have one name in all tables."""
    description = None if "description" in columns else _first(columns, DESCRIPTIONS)
    image = None if FIELD in columns else _first(columns, FIELD)
    renamed = {title: "title", description: "description", image: FIELD}
    return {name: renamed.get(name, name) for name in columns}


def _in_words(new_names: Mapping[str, str]) -> list[str]:
    """The columns that have another name here, and then those that keep theirs."""
    renamed = [f"{new} = {old}" for old, new in new_names.items() if new != old]
    same = [new for old, new in new_names.items() if new == old]
    return renamed + ([f"as they are: {', '.join(same)}"] if same else [])


def _from_table(
    engine: Engine, files: list[TableFile], names: tuple[str, ...], item_id: str, new_names: dict[str, str]
) -> Rows:
    """Rows with typed values. JSON and Parquet have types; in text, a column of numbers holds numbers."""
    ids: list[str] = []
    cells: list[Item] = []
    for file in files:
        for number, row in _rows(engine, file, names):
            if (identity := _id_text(row.get(item_id))) is None:
                raise DataError(f"{file.path}: {number}: has no {item_id!r}. Give every item an id.")
            ids.append(identity)
            cells.append({new: row.get(old) for old, new in new_names.items()})
    if all(WHOLE_WITH_POINT.fullmatch(identity) for identity in ids):
        ids = [identity[:-2] for identity in ids]
    if files[0].kind == "text":
        _find_numbers(cells)
    return ((identity, _filled(fields)) for identity, fields in zip(ids, cells, strict=True))


def _rows(engine: Engine, file: TableFile, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the cells of each row, in the order of the file."""
    if file.kind == "json":
        yield from ((f"line {line.number}", line.record) for line in read_lines(file.path, parse_literal))
        return
    scan = engine.scan(file) if file.kind == "text" else engine.typed_scan(file)
    rows = engine.stream(f"SELECT * FROM {scan}", [file])
    first = 1 + (file.kind == "text" and file.header)
    word = "row" if file.kind == "parquet" else "line"
    for number, row in enumerate(rows, start=first):
        yield f"{word} {number}", dict(zip(names, row, strict=True))


def _id_text(value: Any) -> str | None:
    if value is None or isinstance(value, bool | dict | list):
        return None
    text = str(value)
    return None if text.strip() in NOTHING else text


def _find_numbers(cells: list[Item]) -> None:
    """Make numbers of columns that hold nothing else, such as a price or a year. Zeros in front are text."""
    for name in cells[0] if cells else ():
        values = [row[name] for row in cells if row[name] is not None and row[name].strip() not in NOTHING]
        if not values:
            continue
        if all(WHOLE.fullmatch(value) for value in values):
            convert: Any = int
        elif all(WHOLE.fullmatch(value) or DECIMAL.fullmatch(value) for value in values):
            convert = float
        else:
            continue
        for row in cells:
            given = row[name] is not None and row[name].strip() not in NOTHING
            row[name] = convert(row[name]) if given else None


def _filled(fields: Item) -> Item:
    """The fields that hold something, as JSON can write it. Lists in one cell become lists."""
    filled = {}
    for name, value in fields.items():
        value = _value(value)
        if name.lower() in LISTS and isinstance(value, str):
            value = [part.strip() for part in value.split("|") if part.strip() not in NO_GENRES]
        if value not in (None, "", [], {}):
            filled[name] = value
    return filled


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return None if value.strip() in NOTHING else value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [kept for part in value if (kept := _value(part)) is not None]
    if isinstance(value, dict):
        return {str(name): kept for name, part in value.items() if (kept := _value(part)) is not None}
    return value if isinstance(value, bool | int) else None if value is None else str(value)


def _properties(file: TableFile) -> tuple[str, str | None] | None:
    """The columns of the id and the time where each row is one property of an item (RetailRocket)."""
    if not {"property", "value"} <= set(file.columns):
        return None
    item_id = guessed(file.columns, "item")
    return None if item_id is None else (item_id, guessed(file.columns, "time"))


def _from_properties(engine: Engine, files: list[TableFile], columns: tuple[str, str | None]) -> Rows:
    item_id, time = columns
    when = "0" if time is None else f"try_cast({name_of(time)} AS DOUBLE)"
    found = engine.stream(
        f"SELECT {name_of(item_id)}, property, max(struct_pack(t := {when}, v := value)).v "
        f"FROM {engine.scan_all(files)} GROUP BY 1, 2 ORDER BY 1, 2",
        files,
    )
    items: dict[str, Item] = {}
    for item, name, value in found:
        if item is not None and name is not None:
            key = f"property {name}" if name.isdecimal() else name
            items.setdefault(item, {})[key] = value
    return [(item, _filled(fields)) for item, fields in items.items()]


def _from_u_item(engine: Engine, files: list[TableFile]) -> Rows:
    """MovieLens 100K: id, title, release date, video date, address, and a column for each genre."""
    file = files[0]
    if len(file.columns) != 5 + len(GENRES):
        raise DataError(
            f"{file.path}: has no header and is not the u.item of MovieLens. Write the names of the columns "
            "into its first line."
        )
    rows = []
    for item_id, title, released, _, _, *flags in engine.rows(f"SELECT * FROM {engine.scan(file)}", [file]):
        genres = [
            genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1" and genre not in NO_GENRES
        ]
        fields = {"title": None if title == "unknown" else title, "released": released, "genres": genres}
        rows.append((str(item_id), _filled(fields)))
    return rows
