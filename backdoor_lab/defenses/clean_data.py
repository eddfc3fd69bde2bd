"""Control without an attack: a model trained on the clean training set."""

from __future__ import annotations

from backdoor_lab.defenses.oracle import Oracle


class CleanData(Oracle):
    """Retrains on the training set as it was before the attack.

    Appended poison is removed, as by `oracle`; replaced images, including those replaced by cover
    images, are restored. With ``placement=append`` and no cover images, the training set and the
    retraining stage are the same as for `oracle`. The filter result is always the same as for
    `oracle`.
    """

    restores = True
