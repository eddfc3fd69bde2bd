"""The HTML page of a scan: verdicts, and suspects as pictures. It has no script, and its content
security policy allows only its own style and embedded images."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from backdoor_lab.core import streams
from backdoor_lab.core.rng import numpy_generator
from backdoor_lab.page.page_pictures import png_strip
from backdoor_lab.scan.power import powers
from backdoor_lab.scan.terms import EXIT_NOT_CALIBRATED, FILES, limits
from backdoor_lab.templates import asset, render

if TYPE_CHECKING:
    from backdoor_lab.scan.report import ScanReport

SHOWN, COMPARED = 24, 12
"""The number of suspects per class with a picture, and of other images of the class next to
them."""


def page_of(report: ScanReport) -> str:
    """Renders the page of a scan."""
    style = asset("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none';"
        " form-action 'none'"
    )
    listed = dict.fromkeys(each.label for each in report.listed)
    return render(
        "scan.html", report=report, style=style, policy=policy, meaning=report.meaning,
        limits=limits(bool(report.outcomes)), powers=powers(report.outcomes),
        galleries=[_gallery(report, name) for name in listed], files=FILES,
        uncalibrated=report.exit_code == EXIT_NOT_CALIBRATED,
    )  # fmt: skip


def _gallery(report: ScanReport, name: str) -> dict[str, object]:
    """Returns the pictures of a class: its first suspects, and other images drawn at random."""
    found = report.images
    suspects = [each for each in report.listed if each.label == name]
    shown = suspects[:SHOWN]
    label = found.classes.index(name)
    of_class = (found.labeled.labels == label).nonzero().flatten().numpy()
    others = np.setdiff1d(of_class, [each.index for each in suspects])
    generator = numpy_generator(report.options.seed, streams.SCAN_SAMPLE, label)
    drawn = np.sort(generator.permutation(others)[:COMPARED])
    return {
        "name": name,
        "number": len(suspects),
        "alarm": name in report.alarmed,
        "suspects": [
            {"picture": picture, "path": each.path, "rank": each.rank, "score": each.score}
            for picture, each in zip(
                _pictures(report, [each.index for each in shown]), shown, strict=True
            )
        ],
        "others": [
            {"picture": picture, "path": found.names[index], "rank": None}
            for picture, index in zip(_pictures(report, drawn.tolist()), drawn, strict=True)
        ],
    }


def _pictures(report: ScanReport, where: Sequence[int]) -> list[str]:
    images = report.images.labeled.images.numpy()
    return [png_strip(images[index : index + 1])[0] for index in where]
