"""From an event log to a dataset, from top to bottom.

    files ─ files.py: what they are ─ columns.py: who, what, when ─ DuckDB: one row an event, in three arrays
    ─ events.py: in order, first of each, k-core ─ items.py: what the items are

Every event that does not count is left out and counted. Values that cannot be read stop the reading with the
file and the line.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model_export.data.dataset import DataError, Dataset, Item, make_dataset
from model_export.data.event_log.columns import Columns, named, names_of_bare
from model_export.data.event_log.engine import Engine
from model_export.data.event_log.files import TableFile, sniff
from model_export.data.event_log.items import Described, items_in_events, read_items
from model_export.data.event_log.layouts import files_of
from model_export.data.event_log.load import NamedEvents, load, without_points
from model_export.data.event_log.options import EventOptions
from model_export.data.event_log.preview import Preview
from model_export.data.event_log.times import TimeForm, milliseconds_of
from model_export.data.events import Events, first_of_each, histories, in_order, k_core

PREVIEW_ROWS = 10


@dataclass(frozen=True)
class EventLog:
    """A dataset and what was understood of its source."""

    dataset: Dataset
    preview: Preview


def read_event_log(argument: str, options: EventOptions | None = None) -> EventLog:
    """Read `EVENTS`, `EVENTS,ITEMS` or a folder. Raises DataError with the file, the line and a remedy."""
    options = options or EventOptions()
    if options.until is not None:
        milliseconds_of(options.until, "--until")  # before the work
    event_paths, item_paths = files_of(argument)
    left_out: Counter[str] = Counter()
    with Engine() as engine:
        files = _tables(engine, event_paths, options.encoding, options.columns, options.delimiter)
        if files[0].kind == "text" and not files[0].header and not options.columns:
            names = names_of_bare(files[0])
            files = [replace(file, columns=names) for file in files]
        columns = named(files[0], options)
        preview = Preview(files, columns, _first_rows(engine, files))
        form, log = load(engine, files, columns, options, left_out, preview)
        num_read = len(log.events)
        notes: list[str] = []
        if item_paths:
            item_files = _tables(engine, item_paths, options.encoding)
            described = read_items(engine, item_files, options, set(log.items), left_out)
            preview.items = item_files
        else:
            described, notes = _without_table(engine, files, columns, form, log)
        preview.item_words = described.words

    log = _known(log, described.items, left_out)
    num_known = len(log.events)
    events = in_order(log.events, log.users, log.items)
    if not options.repeats:
        events = first_of_each(events)
        left_out["later events of a user with the same item"] = num_known - len(events)
    if options.core > 1:
        in_core = k_core(events, options.core)
        left_out[f"events outside the {options.core}-core"] = int(np.count_nonzero(~in_core))
        events = events.where(in_core)
    if not len(events):
        why = "; ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        raise DataError(
            f"{files[0].path}: no events remain of {num_read:,} ({why or 'the file holds none'}). Check "
            "the columns and the flags with --preview."
        )
    dataset = _dataset(files[0].path, replace(log, events=events), described, options, left_out, tuple(notes))
    preview.dataset = dataset
    return EventLog(dataset, preview)


def _tables(
    engine: Engine,
    paths: list[Path],
    encoding: str | None,
    names: tuple[str, ...] = (),
    delimiter: str | None = None,
) -> list[TableFile]:
    """The files of one table. Raises DataError if they have different columns."""
    files = [
        engine.opened(sniff(path, names=names, delimiter=delimiter, encoding=encoding)) for path in paths
    ]
    if all(file.kind == "json" and file.nested is None for file in files):  # some may lack a field
        columns = tuple(dict.fromkeys(name for file in files for name in file.columns))
        files = [replace(file, columns=columns) for file in files]
    for file in files[1:]:
        if file.columns != files[0].columns:
            here, there = ", ".join(file.columns), ", ".join(files[0].columns)
            raise DataError(
                f"{file.path}: its columns are {here}, but those of {files[0].path.name} are {there}. Give "
                "files of one form."
            )
    return files


def _first_rows(engine: Engine, files: list[TableFile]) -> list[tuple[str | None, ...]]:
    return engine.rows(f"SELECT * FROM {engine.scan(files[0])} LIMIT {PREVIEW_ROWS}", files[:1])


def _without_table(
    engine: Engine,
    files: list[TableFile],
    columns: Columns,
    form: TimeForm,
    log: NamedEvents,
) -> tuple[Described, list[str]]:
    """Items from the events' own columns, and else with their id as the title."""
    when = form.sql if columns.time is not None else "0"
    fields, used = items_in_events(engine, files, columns.item, when)
    if fields:
        fields = dict(zip(without_points(list(fields)), fields.values(), strict=True))
    words = f"from the events' columns {', '.join(used)}" if used else ""
    described: dict[str, Item] = {}
    num_bare = 0
    for item_id in log.items:
        told = fields.get(item_id) or {}
        if not any(isinstance(value, str | list) for value in told.values()):
            num_bare += 1
            told = {"title": item_id} | told
        described[item_id] = {"item_id": item_id} | told
    notes = []
    if num_bare:
        share = "every item" if num_bare == len(log.items) else f"{num_bare:,} of {len(log.items):,} items"
        notes.append(
            f"{share} has no text but its id, from which the encoder learns nothing. Give a table of the "
            "items: events:EVENTS,ITEMS"
        )
    return Described(described, {}, words), notes


def _known(log: NamedEvents, described: dict[str, Item], left_out: Counter[str]) -> NamedEvents:
    is_described = np.array([item_id in described for item_id in log.items], dtype=bool)
    known = is_described[log.events.item] if len(log.items) else np.zeros(0, dtype=bool)
    left_out["events with items that have no row or no text in the items"] = int(np.count_nonzero(~known))
    return replace(log, events=log.events.where(known))


def _dataset(
    path: Path,
    log: NamedEvents,
    described: Described,
    options: EventOptions,
    left_out: Counter[str],
    notes: tuple[str, ...],
) -> Dataset:
    """The dataset: with a core, its items; else all items of the table."""
    place_of = {item_id: place for place, item_id in enumerate(log.items)}
    taken = {log.items[place] for place in np.unique(log.events.item)}
    items = [item for item_id, item in described.items.items() if options.core == 1 or item_id in taken]
    place_in_items = np.full(len(log.items), -1, dtype=np.int64)
    for place, item in enumerate(items):
        if (old := place_of.get(item["item_id"])) is not None:
            place_in_items[old] = place
    present_users, user = np.unique(log.events.user, return_inverse=True)
    users = [log.users[old] for old in present_users]
    events = Events(user, place_in_items[log.events.item], log.events.time)
    ends = np.cumsum(np.bincount(user, minlength=len(users)))
    return make_dataset(
        path.name.split(".")[0].lower() or "events",
        items,
        histories(events, users),
        left_out,
        times=np.split(events.time, ends[:-1]),
        notes=notes,
        images={
            place: described.images[item["item_id"]]
            for place, item in enumerate(items)
            if item["item_id"] in described.images
        },
    )
