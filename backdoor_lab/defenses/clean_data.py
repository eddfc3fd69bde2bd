"""The control without an attack: a network trained on the clean training set."""

from __future__ import annotations

from backdoor_lab.defenses.oracle import Oracle


class CleanData(Oracle):
    """Trains again on the training set as it was before the attack: what no attack would give.

    Poison that was appended is gone, as under `oracle`; poison that replaced its original gives
    way to it, and so do covers. With ``inject=append`` and no covers it is the oracle's training
    set, and its network is the same stage. It judges as the oracle does.
    """

    restores = True
