"""Raw Amazon reviews of both layouts, on shops small enough to check by hand."""

import gzip
import json
from pathlib import Path

import pytest

from model_export.data.amazon import read_amazon
from model_export.data.amazon_products import product
from model_export.data.jsonl import Line
from model_export.data.tables import DataError, read_dataset

DAY = 86_400


def write(path: Path, records: list[dict]) -> Path:
    raw = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def reviews_2018(bought: list[tuple[str, str, int]]) -> list[dict]:
    return [
        {"reviewerID": user, "asin": item, "unixReviewTime": day * DAY, "overall": 5.0}
        for user, item, day in bought
    ]


def reviews_2023(bought: list[tuple[str, str, int]]) -> list[dict]:
    return [
        {
            "user_id": user,
            "parent_asin": item,
            "asin": "variant",
            "timestamp": day * DAY * 1000,
            "rating": 5.0,
        }
        for user, item, day in bought
    ]


META_2018 = [
    {
        "asin": "A",
        "title": "Pen &amp; <b>Ink</b>",
        "brand": "Bic",
        "category": ["Office", "Pens"],
        "description": ["Writes.", "", "Well."],
        "feature": ["blue"],
        "price": "$1.20",
        "also_buy": ["B"],
    },
    {
        "asin": "B",
        "title": "Paper",
        "brand": "",
        "category": [],
        "description": [],
        "price": ".a-box{} getTime()",
    },
    {"asin": "B", "title": "Paper, told again"},
    {"asin": "C", "title": "Clip"},
    {"asin": "E", "title": "", "price": ""},
]
META_2023 = [
    {
        "parent_asin": "A",
        "title": "Pen & Ink",
        "store": "Bic",
        "categories": ["Office", "Pens"],
        "description": ["Writes.", "Well."],
        "features": ["blue"],
        "price": 1.2,
        "images": [],
    },
    {"parent_asin": "B", "title": "Paper", "store": None, "price": None},
    {"parent_asin": "C", "title": "Clip"},
]
BOUGHT = [
    ("u", "B", 3),
    ("u", "A", 1),
    ("u", "A", 9),  # a second time; only the first counts
    ("u", "C", 5),
    ("v", "A", 2),
    ("v", "B", 1),
    ("v", "C", 7),
    ("w", "A", 4),  # E has no text, so w keeps one review and leaves the 2-core
    ("w", "E", 5),
    ("x", "D", 1),  # D has no metadata
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz", ".jsonl.gz"])
def test_the_layout_of_2018_becomes_items_with_text_and_sequences_in_time_order(tmp_path, suffix):
    reviews = write(tmp_path / f"Office_Products{suffix}", reviews_2018(BOUGHT))
    metadata = write(tmp_path / f"meta{suffix}", META_2018)
    dataset = read_dataset(f"amazon:{reviews},{metadata},2")
    assert dataset.name == "amazon-office_products"
    assert {item["item_id"]: item for item in dataset.items} == {
        "A": {
            "item_id": "A",
            "title": "Pen & Ink",
            "brand": "Bic",
            "categories": ["Office", "Pens"],
            "description": "Writes. Well.",
            "features": ["blue"],
            "price": "$1.20",
        },
        "B": {"item_id": "B", "title": "Paper"},
        "C": {"item_id": "C", "title": "Clip"},
    }
    ids = dataset.item_ids
    found = {u: [ids[n] for n in row] for u, row in zip(dataset.user_ids, dataset.sequences, strict=True)}
    assert found == {"u": ["A", "B", "C"], "v": ["B", "A", "C"]}
    assert dataset.exclusions == {
        "repeated metadata lines": 1,
        "reviews of products without metadata or text": 2,
        "later reviews of a product by the same user": 1,
        "reviews outside the 2-core": 1,
    }


def test_the_layout_of_2014_is_read_as_python_literals(tmp_path):
    """Lines as in meta_Beauty.json.gz: apostrophes, odd backslashes, a list of paths."""
    metadata = tmp_path / "meta_Beauty.json.gz"
    lines = [
        str(
            {
                "asin": "A",
                "title": "Bic's 2\" Pen &amp; <b>Ink</b>",
                "price": 1.2,
                "imUrl": "http://ecx.images/a.jpg",
                "related": {"also_bought": ["B"]},
                "salesRank": {"Beauty": 7},
                "brand": "Bic",
                "categories": [["Office", "Pens"], ["Office", "Gifts"]],
                "description": "A soft brush.",
            }
        ),
        "{'asin': 'B', 'title': 'Paper \\& more', 'categories': [['Office']]}",
        "{'asin': 'C', 'description': 'Only words.'}",
    ]
    metadata.write_bytes(gzip.compress("\n".join(lines).encode()))
    reviews = write(tmp_path / "reviews_Beauty.json.gz", reviews_2018(BOUGHT))
    dataset = read_dataset(f"amazon:{reviews},{metadata},2")
    assert {item["item_id"]: item for item in dataset.items} == {
        "A": {
            "item_id": "A",
            "title": "Bic's 2\" Pen & Ink",
            "brand": "Bic",
            "categories": ["Office", "Pens", "Gifts"],
            "description": "A soft brush.",
            "price": 1.2,
        },
        "B": {"item_id": "B", "title": "Paper \\& more", "categories": ["Office"]},
        "C": {"item_id": "C", "description": "Only words."},
    }


def test_a_literal_is_read_and_not_run(tmp_path):
    metadata = tmp_path / "m.json"
    metadata.write_text("{'asin': __import__('os').getcwd()}\n")
    reviews = write(tmp_path / "r.json", reviews_2018(BOUGHT))
    with pytest.raises(DataError, match=r"m\.json: line 1: not JSON"):
        read_amazon(reviews, metadata, 2)


@pytest.mark.parametrize("details", [{"Size": "5 ml", "Best Sellers Rank": 7}, '{"Size": "5 ml"}'])
def test_the_layout_of_2023_has_details_subtitle_and_author(tmp_path, details):
    record = {
        "asin": "variant",
        "parent_asin": "A",
        "title": "Pen",
        "subtitle": "A novel",
        "author": {"name": "Ann Bo", "avatar": "http://x", "about": ["Long."]},
        "store": "None",
        "features": ["None", "blue"],
        "details": details,
    }
    metadata = write(
        tmp_path / "meta.jsonl", [record, {"parent_asin": "B", "title": "Paper", "details": "{}"}]
    )
    reviews = write(tmp_path / "r.jsonl", reviews_2023([("u", "A", 1), ("u", "B", 2)]))
    assert read_amazon(reviews, metadata, 1).items[0] == {
        "item_id": "A",
        "title": "Pen",
        "subtitle": "A novel",
        "author": "Ann Bo",
        "features": ["blue"],
        "details": {"Size": "5 ml"},
    }


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("description", ["$12.99"], None),
        ("description", "12,99 €", None),
        ("description", ["$12.99", "Writes well."], "Writes well."),
        ("title", "var aPageStart = (new Date()).getTime();", None),
        ("description", ["#a-box .x { color: red } P.when('A').execute(function (A) {})"], None),
        ("description", "For sizes < 5 and > 3.", "For sizes < 5 and > 3."),
        ("description", "If x <b and c> d, then &lt; 5 ml", "If x <b and c> d, then < 5 ml"),
        ("description", 'Soft<br/>and <a href="x" class=y>warm</a>', "Soft and warm"),
        ("title", "None", None),
        ("title", "1984", "1984"),
        ("features", ["100% cotton", "$5"], ["100% cotton"]),
    ],
)
def test_code_prices_and_tags_are_no_words_and_comparison_signs_are(field, value, kept):
    line = Line(Path("m.json"), 1, {"asin": "A", field: value})
    assert product(line).get(field) == kept


