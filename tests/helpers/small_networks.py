"""Tiny networks of other kinds: a vision transformer and a MobileNetV3 of timm, a wide ResNet."""

from __future__ import annotations

from typing import Any

from torch import nn

from backdoor_lab.training.models import build_model

VIT_OPTIONS = {"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 4}
VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224", "width": None, "stem": None, "library": "timm",
    "options": VIT_OPTIONS, "input_size": 16,
}  # fmt: skip
MOBILENET: dict[str, Any] = {
    "name": "mobilenetv3_small_050", "width": None, "stem": None, "library": "timm",
}  # fmt: skip
WIDE: dict[str, Any] = {"name": "wideresnet10_1", "width": None, "stem": None}
NO_WIDTH = "model.width=null"
VIT_WORDS = (
    "model=timm", NO_WIDTH, "model.input_size=16",
    "model.options={depth: 2, embed_dim: 24, num_heads: 3, patch_size: 4}",
)  # fmt: skip
MOBILENET_WORDS = ("model=timm", NO_WIDTH, "model.name=mobilenetv3_small_050")
WIDE_WORDS = ("model=wideresnet", NO_WIDTH, "model.name=wideresnet10_1")


def small(model: dict[str, Any] = VIT, channels: int = 3, classes: int = 10) -> nn.Module:
    """Build one of these networks."""
    return build_model(model, channels=channels, classes=classes, seed=0)
