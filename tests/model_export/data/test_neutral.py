"""The neutral form: reading and writing, the errors for broken data, and the counts of exclusions."""

import gzip
import json
from pathlib import Path

import pytest

from model_export.data.tables import DataError, read_dataset, read_items, write_dataset

ITEMS = [
    {"item_id": "a", "title": "Blue pen", "price": 1.5},
    {"item_id": "b", "title": "Papier – Größe A4", "categories": ["Office", "Paper"]},
    {"item_id": "c", "color": "red"},
]
INTERACTIONS = [{"user_id": "u", "items": ["c", "a", "b"]}, {"user_id": "v", "items": ["b", "b"]}]


def lines(records: list[object]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def folder_of(path: Path, items: str | bytes | None = None, interactions: str | bytes | None = None) -> Path:
    """A folder named `shop` with good files, unless the test gives other content."""
    folder = path / "shop"
    folder.mkdir(parents=True)
    for name, content, good in (("items", items, ITEMS), ("interactions", interactions, INTERACTIONS)):
        content = lines(good) if content is None else content
        raw = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.jsonl").write_bytes(raw)
    return folder


def message_of(folder: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        read_dataset(str(folder))
    return str(caught.value)


def test_items_become_indices_and_nothing_else_changes(tmp_path):
    dataset = read_dataset(str(folder_of(tmp_path)))
    assert dataset.name == "shop"
    assert dataset.items == ITEMS
    assert dataset.user_ids == ["u", "v"]
    assert [row.tolist() for row in dataset.sequences] == [[2, 0, 1], [1, 1]]
    assert dataset.sequences[0].dtype == "int32"
    assert dataset.exclusions == {}


def test_writing_and_reading_again_gives_the_same_dataset_and_the_same_bytes(tmp_path):
    dataset = read_dataset(str(folder_of(tmp_path)))
    for name in ("first", "second"):
        write_dataset(dataset, tmp_path / name)
    again = read_dataset(str(tmp_path / "first"))
    assert again.items == dataset.items
    assert again.user_ids == dataset.user_ids
    assert [row.tolist() for row in again.sequences] == [row.tolist() for row in dataset.sequences]
    assert again.fingerprint == dataset.fingerprint
    for name in ("items.jsonl.gz", "interactions.jsonl.gz"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_fingerprint_changes_with_any_item_user_or_purchase(tmp_path):
    variants = [
        (None, None),
        (lines([*ITEMS[:2], {"item_id": "c", "color": "green"}]), None),
        (None, lines([{"user_id": "w", "items": ["c", "a", "b"]}, INTERACTIONS[1]])),
        (None, lines([{"user_id": "u", "items": ["a", "c", "b"]}, INTERACTIONS[1]])),
        (None, lines([{"user_id": "u", "items": ["c", "a"]}, {"user_id": "v", "items": ["b", "b", "b"]}])),
    ]
    prints = set()
    for n, (items, interactions) in enumerate(variants):
        (tmp_path / str(n)).mkdir()
        prints.add(read_dataset(str(folder_of(tmp_path / str(n), items, interactions))).fingerprint)
    assert len(prints) == len(variants)


def test_blank_lines_windows_line_ends_gzip_and_a_byte_order_mark_are_accepted(tmp_path):
    items = b"\xef\xbb\xbf" + lines(ITEMS).replace("\n", "\r\n\r\n  \n").encode()
    folder = folder_of(tmp_path, items)
    (folder / "items.jsonl").rename(folder / "plain")
    (folder / "items.jsonl.gz").write_bytes(gzip.compress(items))
    assert read_dataset(str(folder)).items == ITEMS


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"item_id": "x", "title": ', "not JSON"),
        ("[1, 2]", "[1, 2] is not an object. Write one {...} on each line."),
        ('"x"', "is not an object"),
        ('{"title": "x"}', "has no 'item_id'. Every line needs one, but this line has ['title']."),
        ('{"item_id": 7}', "'item_id' is 7, which is not a string. Write it in quotes."),
        ('{"item_id": null}', "'item_id' is None, which is not a string."),
        ('{"item_id": " "}', "'item_id' is empty."),
        ('{"item_id": "a"}', "item_id 'a' is already in line 1. Keep one of the two."),
        ('{"item_id": "x", "price": NaN}', "NaN is no JSON value"),
        ('{"item_id": "x", "title": "\\ud83d"}', "half of a surrogate pair"),
        ("[" * 100_000, "not JSON"),
        ('{"item_id": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_an_error_names_file_and_line_of_a_broken_item(tmp_path, line, said):
    folder = folder_of(tmp_path, lines(ITEMS) + "\n" + line + "\n")
    message = message_of(folder)
    assert message.startswith(f"{folder / 'items.jsonl'}: line 5: ")
    assert said in message
    assert len(message) < 400 + len(str(folder))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"items": ["a", "b"]}', "has no 'user_id'."),
        ('{"user_id": "u", "items": ["a", "b"]}', "user_id 'u' is already in line 1."),
        ('{"user_id": "w"}', "'items' is None, which is not a list. List item ids, oldest first."),
        ('{"user_id": "w", "items": "a"}', "'items' is 'a', which is not a list."),
        ('{"user_id": "w", "items": ["a", 3]}', "'items' holds 3, which is not a string."),
    ],
)
def test_an_error_names_file_and_line_of_a_broken_history(tmp_path, line, said):
    folder = folder_of(tmp_path, interactions=lines(INTERACTIONS) + line)
    message = message_of(folder)
    assert message.startswith(f"{folder / 'interactions.jsonl'}: line 3: ")
    assert said in message


def test_an_error_names_the_line_and_the_byte_that_is_not_utf_8(tmp_path):
    folder = folder_of(tmp_path, lines(ITEMS[:1]).encode() + '{"item_id": "é"}\n'.encode("latin-1"))
    assert "items.jsonl: line 2: not UTF-8 (byte 14). Save the file as UTF-8." in message_of(folder)


def test_a_truncated_gzip_file_is_refused(tmp_path):
    folder = folder_of(tmp_path, gzip.compress(lines(ITEMS).encode())[:-12])
    assert "the gzip file is cut off or damaged" in message_of(folder)


def test_an_error_names_a_missing_folder_or_file_and_the_remedy(tmp_path):
    missing = tmp_path / "nowhere"
    assert message_of(missing).startswith(f"{missing}: no such folder or source. Give a folder, or one of ")
    folder = folder_of(tmp_path)
    assert "shop/items.jsonl: is a file" in message_of(folder / "items.jsonl")
    (folder / "interactions.jsonl").unlink()
    assert "shop: has neither interactions.jsonl nor interactions.jsonl.gz. Add one" in message_of(folder)


def test_a_folder_with_both_a_plain_and_a_gzipped_file_is_refused(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "items.jsonl.gz").write_bytes(gzip.compress(b""))
    message = message_of(folder)
    assert "items.jsonl: there is also items.jsonl.gz in the folder. Keep only one of the two." in message
    with pytest.raises(DataError, match="would make the folder ambiguous"):
        write_dataset(read_dataset(str(folder_of_name(tmp_path, "other"))), folder)


def folder_of_name(path: Path, name: str) -> Path:
    (path / name).mkdir()
    return folder_of(path / name)


def test_unusable_items_histories_and_purchases_are_left_out_and_counted(tmp_path):
    items = [*ITEMS, {"item_id": "empty", "title": " ", "tags": [], "size": None}]
    interactions = [
        *INTERACTIONS,
        {"user_id": "w", "items": ["gone", "a", "empty", "gone", "c"]},
        {"user_id": "x", "items": ["a", "gone"]},
        {"user_id": "y", "items": []},
    ]
    dataset = read_dataset(str(folder_of(tmp_path, lines(items), lines(interactions))))
    assert dataset.items == ITEMS
    assert dataset.user_ids == ["u", "v", "w"]
    assert dataset.sequences[2].tolist() == [0, 2]
    assert dataset.exclusions == {
        "items without any text or picture": 1,
        "interactions with items that are not in the items file": 3,
        "interactions with items without any text or picture": 1,
        "users with fewer than 2 known items": 2,
    }
    summary = dataset.summary()
    assert "shop: 3 items, 3 users, 7 interactions (2 to 3 a user, median 2)" in summary
    assert all(f"left out: {count} {what}" in summary for what, count in dataset.exclusions.items())


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    folder = folder_of(tmp_path, interactions=lines([{"user_id": "u", "items": ["1", "2", "3"]}]))
    message = message_of(folder)
    assert message.startswith(
        "shop: no users remain (3 interactions with items that are not in the items file;"
    )
    assert message.endswith("Check that items and interactions belong together.")


def test_an_empty_file_is_refused(tmp_path):
    assert message_of(folder_of(tmp_path, items="")).startswith("shop: no items remain (")


def test_items_can_be_read_without_interactions(tmp_path):
    folder = folder_of(tmp_path, items=lines([*ITEMS, {"item_id": "empty"}]))
    (folder / "interactions.jsonl").unlink()
    assert read_items(folder) == ITEMS


def test_an_error_names_a_folder_that_cannot_be_written(tmp_path):
    dataset = read_dataset(str(folder_of(tmp_path)))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"taken: cannot be written \(.*\)\. Choose another folder\."):
        write_dataset(dataset, tmp_path / "taken")


