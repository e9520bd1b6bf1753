"""Pictures of items: which files count, what is refused, and that a written folder is complete."""

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from model_export.data.tables import DataError, Dataset, read_dataset, read_items, write_dataset
from service.cli import main
from service.core.limits import MAX_PICTURE_BYTES

T = 1_600_000_000


def picture(color: str, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(file, form)
    return file.getvalue()


def shop(path: Path, images: list[object], **files: bytes) -> Path:
    """A folder with an item for each value of `image`, with texts, and the files of `images/`."""
    (path / "images").mkdir(parents=True)
    for name, content in files.items():
        (path / "images" / name).write_bytes(content)
    items = [{"item_id": f"i{n}", "title": f"Item {n}", "image": value} for n, value in enumerate(images)]
    write_items(path, items)
    history = {"user_id": "u", "items": [item["item_id"] for item in items] * 2}
    (path / "interactions.jsonl").write_text(json.dumps(history) + "\n")
    return path


def write_items(path: Path, items: list[dict[str, object]]) -> None:
    (path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_dataset(str(path))
    said = str(caught.value)
    assert "\n" not in said
    return said


def contents(dataset: Dataset) -> dict[str, bytes]:
    return {dataset.item_ids[item]: path.read_bytes() for item, path in dataset.images.items()}


def test_pictures_are_known_by_their_content_and_leave_the_fields_of_their_items(tmp_path):
    files = {"a.jpg": picture("red", "JPEG"), "b.dat": picture("blue"), "c": picture("lime", "WEBP")}
    paths = ["images/a.jpg", None, "./images/b.dat", "images/../images/c", ""]
    dataset = read_dataset(str(shop(tmp_path / "s", paths, **files)))
    assert contents(dataset) == dict(zip(("i0", "i2", "i3"), files.values(), strict=True))
    assert dataset.items[0] == {"item_id": "i0", "title": "Item 0"}
    assert dataset.exclusions == {}
    assert "\n  pictures: 3 items have one" in dataset.summary()


def test_pictures_that_cannot_be_used_are_counted_and_their_items_stay(tmp_path):
    folder = shop(
        tmp_path / "s",
        ["images/ok", "images/gone", "images/ok/x", "images", "images/pipe", "images/text", "images/empty",
         "images/gif", "images/large", "images/loop", "https://x.example/1.jpg", "images/gone-too"],
        ok=picture("red"), text=b"no picture at all", empty=b"", gif=picture("red", "GIF"),
        large=picture("red") + bytes(MAX_PICTURE_BYTES),
    )  # fmt: skip
    os.mkfifo(folder / "images" / "pipe")
    (folder / "images" / "loop").symlink_to("loop")
    dataset = read_dataset(str(folder))
    assert contents(dataset) == {"i0": picture("red")}
    assert dataset.num_items == 12
    assert dataset.exclusions == {
        "pictures that are missing (first: 'images/gone' in line 2)": 3,
        "pictures that cannot be read (first: 'images' in line 4)": 3,
        "pictures that are neither JPEG, PNG nor WebP (first: 'images/text' in line 6)": 3,
        "pictures that are too large (first: 'images/large' in line 9)": 1,
        "pictures that are addresses, which nobody fetches (first: 'https://x.example/1.jpg' in line 11)": 1,
    }
    assert "left out: 3 pictures that are missing (first: 'images/gone' in line 2)" in dataset.summary()
    assert dataset.items[10]["image"] == "https://x.example/1.jpg"
    assert "image" not in dataset.items[1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("../outside.png", "'image' is '../outside.png', which leads outside "),
        ("images/../../outside.png", "which leads outside "),
        ("link.png", "which leads outside "),
        ("linked/outside.png", "which leads outside "),
        ("/outside.png", "which leads outside "),
        ("a\0b", "which is no path. Correct it."),
        (7, "'image' is 7, which is not a string. Write the path of a JPEG, PNG or WebP file in the folder"),
        ({"data": "aGk="}, "which is not a string"),
        (["images/ok"], "which is not a string"),
        (False, "which is not a string"),
    ],
)
def test_a_path_outside_the_folder_or_no_path_is_refused_with_file_and_line(tmp_path, value, said):
    (tmp_path / "outside.png").write_bytes(picture("red"))
    folder = shop(tmp_path / "s", ["images/ok", value], ok=picture("red"))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    message = refused(folder)
    assert message.startswith(f"{folder / 'items.jsonl'}: line 2: ")
    assert said in message


def test_an_absolute_path_is_refused_even_inside_the_folder(tmp_path):
    folder = shop(tmp_path / "s", [str(tmp_path / "s" / "images" / "ok")], ok=picture("red"))
    assert "Copy the file into that folder and write its path from there." in refused(folder)


def test_a_link_of_the_folder_itself_and_links_inside_it_are_followed(tmp_path):
    folder = shop(tmp_path / "s", ["link"], ok=picture("red"))
    (folder / "link").symlink_to("images/ok")
    (tmp_path / "other").symlink_to(folder)
    assert contents(read_dataset(str(tmp_path / "other"))) == {"i0": picture("red")}


def test_an_item_with_only_a_picture_is_kept_if_the_picture_can_be_read(tmp_path):
    folder = shop(tmp_path / "s", ["images/ok", "images/gone"], ok=picture("red"))
    write_items(folder, [{"item_id": "i0", "image": "images/ok"}, {"item_id": "i1", "image": "images/gone"}])
    dataset = read_dataset(str(folder))
    assert dataset.item_ids == ["i0"]
    assert dataset.exclusions["items without any text or picture"] == 1
    assert read_items(folder) == [{"item_id": "i0"}]


def test_the_fingerprint_covers_the_bytes_of_pictures_and_not_their_paths(tmp_path):
    def prints(name: str, images: list[object], **files: bytes) -> tuple[str, str]:
        dataset = read_dataset(str(shop(tmp_path / name, images, **files)))
        return dataset.fingerprint, dataset.items_fingerprint

    red, blue = picture("red"), picture("blue")
    first = prints("first", ["images/a", None], a=red)
    assert prints("renamed", ["images/b", None], b=red) == first
    others = [
        prints("changed", ["images/a", None], a=blue),
        prints("moved", [None, "images/a"], a=red),
        prints("both", ["images/a", "images/a"], a=red),
        prints("none", [None, None]),
    ]
    for which in (0, 1):
        assert len({each[which] for each in (first, *others)}) == 5


def test_data_without_pictures_keep_the_fingerprint_that_they_had_before_there_were_pictures(tmp_path):
    # Hashes of the release before pictures. Keys of bundles depend on them.
    folder = shop(tmp_path / "s", [])
    write_items(folder, [{"item_id": "a", "title": "Blue pen", "price": 1.5}, {"item_id": "b", "title": "é"}])
    (folder / "interactions.jsonl").write_text('{"user_id": "u", "items": ["b", "a", "b"]}\n')
    dataset = read_dataset(str(folder))
    assert dataset.fingerprint == "804be75c372d2ae06eabde0fda39db929e4abf2c595076d9f9d7c751ee5a03c8"
    assert dataset.items_fingerprint == "6ce26b4be27dd669eb4a0085f93910c4ef1d9821bee309f527c198f1e6fb1866"


def test_a_written_folder_is_complete_and_the_same_data_give_the_same_files(tmp_path):
    red, blue = picture("red"), picture("blue", "JPEG")
    folder = shop(
        tmp_path / "s", ["images/a", "images/same", None, "images/b", "images/gone"], a=red, same=red, b=blue
    )
    dataset = read_dataset(str(folder))
    for name in ("one", "two"):
        write_dataset(dataset, tmp_path / name)
    written = [
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    ]
    assert written[0] == written[1]
    suffixes = sorted(Path(name).suffix for name in written[0] if name.startswith("images/"))
    assert suffixes == [".jpg", ".png"]  # the two items with one picture share it
    for path in folder.rglob("images/*"):
        path.unlink()
    again = read_dataset(str(tmp_path / "one"))
    assert again.items == dataset.items
    assert contents(again) == {"i0": red, "i1": red, "i3": blue}
    assert again.exclusions == {}
    assert again.fingerprint == dataset.fingerprint
    write_dataset(again, tmp_path / "three")
    assert (tmp_path / "three" / "items.jsonl.gz").read_bytes() == written[0]["items.jsonl.gz"]


def test_a_picture_that_vanishes_after_the_reading_is_an_error_in_one_line(tmp_path):
    folder = shop(tmp_path / "s", ["images/a"], a=picture("red"))
    dataset = read_dataset(str(folder))
    (folder / "images" / "a").unlink()
    with pytest.raises(DataError, match=r"images/a: cannot be read any more \(No such file"):
        write_dataset(dataset, tmp_path / "out")
    assert not (tmp_path / "out" / "items.jsonl.gz").exists()
    with pytest.raises(DataError, match="Keep the pictures where they are"):
        _ = dataset.fingerprint


@pytest.fixture
def tables(tmp_path) -> str:
    """An event log and a table of items with a column of pictures."""
    folder = tmp_path / "log"
    (folder / "photos").mkdir(parents=True)
    for name, content in (("a.jpg", picture("red", "JPEG")), ("b.png", picture("blue"))):
        (folder / "photos" / name).write_bytes(content)
    events = [f"u,{item},{T + n}" for n, item in enumerate("abcde")]
    (folder / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *events]) + "\n")
    rows = ["a,Apple,photos/a.jpg", "b,,photos/b.png", "c,Cherry,http://x/c.jpg", "d,Date,photos/gone", "e,,"]
    (folder / "items.csv").write_text("\n".join(["item_id,title,Image", *rows]) + "\n")
    return f"events:{folder / 'events.csv'},{folder / 'items.csv'}"


