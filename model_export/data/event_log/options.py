"""What a user may say about an event log, and the flags of `glyphrec prepare` that say it."""

import argparse
from dataclasses import dataclass
from typing import Any

from service.errors import GlyphrecError

TIME_UNITS = ("s", "ms", "us", "ns")


@dataclass(frozen=True)
class EventOptions:
    """None and empty values mean that the reader finds out by itself."""

    user: str | None = None  # names of columns of the events
    item: str | None = None
    time: str | None = None
    event: str | None = None
    rating: str | None = None
    columns: tuple[str, ...] = ()  # of a file without a header
    delimiter: str | None = None
    encoding: str | None = None  # of both files
    time_unit: str | None = None  # one of TIME_UNITS
    time_format: str | None = None  # as in strptime
    file_order: bool = False  # the order of the lines stands for the time
    kinds: tuple[str, ...] = ()  # of events that count; empty: all
    min_rating: float | None = None
    until: str | None = None  # only events before this ISO time
    core: int = 1  # 1: no core
    repeats: bool = False  # keep a user's later events with an item
    item_id: str | None = None  # names of columns of the items
    title: str | None = None
    fields: tuple[str, ...] = ()  # columns of the items to keep; empty: all


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of an event log to a command's parser."""
    group = parser.add_argument_group(
        "event logs", "for --data events:EVENTS[,ITEMS]; the preview shows guesses"
    )
    add = group.add_argument
    add("--preview", action="store_true", help="print the preview and write nothing")
    for role in ("user", "item", "time", "event", "rating"):
        what = "kind of event" if role == "event" else role
        add(
            f"--{role}-column",
            metavar="NAME",
            help=f"the events' column of the {what} (default: by its name)",
        )
    add("--columns", metavar="A,B,C", help="the events' columns, for a file without a header")
    add("--delimiter", help=r"between cells, for example ';' or '\t' (default: found in the file)")
    add("--encoding", help="of the text files, for example latin-1 (default: utf-8)")
    add("--time-unit", choices=TIME_UNITS, help="of times that are numbers (default: told by their size)")
    add("--time-format", help="of times that are texts, as in strptime, for example '%%d/%%m/%%Y %%H:%%M'")
    add("--file-order", action="store_true", help="the order of the lines stands for the time")
    add(
        "--event",
        action="append",
        default=[],
        metavar="KIND",
        help="count only events of this kind; repeatable",
    )
    add("--min-rating", type=float, metavar="R", help="count only events with at least this rating")
    add("--until", metavar="TIME", help="count only events before this ISO time; of any source with times")
    add("--k-core", type=int, default=1, metavar="N", help="drop users and items with fewer than N events")
    add("--repeats", action="store_true", help="keep later events of a user with the same item")
    add("--item-id-column", metavar="NAME", help="the items' column of the id")
    add("--title-column", metavar="NAME", help="the items' column of the title")
    add("--fields", metavar="A,B,C", help="the items' columns to keep (default: all)")


def options_of(args: argparse.Namespace) -> EventOptions:
    """The options that the flags say. Raises GlyphrecError for values that no log can have."""
    if args.k_core < 1:
        raise GlyphrecError(
            f"--k-core {args.k_core}: not a positive number. Give 1 for no core, or for example 5."
        )
    delimiter = args.delimiter.replace("\\t", "\t") if args.delimiter else None
    if args.delimiter is not None and not 1 <= len(delimiter or "") <= 4:
        raise GlyphrecError(f"--delimiter {args.delimiter!r}: must have one to four characters.")
    return EventOptions(
        user=args.user_column,
        item=args.item_column,
        time=args.time_column,
        event=args.event_column,
        rating=args.rating_column,
        columns=_listed(args.columns),
        delimiter=delimiter,
        encoding=args.encoding,
        time_unit=args.time_unit,
        time_format=args.time_format,
        file_order=args.file_order,
        kinds=tuple(args.event),
        min_rating=args.min_rating,
        until=args.until,
        core=args.k_core,
        repeats=args.repeats,
        item_id=args.item_id_column,
        title=args.title_column,
        fields=_listed(args.fields),
    )


def _listed(text: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()