def test_times_are_written_and_read_again_for_the_items_that_stay(tmp_path):
    folder = folder_of(
        tmp_path / "a",
        lines(
            [{"item_id": "a", "title": "A"}, {"item_id": "b", "title": "B"}, {"item_id": "e", "title": ""}]
        ),
        lines([{"user_id": "u", "items": ["a", "e", "b"], "times": [-5, 7, 7]}]),
    )
    dataset = read_dataset(str(folder))
    assert [times.tolist() for times in dataset.times] == [[-5, 7]]
    write_dataset(dataset, tmp_path / "b")
    again = read_dataset(str(tmp_path / "b"))
    assert [times.tolist() for times in again.times] == [[-5, 7]]
    assert again.fingerprint == dataset.fingerprint


def test_timestamps_are_seconds(tmp_path):
    items = lines([{"item_id": "a", "title": "A"}, {"item_id": "b", "title": "B"}])
    line = {"user_id": "u", "items": ["a", "b"], "timestamps": [1, 3]}
    dataset = read_dataset(str(folder_of(tmp_path, items, lines([line]))))
    assert [times.tolist() for times in dataset.times] == [[1000, 3000]]


@pytest.mark.parametrize("times", [[1], [2, 1], [1, "2"], [1, 2.5], "12", None])
def test_times_that_do_not_fit_the_items_are_refused(tmp_path, times):
    items = lines([{"item_id": "a", "title": "A"}, {"item_id": "b", "title": "B"}])
    folder = folder_of(tmp_path, items, lines([{"user_id": "u", "items": ["a", "b"], "times": times}]))
    assert "interactions.jsonl: line 1: 'times' is" in message_of(folder)


def test_times_are_on_every_line_or_on_none(tmp_path):
    items = lines([{"item_id": "a", "title": "A"}, {"item_id": "b", "title": "B"}])
    both = {"items": ["a", "b"]}
    with_times = {"user_id": "u", **both, "times": [1, 2]}
    assert "line 2: has no 'times'" in message_of(
        folder_of(tmp_path / "a", items, lines([with_times, {"user_id": "v", **both}]))
    )
    assert "line 2: has 'times'" in message_of(
        folder_of(tmp_path / "b", items, lines([{"user_id": "v", **both}, with_times]))
    )


def test_a_log_in_place_of_a_folder_is_refused_with_the_right_form(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n")
    assert f"write events:{tmp_path / 'log.csv'}" in message_of(tmp_path / "log.csv")
    assert f"write events:{tmp_path}" in message_of(tmp_path)
