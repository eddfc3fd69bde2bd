"""A headless Chromium for tests, if this machine has one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "BACKDOOR_LAB_CHROMIUM"


def executable(driver: Playwright) -> str | None:
    """The path of the Chromium to start: the one in the environment variable VARIABLE, that of
    Playwright, or another installed one. None if there is none."""
    own = driver.chromium.executable_path
    found = [os.environ.get(VARIABLE), own if Path(own).exists() else None]
    found += [shutil.which(name) for name in NAMES]
    return next((each for each in found if each), None)


@contextmanager
def chromium() -> Iterator[Browser | None]:
    """A context manager that starts Chromium. Yields None if Playwright or Chromium is not
    installed."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        yield None
        return
    with sync_playwright() as driver:
        path = executable(driver)
        if path is None:
            yield None
            return
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()
