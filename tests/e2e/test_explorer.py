"""The explorer in headless Chromium over a real service, from two CSV files to recommendations."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect

from model_export.local_service import LocalService, glyphrec_command, local_service
from tests.e2e.browser import PHONE, TIMEOUT_MS, chromium, chromium_or_skip, opened, view
from tests.known_bundle import SPEC, items_without_text_twice, write_known_bundle

ROOT = Path(__file__).parents[2]
SHOP = Path(__file__).parent / "shop"
KEY = "reader-key-of-a-person"
SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
HOSTILE = {
    "item_id": "\"><svg onload='window.hacked = 1'>",
    "title": f"Tea {SCRIPT}",
    "brand": "javascript:window.hacked = 1",
    "categories": [f"<b>{SCRIPT}</b>", "'\"</textarea>"],
    "description": "{{7*7}} ${7*7} </script><script>window.hacked = 1</script>",
}
NUM_MANY = 100_000
# A loaded machine may take longer than people would wait.
PATIENT = {"GLYPHREC_RECOMMEND_TIMEOUT_S": "120", "GLYPHREC_MAX_WAIT_MS": "120000"}

expect.set_options(timeout=TIMEOUT_MS)


class Shop(NamedTuple):
    bundle: Path
    service: LocalService


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(chromium_or_skip()) as browser:
        yield browser


def commands_of_the_readme(data: Path, bundle: Path) -> list[list[str]]:
    """Those below "Use it" that end, with the files of the shop, and a configuration that trains faster."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Use it")[1]
    block = section.split("```")[1].strip()
    places = {
        "log.csv": SHOP / "orders.csv",
        "items.csv": SHOP / "products.csv",
        "DATA": data,
        "BUNDLE": bundle,
    }
    found = []
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["glyphrec", "doctor"]:
            continue  # which also serves; the fixture does
        for name, place in places.items():
            words = [
                re.sub(rf"\b{re.escape(name)}$|\b{re.escape(name)}(?=,)", str(place), word) for word in words
            ]
        found.append(["tiny" if word == "demo" else word for word in words[1:]])
    return found


@pytest.fixture(scope="module")
def shop(browser, tmp_path_factory) -> Iterator[Shop]:  # noqa: ARG001  without a browser nothing is trained
    """A service of the bundle that the commands of the README make of two CSV files."""
    folder = tmp_path_factory.mktemp("shop")
    bundle = folder / "bundle"
    commands = commands_of_the_readme(folder / "data", bundle)
    assert [words[0] for words in commands][:3] == ["prepare", "prepare", "export"]
    for words in commands[:3]:
        subprocess.run(glyphrec_command(*words), check=True, cwd=folder, capture_output=True, timeout=800)
    settings = PATIENT | {"GLYPHREC_FILTER_FIELDS": "price:number,category:text"}
    with local_service(bundle, data_dir=folder / "redis", log=folder / "log", settings=settings) as service:
        yield Shop(bundle, service)


@pytest.fixture
def page(browser, shop) -> Iterator[Page]:
    with opened(browser, shop.service.url) as page:
        yield page


def recommended(page: Page):
    return page.get_by_label("Recommended items").locator(".rows > li")


def test_a_person_with_two_csv_files_reaches_recommendations_in_the_browser(page):
    page.get_by_role("link", name="Playground").click()
    page.locator("#orders").set_input_files(SHOP / "orders.csv")
    page.locator("#user").select_option("C001")
    expect(page.locator(".facts .source")).to_have_text("from the model")
    expect(recommended(page)).to_have_count(10)
    titles = {line.split(",")[0]: line for line in (SHOP / "products.csv").read_text().splitlines()}
    for shown in recommended(page).locator(".what a").all_text_contents():
        assert any(shown in line.replace('"', "") for line in titles.values())
    bought = [
        line.split(",")[1]
        for line in (SHOP / "orders.csv").read_text().splitlines()
        if line.startswith("C001,")
    ]
    expect(page.locator(".taken > li")).to_have_count(len(bought))


