"""Which column of an event log is the user, the item, the time, the kind of event and the rating."""

import re
from typing import NamedTuple

from model_export.data.dataset import DataError
from model_export.data.event_log.files import TableFile
from model_export.data.event_log.options import EventOptions

# Without case and signs, so that `userId`, `user_id` and `USER ID` are one. The first that is there is taken.
GUESSES = {
    "user": "userid visitorid customerid reviewerid username user uid memberid accountid clientid customer "
    "householdid householdkey visitor personid playerid sessionid session usersession",
    "item": "itemid movieid productid articleid parentasin asin aid sku stockcode itemcode "
    "productcode trackid songid bookid isbn videoid newsid gameid businessid item product article movie",
    "time": "timestamp eventtime tdat ts time datetime unixreviewtime eventtimestamp createdat date "
    "invoicedate orderdate purchasedate transactiondate transactiontimestamp timestampms eventdate visitedat",
    "event": "eventtype event type action behavior behaviortype actiontype eventname interactiontype",
    "rating": "rating overall stars score ratingvalue",
}
SEEN_ROWS = 200
AMAZON_USER = re.compile(r"A[0-9A-Z]{10,}")
AMAZON_ITEM = re.compile(r"(?:B0|\d)[0-9A-Z]{8,9}")
EARLIEST_S = 1e8  # a smaller number is no time


class Columns(NamedTuple):
    """Names of columns. None where the log has none."""

    user: str
    item: str
    time: str | None
    event: str | None
    rating: str | None


def plain(name: str) -> str:
    """A column's name without case and signs."""
    return "".join(sign for sign in name.lower() if sign.isalnum())


def guessed(names: tuple[str, ...], role: str) -> str | None:
    """The column of a role by its name, or None."""
    by_plain = {plain(name): name for name in reversed(names)}
    return next((by_plain[guess] for guess in GUESSES[role].split() if guess in by_plain), None)


def named(table: TableFile, options: EventOptions) -> Columns:
    """The columns by the user's flags, else by their names. Raises DataError if one is missing."""
    chosen: dict[str, str | None] = {}
    listed = ", ".join(table.columns)
    for role in GUESSES:
        flag = getattr(options, role)
        if flag is not None and flag not in table.columns:
            raise DataError(f"{table.path}: has no column {flag!r} (--{role}-column). It has {listed}.")
        chosen[role] = flag if flag is not None else guessed(table.columns, role)
    if any(isinstance(record.get("items"), list) for record in table.head[:1]):
        raise DataError(
            f"{table.path}: holds whole histories and not events. Give the folder: --data {table.path.parent}"
        )
    if chosen["user"] == chosen["item"] and chosen["user"] is not None:
        raise DataError(f"{table.path}: {chosen['user']!r} cannot be both the user and the item.")
    for role in ("user", "item"):
        if chosen[role] is None:
            raise DataError(
                f"{table.path}: no column looks like the {role} among {listed}. Name it with --{role}-column"
                + (", or list all columns with --columns A,B,C." if table.kind == "text" else ".")
            )
    if options.file_order:
        chosen["time"] = None
    elif chosen["time"] is None:
        raise DataError(
            f"{table.path}: no column looks like the time among {listed}. Name it with --time-column, or "
            "say --file-order if the oldest line comes first."
        )
    if options.kinds and chosen["event"] is None:
        raise DataError(
            f"{table.path}: no column looks like the kind of event among {listed}. Name it with "
            "--event-column."
        )
    if options.min_rating is not None and chosen["rating"] is None:
        raise DataError(
            f"{table.path}: no column looks like the rating among {listed}. Name it with --rating-column."
        )
    user, item = chosen["user"], chosen["item"]
    assert user is not None
    assert item is not None
    return Columns(user, item, chosen["time"], chosen["event"], chosen["rating"])


def names_of_bare(table: TableFile) -> tuple[str, ...]:
    """Names for the columns of a text file without a header, as MovieLens and Amazon ship ratings.

    The times are large numbers or dates, ratings are small numbers, and the user comes before the item,
    unless the values have the form of Amazon's, which swapped the two in 2018. Raises DataError for others.
    """
    cells = list(zip(*(row for row in table.rows[:SEEN_ROWS] if len(row) == len(table.columns)), strict=True))
    times = [place for place, column in enumerate(cells) if all(_is_time(cell) for cell in column)]
    others = [place for place in range(len(cells)) if place not in times[-1:]]
    if not times or len(others) not in (2, 3):
        raise DataError(
            f"{table.path}: has no header, and its {len(table.columns)} columns are not user, item, rating "
            "and time. Name them with --columns A,B,C."
        )
    names = dict.fromkeys(range(len(cells)), "")
    names[times[-1]] = "timestamp"
    if len(others) == 3:
        names[others.pop()] = "rating"
    first, second = others
    swapped = _mostly(AMAZON_ITEM, cells[first]) and _mostly(AMAZON_USER, cells[second])
    names[first], names[second] = ("item_id", "user_id") if swapped else ("user_id", "item_id")
    return tuple(names[place] for place in range(len(cells)))


def _is_time(cell: str) -> bool:
    try:
        return float(cell) >= EARLIEST_S
    except ValueError:
        return re.match(r"\d{4}-\d\d-\d\d", cell) is not None


def _mostly(form: re.Pattern[str], cells: tuple[str, ...]) -> bool:
    return sum(form.fullmatch(cell) is not None for cell in cells) > 0.9 * len(cells)
