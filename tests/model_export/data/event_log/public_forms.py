"""Small logs in the forms in which data sets are published: the same shop in each of them.

Four users take films in this order: each has three or four of the items 1, 2, 3 and 10.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TOOK = {"7": ["1", "2", "3"], "8": ["2", "1", "10"], "9": ["3", "10", "1", "2"], "11": ["10", "1", "3"]}
TITLES = {
    "1": "Toy Story (1995)",
    "2": "Misérables, Les (1995)",
    "3": 'Heat "Uncut" (1995)',
    "10": "GoldenEye (1995)",
}
GENRES = {"1": "Animation|Comedy", "2": "Drama", "3": "Action|Crime|Thriller", "10": "Action"}
START = 1_600_000_000  # 2020-09-13 12:26:40 UTC
GENRE_COLUMNS = (
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

Event = tuple[str, str, int]  # user, item, seconds


def events() -> list[Event]:
    """The events of the shop, in no order of time."""
    found = [
        (user, item, START + 1000 * place + int(user))
        for user, items in TOOK.items()
        for place, item in enumerate(items)
    ]
    return sorted(found, key=lambda event: (event[1], -event[2]))


def iso(seconds: int, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def lines(path: Path, rows: list[str], encoding: str = "utf-8") -> Path:
    raw = "".join(row + "\n" for row in rows).encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def csv_log(folder: Path) -> str:
    log = lines(
        folder / "log.csv",
        ["user_id,item_id,timestamp,event_type", *(f"{u},{i},{t},view" for u, i, t in events())],
    )
    items = lines(
        folder / "items.csv",
        ["item_id,title", *(f'{i},"{t.replace(chr(34), chr(34) * 2)}"' for i, t in TITLES.items())],
    )
    return f"events:{log},{items}"


def tsv_log(folder: Path) -> str:
    log = lines(
        folder / "log.tsv.gz",
        [
            "visitor_id\titem\tdatetime",
            *(f"{u}\t{i}\t{iso(t, '%Y-%m-%dT%H:%M:%SZ')}" for u, i, t in events()),
        ],
    )
    items = lines(folder / "items.tsv", ["id\tname", *(f"{i}\t{t}" for i, t in TITLES.items())])
    return f"events:{log},{items}"


def parquet_log(folder: Path) -> str:
    """With times of Parquet, and ids as pandas writes them where one is missing."""
    rows = [*events(), (None, "1", START)]
    table = {
        "user_id": pa.array([None if u is None else float(u) for u, _, _ in rows]),
        "item_id": pa.array([int(i) for _, i, _ in rows]),
        "timestamp": pa.array([t * 1_000_000 for _, _, t in rows], pa.timestamp("us")),
    }
    pq.write_table(pa.table(table), folder / "log.parquet")
    items = {
        "item_id": list(map(int, TITLES)),
        "title": list(TITLES.values()),
        "tags": [["a", "b"]] * len(TITLES),
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    return f"events:{folder / 'log.parquet'},{folder / 'items.parquet'}"


def json_log(folder: Path) -> str:
    log = lines(
        folder / "log.jsonl",
        [json.dumps({"userId": int(u), "itemId": int(i), "ts": t * 1000}) for u, i, t in events()],
    )
    items = lines(
        folder / "items.jsonl", [json.dumps({"itemId": int(i), "title": t}) for i, t in TITLES.items()]
    )
    return f"events:{log},{items}"


def otto(folder: Path) -> str:
    sessions: dict[str, list[dict[str, object]]] = {}
    for user, item, time in events():
        sessions.setdefault(user, []).append({"aid": int(item), "ts": time * 1000, "type": "clicks"})
    rows = [json.dumps({"session": int(user), "events": its}) for user, its in sessions.items()]
    return f"events:{lines(folder / 'train.jsonl', rows)}"


def amazon_ratings_2014(folder: Path) -> str:
    rows = [f"A{u.zfill(13)},{i.zfill(10)},5.0,{t}" for u, i, t in events()]
    return f"events:{lines(folder / 'ratings_Beauty.csv', rows)}"


def amazon_ratings_2018(folder: Path) -> str:
    """With the item before the user."""
    rows = [f"{i.zfill(10)},A{u.zfill(13)},5.0,{t}" for u, i, t in events()]
    return f"events:{lines(folder / 'All_Beauty.csv', rows)}"


def amazon_ratings_with_metadata(folder: Path) -> str:
    meta = [str({"asin": i.zfill(10), "title": t, "categories": [["Films"]]}) for i, t in TITLES.items()]
    return amazon_ratings_2014(folder) + f",{lines(folder / 'meta_Beauty.json.gz', meta)}"


def movielens_100k(folder: Path) -> str:
    lines(folder / "u.data", [f"{u}\t{i}\t3\t{t}" for u, i, t in events()])
    films = []
    for item, title in TITLES.items():
        flags = ["1" if genre in GENRES[item].split("|") else "0" for genre in GENRE_COLUMNS]
        films.append("|".join([item, title, "01-Jan-1995", "", "http://us.imdb.com/", *flags]))
    lines(folder / "u.item", films, "latin-1")
    return f"events:{folder}"


def movielens_1m(folder: Path) -> str:
    lines(folder / "ratings.dat", [f"{u}::{i}::3::{t}" for u, i, t in events()])
    lines(folder / "movies.dat", [f"{i}::{t}::{GENRES[i]}" for i, t in TITLES.items()], "latin-1")
    return f"events:{folder}"


def movielens_latest(folder: Path) -> str:
    lines(
        folder / "ratings.csv",
        ["userId,movieId,rating,timestamp", *(f"{u},{i},3.5,{t}" for u, i, t in events())],
    )
    lines(
        folder / "movies.csv",
        ["movieId,title,genres"]
        + [f'{i},"{t.replace(chr(34), chr(34) * 2)}",{GENRES[i]}' for i, t in TITLES.items()],
    )
    lines(folder / "tags.csv", ["userId,movieId,tag,timestamp", f"7,1,fun,{START}"])
    return f"events:{folder}"


def movielens_10m(folder: Path) -> str:
    """As 1M, but in UTF-8."""
    movielens_1m(folder)
    lines(folder / "movies.dat", [f"{i}::{t}::{GENRES[i]}" for i, t in TITLES.items()])
    return f"events:{folder}"


def steam(folder: Path) -> str:
    """Python literals, with the day of a review."""
    rows = [
        str({"username": u, "product_id": i, "date": iso(START + 86_400 * (t - START) // 1000, "%Y-%m-%d")})
        for u, i, t in events()
    ]
    games = [str({"id": i, "app_name": t, "genres": GENRES[i].split("|")}) for i, t in TITLES.items()]
    reviews = lines(folder / "steam_reviews.json.gz", rows)
    return f"events:{reviews},{lines(folder / 'steam_games.json.gz', games)}"


def recbole(folder: Path) -> str:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    lines(folder / "ml.inter", [header, *(f"{u}\t{i}\t3\t{float(t)}" for u, i, t in events())])
    lines(
        folder / "ml.item",
        [
            "item_id:token\tmovie_title:token_seq\trelease_year:token",
            *(f"{i}\t{t}\t1995" for i, t in TITLES.items()),
        ],
    )
    return f"events:{folder}"


def h_and_m(folder: Path) -> str:
    """With days as times, so each user's events lie on days of their own here."""
    lines(
        folder / "transactions_train.csv",
        ["t_dat,customer_id,article_id,price,sales_channel_id"]
        + [
            f"{iso(START + 86_400 * (t - START) // 1000, '%Y-%m-%d')},{u},0{i},0.05,2" for u, i, t in events()
        ],
    )
    lines(
        folder / "articles.csv",
        ["article_id,product_code,prod_name,product_type_no,product_type_name,detail_desc"]
        + [f'0{i},10,"{t.replace(chr(34), chr(34) * 2)}",7,Film,"Soft, warm."' for i, t in TITLES.items()],
    )
    return f"events:{folder}"


def rees46(folder: Path) -> str:
    """With the items' fields in the events."""
    rows = [
        f"{iso(t)} UTC,purchase,{i},2053013555631882655,electronics.film,{brand},{i}.50,{u},s-{u}"
        for u, i, t in events()
        for brand in ["acme" if i != "2" else ""]
    ]
    header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session"
    return f"events:{lines(folder / '2019-Oct.csv.gz', [header, *rows])}"


def retailrocket(folder: Path) -> str:
    lines(
        folder / "events.csv",
        [
            "timestamp,visitorid,event,itemid,transactionid",
            *(f"{t * 1000},{u},view,{i}," for u, i, t in events()),
        ],
    )
    rows = [f"{START * 1000},{i},categoryid,old" for i in TITLES] + [
        f"{START * 1000 + 5},{i},categoryid,{i}11" for i in TITLES
    ]
    lines(folder / "item_properties_part1.csv", ["timestamp,itemid,property,value", *rows])
    rows = [f"{START * 1000},{i},790,n{i}.000" for i in TITLES]
    lines(folder / "item_properties_part2.csv", ["timestamp,itemid,property,value", *rows])
    return f"events:{folder}"


FORMS: dict[str, Callable[[Path], str]] = {
    form.__name__: form
    for form in (
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
