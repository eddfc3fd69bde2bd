"""Base class of general outlier detectors, fitted on one class at a time."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import derive
from backdoor_lab.core.streams import Stream
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, row_order
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.principal import Principal

FEWEST = 3


class Detector(Principal):
    """A scikit-learn outlier detector, fitted on the class that it scores.

    The features of each class are first reduced to their top `n_components` principal components,
    since distances carry little information in hundreds of dimensions. If a class has fewer than
    three distinct examples, all its scores are 0, and the notes report this. Scores depend on the
    seed and the set of rows, not on their order.
    """

    stream: ClassVar[Stream] = streams.DETECTOR
    """The label of the detector's random stream; each detector has its own label in streams.py."""
    rows_per_component = 1

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        n_components: int = 16,
    ) -> None:
        super().__init__(options)
        self.n_components = validation.whole("defense.n_components", n_components, low=1)

    @abstractmethod
    def outlying(self, points: Any, seed: int) -> Any:
        """Returns the outlier scores (n,) of the rows of `points` float64 (n, k). Higher is more
        abnormal."""

    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        order = row_order(values)
        most = max(1, (len(values) - 1) // self.rows_per_component)
        points = self.components(values[order].cpu(), min(self.n_components, most))
        scores = torch.zeros(len(values), dtype=torch.float64)
        if len(points) < FEWEST or not points.shape[1]:
            return ClassScores(
                scores, notes={"skipped": "the class has fewer than three different examples"}
            )
        seed = derive(known.seed, self.stream, label) % 2**32
        scores[order] = torch.as_tensor(self.outlying(points.numpy(), seed), dtype=torch.float64)
        return ClassScores(scores)


class NeighborDetector(Detector):
    """A detector that compares each example with its `n_neighbors` nearest neighbors in the same
    class."""

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        n_neighbors: int = 20,
        n_components: int = 16,
    ) -> None:
        super().__init__(options, n_components=n_components)
        self.n_neighbors = validation.whole("defense.n_neighbors", n_neighbors, low=1)

    def search(self, points: Any) -> dict[str, Any]:
        """Returns scikit-learn's keyword arguments for a k-d tree search for the `n_neighbors`
        nearest neighbors, or for all other examples if there are fewer."""
        # Brute force would subtract large squares, so that duplicates would get a nonzero distance.
        return {"n_neighbors": min(self.n_neighbors, len(points) - 1), "algorithm": "kd_tree"}