def test_both_layouts_of_the_same_shop_give_the_same_sequences(tmp_path):
    old = read_amazon(
        write(tmp_path / "r18.json", reviews_2018(BOUGHT)), write(tmp_path / "m18.json", META_2018), 2
    )
    new = read_amazon(
        write(tmp_path / "r23.jsonl", reviews_2023(BOUGHT)), write(tmp_path / "m23.jsonl", META_2023), 2
    )
    assert new.user_ids == old.user_ids
    assert [row.tolist() for row in new.sequences] == [row.tolist() for row in old.sequences]
    assert [item | {"price": 0} for item in new.items] == [item | {"price": 0} for item in old.items]


def test_a_table_of_ratings_is_refused_with_the_right_source(tmp_path):
    (tmp_path / "ratings.csv").write_text("A1YJEY40YUW4SE,7806397051,5.0,1405209600\n")
    metadata = write(tmp_path / "m.json", META_2018)
    with pytest.raises(DataError, match=r"is read as events:.*ratings\.csv,.*m\.json"):
        read_amazon(tmp_path / "ratings.csv", metadata)


def test_paths_may_hold_commas_and_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "my, reviews.json", reviews_2018(BOUGHT))
    write(tmp_path / "meta, 2.json", META_2018)
    assert read_dataset("amazon:~/my, reviews.json,~/meta, 2.json,2").user_ids == ["u", "v"]


