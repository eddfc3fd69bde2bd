"""What was found about each field of a card, and the text and JSON of a whole check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from backdoor_lab.core.errors import EXIT_DONE, EXIT_SOME_FAILED, many
from backdoor_lab.core.output import plain
from backdoor_lab.verify.rule import RULE, Judgment

Verdict = Literal["true", "false", "not checked", "note"]


@dataclass(frozen=True)
class Finding:
    """A field of the card, whether it is true, and why. A ``note`` is a fact that the card does not
    claim."""

    field: str
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Report:
    """The result of checking a card. `subject` names what was checked, `data` the data set that it
    was measured on, and `precision` the precision of the measurement; None if no network was
    measured."""

    subject: str
    card: str
    data: str
    judgments: Sequence[Judgment] = ()
    findings: Sequence[Finding] = field(default_factory=list)
    precision: str | None = None

    @property
    def failed(self) -> list[str]:
        """The names of the claims and fields that are false."""
        return [
            *(f"claims.{each.name}" for each in self.judgments if not each.holds),
            *(each.field for each in self.findings if each.verdict == "false"),
        ]

    @property
    def exit_code(self) -> int:
        return EXIT_SOME_FAILED if self.failed else EXIT_DONE

    def text(self) -> str:
        """The report for people, without control characters that a card may contain."""
        lines = [f"{self.subject}: claims of {self.card}, measured on {self.data}"]
        lines += [_line(each) for each in self.judgments]
        if self.judgments:
            lines += [f"rule: {RULE}", f"precision: {self.precision}; intervals: 95 % (Wilson)"]
        lines += [f"FALSE {each.field}: {each.why}" for each in self._of("false")]
        lines += [f"note: {each.field}: {each.why}" for each in self._of("note")]
        lines += _listed("true", self._of("true"))
        lines += _listed("not checked", self._of("not checked"))
        failed = self.failed
        verdict = f"{many(len(failed), 'claim')} not true: {', '.join(failed)}"
        lines.append(verdict if failed else "every checked claim holds")
        return "\n".join(map(plain, lines))

    def json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "format": 1,
            "subject": self.subject,
            "card": self.card,
            "data": self.data,
            "precision": self.precision,
            "rule": RULE,
            "holds": not self.failed,
            "failed": self.failed,
            "claims": {each.name: _claim(each) for each in self.judgments},
            "fields": [
                {"field": each.field, "verdict": each.verdict, "why": each.why}
                for each in self.findings
            ],
        }

    def _of(self, verdict: Verdict) -> list[Finding]:
        return [each for each in self.findings if each.verdict == verdict]


def _line(each: Judgment) -> str:
    low, high = each.measured.interval
    n = "n not stated" if each.claim.n is None else f"n={each.claim.n}"
    return (
        f"{each.name}: claimed {each.claim.value:.4f} ({n}), measured {each.measured.share:.4f}"
        f" [{low:.4f}, {high:.4f}] (n={each.measured.n}), {'same' if each.same else 'another'} test"
        f" set: {each.words()}: {'holds' if each.holds else 'DOES NOT HOLD'}"
    )


def _listed(what: str, found: Iterable[Finding]) -> list[str]:
    said = [f"{each.field} ({each.why})" if each.why else each.field for each in found]
    return [f"{what}: {', '.join(said)}"] if said else []


def _claim(each: Judgment) -> dict[str, Any]:
    low, high = each.measured.interval
    return {
        "claimed": each.claim.value,
        "claimed_n": each.claim.n,
        "measured": each.measured.share,
        "correct": each.measured.hits,
        "n": each.measured.n,
        "wilson_95": [low, high],
        "same_test_set": each.same,
        "difference": each.difference,
        "unit": "images" if each.same else "share",
        "allowed" if each.same else "newcombe_95": [each.low, each.high],
        "beyond": each.beyond,
        "holds": each.holds,
    }
