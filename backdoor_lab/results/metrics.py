"""The measures of a record: their table headings, units, meaning, and whether high or low is
better."""

from __future__ import annotations

from dataclasses import dataclass

IMAGES, PERCENT, SHARE = "images", "percent", "share"
_BEFORE = ("nat1", "asr1", "asr_elsewhere1", "clean_rate1", "top_share1", "train_accuracy1")
_UNDER, _CLASS = "_under.", "_class."
TRANSFORMED = ("nat1", "asr1", "nat2", "asr2")
"""The measures that are repeated on test images under each transformation in the config; most
configs have none."""
UNDER = tuple(figure + _UNDER for figure in TRANSFORMED)
"""Prefixes of measures on transformed test images, for example ``asr1_under.jpeg75``."""
BY_CLASS = ("nat1" + _CLASS, "nat2" + _CLASS)
"""Prefixes of the accuracies on the test images of one class, for example ``nat2_class.cat``."""


def before_defense(name: str) -> bool:
    """Whether a measure describes the network before the defense and is therefore the same for all
    defenses.

    >>> before_defense("asr1"), before_defense("asr2")
    (True, False)
    """
    return figure_of(name) in _BEFORE


def figure_of(name: str) -> str:
    """Returns the name of a measure without its transformation or class: ``asr1`` for
    ``asr1_under.jpeg75``, ``nat2`` for ``nat2_class.cat``."""
    return name.partition(_CLASS if name.startswith(BY_CLASS) else _UNDER)[0]


def class_name(name: str) -> str:
    """Returns the class of a measure whose prefix is in `BY_CLASS`: ``cat`` for
    ``nat2_class.cat``."""
    return name.partition(_CLASS)[2]


def under_name(figure: str, transformation: str) -> str:
    """Returns the name of a measure under a transformation, such as ``asr1_under.jpeg75``."""
    return figure + _UNDER + transformation


@dataclass(frozen=True)
class Metric:
    """A measure. `unit`: number of images, percent, or a fraction 0..1. `better`: 1 if the defender
    wants it high, -1 if low, 0 if neither. `says`: its meaning, shown below tables. `of`: if the
    measure is a fraction of a count in the record, the name of this count; otherwise empty."""

    head: str
    unit: str
    better: int
    says: str
    of: str = ""

    @property
    def scale(self) -> int:
        """The factor that converts a record's value to the unit in tables."""
        return 100 if self.unit == PERCENT else 1

    def digits(self, n: int) -> int:
        """Returns the number of decimal places to show for a mean over `n` values."""
        if self.unit == IMAGES:
            return 0 if n == 1 else 1
        return 2 if self.unit == PERCENT else 3


_NAT = "accuracy on clean test images {} the defense, in %"
_ASR = "share of triggered test images classified as the target {} the defense, in %"
_ELSEWHERE = (
    "share of triggered test images from classes that are not attacked, classified as the target"
    " {} the defense, in %"
)
_CLEAN = (
    "share of the ASR's test images classified as the target without the trigger {} the defense,"
    " in %"
)
_TOP = "share of clean test images predicted as the most frequent class {} the defense, in %"

_FITTED = "accuracy on the images that the network {} the defense was trained on, in %"


class _Measures(dict[str, Metric]):
    """The measures by name; those on transformed images and on the images of one class are created
    on access."""

    def __missing__(self, name: str) -> Metric:
        if name.startswith(BY_CLASS):
            plain, of = self[figure_of(name)], class_name(name)
            says = plain.says.replace("test images", f"test images of class {of}")
            return Metric(f"{plain.head} {of}", plain.unit, plain.better, says)
        figure, _, transformation = name.partition(_UNDER)
        if not transformation or figure + _UNDER not in UNDER:
            raise KeyError(name)
        plain = self[figure]
        says = plain.says.replace(", in %", f", after the transformation {transformation}, in %")
        head = f"{plain.head} {transformation}"
        return Metric(head, plain.unit, plain.better, says, plain.of)


MEASURE = _Measures({
    "n_train": Metric("#Train", IMAGES, 0, "training images, including poison"),
    "n_clean": Metric("#Clean", IMAGES, 0, "training images of the clean data set"),
    "n_poisoned": Metric("#Pois", IMAGES, 0, "poisoned training images"),
    "n_covers": Metric("#Covers", IMAGES, 0, "triggered training images with their true label"),
    "n_eligible": Metric("#Eligible", IMAGES, 0, "training images eligible for poisoning"),
    "n_removed": Metric("#Removed", IMAGES, 0, "training images that the defense removed"),
    "pois_left": Metric("#Pois Left", IMAGES, -1, "poisoned images not removed by the defense"),
    "covers_left": Metric("#Covers Left", IMAGES, 0, "covers not removed by the defense"),
    "n_accused": Metric("#Accused", IMAGES, 0, "classes that the filter flagged as poisoned"),
    "n_named": Metric("#Named", IMAGES, 0, "flagged classes that contain poison"),
    "nat1": Metric("Nat1", PERCENT, 1, _NAT.format("before"), "n_test"),
    "asr1": Metric("ASR1", PERCENT, 0, _ASR.format("before"), "n_asr"),
    "nat2": Metric("Nat2", PERCENT, 1, _NAT.format("after"), "n_test"),
    "asr2": Metric("ASR2", PERCENT, -1, _ASR.format("after"), "n_asr"),
    "asr_elsewhere1": Metric("ASR1 elsewhere", PERCENT, 0, _ELSEWHERE.format("before")),
    "asr_elsewhere2": Metric("ASR2 elsewhere", PERCENT, -1, _ELSEWHERE.format("after")),
    "clean_rate1": Metric("Clean rate 1", PERCENT, 0, _CLEAN.format("before"), "n_asr"),
    "clean_rate2": Metric("Clean rate 2", PERCENT, 0, _CLEAN.format("after"), "n_asr"),
    "top_share1": Metric("Top share 1", PERCENT, 0, _TOP.format("before"), "n_test"),
    "top_share2": Metric("Top share 2", PERCENT, 0, _TOP.format("after"), "n_test"),
    "train_accuracy1": Metric("Train acc. 1", PERCENT, 1, _FITTED.format("before")),
    "train_accuracy2": Metric("Train acc. 2", PERCENT, 1, _FITTED.format("after")),
    "auroc": Metric("AUROC", SHARE, 1, "chance that a poisoned image scores above a clean one"),
    "average_precision": Metric("AP", SHARE, 1, "average precision of the scores"),
    "tpr": Metric("TPR", SHARE, 1, "share of the poison that was removed"),
    "fpr": Metric("FPR", SHARE, -1, "share of the clean images that were removed"),
    "tpr_at_1": Metric("TPR@1%", SHARE, 1, "share of the poison found at 1 % false alarms"),
    "tpr_at_5": Metric("TPR@5%", SHARE, 1, "share of the poison found at 5 % false alarms"),
})  # fmt: skip