def test_the_core_is_five_unless_the_source_names_another(tmp_path):
    bought = [(f"u{u}", f"I{i}", i) for u in range(5) for i in range(5)] + [("u9", "I0", 1), ("u9", "I1", 2)]
    reviews = write(tmp_path / "r.json", reviews_2018(bought))
    metadata = write(tmp_path / "m.json", [{"asin": f"I{i}", "title": f"thing {i}"} for i in range(5)])
    assert len(read_dataset(f"amazon:{reviews},{metadata}").user_ids) == 5
    assert len(read_dataset(f"amazon:{reviews},{metadata},2").user_ids) == 6


def test_a_core_that_leaves_nothing_is_refused_with_the_remedy(tmp_path):
    reviews = write(tmp_path / "r.json", reviews_2018(BOUGHT))
    metadata = write(tmp_path / "m.json", META_2018)
    with pytest.raises(
        DataError,
        match=r"r\.json: none of the 8 reviews of described products is in the 5-core\. Ask for a smaller",
    ):
        read_dataset(f"amazon:{reviews},{metadata}")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"reviewerID": "u", "asin": "A"}, "'unixReviewTime' is None, which is not a whole number"),
        (
            {"reviewerID": "u", "asin": "A", "unixReviewTime": "today"},
            "'unixReviewTime' is 'today', which is not",
        ),
        ({"asin": "A", "unixReviewTime": 1}, "has no 'reviewerID'"),
        ({"reviewerID": "u", "asin": 5, "unixReviewTime": 1}, "'asin' is 5, which is not a string"),
    ],
)
def test_an_error_names_file_and_line_of_a_broken_review(tmp_path, record, said):
    reviews = write(tmp_path / "r.json", [*reviews_2018(BOUGHT[:2]), record])
    metadata = write(tmp_path / "m.json", META_2018)
    with pytest.raises(DataError) as caught:
        read_amazon(reviews, metadata)
    assert str(caught.value).startswith(f"{reviews}: line 3: {said}")


def test_an_error_names_a_file_that_is_missing_empty_or_of_no_known_layout(tmp_path):
    good = write(tmp_path / "m.json", META_2018)
    other = write(tmp_path / "r.json", [{"user": "u", "product": "A"}])
    with pytest.raises(
        DataError, match=r"line 1: has fields of no known layout: \['user', 'product'\] instead of asin\+"
    ):
        read_amazon(other, good)
    empty = write(tmp_path / "e.json", [])
    with pytest.raises(DataError, match=r"e\.json: the file is empty"):
        read_amazon(empty, good)
    with pytest.raises(DataError, match=r"gone\.json: not found"):
        read_amazon(tmp_path / "gone.json", good)


@pytest.mark.parametrize(
    "argument", ["", "r.json", "r.json,", "r.json,m.json,0", "r.json,m.json,x", "a,b,5,6"]
)
def test_a_source_that_does_not_name_two_files_is_refused_with_the_right_form(argument):
    with pytest.raises(DataError, match="Write amazon:REVIEWS,METADATA"):
        read_dataset(f"amazon:{argument}")