def test_the_catalog_shows_pictures_pages_searches_and_filters(page, shop):
    expect(page.locator(".card")).to_have_count(24)
    expect(page.locator(".card .frame.drawn").first).to_be_visible()
    first = page.locator(".card .title").first.text_content()
    page.get_by_role("button", name="Next page").click()
    expect(page.locator(".card .title").first).not_to_have_text(first)
    page.get_by_role("button", name="Back").click()
    expect(page.locator(".card .title").first).to_have_text(first)

    page.locator("#search").fill("Green tea, loose, 100 g")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("“Green tea, loose, 100 g”")
    expect(page.locator(".card .title", has_text="Green tea, loose, 100 g")).to_have_count(1)
    page.locator("#search").fill("P103")
    page.keyboard.press("Enter")
    expect(page.locator(".card .note").first).to_have_text("this id")

    page.goto(shop.service.url + view("catalog", filter=json.dumps({"attributes": {"category": "Bread"}})))
    expect(page.locator("#how-many")).to_contain_text("9 items")
    page.locator("#field-price-lte").fill("0.01")
    page.locator("#field-price-lte").blur()
    expect(page.get_by_role("heading", name="Nothing fits")).to_be_visible()


def test_an_item_has_its_pictures_its_path_and_its_neighbors(page, shop):
    stored = shop.service.client.get("/items/P100").json()
    similar = shop.service.client.get("/items/P100/similar", params={"limit": 12}).json()["items"]
    page.goto(shop.service.url + view("item", id="P100"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Green tea, loose, 50 g")
    expect(page.locator(".pictures .frame.drawn")).to_have_count(1)
    assert page.locator(".sid > li").nth(-2).locator(".code").all_text_contents() == [
        str(c) for c in stored["codes"]
    ]
    expect(page.locator(".rows > li")).to_have_count(len(similar))
    page.get_by_role("button", name="by codes").click()
    expect(page.locator(".rows .code.shared").first).to_be_visible()
    page.get_by_role("link", name="Recommend after this item").click()
    expect(recommended(page)).to_have_count(10)


def test_arrow_keys_walk_down_the_tree_of_codes_to_the_items(page, shop):
    levels = shop.service.client.get("/info").json()["levels"]
    page.get_by_role("link", name="Codes", exact=True).click()
    expect(page.get_by_role("listbox")).to_have_count(1)
    page.get_by_role("option").first.focus()
    page.keyboard.press("ArrowDown")
    second = page.get_by_role("option").nth(1)
    expect(second).to_be_focused()
    code = second.locator(".code").text_content()
    for depth in range(1, len(levels) + 1):
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("option", selected=True)).to_have_count(depth)
    assert page.url.partition("codes=")[2].split("-")[0] == code
    expect(page.locator(".card").first).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("option", selected=True)).to_have_count(len(levels) - 1)


def test_the_playground_shows_the_beam_that_the_service_searched_with(page, shop):
    body = {"history": ["P100", "P103"], "limit": 5}
    answer = shop.service.client.post("/recommend", json=body).json()
    page.goto(shop.service.url + view("play", ask=json.dumps(body)))
    expect(recommended(page)).to_have_count(5)
    expect(page.locator("#beam .level")).to_have_count(len(shop.service.client.get("/info").json()["levels"]))
    last = page.locator("#beam .level").last.locator("li.kept")
    assert (
        last.first.locator(".code").all_text_contents() == answer["items"][0]["semantic_id"].split("-")[:-1]
    )
    assert last.first.locator(".score").text_content() == f"{answer['items'][0]['score']:.2f}"
    expect(page.locator("#curl")).to_contain_text('"history":["P100","P103"]')

    page.locator("#limit").fill("2")
    expect(recommended(page)).to_have_count(2)
    page.locator("#field-category").fill("Lighting")
    page.locator("#field-category").blur()
    expect(page.locator(".facts .matching_items")).to_have_text("9 items pass the filter")
    expect(page.locator("#curl")).to_contain_text("Lighting")
    page.locator("#exact").check()
    expect(page.locator(".facts .good")).to_have_text("✓ exact")
    page.locator("#per-code").fill("1")
    expect(page.locator("#curl")).to_contain_text("max_per_first_code")
    firsts = recommended(page).locator(".code.l0").all_text_contents()
    assert len(set(firsts)) == len(firsts)


def test_a_refused_request_is_told_in_its_own_words(page, shop):
    page.goto(shop.service.url + view("item", id="nobody"))
    expect(page.get_by_role("alert")).to_contain_text("No item has the id 'nobody'")
    page.goto(shop.service.url + view("play", ask=json.dumps({"history": [], "limit": 5000})))
    expect(page.locator(".out").get_by_role("alert")).to_contain_text("limit")


