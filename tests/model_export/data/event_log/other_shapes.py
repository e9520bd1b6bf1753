"""The shop of public_forms.py again, in files as other programs save the same data.

Each has other columns first, other quotes, another end of a line, a byte order mark, other types or another
unit of time than the form as it is published.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.model_export.data.event_log import public_forms
from tests.model_export.data.event_log.public_forms import GENRE_COLUMNS, START, events, iso

BOM = "\ufeff"


def saved(path: Path, text: str, encoding: str = "utf-8") -> Path:
    raw = text.encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def spreadsheet(path: Path, rows: Iterable[Sequence[object]], delimiter: str = ",") -> Path:
    """As a spreadsheet saves a table: a byte order mark, every cell in quotation marks, CRLF."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, delimiter=delimiter).writerows(rows)
    return saved(path, BOM + text.getvalue())


def crlf(path: Path, rows: Iterable[str], encoding: str = "utf-8") -> Path:
    return saved(path, "".join(row + "\r\n" for row in rows), encoding)


def titles() -> list[tuple[str, str]]:
    return list(public_forms.TITLES.items())


def genres(item: str) -> list[str]:
    return public_forms.GENRES[item].split("|")


def day(seconds: int) -> int:
    """The seconds at the start of the event's day, for forms that have days alone."""
    return (START + 86_400 * (seconds - START) // 1000) // 86_400 * 86_400


def csv_log(folder: Path) -> str:
    rows = [
        ("event_type", "Timestamp", "Item ID", "User ID"),
        *(("view", 1000 * t, i, u) for u, i, t in events()),
    ]
    log = spreadsheet(folder / "log.csv", rows, ";")
    items = spreadsheet(folder / "items.csv", [("title", "item_id"), *((t, i) for i, t in titles())], ";")
    return f"events:{log},{items}"


def tsv_log(folder: Path) -> str:
    """With microseconds as numbers, and not packed."""
    log = crlf(
        folder / "log.tsv",
        [BOM + "datetime\tvisitor_id\titem", *(f"{t * 1_000_000}\t{u}\t{i}" for u, i, t in events())],
    )
    items = crlf(folder / "items.tsv.gz", ["name\tid", *(f"{t}\t{i}" for i, t in titles())])
    return f"events:{log},{items}"


def parquet_log(folder: Path) -> str:
    """With text as ids, categories as pandas stores them, times with a zone, and row groups of three."""
    rows = events()
    table = {
        "timestamp": pa.array([t * 1000 for _, _, t in rows], pa.timestamp("ms", tz="Europe/Paris")),
        "item_id": pa.array([i for _, i, _ in rows]).dictionary_encode(),
        "user_id": pa.array([u for u, _, _ in rows], pa.large_string()),
    }
    pq.write_table(pa.table(table), folder / "log.parquet", row_group_size=3, compression="gzip")
    items = {"title": [t for _, t in titles()], "item_id": [i for i, _ in titles()]}
    pq.write_table(pa.table(items), folder / "items.parquet", compression="zstd")
    return f"events:{folder / 'log.parquet'},{folder / 'items.parquet'}"


def json_log(folder: Path) -> str:
    """With text as ids and times, spaces, escapes, and a field that only some events have."""
    log = crlf(
        folder / "log.json.gz",
        [
            json.dumps(
                {"ts": iso(t, "%Y-%m-%dT%H:%M:%S+00:00"), "itemId": i, "userId": u}
                | ({"page": 3} if place % 2 else {}),
                indent=None,
                separators=(" , ", " : "),
            )
            for place, (u, i, t) in enumerate(events())
        ],
    )
    items = saved(
        folder / "items.json",
        BOM + "\n".join(json.dumps({"title": t, "itemId": i}, ensure_ascii=False) for i, t in titles()),
    )
    return f"events:{log},{items}"


def otto(folder: Path) -> str:
    """With seconds, as the competition's copy has them, and the newest event first."""
    sessions: dict[str, list[dict[str, object]]] = {}
    for user, item, time in sorted(events(), key=lambda event: -event[2]):
        sessions.setdefault(user, []).append({"type": "orders", "ts": time, "aid": int(item)})
    rows = [json.dumps({"events": its, "session": int(user)}) for user, its in sessions.items()]
    return f"events:{crlf(folder / 'train.jsonl.gz', rows)}"


def amazon_ratings_2014(folder: Path) -> str:
    rows = [(f"A{u.zfill(13)}", i.zfill(10), "5", t * 1000) for u, i, t in events()]
    return f"events:{spreadsheet(folder / 'ratings_Beauty.csv', rows)}"


def amazon_ratings_2018(folder: Path) -> str:
    rows = [f"{i.zfill(10)},A{u.zfill(13)},5.0,{t}" for u, i, t in events()]
    return f"events:{crlf(folder / 'All_Beauty.csv.gz', rows)}"


def amazon_ratings_with_metadata(folder: Path) -> str:
    """With metadata in JSON, as later copies have it."""
    meta = [json.dumps({"categories": [["Films"]], "title": t, "asin": i.zfill(10)}) for i, t in titles()]
    return amazon_ratings_2018(folder) + f",{crlf(folder / 'meta_Beauty.json', meta)}"


def movielens_100k(folder: Path) -> str:
    crlf(folder / "u.data", [f"{u}\t{i}\t3\t{t}" for u, i, t in events()])
    films = []
    for item, title in titles():
        flags = ["1" if genre in genres(item) else "0" for genre in GENRE_COLUMNS]
        films.append("|".join([item, title, "", "", "", *flags]))
    crlf(folder / "u.item", films)  # in UTF-8, as editors save it
    return f"events:{folder}"


def movielens_1m(folder: Path) -> str:
    crlf(folder / "ratings.dat", [f"{u}::{i}::3.5::{t}" for u, i, t in events()])
    crlf(folder / "movies.dat", [f"{i}::{t}::{'|'.join(genres(i))}" for i, t in titles()], "latin-1")
    return f"events:{folder}"


def movielens_10m(folder: Path) -> str:
    rows = [f"{u}::{i}::3.5::{t * 1000}" for u, i, t in events()]
    saved(folder / "ratings.dat", BOM + "\n".join(rows))  # the last line has no end
    saved(folder / "movies.dat", BOM + "\n".join(f"{i}::{t}::{'|'.join(genres(i))}" for i, t in titles()))
    return f"events:{folder}"


def movielens_latest(folder: Path) -> str:
    rows = [("timestamp", "movieId", "rating", "userId"), *((iso(t), i, "3.5", u) for u, i, t in events())]
    spreadsheet(folder / "ratings.csv", rows)
    rows = [("genres", "title", "movieId"), *(("|".join(genres(i)), t, i) for i, t in titles())]
    spreadsheet(folder / "movies.csv", rows)
    return f"events:{folder}"


def steam(folder: Path) -> str:
    """With JSON in place of Python literals."""
    rows = [
        json.dumps({"date": iso(day(t), "%Y-%m-%d"), "product_id": i, "username": u}) for u, i, t in events()
    ]
    games = [json.dumps({"genres": genres(i), "app_name": t, "id": i}) for i, t in titles()]
    reviews = crlf(folder / "steam_reviews.json", rows)
    return f"events:{reviews},{crlf(folder / 'steam_games.json', games)}"


def recbole(folder: Path) -> str:
    header = BOM + "timestamp:float\titem_id:token\tuser_id:token"
    crlf(folder / "ml.inter", [header, *(f"{t * 1000}\t{i}\t{u}" for u, i, t in events())])
    header = "release_year:token\tmovie_title:token_seq\titem_id:token"
    crlf(folder / "ml.item", [header, *(f"1995\t{t}\t{i}" for i, t in titles())])
    return f"events:{folder}"


def h_and_m(folder: Path) -> str:
    """As Parquet with dates, and the articles as a spreadsheet saves them."""
    rows = events()
    table = {
        "article_id": [f"0{i}" for _, i, _ in rows],
        "customer_id": [u for u, _, _ in rows],
        "t_dat": pa.array([day(t) // 86_400 for _, _, t in rows], pa.int32()).cast(pa.date32()),
    }
    pq.write_table(pa.table(table), folder / "transactions_train.parquet")
    header = ("detail_desc", "product_type_name", "prod_name", "article_id")
    spreadsheet(
        folder / "articles.csv", [header, *(("Soft, warm.", "Film", t, f"0{i}") for i, t in titles())]
    )
    return f"events:{folder}"


def rees46(folder: Path) -> str:
    """With ISO times."""
    header = ("user_id", "price", "brand", "category_code", "product_id", "event_type", "event_time")
    rows = [
        (
            u,
            f"{i}.50",
            "acme" if i != "2" else "",
            "electronics.film",
            i,
            "purchase",
            iso(t, "%Y-%m-%dT%H:%M:%SZ"),
        )
        for u, i, t in events()
    ]
    return f"events:{spreadsheet(folder / '2019-Nov.csv', [header, *rows])}"


def retailrocket(folder: Path) -> str:
    """With seconds, and the properties in one file."""
    spreadsheet(
        folder / "events.csv",
        [("event", "itemid", "visitorid", "timestamp"), *(("view", i, u, t) for u, i, t in events())],
    )
    rows = [
        (value, "categoryid", i, START + late)
        for i, _ in titles()
        for late, value in ((5, f"{i}11"), (0, "old"))
    ]
    rows += [(f"n{i}.000", "790", i, START) for i, _ in titles()]
    spreadsheet(folder / "item_properties.csv", [("value", "property", "itemid", "timestamp"), *rows])
    return f"events:{folder}"


SHAPES: dict[str, Callable[[Path], str]] = {
    shape.__name__: shape
    for shape in (
        csv_log,
        tsv_log,
        parquet_log,
        json_log,
        otto,
        amazon_ratings_2014,
        amazon_ratings_2018,
        amazon_ratings_with_metadata,
        movielens_100k,
        movielens_1m,
        movielens_10m,
        movielens_latest,
        steam,
        recbole,
        h_and_m,
        rees46,
        retailrocket,
    )
}
