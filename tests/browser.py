"""A headless Chromium for tests of pages: the system's, or the one that playwright brings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def open_browser() -> Iterator:
    """Skips the test where playwright or a browser is missing, and says which."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install -e '.[browser]'"
    )
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(
                f"no Chromium ({str(error).splitlines()[0]}): install one, or run "
                "`python -m playwright install chromium`"
            )
        yield browser
        browser.close()


def seen(page, name: str) -> None:
    """A picture to look at afterwards, where $SCREENSHOTS names a folder."""
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png")