def test_every_view_fits_a_phone(browser, shop):
    with opened(browser, shop.service.url, viewport=PHONE) as page:
        for address, ready in (
            (view("catalog"), ".card"),
            (view("item", id="P100"), ".rows > li"),
            (view("tree", codes="0"), ".columns"),
            (view("play", ask=json.dumps({"history": ["P100"]})), "#beam .level"),
        ):
            page.goto(shop.service.url + address)
            expect(page.locator(ready).first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_key_is_asked_for_and_a_wrong_one_is_asked_again(browser, bundle, tmp_path):
    settings = PATIENT | {"GLYPHREC_READ_KEYS": KEY}
    with (
        local_service(bundle, data_dir=tmp_path, log=tmp_path / "log", settings=settings) as service,
        opened(browser, service.url) as page,
    ):
        page.locator("#key-value").fill("not the key")
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#key-problem")).to_have_text("The service does not know this key.")
        page.locator("#key-value").fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator(".card").first).to_be_visible()
        expect(page.locator(".card .frame.drawn").first).to_be_visible()
        assert page.evaluate("document.cookie + Object.values(localStorage).join()").count(KEY) == 0


def test_an_empty_catalog_says_how_an_item_comes_into_it(browser, bundle, tmp_path):
    settings = PATIENT | {"GLYPHREC_SEED_CATALOG": "false"}
    with (
        local_service(bundle, data_dir=tmp_path, log=tmp_path / "log", settings=settings) as service,
        opened(browser, service.url) as page,
    ):
        expect(page.get_by_role("heading", name="The catalog is empty")).to_be_visible()
        page.goto(service.url + view("tree"))
        expect(page.get_by_role("heading", name="The tree is empty")).to_be_visible()
        page.goto(service.url + view("play"))
        expect(page.get_by_role("heading", name="The page is empty")).to_be_visible()


def test_texts_of_items_run_no_script_and_the_policy_blocks_one_that_would(browser, bundle, tmp_path):
    with local_service(bundle, data_dir=tmp_path, log=tmp_path / "log", settings=PATIENT) as service:
        service.client.post("/items", json=HOSTILE).raise_for_status()
        history = json.dumps({"history": [HOSTILE["item_id"]]})
        with opened(browser, service.url) as page:
            page.locator("#search").fill(HOSTILE["item_id"])
            page.keyboard.press("Enter")
            expect(page.locator(".card .title").first).to_have_text(HOSTILE["title"])
            page.goto(service.url + view("item", id=HOSTILE["item_id"]))
            expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE["title"])
            page.goto(service.url + view("play", ask=history))
            expect(page.locator(".taken > li").first).to_contain_text(HOSTILE["title"])
            page.goto(service.url + view("tree"))
            expect(page.get_by_role("option").first).to_be_visible()
            assert page.evaluate("window.hacked") is None
            page.evaluate("""() => {
                const script = document.createElement("script");
                script.textContent = "window.hacked = 1";
                document.body.append(script);
            }""")
            assert page.evaluate("window.hacked") is None
            assert page.evaluate("window.blocked.splice(0)") == ["script-src-elem"]


def test_a_bundle_whose_beam_cannot_be_told_still_shows_its_page(browser, bundle, tmp_path):
    with (
        local_service(bundle, data_dir=tmp_path, log=tmp_path / "log", settings=PATIENT) as service,
        opened(browser, service.url + view("play", ask=json.dumps({"history": ["item-0"]}))) as page,
    ):
        expect(recommended(page)).to_have_count(10)
        expect(page.locator(".out").get_by_role("alert")).to_contain_text("cannot be shown level by level")


def test_a_hundred_thousand_items_are_shown_a_page_at_a_time(browser, tmp_path):
    many = write_known_bundle(tmp_path / "many", items_without_text_twice(NUM_MANY, 0))
    with (
        local_service(
            many, data_dir=tmp_path / "redis", log=tmp_path / "log", ready_timeout_s=600
        ) as service,
        opened(browser, service.url) as page,
    ):
        expect(page.locator("#how-many")).to_contain_text("100,000 items")
        for _ in range(3):
            first = page.locator(".card .title").first.text_content()
            page.get_by_role("button", name="Next page").click()
            expect(page.locator(".card .title").first).not_to_have_text(first)
        assert page.locator(".card").count() == 24
        page.goto(service.url + view("tree", codes="3-1"))
        expect(page.get_by_role("listbox")).to_have_count(SPEC.num_levels)
        expect(page.get_by_role("option", selected=True)).to_have_count(2)
        assert page.evaluate("document.querySelectorAll('*').length") < 3_000
