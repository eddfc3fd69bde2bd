"""Checks of a network on random images of 3 x 32 x 32. Each takes the ``model`` group of a
configuration."""

from __future__ import annotations

from typing import Any

from backdoor_lab.check_plugin.finding import Checks, require
from backdoor_lab.check_plugin.triggers import COLOR, noise
from backdoor_lab.core.lazy import nn, torch
from backdoor_lab.sweep.trial import try_network
from backdoor_lab.training.models import build_model

CLASSES = 4
LAYER = "penultimate"
Model = dict[str, Any]


def _built(model: Model, seed: int = 0) -> nn.Module:
    return build_model(model, channels=COLOR[0], classes=CLASSES, seed=seed).eval()


def returns_logits(model: Model) -> None:
    """Checks the shape (n, classes) in training and in evaluation mode, and that the penultimate
    layer is found."""
    _, features = try_network(model, LAYER, COLOR, CLASSES)
    require(features > 0, "the penultimate layer has no features")
    net, images = _built(model), noise(3).float() / 255
    with torch.no_grad():
        logits = net(images)
    require(torch.isfinite(logits).all(), "a logit is not finite")
    require(logits.is_floating_point(), f"logits are {logits.dtype}")


def depends_only_on_the_seed(model: Model) -> None:
    """Checks that the same seed gives the same weights, and another seed others."""
    torch.manual_seed(1)
    first = _built(model).state_dict()
    torch.manual_seed(2)
    again, other = _built(model).state_dict(), _built(model, seed=1).state_dict()
    equal = first.keys() == again.keys() and all(torch.equal(v, again[k]) for k, v in first.items())
    require(equal, "the same seed gives other weights: use torch's global generator only")
    differs = any(not torch.equal(value, other[key]) for key, value in first.items())
    require(differs, "another seed gives the same weights")


def treats_images_separately(model: Model) -> None:
    """Checks that an image has the same logits in a batch and alone, in evaluation mode."""
    net, images = _built(model), noise(3).float() / 255
    with torch.no_grad():
        alike = torch.allclose(net(images)[1:2], net(images[1:2]), atol=1e-4)
    require(alike, "an image alone has other logits than in a batch")


def leaves_its_input(model: Model) -> None:
    """Checks that the images are not modified."""
    net, images = _built(model), noise(3).float() / 255
    before = images.clone()
    with torch.no_grad():
        net(images)
    require(torch.equal(images, before), "it modified the images")


CHECKS: Checks = {
    "returns logits and has a penultimate layer": returns_logits,
    "depends only on the seed": depends_only_on_the_seed,
    "treats images separately": treats_images_separately,
    "does not modify its input": leaves_its_input,
}
