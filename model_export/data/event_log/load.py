"""The events that count, as three arrays: one query decides for each row why it does not count.

A value that cannot be read stops the reading with the file and the line.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import DataError
from model_export.data.event_log.columns import Columns
from model_export.data.event_log.engine import Engine, name_of, present, text_of
from model_export.data.event_log.files import TableFile
from model_export.data.event_log.options import EventOptions
from model_export.data.event_log.preview import Preview
from model_export.data.event_log.times import TimeForm, day_of, form_of, milliseconds_of, unit_of
from model_export.data.events import Events

FIRST_ROWS = 1000  # of the times, to tell their form
MAX_KINDS = 8  # that are shown

# In the place of a row: why it does not count. 0 counts.
NO_USER, NO_ITEM, NO_TIME, OTHER_KIND, LOW_RATING, NO_RATING, BROKEN_TIME, BROKEN_RATING = range(1, 9)
REASONS = {
    NO_USER: "events without a user",
    NO_ITEM: "events without an item",
    NO_TIME: "events without a time",
    OTHER_KIND: "events of other kinds",
    LOW_RATING: "events with a lower rating",
    NO_RATING: "events without a rating",
}


@dataclass(frozen=True)
class NamedEvents:
    """Events [event] with the names behind their indices."""

    events: Events  # times in milliseconds since 1970, or in the order that the log has
    users: list[str]
    items: list[str]


def load(
    engine: Engine,
    files: list[TableFile],
    columns: Columns,
    options: EventOptions,
    left_out: Counter[str],
    preview: Preview,
) -> tuple[TimeForm, NamedEvents]:
    """Read the events that count."""
    form = _time_form(engine, files, columns, options)
    _create(engine, files, columns, options, form)
    counts = dict(engine.rows("SELECT reason, count(*) FROM event GROUP BY reason", files))
    preview.num_rows = sum(counts.values())
    if columns.event is not None:
        preview.kinds = engine.rows(
            f"SELECT kind, count(*) FROM event GROUP BY kind ORDER BY 2 DESC, 1 LIMIT {MAX_KINDS + 1}", files
        )
    _raise_broken(engine, files, columns, form, counts)
    for reason, words in REASONS.items():
        left_out[words] = counts.get(reason, 0)
    if options.kinds and not counts.get(0) and counts.get(OTHER_KIND):
        there = ", ".join(repr(kind) for kind, _ in preview.kinds)
        raise DataError(
            f"{files[0].path}: no event is {' or '.join(map(repr, options.kinds))} (--event). The column "
            f"{columns.event!r} holds {there}."
        )
    form = _with_unit(engine, files, columns, form, options)
    preview.time_words = form.words
    return form, _arrays(engine, files, form, options, left_out, preview)


def _time_form(engine: Engine, files: list[TableFile], columns: Columns, options: EventOptions) -> TimeForm:
    if columns.time is None:
        return TimeForm("the order of the lines", True, "row_number() OVER ()")
    value = present(columns.time)
    rows = engine.rows(
        f"SELECT {value} FROM {engine.scan(files[0])} WHERE {value} IS NOT NULL LIMIT {FIRST_ROWS}", files[:1]
    )
    return form_of(columns.time, [row[0] for row in rows], options)


def _create(
    engine: Engine, files: list[TableFile], columns: Columns, options: EventOptions, form: TimeForm
) -> None:
    """Make the table `event` with a row for each event: the reason why it does not count, or its values."""
    reasons = []
    if options.kinds:
        assert columns.event is not None
        listed = ", ".join(map(text_of, options.kinds))
        reasons.append(
            (f"{name_of(columns.event)} IS NULL OR {name_of(columns.event)} NOT IN ({listed})", OTHER_KIND)
        )
    reasons.append((f"{present(columns.user)} IS NULL", NO_USER))
    reasons.append((f"{present(columns.item)} IS NULL", NO_ITEM))
    if columns.time is not None:
        reasons.append((f"{present(columns.time)} IS NULL", NO_TIME))
        reasons.append((f"{form.sql} IS NULL", BROKEN_TIME))
    if options.min_rating is not None:
        assert columns.rating is not None
        rating = f"try_cast({present(columns.rating)} AS DOUBLE)"
        reasons.append((f"{present(columns.rating)} IS NULL", NO_RATING))
        reasons.append((f"{rating} IS NULL", BROKEN_RATING))
        reasons.append((f"NOT {rating} >= {options.min_rating!r}", LOW_RATING))
    reason = (
        "CASE " + " ".join(f"WHEN {condition} THEN {number}" for condition, number in reasons) + " ELSE 0 END"
    )
    kind = "NULL::VARCHAR" if columns.event is None else name_of(columns.event)
    rows = (
        f"SELECT ({reason})::TINYINT AS reason, {kind} AS kind, {name_of(columns.user)} AS user_name, "
        f"{name_of(columns.item)} AS item_name, {form.sql} AS moment FROM {engine.scan_all(files)}"
    )
    engine.run(
        "CREATE TABLE event AS SELECT reason, kind, CASE WHEN reason = 0 THEN user_name END AS user_name, "
        f"CASE WHEN reason = 0 THEN item_name END AS item_name, moment FROM ({rows})",
        files,
    )


def _raise_broken(
    engine: Engine, files: list[TableFile], columns: Columns, form: TimeForm, counts: dict[int, int]
) -> None:
    if counts.get(BROKEN_TIME):
        assert columns.time is not None
        value = present(columns.time)
        where, what = engine.first_where(f"{value} IS NOT NULL AND {form.sql} IS NULL", columns.time, files)
        told = (
            "a number" if form.is_number else "an ISO time" if form.words == "ISO" else f"a time {form.words}"
        )
        raise DataError(
            f"{where}: {columns.time} is {what}, which is not {told}. Correct it, or say how times are "
            "written with --time-format."
        )
    if counts.get(BROKEN_RATING):
        assert columns.rating is not None
        value = present(columns.rating)
        where, what = engine.first_where(
            f"{value} IS NOT NULL AND try_cast({value} AS DOUBLE) IS NULL", columns.rating, files
        )
        raise DataError(f"{where}: {columns.rating} is {what}, which is not a number. Correct it.")


def _with_unit(
    engine: Engine, files: list[TableFile], columns: Columns, form: TimeForm, options: EventOptions
) -> TimeForm:
    if not form.is_number or columns.time is None:
        return form
    low, middle, high = engine.rows(
        "SELECT min(moment), quantile_disc(moment, 0.5), max(moment) FROM event WHERE reason = 0", files
    )[0]
    if low is None:
        return form
    where = f"{files[0].path}: the column {columns.time}"
    words, factor = unit_of(where, low, middle, high, options.time_unit)
    return replace(form, words=words, factor=factor)


def _arrays(
    engine: Engine,
    files: list[TableFile],
    form: TimeForm,
    options: EventOptions,
    left_out: Counter[str],
    preview: Preview,
) -> NamedEvents:
    moment = "moment::BIGINT" if form.factor == 1.0 else f"round(moment * {form.factor!r})::BIGINT"
    until = "TRUE"
    if options.until is not None:
        bound = milliseconds_of(options.until, "--until")
        until = f"{moment} < {bound}"
        late = engine.rows(f"SELECT count(*) FROM event WHERE reason = 0 AND NOT {until}", files)[0][0]
        left_out[f"events from {options.until} on"] = late
    names = {}
    for what in ("user", "item"):
        engine.run(
            f"CREATE TABLE {what}_place AS "
            "SELECT name, (row_number() OVER (ORDER BY name) - 1)::INTEGER AS place "
            f"FROM (SELECT DISTINCT {what}_name AS name FROM event WHERE reason = 0 AND {until})",
            files,
        )
        rows = engine.rows(f"SELECT name FROM {what}_place ORDER BY place", files)
        names[what] = without_points([row[0] for row in rows])
    found = engine.arrays(
        f"SELECT u.place AS person, i.place AS thing, {moment} AS moment FROM event "
        "JOIN user_place u ON user_name = u.name JOIN item_place i ON item_name = i.name "
        f"WHERE reason = 0 AND {until}",
        files,
    )
    time: NDArray[np.int64] = np.asarray(found["moment"], np.int64)
    if len(time) and (not form.is_number or form.factor != 1.0 or "since" in form.words):
        preview.span = f"{day_of(int(time.min()))} to {day_of(int(time.max()))}"
    person, thing = np.asarray(found["person"], np.int64), np.asarray(found["thing"], np.int64)
    return NamedEvents(Events(person, thing, time), names["user"], names["item"])


def without_points(names: list[str]) -> list[str]:
    """Numeric ids as pandas writes them beside missing ones: `12.0` is `12`, but only if all are so."""
    if names and all(name.endswith(".0") and name[:-2].removeprefix("-").isdecimal() for name in names):
        return [name[:-2] for name in names]
    return names
