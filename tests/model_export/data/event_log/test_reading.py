"""What a log says is understood or refused: columns, ids, times, flags, paths and broken lines."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.data.event_log import problems
from model_export.data.event_log.options import EventOptions
from model_export.data.event_log.read import read_event_log
from model_export.data.tables import DataError, read_dataset
from service.cli import main
from tests.model_export.data.event_log.public_forms import FORMS

T = 1_600_000_000


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def log(
    folder: Path, rows: list[str], header: str = "user_id,item_id,timestamp", name: str = "log.csv"
) -> Path:
    return write(folder / name, "\n".join([header, *rows]) + "\n")


def read(path: Path, **options: object) -> dict[str, list[str]]:
    dataset = read_event_log(str(path), EventOptions(**options)).dataset  # type: ignore[arg-type]
    ids = dataset.item_ids
    return {u: [ids[n] for n in row] for u, row in zip(dataset.user_ids, dataset.sequences, strict=True)}


def refused(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_ids_are_text_and_keep_their_zeros(tmp_path):
    path = log(
        tmp_path, [f"007,0012,{T}", f"007,12,{T + 1}", f"7,1e5,{T}", f"7,12345678901234567890123,{T + 1}"]
    )
    assert read(path) == {"007": ["0012", "12"], "7": ["1e5", "12345678901234567890123"]}


def test_a_number_with_a_point_is_whole_only_if_the_whole_column_is_so(tmp_path):
    rows = [f"1.0,10.0,{T}", f"1.0,11.0,{T + 1}", f"2.0,10.0,{T}", f"2.0,12.0,{T + 1}"]
    assert read(log(tmp_path, rows)) == {"1": ["10", "11"], "2": ["10", "12"]}
    rows.append(f"2.0,1.5,{T + 2}")
    assert read(log(tmp_path, rows)) == {"1": ["10.0", "11.0"], "2": ["10.0", "12.0", "1.5"]}


def test_missing_values_are_left_out_and_counted(tmp_path):
    rows = [f"u,a,{T}", f"u,b,{T + 1}", f",c,{T}", f"u,nan,{T}", f"NULL,c,{T}", "u,c,"]
    found = read_event_log(str(log(tmp_path, rows))).dataset
    assert found.exclusions == {
        "events without a user": 2,
        "events without an item": 1,
        "events without a time": 1,
    }


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (f"{T + 5}", f"{T}", "seconds since 1970"),
        (f"{T + 5}.5", f"{T + 5}.25", "seconds since 1970"),
        (f"{T}001", f"{T}000", "milliseconds since 1970"),
        (f"{T}001000", f"{T}000000", "microseconds since 1970"),
        (f"{T}001000000", f"{T}000000000", "nanoseconds since 1970"),
        ("2024-01-02", "2024-01-01", "ISO"),
        ("2024-01-01T00:00:00+01:00", "2024-01-01 00:30:00+02:00", "ISO"),
        ("2024-01-01T00:00:00Z", "2023-12-31 23:59:59 UTC", "ISO"),
        ("20240102", "20231231", "dates as YYYYMMDD"),
        ("17", "9", "plain numbers, of which only the order is known"),
    ],
)
def test_times_are_told_apart_by_what_they_are(tmp_path, first, second, words):
    path = log(tmp_path, [f"u,late,{first}", f"u,early,{second}"])
    found = read_event_log(str(path))
    assert found.preview.time_words == words
    assert read(path) == {"u": ["early", "late"]}


def test_a_column_that_mixes_units_is_refused(tmp_path):
    said = refused(log(tmp_path, [f"u,a,{T}", f"u,b,{T + 1}", f"u,c,{T}000"]))
    assert "log.csv: the column timestamp mixes seconds and milliseconds" in said
    assert "--time-unit" in said


def test_other_forms_of_time_are_read_with_a_flag(tmp_path):
    path = log(tmp_path, ["u,a,31/12/2023 10:00", "u,b,1/2/2023 09:00"])
    assert "line 2: timestamp is '31/12/2023 10:00', which is not an ISO time" in refused(path)
    assert read(path, time_format="%d/%m/%Y %H:%M") == {"u": ["b", "a"]}


def test_without_times_the_order_of_the_lines_counts_only_if_asked_for(tmp_path):
    path = log(tmp_path, ["u,c", "u,a", "v,a", "u,b", "v,c"], header="user,item")
    assert "no column looks like the time among user, item" in refused(path)
    assert read(path, file_order=True) == {"u": ["c", "a", "b"], "v": ["a", "c"]}


def test_events_at_one_time_are_in_an_order_that_does_not_follow_the_file(tmp_path):
    names = [f"item{n:02d}" for n in range(20)]
    forward = read(log(tmp_path, [f"u,{name},{T}" for name in names]))
    backward = read(log(tmp_path, [f"u,{name},{T}" for name in reversed(names)]))
    assert forward == backward
    assert sorted(forward["u"]) == names != forward["u"]


def test_only_events_of_the_chosen_kinds_count(tmp_path):
    rows = [f"u,a,{T},view", f"u,b,{T + 1},purchase", f"u,c,{T + 2},cart", f"u,a,{T + 3},purchase"]
    path = log(tmp_path, rows, header="user_id,item_id,timestamp,event_type")
    assert read(path) == {"u": ["a", "b", "c"]}
    assert read(path, kinds=("purchase",)) == {"u": ["b", "a"]}
    assert read(path, kinds=("purchase", "cart")) == {"u": ["b", "c", "a"]}
    assert "no event is 'buy' (--event). The column 'event_type' holds 'purchase', 'cart', 'view'" in refused(
        path, kinds=("buy",)
    )


def test_only_events_with_the_least_rating_count(tmp_path):
    rows = [f"u,a,{T},5", f"u,b,{T + 1},3.5", f"u,c,{T + 2},4.0", f"u,d,{T + 3},"]
    path = log(tmp_path, rows, header="user_id,item_id,timestamp,rating")
    found = read_event_log(str(path), EventOptions(min_rating=4)).dataset
    assert found.item_ids == ["a", "c"]
    assert found.exclusions == {"events with a lower rating": 1, "events without a rating": 1}
    path = log(tmp_path, [*rows, f"u,e,{T},good"], header="user_id,item_id,timestamp,rating")
    assert f"{path}: line 6: rating is 'good', which is not a number" in refused(path, min_rating=4)


def test_a_core_drops_users_and_items_with_fewer_events_until_none_is_left(tmp_path):
    rows = [f"{u},{i},{T + n}" for n, (u, i) in enumerate(["ua", "ub", "va", "vb", "wa", "wc", "xc"])]
    assert set(read(log(tmp_path, rows))) == {"u", "v", "w"}
    found = read_event_log(str(log(tmp_path, rows)), EventOptions(core=2)).dataset
    assert found.user_ids == ["u", "v"]
    assert found.item_ids == ["a", "b"]
    assert found.exclusions == {"events outside the 2-core": 3}


def test_later_events_with_the_same_item_are_left_out_unless_asked_for(tmp_path):
    path = log(tmp_path, [f"u,a,{T}", f"u,b,{T + 1}", f"u,a,{T + 2}"])
    assert read(path) == {"u": ["a", "b"]}
    assert read(path, repeats=True) == {"u": ["a", "b", "a"]}


def test_events_until_a_moment(tmp_path):
    path = log(tmp_path, ["u,a,2024-01-01", "u,b,2024-01-02", "u,c,2024-01-03"])
    found = read_event_log(str(path), EventOptions(until="2024-01-03")).dataset
    assert found.item_ids == ["a", "b"]
    assert found.exclusions == {"events from 2024-01-03 on": 1}
    assert "--until soon: not an ISO time" in refused(path, until="soon")


def test_columns_are_named_by_flags_where_no_guess_fits(tmp_path):
    path = log(tmp_path, [f"u,a,{T}", f"u,b,{T + 1}"], header="who,what,moment")
    assert refused(path).startswith(f"{path}: no column looks like the user among who, what, moment.")
    assert read(path, user="who", item="what", time="moment") == {"u": ["a", "b"]}
    assert "has no column 'whom' (--user-column). It has who, what, moment." in refused(path, user="whom")


def test_a_file_without_a_header_is_read_with_names(tmp_path):
    path = write(tmp_path / "log.csv", f"a;u;x;{T}\nb;u;y;{T + 1}\n")
    assert read(path, columns=("item_id", "user_id", "other", "ts")) == {"u": ["a", "b"]}
    assert "has 4 columns, but --columns names 2" in refused(path, columns=("item_id", "user_id"))


def test_items_keep_types_and_chosen_fields(tmp_path):
    path = log(tmp_path, [f"u,01,{T}", f"u,02,{T + 1}"])
    items = write(
        tmp_path / "items.csv",
        "sku,product_name,price,year,code,url,tags\n01,Nut,1.50,1999,007,http://x,a|b\n02,Bolt,2,,010,http://y,\n03,,,,,,\n",
    )
    dataset = read_dataset(f"events:{path},{items}")
    assert dataset.items[0] == {
        "item_id": "01", "title": "Nut", "price": 1.5, "year": 1999, "code": "007", "url": "http://x",
        "tags": ["a", "b"],
    }  # fmt: skip
    assert dataset.items[1] == {
        "item_id": "02",
        "title": "Bolt",
        "price": 2.0,
        "code": "010",
        "url": "http://y",
    }
    assert dataset.exclusions == {"items without any text or picture": 1}
    options = EventOptions(fields=("price",))
    assert read_event_log(f"{path},{items}", options).dataset.items[0] == {
        "item_id": "01", "title": "Nut", "price": 1.5,
    }  # fmt: skip


def test_events_of_unknown_items_are_left_out_and_items_nobody_took_stay(tmp_path):
    path = log(tmp_path, [f"u,a,{T}", f"u,b,{T + 1}", f"u,x,{T + 2}"])
    items = write(
        tmp_path / "items.jsonl",
        '{"id": "a", "name": "A"}\n{"id": "b", "name": "B"}\n{"id": "c", "name": "C"}\n',
    )
    dataset = read_dataset(f"events:{path},{items}")
    assert dataset.item_ids == ["a", "b", "c"]
    assert dataset.exclusions == {"events with items that have no row or no text in the items": 1}


@pytest.mark.parametrize(
    "name", ["a, b.csv", "with blank.csv", "quote'd.csv", "log[1].csv", "log*.csv", "übung.csv"]
)
def test_signs_in_a_path_stand_for_themselves(tmp_path, name):
    path = log(tmp_path, [f"u,a,{T}", f"u,b,{T + 1}"], name=name)
    log(tmp_path, [f"v,a,{T}", f"v,b,{T + 1}"], name="log1.csv")
    items = write(tmp_path / "the, items.csv", "id,title\na,A\nb,B\n")
    assert read_dataset(f"events:{path},{items}").user_ids == ["u"]
    assert read_dataset(f"events:{path}").user_ids == ["u"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    log(tmp_path, [f"u,a,{T}", f"u,b,{T + 1}"])
    assert read_dataset("events:~/log.csv").user_ids == ["u"]
    (tmp_path / "all").mkdir()
    FORMS["movielens_latest"](tmp_path / "all")
    assert main(["prepare", "--data", "events:~/all", "--out", str(tmp_path / "out")]) == 0
    assert len(read_dataset("~/out").user_ids) == 4


def test_a_pattern_names_several_files_of_one_log(tmp_path):
    log(tmp_path, [f"u,a,{T}"], name="2019-Oct.csv")
    log(tmp_path, [f"u,b,{T + 1}"], name="2019-Nov.csv")
    assert read(tmp_path / "2019-*.csv") == {"u": ["a", "b"]}
    log(tmp_path, [f"u,b,{T + 1},1"], name="2019-Dec.csv", header="user_id,item_id,timestamp,more")
    assert "its columns are" in refused(tmp_path / "2019-*.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"user_id,item_id,timestamp\nu,a,{T}\nu,b\n", "line 3: has 2 of 3 cells"),
        (f"user_id,item_id,timestamp\nu,a,{T}\nu,b,c,{T}\n", "line 3: has more than 3 cells"),
        (
            f'user_id,item_id,timestamp\nu,"a\nb",{T}\nu,b,soon\n',
            "line 4: timestamp is 'soon', which is not a number",
        ),
        (
            f"user_id,item_id,timestamp\nu,a,{T}\nu,b,inf\n",
            "line 3: timestamp is 'inf', which is not a number",
        ),
        (
            "user_id,item_id,timestamp\nu,a,1e300\nu,b,1e300\n",
            "the column timestamp holds 1e+300, which is no time",
        ),
        (f"user_id,item_id,item_id\nu,a,{T}\n", "line 1: the column 'item_id' occurs twice"),
        ("", "the file is empty"),
        ("user_id,item_id,timestamp\n", "no events remain"),
        ('{"user_id": "u", "item_id": "a", "ts": 1}\n{"user_id": \n', "line 2: not JSON"),
        ('[{"user_id": "u"}]\n', "line 1: is a JSON list"),
        ('{"user_id": "u", "item_id": "a", "ts": 1}\n7\n', "line 2: 7 is not an object"),
    ],
)
def test_an_error_names_file_and_line_and_a_remedy(tmp_path, text, said):
    path = write(tmp_path / "log", text)
    found = refused(path)
    assert found.startswith(f"{path}: {said}"), found
    assert "Save the file as UTF-8" not in found


def test_a_broken_line_of_the_items_is_named_too(tmp_path):
    path = log(tmp_path, [f"u,i1,{T}", f"u,i2,{T + 1}"])
    rows = [f"i{n},Item {n}" for n in range(30_000)]
    rows[20_000] = "i20000,Item,of,more,cells"
    items = log(tmp_path, rows, header="id,title", name="items.csv")
    with pytest.raises(DataError, match=r"items\.csv: line 20002: has more than 2 cells\. Correct the line"):
        read_dataset(f"events:{path},{items}")
    items = log(tmp_path, ["i1,A", ",B"], header="id,title", name="items.csv")
    with pytest.raises(DataError, match=r"items\.csv: line 3: has no 'id'\. Give every item an id"):
        read_dataset(f"events:{path},{items}")


def test_a_space_that_is_too_small_is_told_as_that(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "MEMORY_LIMIT", "2MB")
    path = log(tmp_path, [f"u,i1,{T}", f"u,i2,{T + 1}"])
    assert "reading needs more space than there is in memory (2MB) and in" in refused(path)


def test_a_broken_line_far_behind_the_first_ones_is_named(tmp_path):
    rows = [f"u,i{n},{T + n}" for n in range(30_000)]
    rows[25_000] = "u,x,never"
    assert "log.csv: line 25002: timestamp is 'never', which is not a number" in refused(log(tmp_path, rows))
    lines = [f'{{"user_id": "u", "item_id": "i{n}", "ts": {T + n}}}' for n in range(30_000)]
    lines[25_000] = "{"
    assert "log.jsonl: line 25001: not JSON" in refused(write(tmp_path / "log.jsonl", "\n".join(lines)))


def test_only_a_line_feed_ends_a_line(tmp_path):
    path = log(tmp_path, [f"u,a\u2028b,{T}", f"u,c\x0bd,{T + 1}", f"u,e,{T + 2}"])
    assert read(path)["u"] == ["a\u2028b", "c\x0bd", "e"]
    rows = [f"{{'username': 'u', 'product_id': 'a\u2028{n}', 'date': {T + n}}}\n" for n in range(2)]
    assert read(write(tmp_path / "reviews.json", "".join(rows)))["u"] == ["a\u20280", "a\u20281"]


def test_quotation_marks_count_also_where_the_first_lines_have_none(tmp_path):
    rows = [f"u,i{n},{T + n}" for n in range(1_000)] + [f'v,"a, ""b""",{T}', f"v,c,{T + 1}"]
    assert read(log(tmp_path, rows))["v"] == ['a, "b"', "c"]
    rows = [f'u\t5" nail {n}\t{T + n}' for n in range(3)]
    path = log(tmp_path, rows, header="user\titem\ttimestamp")
    assert read(path)["u"] == ['5" nail 0', '5" nail 1', '5" nail 2']


