"""Control without an attack: a model trained on the clean training set."""

from __future__ import annotations

from backdoor_lab.defenses.oracle import Oracle


class CleanData(Oracle):
    """Retrains on the training set as it was before the attack.

    Appended poison is removed, as by `oracle`; replaced images, including those replaced by
    cover images, are restored. With ``placement=append`` and no covers this is the oracle's
    training set and shares its retraining stage. Its verdict is the oracle's.
    """

    restores = True
