"""Earlier scans of the same images, as far as they are in the store.

Whoever scans a set until no class raises an alarm has tested more than once; therefore, a report
lists the other scans.
"""

from __future__ import annotations

import datetime
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab.core.errors import StoreError
from backdoor_lab.core.small_files import DamagedFileError
from backdoor_lab.core.store import MANIFEST, Store, read_manifest
from backdoor_lab.scan.images import ScanImages, digested
from backdoor_lab.scan.reference_file import versions

if TYPE_CHECKING:
    from backdoor_lab.scan.report import ScanReport

STAGE = "scan_report"


@dataclass(frozen=True)
class EarlierScan:
    """Another scan of the same images: its `date` (UTC), its `options` that differ from those of
    the present scan, and its `verdict`."""

    date: str
    options: str
    verdict: str


def remembered(
    report: ScanReport, given: ScanImages, relative_to: str, store: Store
) -> list[EarlierScan]:
    """Notes a scan in the store, and returns the other scans of the set `given`, the earliest
    first. `relative_to` identifies what its p values are relative to."""
    options = asdict(report.options)
    # As given, before images are resized and drawn, which depends on the options.
    images = given.labeled.images if given.originals is None else given.originals
    inputs = {
        "digest": digested(images, given.labeled.labels, given.labeled.classes).digest,
        "options": options, "versions": versions(),
        "relative to": relative_to,
    }  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return {"date": now, "verdict": report.verdict}

    own = store.get(STAGE, inputs, make)
    found = []
    for manifest in sorted((store.root / STAGE).glob(f"*/{MANIFEST}")):
        with suppress(StoreError, DamagedFileError, OSError, KeyError):
            read = read_manifest(manifest.parent)
            if read["inputs"]["digest"] != inputs["digest"] or manifest.parent.name == own.id:
                continue
            theirs = read["inputs"]["options"]
            differing = [f"{key}={theirs.get(key)}" for key in options
                         if theirs.get(key) != options[key]]  # fmt: skip
            if read["inputs"]["relative to"] != relative_to:
                differing.append("another reference or other trusted images")
            text = ", ".join(differing) or "another version of this package"
            found.append(EarlierScan(read["meta"]["date"], text, read["meta"]["verdict"]))
    return sorted(found, key=lambda each: each.date)
