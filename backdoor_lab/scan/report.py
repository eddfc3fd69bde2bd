"""The result of a scan, as data frames, text, JSON, CSV and a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab.core.atomic_io import readable, write_atomic
from backdoor_lab.core.errors import EXIT_DONE
from backdoor_lab.core.small_files import make_folder
from backdoor_lab.scan.history import EarlierScan
from backdoor_lab.scan.images import FEWEST as SMALLEST
from backdoor_lab.scan.images import ScanImages
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.power import (
    FEWEST,
    RELIABLE_COPIES,
    Outcome,
    frame,
    poison_range,
    powers,
    smallest_found,
)
from backdoor_lab.scan.terms import (
    EXIT_ALARM,
    EXIT_NOT_CALIBRATED,
    FILES,
    MEANING,
    TRUSTED_MEANING,
    limits,
)
from backdoor_lab.tables.sheets import csv_of_frame

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class ClassFinding:
    """The verdict on a class of `images` images, of which `examined` were examined. `statistic` is
    the largest of its studentized statistics, that of `filter`; None if it is too small to judge.
    `p` is None without calibration; for `counted`, see `backdoor_lab.scan.power.counted`."""

    name: str
    images: int
    examined: int
    statistic: float | None = None
    filter: str | None = None
    p: float | None = None
    alarm: bool = False
    counted: int = 0

    @property
    def note(self) -> str:
        """Why there is no verdict, or an empty string."""
        if self.statistic is None:
            return f"too small to judge (fewer than {SMALLEST} images)"
        return "" if self.p is not None else "not calibrated"


@dataclass(frozen=True)
class Suspect:
    """A suspicious image: its path or row number `path`, its position `index` among the examined
    images, and its `rank` in its class by `score`, from 1, the most suspicious."""

    path: str
    index: int
    label: str
    score: float
    rank: int


@dataclass(frozen=True, eq=False)
class ScanReport:
    """The result of a scan.

    Attributes:
        exit_code: 0 no alarm, although every class was judged and calibrated; 3 alarm; 4 no alarm,
            but a class was not judged or is not calibrated, so that nothing is known about it.
        calibration: What the p values are relative to, or why there are none.
        population: The sets of the reference; None without a reference.
        outcomes: The scans of copies with canaries; `power_note` says how many there were, or why
            there are none.
        earlier: Other scans of the same images in the store.
    """

    name: str
    alpha: float
    findings: Sequence[ClassFinding]
    listed: Sequence[Suspect]
    calibration: str
    population: str | None
    accuracies: Sequence[float]
    images: ScanImages
    options: ScanOptions
    power_note: str = ""
    outcomes: Sequence[Outcome] = ()
    earlier: Sequence[EarlierScan] = ()

    @property
    def classes(self) -> DataFrame:
        """One row per class: class, p (NaN without calibration), alarm, calibrated, statistic,
        filter, images, examined, note."""
        import pandas as pd

        return pd.DataFrame({
            "class": [each.name for each in self.findings],
            "p": _floats([each.p for each in self.findings]),
            "alarm": [each.alarm for each in self.findings],
            "calibrated": [each.p is not None for each in self.findings],
            "statistic": _floats([each.statistic for each in self.findings]),
            "filter": [each.filter or "" for each in self.findings],
            "images": [each.images for each in self.findings],
            "examined": [each.examined for each in self.findings],
            "note": [each.note for each in self.findings],
        })  # fmt: skip

    @property
    def suspects(self) -> DataFrame:
        """One row per suspicious image: path (or row number), class, score, rank, alarm (whether
        its class raised an alarm). Without calibration, the images of the most conspicuous class
        are listed. Empty if every class is calibrated and none raised an alarm."""
        import pandas as pd

        alarmed = self.alarmed
        rows = [(s.path, s.label, s.score, s.rank, s.label in alarmed) for s in self.listed]
        return pd.DataFrame(rows, columns=["path", "class", "score", "rank", "alarm"])

    @property
    def power(self) -> DataFrame:
        """One row per kind and rate of canaries: kind, rate (share of the class), images, copies,
        found, share, its exact 95 % interval low and high, asr (mean attack success rate), learned
        (copies whose networks learned the trigger), verdict (reliable, blind or undecided). Empty
        without canaries."""
        return frame(powers(self.outcomes))

    @property
    def alarmed(self) -> list[str]:
        """The names of the classes that raised an alarm."""
        return [each.name for each in self.findings if each.alarm]

    @property
    def exit_code(self) -> int:
        if self.alarmed:
            return EXIT_ALARM
        calibrated = all(each.p is not None for each in self.findings)
        return EXIT_DONE if calibrated else EXIT_NOT_CALIBRATED

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        if self.alarmed:
            return f"alarm at {self.alpha:g}: {', '.join(self.alarmed)}"
        known = sum(each.p is not None for each in self.findings)
        if self.exit_code == EXIT_NOT_CALIBRATED and known:
            return f"no alarm in the classes that are judged ({known} of {len(self.findings)})"
        if self.exit_code == EXIT_NOT_CALIBRATED:
            return "not calibrated: whether a class is unusual cannot be said"
        return f"no alarm at {self.alpha:g}"

    @property
    def meaning(self) -> str:
        """What an alarm means."""
        return TRUSTED_MEANING if self.population is None else MEANING

    @property
    def extent(self) -> str:
        """How many images were examined."""
        total = sum(each.images for each in self.findings)
        return f"{len(self.images):,} of {total:,} images were examined"

    def number_of(self, finding: ClassFinding) -> str:
        """The number of poisoned images of a class with an alarm, as a range, or why it is not
        known."""
        scale = finding.images / max(1, finding.examined)
        found = poison_range(finding.counted, self.outcomes, scale)
        if found is None:
            return f"number of images unknown: fewer than {FEWEST} canaries were found"
        low, high = min(found[0], finding.images), min(found[1], finding.images)
        # The probability that the quotient of one more canary is within the range of the others.
        share = (self._found - 1) / (self._found + 1)
        like = f"if they are like the {self._found} canaries that were found"
        return f"{low} to {high} images (in {100 * share:.0f} % of cases), {like}"

    @property
    def _found(self) -> int:
        return sum(each.found for each in self.outcomes)

    def smallest(self) -> list[str]:
        """For each kind of canary, the smallest rate that was found reliably, as text."""
        lines = []
        for kind, each in smallest_found(powers(self.outcomes)).items():
            own = [p for p in powers(self.outcomes) if p.kind == kind]
            if each is not None:
                said = f"{100 * each.rate:g} % of a class and more found reliably"
            elif all(p.verdict == "blind" for p in own):
                said = "no rate found reliably"
            else:
                said = (
                    f"undecided with {min(p.copies for p in own)} to {max(p.copies for p in own)}"
                    f" copies per rate (reliable needs at least {RELIABLE_COPIES}, all found)"
                )
            lines.append(f"{kind}: {said}")
        return lines

    def text(self) -> str:
        """The report for people."""
        lines = [f"{self.name}: {self.verdict}"]
        width = max(len(each.name) for each in self.findings)
        for each in self.findings:
            p = "-" if each.p is None else f"{each.p:.4f}"
            statistic = "-" if each.statistic is None else f"{each.statistic:.2f}"
            mark = f"ALARM: {self.number_of(each)}" if each.alarm else each.note
            lines.append(
                f"  {each.name:{width}}  p {p:6}  statistic {statistic:>8}  {mark}".rstrip()
            )
        lines += [self.calibration]
        lines += [self.extent]
        lines += [self.meaning] if self.alarmed else []
        lines += [self.power_note] if self.power_note else []
        lines += [f"  {each}" for each in powers(self.outcomes)]
        lines += [f"  {each}" for each in self.smallest()]
        for scan in self.earlier:
            lines.append(f"earlier scan of {scan.date}: {scan.options}: {scan.verdict}")
        return "\n".join([*lines, limits(bool(self.outcomes))])

    def json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "format": 1,
            "name": self.name,
            "digest": self.images.labeled.digest,
            "exit_code": self.exit_code,
            "verdict": self.verdict,
            "alpha": self.alpha,
            "calibration": self.calibration,
            "population": self.population,
            "training_accuracy": list(self.accuracies),
            "options": asdict(self.options),
            "classes": [asdict(each) | {"note": each.note} for each in self.findings],
            "suspects": [asdict(each) for each in self.listed],
            "power_note": self.power_note,
            "power": [asdict(each) | {"verdict": each.verdict} for each in powers(self.outcomes)],
            "copies": [asdict(each) for each in self.outcomes],
            "earlier": [asdict(each) for each in self.earlier],
            "limits": limits(bool(self.outcomes)),
        }

    def to_html(self, path: str | Path) -> Path:
        """Writes the report as one HTML page, which opens from disk and works offline. Returns its
        path. Raises OSError if it cannot be written."""
        from backdoor_lab.scan.page import page_of

        path = Path(path)
        write_atomic(path, page_of(self).encode("utf-8", errors="backslashreplace"))
        return path

    def write(self, folder: Path) -> None:
        """Writes all files of the report into `folder`: `FILES`. ``keep.csv`` has one row per
        examined image; the suspects of classes with an alarm are not kept."""
        make_folder(folder)
        write_atomic(folder / FILES["json"], readable(self.json()).encode())
        write_atomic(folder / FILES["classes"], _csv(self.classes))
        write_atomic(folder / FILES["suspects"], _csv(self.suspects))
        write_atomic(folder / FILES["power"], _csv(self.power))
        write_atomic(folder / FILES["keep"], _csv(self._kept()))
        self.to_html(folder / FILES["page"])

    def _kept(self) -> DataFrame:
        import pandas as pd

        alarmed = self.alarmed
        gone = {each.index for each in self.listed if each.label in alarmed}
        labels = [self.images.classes[y] for y in self.images.labeled.labels.tolist()]
        keep = [index not in gone for index in range(len(self.images))]
        return pd.DataFrame({"path": self.images.names, "class": labels, "keep": keep})


def _floats(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _csv(frame: DataFrame) -> bytes:
    return csv_of_frame(frame).encode("utf-8", errors="backslashreplace")
