"""Each published form of a log reaches a prepared data set by one command, with the same sequences in it."""

from pathlib import Path

import numpy as np
import pytest

from model_export.data.tables import read_dataset
from service.cli import main
from tests.model_export.data.event_log.other_shapes import SHAPES
from tests.model_export.data.event_log.public_forms import FORMS, GENRES, START, TITLES, TOOK


def sequences(folder: Path) -> dict[str, list[str]]:
    """The sequences of a prepared folder. Ids without the letters and zeros that a form adds."""
    dataset = read_dataset(str(folder))
    ids = dataset.item_ids
    return {
        user.lstrip("A0"): [ids[item].lstrip("0") for item in sequence]
        for user, sequence in zip(dataset.user_ids, dataset.sequences, strict=True)
    }


DAYS = ("steam", "h_and_m")  # have no times of day
WAYS = {"published": FORMS, "saved anew": SHAPES}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_one_command_prepares_each_form(form, way, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    source = WAYS[way][form](tmp_path / "in")
    assert main(["prepare", "--data", source, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "4 items, 4 users, 13 interactions" in said
    assert sequences(tmp_path / "out") == TOOK


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", [form for form in FORMS if "movielens" in form])
def test_the_films_of_movielens_have_titles_and_genres(form, way, tmp_path):
    dataset = read_dataset(WAYS[way][form](tmp_path))
    found = {item["item_id"]: (item["title"], item["genres"]) for item in dataset.items}
    assert found == {item: (title, GENRES[item].split("|")) for item, title in TITLES.items()}


@pytest.mark.parametrize("way", WAYS)
def test_articles_of_h_and_m_keep_zeros_and_words_but_no_codes(way, tmp_path):
    items = {item["item_id"]: item for item in read_dataset(WAYS[way]["h_and_m"](tmp_path)).items}
    assert items["02"] == {
        "item_id": "02",
        "title": TITLES["2"],
        "product_type_name": "Film",
        "description": "Soft, warm.",
    }


@pytest.mark.parametrize("way", WAYS)
def test_the_events_of_rees46_describe_the_items(way, tmp_path):
    items = {item["item_id"]: item for item in read_dataset(WAYS[way]["rees46"](tmp_path)).items}
    assert items["1"] == {"item_id": "1", "brand": "acme", "category_code": "electronics.film", "price": 1.5}
    assert "brand" not in items["2"]


@pytest.mark.parametrize("way", WAYS)
def test_the_newest_property_of_retailrocket_counts(way, tmp_path):
    items = {item["item_id"]: item for item in read_dataset(WAYS[way]["retailrocket"](tmp_path)).items}
    assert items["1"] == {"item_id": "1", "categoryid": "111", "property 790": "n1.000"}


@pytest.mark.parametrize("way", WAYS)
def test_the_metadata_of_amazon_describes_rated_items(way, tmp_path):
    dataset = read_dataset(WAYS[way]["amazon_ratings_with_metadata"](tmp_path))
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", [form for form in FORMS if form not in DAYS])
def test_the_times_of_each_form_are_the_same_milliseconds(form, way, tmp_path):
    dataset = read_dataset(WAYS[way][form](tmp_path))
    times = dict(zip([user.lstrip("A0") for user in dataset.user_ids], dataset.times, strict=True))
    for user, items in TOOK.items():
        seconds = [START + 1000 * place + int(user) for place in range(len(items))]
        assert times[user].tolist() == [1000 * second for second in seconds]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", DAYS)
def test_days_count_from_their_first_moment(form, way, tmp_path):
    dataset = read_dataset(WAYS[way][form](tmp_path))
    for user, times in zip(dataset.user_ids, dataset.times, strict=True):
        assert np.all(times % 86_400_000 == 0)
        assert np.all(np.diff(times) == 86_400_000)
        assert len(times) == len(TOOK[user])
