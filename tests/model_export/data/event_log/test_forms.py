"""Each published form of a log reaches a prepared data set by one command, with the same sequences in it."""

from pathlib import Path

import pytest

from model_export.data.tables import read_dataset
from service.cli import main
from tests.model_export.data.event_log.public_forms import FORMS, GENRES, TITLES, TOOK


def sequences(folder: Path) -> dict[str, list[str]]:
    """The sequences of a prepared folder. Ids without the letters and zeros that a form adds."""
    dataset = read_dataset(str(folder))
    ids = dataset.item_ids
    return {
        user.lstrip("A0"): [ids[item].lstrip("0") for item in sequence]
        for user, sequence in zip(dataset.user_ids, dataset.sequences, strict=True)
    }


@pytest.mark.parametrize("form", FORMS)
def test_one_command_prepares_each_form(form, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    source = FORMS[form](tmp_path / "in")
    assert main(["prepare", "--data", source, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "4 items, 4 users, 13 interactions" in said
    assert sequences(tmp_path / "out") == TOOK


@pytest.mark.parametrize("form", [form for form in FORMS if "movielens" in form])
def test_the_films_of_movielens_have_titles_and_genres(form, tmp_path):
    dataset = read_dataset(FORMS[form](tmp_path))
    found = {item["item_id"]: (item["title"], item["genres"]) for item in dataset.items}
    assert found == {item: (title, GENRES[item].split("|")) for item, title in TITLES.items()}


def test_articles_of_h_and_m_keep_zeros_and_words_but_no_codes(tmp_path):
    items = {item["item_id"]: item for item in read_dataset(FORMS["h_and_m"](tmp_path)).items}
    assert items["02"] == {
        "item_id": "02",
        "title": TITLES["2"],
        "product_type_name": "Film",
        "description": "Soft, warm.",
    }


def test_the_events_of_rees46_describe_the_items(tmp_path):
    items = {item["item_id"]: item for item in read_dataset(FORMS["rees46"](tmp_path)).items}
    assert items["1"] == {"item_id": "1", "brand": "acme", "category_code": "electronics.film", "price": 1.5}
    assert "brand" not in items["2"]


def test_the_newest_property_of_retailrocket_counts(tmp_path):
    items = {item["item_id"]: item for item in read_dataset(FORMS["retailrocket"](tmp_path)).items}
    assert items["1"] == {"item_id": "1", "categoryid": "111", "property 790": "n1.000"}


def test_the_metadata_of_amazon_describes_rated_items(tmp_path):
    dataset = read_dataset(FORMS["amazon_ratings_with_metadata"](tmp_path))
    items = {item["item_id"]: item for item in dataset.items}
    assert items["0000000003"] == {"item_id": "0000000003", "title": TITLES["3"], "categories": ["Films"]}
    assert not dataset.notes


@pytest.mark.parametrize("form", ["otto", "amazon_ratings_2014", "amazon_ratings_2018"])
def test_items_without_a_table_are_named_by_their_id_and_a_note_says_so(form, tmp_path):
    dataset = read_dataset(FORMS[form](tmp_path))
    assert all(item == {"item_id": item["item_id"], "title": item["item_id"]} for item in dataset.items)
    (note,) = dataset.notes
    assert note.startswith("every item has no text but its id")
    assert note in dataset.summary()


def test_the_times_of_each_form_are_the_same_milliseconds(tmp_path):
    found = {}
    for name in ("csv_log", "tsv_log", "parquet_log", "json_log", "otto", "recbole", "rees46"):
        (tmp_path / name).mkdir()
        dataset = read_dataset(FORMS[name](tmp_path / name))
        times = dict(zip(dataset.user_ids, dataset.times, strict=True))
        found[name] = [times[user].tolist() for user in TOOK]
    assert found["csv_log"][0] == [1_600_000_007_000, 1_600_001_007_000, 1_600_002_007_000]
    assert all(times == found["csv_log"] for times in found.values()), found