def test_prepare_copies_the_pictures_that_a_table_of_items_names(tmp_path, tables, capsys):
    assert main(["prepare", "--data", tables, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "pictures: 2 items have one" in said
    assert "left out: 1 pictures that are missing (first: 'photos/gone' in item 'd')" in said
    dataset = read_dataset(str(tmp_path / "out"))
    assert contents(dataset) == {"a": picture("red", "JPEG"), "b": picture("blue")}
    assert dataset.item_ids == ["a", "b", "c", "d"]
    assert [dataset.item_ids[item] for item in dataset.sequences[0]] == ["a", "b", "c", "d"]
    assert dataset.items[:2] == [{"item_id": "a", "title": "Apple"}, {"item_id": "b"}]
    assert dataset.fingerprint == read_dataset(tables).fingerprint


def test_a_column_of_pictures_that_leads_outside_the_folder_of_the_table_is_refused(tmp_path, tables):
    items = tmp_path / "log" / "items.csv"
    (tmp_path / "x.png").write_bytes(picture("red"))
    items.write_text(items.read_text().replace("photos/gone", "../x.png"))
    with pytest.raises(DataError) as caught:
        read_dataset(tables)
    assert str(caught.value).startswith(f"{items}: item 'd': 'image' is '../x.png', which leads outside ")


@pytest.mark.parametrize("value", [17, ["http://x/1.jpg"], {"large": "x"}])
def test_values_of_a_table_that_are_no_paths_are_left_out_and_counted(tmp_path, value):
    log, items = tmp_path / "log.jsonl", tmp_path / "items.jsonl"
    log.write_text("".join(f'{{"user_id": "u", "item_id": "{i}", "timestamp": {T}}}\n' for i in "ab"))
    items.write_text(
        json.dumps({"id": "a", "title": "A", "image": value}) + '\n{"id": "b", "title": "B", "image": null}\n'
    )
    dataset = read_dataset(f"events:{log},{items}")
    assert dataset.items == [{"item_id": "a", "title": "A"}, {"item_id": "b", "title": "B"}]
    ((what, count),) = dataset.exclusions.items()
    assert what.startswith("pictures that are no path (first: ")
    assert count == 1
    write_dataset(dataset, tmp_path / "out")
    assert read_dataset(str(tmp_path / "out")).fingerprint == dataset.fingerprint


def test_an_item_with_an_address_alone_has_neither_text_nor_picture(tmp_path):
    folder = shop(tmp_path / "s", [], ok=picture("red"))
    write_items(
        folder, [{"item_id": "i0", "image": "images/ok"}, {"item_id": "i1", "image": "http://x/1.jpg"}]
    )
    (folder / "interactions.jsonl").write_text('{"user_id": "u", "items": ["i0", "i0", "i1"]}\n')
    dataset = read_dataset(str(folder))
    assert dataset.item_ids == ["i0"]
    assert dataset.exclusions["interactions with items without any text or picture"] == 1
