"""The report of a study: its tables have the numbers of study.json and say what is missing."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from model_export.evaluation.reach import Kinds
from model_export.study.cells import CellResult
from model_export.study.tables import rate, signed
from model_export.study.write import NOT_YET, read_notes, write_study
from service.errors import GlyphrecError

MADE_WITH = {"baselines": 2, "ranks": 1, "tree": 1}
USERS = 60
LEVELS = {"use_level_1": 0.975, "use_level_2": 1.0, "entropy_bits_level_1": 7.25, "entropy_bits_level_2": 7.5}


def cells() -> list[CellResult]:
    """Cells on two datasets, at least two of every group."""
    every = ("headline", "encoders", "resolution", "quantizers", "generators", "ablation", "odd_ones")
    found = []
    for dataset in ("shop", "market"):
        for place, name in enumerate(("default", "text", "markov")):
            for seed in range(1 if name == "markov" else 2):
                rng = np.random.default_rng(10 * place + seed)
                ranks = rng.integers(0, 11, size=USERS).astype(np.uint8)
                figures = LEVELS | {"pixels_per_item": 5000.0 * (place + 1), "train_seconds": 12.0 + seed}
                if name != "markov":
                    figures |= {
                        "coverage@10": 0.75,
                        "reading_accuracy": 0.5,
                        "encode_ms_per_item": 8.0,
                        "ms_per_request": 1.5,
                    }
                words = f"In words, {name}"
                found.append(
                    CellResult(
                        dataset, name, words, every, seed, "k", MADE_WITH, ranks, ranks, ranks, figures
                    )
                )
        for name in ("default", "text"):
            kept = {"kept_all_codes:typo": 0.625, "kept_first_code:typo": 0.875}
            found.append(
                CellResult(dataset, f"changed_{name}", name, ("robustness",), 0, "k", MADE_WITH, figures=kept)
            )
        cold = {"cold_hit@10": 0.0321, "cold_hit@10_chance": 0.0023, "cold_num_targets": 1234}
        found.append(CellResult(dataset, "cold", "The default", ("cold",), 0, "k", MADE_WITH, figures=cold))
    return found


KINDS = {
    "shop": Kinds(
        seen_transition=np.arange(USERS) < 20,
        unseen_transition=np.arange(USERS) >= 20,
        head=np.zeros(USERS, dtype=bool),
        middle=np.arange(USERS) % 2 == 0,
        tail=np.arange(USERS) % 2 == 1,
    )
}
SEGMENTS = {"shop": {"long": np.arange(USERS) < 20, "rare": np.zeros(USERS, dtype=bool)}}


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    write_study(cells(), folder, segments=SEGMENTS, kinds=KINDS)
    return folder


@pytest.fixture(scope="module")
def page(written):
    return (written / "study.md").read_text(encoding="utf-8")


def test_the_page_holds_the_numbers_of_the_json(written, page):
    figures = json.loads((written / "study.json").read_text(encoding="utf-8"))["shop"]
    shop = section(page, "The headline").split("### ")[1]
    row = next(line for line in shop.splitlines() if line.startswith("| In words, default `default` |"))
    ours = figures["default"]
    low, high = rate(ours["item_hit@10_low"]), rate(ours["item_hit@10_high"])
    assert f"| {rate(ours['item_hit@10'])} [{low}, {high}] ± {rate(ours['item_hit@10_seed_sd'])} |" in row
    assert f"| {rate(ours['item_ndcg@5'])} |" in row
    assert row.endswith("| 2 |")
    gain = figures["differences"]["markov"]
    assert f"| minus In words, markov `markov` | {signed(gain['item_hit@10'])} [" in shop
    assert f"], {100 * gain['item_hit@10_relative']:+.1f} % |" in shop
    assert "| 97.5 % / 100.0 % | 7.25 / 7.50 | 5,000 | 50.0 % | 8 | 12 | 1.5 |" in shop
    assert list(figures) == sorted(figures)


def test_each_question_has_its_table_and_plot(written, page):
    assert NOT_YET in section(page, "How SASRec was tuned")
    assert page.count(NOT_YET) == 5, "tuning, and the four sections on photos"
    assert "| typo | 62.5 % | 87.5 % | 62.5 % | 87.5 % |" in section(page, "4. Robustness")
    assert "| The default `cold` | 1,234 | .0321 | .0023 |" in section(page, "5. Cold items")
    kinds = section(page, "3. Which items gain")
    assert "| long | 20 | ." in kinds
    assert "| rare | 0 | – | – | – |" in kinds
    assert "### market" not in kinds  # the test gave no masks for it
    assert "`default`" in section(page, "Odd ones")
    drawn = {"headline", "encoders", "resolution", "segments", "robustness", "ablation"}
    drawn |= {"quantizers", "generators", "odd_ones"}
    pictures = list((written / "study").glob("*.svg"))
    assert {path.stem for path in pictures} == drawn
    for path in pictures:
        assert f"](study/{path.name})" in page
        assert path.stat().st_size < 100_000
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_hits_are_shown_by_kind_of_target(written, page):
    reach = section(page, "What is reached")
    assert "### market" not in reach  # the test gave no kinds for it
    figures = json.loads((written / "study.json").read_text(encoding="utf-8"))["shop"]
    hits = np.mean([cell.ranks_excluded < 10 for cell in cells()[:2]], axis=0)
    seen, unseen = hits[:20].mean(), hits[20:].mean()
    assert figures["default"]["item_hit@10:seen_transition"] == pytest.approx(seen, abs=1e-6)
    assert "item_hit@10:head" not in figures["default"]
    even, odd = hits[::2].mean(), hits[1::2].mean()
    shown = " | ".join(map(rate, (seen, unseen)))
    assert f"| In words, default `default` | 75.0 % | {shown} | – | {rate(even)} | {rate(odd)} |" in reach
    assert "| In words, markov `markov` | – | ." in reach
    assert "transition seen (20 users) | not seen (40 users) | popular third (0 users)" in reach


def test_the_page_says_what_the_data_cannot_show(page):
    method = section(page, "What is measured")
    assert "catalog order" in method
    assert "artifact" in method
    assert "glyphrec study" in section(page, "How to reproduce it")


def test_equal_cells_give_equal_bytes(written, tmp_path):
    write_study(cells(), tmp_path, segments=SEGMENTS, kinds=KINDS)
    files = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert len(files) == 11
    for name in files:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_a_study_without_cells_says_for_each_section_what_computes_it(tmp_path):
    write_study([], tmp_path)
    assert (tmp_path / "study.md").read_text(encoding="utf-8").count(NOT_YET) == 15
    assert json.loads((tmp_path / "study.json").read_text(encoding="utf-8")) == {}
    assert list((tmp_path / "study").iterdir()) == []


def test_a_resolution_without_pixels_and_a_cell_without_costs_are_tables_only(tmp_path):
    ranks = np.zeros(USERS, dtype=np.uint8)
    write_study(
        [CellResult("shop", "default", "Ours", ("resolution",), 0, "k", MADE_WITH, ranks, ranks)], tmp_path
    )
    text = section((tmp_path / "study.md").read_text(encoding="utf-8"), "2. Resolution")
    assert "| Ours `default` | 1.0000 [1.0000, 1.0000] |" in text
    assert text.count("\n| ---") == 1
    assert list((tmp_path / "study").iterdir()) == []


def test_notes_written_by_hand_are_included_and_a_misspelled_one_is_not_lost(tmp_path):
    notes = tmp_path / "study" / "notes"
    notes.mkdir(parents=True)
    (notes / "cold.md").write_text("They are found.\n", encoding="utf-8")
    (notes / "summary.md").write_text("All went well.\n", encoding="utf-8")
    assert read_notes(tmp_path) == {"cold": "They are found.\n", "summary": "All went well.\n"}
    write_study([], tmp_path, notes=read_notes(tmp_path))
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert page.startswith("# The study\n\nAll went well.\n\n## How to reproduce it")
    assert "They are found." in section(page, "5. Cold items")
    with pytest.raises(GlyphrecError, match="'colt'.*cold"):
        write_study([], tmp_path, notes={"colt": "They are lost."})


def test_cells_of_other_versions_have_a_footnote_that_says_which(tmp_path):
    now = {"default": MADE_WITH, "text": MADE_WITH, "markov": {"baselines": 3, "ranks": 1}}
    write_study(cells(), tmp_path, versions_now=now)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "`markov`†" in page
    assert "`default`†" not in page
    assert "\n† This cell was computed from the same data and configuration, but with an older" in page
    assert "other results: baselines (2, now 3), tree (1, now 0). To compute the cell again, delete" in page


@pytest.mark.parametrize(
    ("value", "text"), [(0.0871, ".0871"), (0, ".0000"), (1, "1.0000"), (-0.0012, "-.0012")]
)
def test_rates_are_written_as_papers_write_them(value, text):
    assert rate(value) == text
    assert signed(value) == (text if value < 0 else f"+{text}")
