"""Every example in a docstring of the client, in its README and in its page, against a real service."""

import asyncio
import doctest
import importlib
import pkgutil
import re

import pytest

import glyphrec_client
from glyphrec_client import AsyncClient, Client
from tests.house import ROOT

pytestmark = pytest.mark.slow

PAGES = ("clients/python/README.md", "docs/python-client.md")
MODULES = [each.name for each in pkgutil.iter_modules(glyphrec_client.__path__)]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def failures(test: doctest.DocTest) -> str:
    said: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append)
    return "".join(said)


def known(client: Client, url: str) -> dict[str, object]:
    return {"client": client, "url": url, "Client": Client, "AsyncClient": AsyncClient, "asyncio": asyncio}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_do_what_they_say(served, name):
    module = importlib.import_module(f"glyphrec_client.{name}")
    with Client(served) as client:
        finder = doctest.DocTestFinder(exclude_empty=True)
        found = finder.find(module, extraglobs=known(client, served))
        assert {each.name: said for each in found if (said := failures(each))} == {}


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_do_what_they_say(served, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    source = "\n".join(block for block in blocks if ">>> " in block)
    with Client(served) as client:
        globs = known(client, served)
        test = doctest.DocTestParser().get_doctest(source, globs, page, page, 0)
        assert test.examples
        assert failures(test) == ""


def test_every_method_but_those_for_photos_and_bundles_has_an_example():
    unshown = {"put_image", "delete_image", "bundles", "change_bundle", "any_json"}
    methods = {name for name, each in vars(Client).items() if hasattr(each, "__wrapped__")}
    silent = {name for name in methods if ">>> " not in (getattr(Client, name).__doc__ or "")}
    assert silent == unshown