def test_text_in_another_encoding_needs_its_name(tmp_path):
    path = write(tmp_path / "log.csv", f"user_id,item_id,timestamp\nu,Käse,{T}\nu,Brot,{T + 1}\n", "latin-1")
    assert refused(path) == (
        f"{path}: line 2: not utf-8. Name the encoding of the file, for example --encoding latin-1."
    )
    assert read(path, encoding="latin-1") == {"u": ["Käse", "Brot"]}
    path = write(tmp_path / "log.csv", f"user_id,item_id,timestamp\nu,Сыр,{T}\nu,Хлеб,{T + 1}\n", "utf-16")
    assert read(path) == {"u": ["Сыр", "Хлеб"]}
    path = write(tmp_path / "log.csv", f"\ufeffuser_id,item_id,timestamp\r\nu,Сыр,{T}\r\nu,Хлеб,{T + 1}\r\n")
    assert read(path) == {"u": ["Сыр", "Хлеб"]}
    assert "Python knows no such encoding" in refused(path, encoding="latin-7000")


def test_a_damaged_parquet_or_packed_file_is_refused_in_one_line(tmp_path):
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"], "ts": [T]}), tmp_path / "log.parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.parquet").write_bytes(whole[:-20])
    assert f"{tmp_path / 'log.parquet'}: not a whole Parquet file" in refused(tmp_path / "log.parquet")
    (tmp_path / "log.bin").write_bytes(bytes(range(256)))
    assert "is neither text nor Parquet" in refused(tmp_path / "log.bin")
    (tmp_path / "log.zip").write_bytes(b"PK\x03\x04 and so on")
    assert "is a zip archive. Unpack it first: unzip log.zip" in refused(tmp_path / "log.zip")
    packed = gzip.compress(b"user_id,item_id,timestamp\nu,a,1\n")
    (tmp_path / "log.csv.gz").write_bytes(packed[:-12])
    assert "the gzip file is cut off or damaged" in refused(tmp_path / "log.csv.gz")
    rows = "".join(f"u{n * n},i{n},{T + n}\n" for n in range(60_000))  # cut behind what is looked at first
    packed = gzip.compress(b"user_id,item_id,timestamp\n" + rows.encode())
    (tmp_path / "log.csv.gz").write_bytes(packed[:-1000])
    assert "the gzip file is cut off or damaged" in refused(tmp_path / "log.csv.gz")


