"""What is known about the attack on a data set that was poisoned before it was read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImportedFacts:
    """The facts about an attack that can be read without images; None or empty if unknown.

    `trigger` is the trigger's name and `options` are its options. `target` and `source` are class
    names. `protocol` is the protocol's name with version, such as ``group13@1``, and `choices` are
    the keys of the protocol that describe the attack (``ratio_of``, ``placement``, ``poison_from``,
    ``asr_on``, ``label_mode``, ``cover_rate``). `n_poisoned` and `n_covers` are None without ground
    truth. `triggered` tells whether there are triggered test images.
    """

    trigger: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    target: str | None = None
    source: str | None = None
    ratio: float | None = None
    seed: int | None = None
    protocol: str | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    n_poisoned: int | None = None
    n_covers: int | None = None
    triggered: bool = False


@dataclass(frozen=True)
class ImportedAttack:
    """The ground truth and the triggered test images of a poisoned data set with n training images
    and t test images.

    `is_poison` and `is_cover`, bool (n,), mark poisoned images and cover images; `source_index`,
    int64 (n,), is the index of the clean image that an image was made from in the clean training
    set of the attack, -1 for clean images. All three are None if the ground truth is unknown.

    `triggered`, uint8 (k, C, H, W), are test images with the trigger; None if there are none.
    `wanted`, int64 (k,), are the labels that the attacker wants for them, and `test_index`,
    int64 (k,), the indices of the test images that they were made from, -1 if unknown. `elsewhere`,
    bool (k,), marks images of classes that are not attacked, on which a source-specific attack
    should fail; they do not count for the attack success rate.

    `normalization`: the mean and the standard deviation of each channel, on the 0..255 scale, by
    which the attacked networks were normalized; None if unknown.
    """

    is_poison: NDArray[np.bool_] | None = None
    is_cover: NDArray[np.bool_] | None = None
    source_index: NDArray[np.int64] | None = None
    triggered: NDArray[np.uint8] | None = None
    wanted: NDArray[np.int64] | None = None
    test_index: NDArray[np.int64] | None = None
    elsewhere: NDArray[np.bool_] | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
