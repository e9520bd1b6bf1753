"""Headless Chromium, for tests and pictures of the explorer. The one of the system; none is downloaded."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 120_000  # a loaded machine is slow, and no test claims a time
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 860}
# Counts what the policy of the page has blocked, from before its first script on.
WATCH = """window.blocked = [];
addEventListener("securitypolicyviolation", (event) => blocked.push(event.violatedDirective));"""


def chromium_or_skip() -> str:
    """The program of a Chromium on PATH."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("Chromium is not installed: apt-get install chromium, as .ci/run does")
    return found


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """A headless browser. Its sandbox needs rights that root in a container has not."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page of a fresh profile at the explorer. At its end, no script has failed and nothing was blocked."""
    context = browser.new_context(**({"viewport": DESK} | options))
    context.set_default_timeout(TIMEOUT_MS)
    failures: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.add_init_script(WATCH)
    try:
        page.goto(url)
        yield page
        assert failures == []
        assert page.evaluate("window.blocked") == []
    finally:
        with suppress(Exception):
            context.close()


def view(name: str, **params: str) -> str:
    """The end of the address of a view."""
    return f"#/{name}?{urlencode(params, quote_via=quote)}" if params else f"#/{name}"
