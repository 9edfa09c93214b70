"""A headless Chromium for the tests of the page: Debian's, driven by playwright from PyPI.

Without one of both the tests that need it are skipped, and say so; with CI=true that is a failure.
"""

import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import servers

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = "/usr/bin/chromium"
# It calls nobody but the page: no updates, no accounts.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@functools.cache
def chromium_missing() -> str:
    if shutil.which(CHROMIUM) is None:
        return f"no {CHROMIUM}: apt-get install chromium"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install 'ordersys[test]'"
    return ""


@contextmanager
def chromium() -> "Iterator[Browser]":
    if reason := chromium_missing():
        servers.missing(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
