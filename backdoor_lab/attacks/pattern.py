"""Pattern: several single pixels of one color."""

from __future__ import annotations

from backdoor_lab.attacks.base import PixelTrigger
from backdoor_lab.attacks.threat_model import ThreatModel

CHECKER = [(-1, -1), (-1, -3), (-2, -2), (-3, -1)]


class Pattern(PixelTrigger):
    """Sets several pixels near the lower right corner (four by default) to one color.

    Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model
    Supply Chain", 2017, section 3.1 ("pattern backdoor").
    """

    threat_model = ThreatModel(paper="controls training too")

    def __init__(
        self,
        *,
        positions: list[tuple[int, int]] | None = None,
        color: int | list[int] = 255,
        margin: int = 0,
    ) -> None:
        super().__init__(CHECKER if positions is None else positions, color, margin)