def test_a_damaged_file_of_literals_is_refused_in_one_line(tmp_path):
    rows = "".join(
        f"{{'username': 'u{n * n}', 'product_id': 'i{n}', 'date': {T + n}}}\n" for n in range(30_000)
    )
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(gzip.compress(rows.encode())[:-1000])
    assert "the gzip file is cut off or damaged" in refused(path)
    path.write_bytes(gzip.compress(rows.encode() + b"{'username': 7 +}\n"))
    assert "reviews.json.gz: line 30001: neither JSON nor a Python literal" in refused(path)


def test_the_preview_tells_which_columns_of_the_items_have_another_name_here(tmp_path, capsys):
    path = log(tmp_path, [f"u,a,{T}", f"u,b,{T + 1}"])
    (tmp_path / "items.csv").write_text("item_id,name,category,price\na,Tea,Drinks,3\nb,Rye,Bread,2\n")
    assert main(["prepare", "--data", f"events:{path},{tmp_path / 'items.csv'}", "--preview"]) == 0
    assert "id = item_id; title = name; as they are: category, price\n" in capsys.readouterr().out


def test_the_preview_prints_rows_columns_and_counts_and_writes_nothing(tmp_path, capsys):
    rows = [f"u{n},i{n % 4},{T + n},view" for n in range(12)] + [
        f"u{n},i{n % 3},{T + n},buy" for n in range(12)
    ]
    path = log(tmp_path, [*rows, f",i1,{T},buy"], header="user_id,item_id,timestamp,event_type")
    assert main(["prepare", "--data", f"events:{path}", "--preview"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n  | ") == 11  # the names and ten rows
    for expected in (
        f"events: {path}: CSV, 25 events",
        "user   = user_id",
        "time   = timestamp: seconds since 1970, 2020-09-13 to 2020-09-13",
        "event  = event_type: buy 13, view 12",
        "left out: 1 events without a user",
        "nothing was written",
    ):
        assert expected in said
    assert [each.name for each in tmp_path.iterdir()] == ["log.csv"]


def test_a_prepared_folder_is_no_event_log(tmp_path):
    source = FORMS["csv_log"](tmp_path)
    assert main(["prepare", "--data", source, "--out", str(tmp_path / "out")]) == 0
    said = refused(tmp_path / "out")
    assert said.endswith(f"holds whole histories and not events. Give the folder: --data {tmp_path / 'out'}")


def test_what_was_prepared_may_be_cut_at_a_moment(tmp_path):
    path = log(tmp_path, ["u,a,2024-01-01", "u,b,2024-01-02", "u,c,2024-01-03"])
    for source, out, more in (
        (f"events:{path}", "all", []),
        (str(tmp_path / "all"), "before", ["--until", "2024-01-03"]),
        (f"events:{path}", "same", ["--until", "2024-01-03"]),
    ):
        assert main(["prepare", "--data", source, "--out", str(tmp_path / out), *more]) == 0
    before, same = (read_dataset(str(tmp_path / name)) for name in ("before", "same"))
    assert [row.tolist() for row in before.sequences] == [[0, 1]]
    assert before.item_ids == ["a", "b", "c"]  # the catalog stays whole, where the log has no table of items
    assert same.item_ids == ["a", "b"]
    assert [row.tolist() for row in before.times] == [row.tolist() for row in same.times]


def test_flags_of_events_need_an_event_log(tmp_path, capsys):
    assert main(["prepare", "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--event", "buy"]) == 2
    assert "but for --until, need --data events:EVENTS[,ITEMS]" in capsys.readouterr().err
    assert main(["prepare", "--data", "events:x.csv"]) == 2
    assert "Give --out FOLDER, or --preview" in capsys.readouterr().err
    assert main(["prepare", "--data", "events:x.csv,y.csv", "--preview"]) == 2
    assert "x.csv: not found" in capsys.readouterr().err
