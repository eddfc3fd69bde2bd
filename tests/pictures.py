"""The two images in README: a sweep's page and its overview figure.

    python -m tests.pictures [SWEEP] [--store PATH] [--out FOLDER]

Needs a Chromium. Both are written with few colors to stay small.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from PIL import Image

from backdoor_lab.figures.inputs import SweepData
from backdoor_lab.figures.sheet import sheet
from backdoor_lab.figures.style import save
from backdoor_lab.page.document import write_page
from backdoor_lab.results.artifact_reader import ArtifactReader, raw_records
from backdoor_lab.results.store_location import find_store
from backdoor_lab.results.sweeps import read_sweep
from tests.helpers.browser import chromium

REPORTS = Path(__file__).parents[1] / "multirun_reports"
LARGEST = 300_000
WINDOW = {"width": 1180, "height": 860}


def main(arguments: list[str] | None = None) -> int:
    """0; 1 without a browser, or if the store lacks artifacts for the overview figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("sweep", type=Path, nargs="?", default=REPORTS / "runs" / "demo")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=REPORTS / "pictures")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    whole = SweepData(
        read_sweep(given.sweep).cells,
        raw_records(given.sweep),
        ArtifactReader(find_store(given.sweep, given.store)),
    )
    figure, shot = sheet(whole), screenshot(write_page(given.sweep, given.store))
    if figure is None or shot is None:
        print("error: no browser" if shot is None else f"error: {'; '.join(whole.shelf.notes)}")
        return 1
    png, pdf = save(figure, given.out / "figures")
    pdf.unlink()
    for path, data in ((png, png.read_bytes()), (given.out / "page.png", shot)):
        path.write_bytes(small(data))
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def screenshot(path: Path) -> bytes | None:
    """The page's table of cells with the first cell that has charts opened over it."""
    with chromium() as browser:
        if browser is None:
            return None
        page = browser.new_page(viewport=WINDOW)
        page.goto(path.as_uri())
        shown = json.loads(page.locator("#data").text_content() or "")["pictures"]
        page.evaluate("document.getElementById('all').scrollIntoView()")
        drawn = [number for number, each in shown.items() if "images" in each]
        if drawn:
            page.locator(f"#cells tr[data-cell='{drawn[0]}'] .open").click()
        return page.screenshot()


def small(data: bytes) -> bytes:
    """`data` as a PNG of at most 256 colors, fewer until it is below LARGEST bytes."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    for count in (256, 128, 64, 32, 16):
        found = io.BytesIO()
        picture.quantize(count, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
        if found.tell() < LARGEST:
            break
    return found.getvalue()


if __name__ == "__main__":
    sys.exit(main())
