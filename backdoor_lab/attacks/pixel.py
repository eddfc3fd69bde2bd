"""Pixel: a single pixel of one color."""

from __future__ import annotations

from backdoor_lab.attacks.base import PixelTrigger
from backdoor_lab.attacks.threat_model import ThreatModel


class Pixel(PixelTrigger):
    """Sets one pixel near the lower right corner to one color.

    Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model
    Supply Chain", 2017, section 3.1 ("single pixel backdoor").
    """

    threat_model = ThreatModel(paper="controls training too")

    def __init__(
        self,
        *,
        position: tuple[int, int] = (-1, -1),
        color: int | list[int] = 255,
        margin: int = 0,
    ) -> None:
        super().__init__([position], color, margin)
