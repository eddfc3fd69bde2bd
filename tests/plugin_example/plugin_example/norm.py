"""A defense: removes the images whose features are far from the mean of their class."""

from torch import Tensor

from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, SampleFilter


class FeatureNorm(SampleFilter):
    """Scores an image by the norm of its features to the power of `power`."""

    def __init__(self, *, power: float = 1.0) -> None:
        self.power = power

    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        return ClassScores(values.norm(dim=1) ** self.power)
