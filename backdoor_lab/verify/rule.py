"""The rule by which a claimed clean accuracy or attack success rate holds.

On the test set of the claim, which is recognized by its hash, the number of correct images may
differ by two: the kernels of two machines round differently. On another test set, the claim and the
measurement are two proportions: 0 must lie in the 95 % interval of their difference (Newcombe 1998,
method 10).
"""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_lab.analysis.intervals import newcombe, wilson
from backdoor_lab.core.errors import ConfigError, many

TOLERANCE = 2
"""The number of images by which two machines may differ on the same test set."""
RULE = (
    f"same test set (by hash): at most {TOLERANCE} images' difference; another test set: 0 lies in"
    " the 95 % interval of claimed - measured (Newcombe 1998, method 10)"
)


@dataclass(frozen=True)
class Claim:
    """A claimed share of `n` images, 0..1; `n` is None if it is not stated."""

    value: float
    n: int | None = None


@dataclass(frozen=True)
class Count:
    """The measurement: the network is right on `hits` of `n` images, at least one."""

    hits: int
    n: int

    @property
    def share(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share (Wilson 1927)."""
        return wilson(self.share, self.n)


@dataclass(frozen=True)
class Judgment:
    """Whether a claim holds.

    `same` says whether the claim was made on the same test set. `difference` is claimed - measured:
    a number of images on the same test set, otherwise a share. `low` and `high` are the bounds of
    the allowed difference on the same test set, and of the 95 % interval of the difference on
    another one. `beyond` is by how much the claim misses the bounds, in the unit of `difference`; 0
    if the claim holds.
    """

    name: str
    claim: Claim
    measured: Count
    same: bool
    difference: float
    low: float
    high: float
    beyond: float

    @property
    def holds(self) -> bool:
        return self.beyond == 0

    def words(self) -> str:
        """By how much the claim differs from the measurement, in words."""
        if self.same:
            images = round(abs(self.difference))
            way = "more" if self.difference > 0 else "fewer"
            said = f"{many(images, 'image')} {way} than measured" if images else "no difference"
            return said if self.holds else f"{said}, at most {TOLERANCE} are allowed"
        points = f"{100 * self.difference:+.2f} points"
        span = f"95 % interval {100 * self.low:+.2f} to {100 * self.high:+.2f}"
        if self.holds:
            return f"{points}, {span} contains 0"
        return f"{points}, {span} misses 0 by {100 * self.beyond:.2f}"


def judge(name: str, claim: Claim, measured: Count, *, same: bool) -> Judgment:
    """Returns whether `measured` supports the claim. `same` says whether the claim was made on the
    same test set. Raises ConfigError if that is false and the claim does not state `n`.

    >>> judge("nat", Claim(0.95, 200), Count(188, 200), same=True).holds
    True
    >>> judge("nat", Claim(0.955, 200), Count(188, 200), same=True).words()
    '3 images more than measured, at most 2 are allowed'
    """
    if same:
        images = round(claim.value * measured.n) - measured.hits
        limit = float(TOLERANCE)
        return Judgment(
            name, claim, measured, True, images, -limit, limit, max(0.0, abs(images) - limit)
        )
    if claim.n is None:
        raise ConfigError(
            f"`claims.{name}.n`, the number of images of the claim, is missing: it is needed for"
            " the 95 % interval of the difference, because the card was not measured on these test"
            " images or does not state their hash"
        )
    low, high = newcombe(claim.value, claim.n, measured.share, measured.n)
    beyond = max(low, -high, 0.0)
    difference = claim.value - measured.share
    return Judgment(name, claim, measured, False, difference, low, high, beyond)
