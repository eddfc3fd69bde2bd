"""Adaptive-Blend's poison, covers and test images by NumPy, from the authors' code."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from backdoor_lab.attacks.adaptive_blend import AdaptiveBlend
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.core.types import LabeledImages
from tests.helpers.mutations import Mutation

FILE = "attacks/adaptive_blend.py"
MUTATIONS = [
    Mutation(FILE, "alpha * (self.pattern(*images.shape[1:]).to(images.device) - values)",
             "alpha * self.pattern(*images.shape[1:]).to(images.device)", "the pattern is added"),
    Mutation(FILE, "self.shown = pieces - round(rate * pieces)", "self.shown = pieces",
             "no piece is hidden"),
    Mutation(FILE, "self._blend(images, self.strength_test, None)",
             "self._blend(images, self.strength_train, None)", "the opacity of training"),
    Mutation(FILE, "order[:, : self.shown]", "order[:1, : self.shown].expand(n, -1)",
             "the same pieces in every image"),
]  # fmt: skip


def test_half_of_the_sixteen_pieces_are_blended_at_the_training_opacity() -> None:
    """x' = x + 0.15 m (t - x), where each poison and cover image has its own mask m. Test images
    show the whole pattern at 0.2."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (40, 3, 32, 32), generator=generator).byte()
    labels, clean = torch.zeros(40).long(), images.double().numpy()
    context = AttackContext(LabeledImages(images, labels, ("a", "b")), 1, None, 0, nn.Module)
    trigger = AdaptiveBlend()
    pattern = trigger.pattern(3, 32, 32).double().numpy()
    assert pattern.min() < 10
    assert pattern.max() > 245
    assert np.abs(trigger(images).numpy() - clean - 0.2 * (pattern - clean)).max() < 0.501
    whole = clean + 0.15 * (pattern - clean)
    for make in (trigger.poisoned, trigger.make_covers):
        made = make(images, labels, context).double().numpy()
        masks = set()
        for found, untouched, blended in zip(made, clean, whole, strict=True):
            shown = []
            for top in range(0, 32, 8):
                for left in range(0, 32, 8):
                    at = (slice(None), slice(top, top + 8), slice(left, left + 8))
                    hidden = bool((found[at] == untouched[at]).all())
                    assert hidden or np.abs(found[at] - blended[at]).max() < 0.501
                    shown.append(not hidden)
            assert sum(shown) == 8
            masks.add(tuple(shown))
        assert len(masks) > 30
