"""What the general outlier detectors share: one class at a time, reduced, in a fixed order."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from backdoor_lab.core import checks, streams
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.seeds import derive
from backdoor_lab.core.streams import Stream
from backdoor_lab.defenses.base import Knowledge, Look, row_order
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.principal import Principal

FEWEST = 3


class Detector(Principal):
    """An outlier detector of scikit-learn, fitted on the class that it judges.

    The features of each class are first reduced to their `dims` top principal components,
    since distances say little in hundreds of dimensions. A class of fewer than three different
    examples scores 0 and says so in the notes. The answer depends on the seed and on the set of
    rows, not on their order.
    """

    stream: ClassVar[Stream] = streams.DETECTOR
    """The label of its random numbers; a detector of its own has its own in streams.py."""
    rows_per_component = 1

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        dims: int = 16,
    ) -> None:
        super().__init__(options)
        self.dims = checks.whole("defense.dims", dims, low=1)

    @abstractmethod
    def outlying(self, points: Any, seed: int) -> Any:
        """How far out each row of the float64 array `points` (n, k) lies: an array (n,)."""

    def look(self, values: Tensor, label: int, known: Knowledge) -> Look:
        order = row_order(values)
        most = max(1, (len(values) - 1) // self.rows_per_component)
        points = self.components(values[order].cpu(), min(self.dims, most))
        scores = torch.zeros(len(values), dtype=torch.float64)
        if len(points) < FEWEST or not points.shape[1]:
            return Look(scores, notes={"skipped": "fewer than three different examples"})
        seed = derive(known.seed, self.stream, label) % 2**32
        scores[order] = torch.as_tensor(self.outlying(points.numpy(), seed), dtype=torch.float64)
        return Look(scores)


class NeighborDetector(Detector):
    """A detector that compares an example with its `neighbours` nearest ones in the class."""

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        neighbours: int = 20,
        dims: int = 16,
    ) -> None:
        super().__init__(options, dims=dims)
        self.neighbours = checks.whole("defense.neighbours", neighbours, low=1)

    def search(self, points: Any) -> dict[str, Any]:
        """scikit-learn's arguments for the search: at most all the other examples, by a tree."""
        # The other way subtracts large squares and sees copies apart.
        return {"n_neighbors": min(self.neighbours, len(points) - 1), "algorithm": "kd_tree"}
