"""Pictures of a sweep's page and of its overview figure."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from backdoor_lab.figures.inputs import SweepData
from backdoor_lab.figures.overview_figure import sheet
from backdoor_lab.figures.style import save
from backdoor_lab.page.document import write_page
from backdoor_lab.results.artifact_reader import ArtifactReader, raw_records
from backdoor_lab.results.store_location import find_store
from backdoor_lab.results.sweeps import read_sweep
from tests.helpers.browser import chromium
from tests.pictures.small import small

WINDOW = {"width": 1180, "height": 860}


def drawn(folder: Path, store: Path | None) -> dict[str, bytes]:
    """Draw both pictures. Without a browser or the stored features, prints an error and returns an
    empty dict."""
    whole = SweepData(
        read_sweep(folder).cells, raw_records(folder), ArtifactReader(find_store(folder, store))
    )
    figure, shot = sheet(whole), screenshot(write_page(folder, store))
    if figure is None or shot is None:
        print("error: no browser" if shot is None else f"error: {'; '.join(whole.reader.notes)}")
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        png, _ = save(figure, Path(scratch) / "figures")
        return {"figures.png": small(png.read_bytes()), "page.png": small(shot)}


def screenshot(path: Path) -> bytes | None:
    """A screenshot of the page's table of cells, with the details of the first cell that has
    pictures. None without a browser."""
    with chromium() as browser:
        if browser is None:
            return None
        page = browser.new_page(viewport=WINDOW)
        page.goto(path.as_uri())
        shown = json.loads(page.locator("#data").text_content() or "")["pictures"]
        page.evaluate("document.getElementById('all').scrollIntoView()")
        pictured = [number for number, each in shown.items() if "images" in each]
        if pictured:
            page.locator(f"#cells tr[data-cell='{pictured[0]}'] .open").click()
        return page.screenshot()
