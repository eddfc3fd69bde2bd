"""The last linear layer and the layer hook are the same for training and defenses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import backdoor_lab
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.defenses import networks
from backdoor_lab.numerics.layers import FeatureHook, head
from backdoor_lab.training.evaluate import extract
from backdoor_lab.training.train import new_classifier
from tests.helpers.cells import CPU, job, toy_set


def test_a_defense_gets_the_extracted_penultimate_features() -> None:
    training = toy_set()
    module = new_classifier(job(training), CPU).eval()
    seen = networks.features(module, lambda a, b: training.shown(torch.arange(a, b)), len(training))
    assert seen.dtype == torch.float64
    assert not seen.requires_grad
    assert torch.equal(seen.float(), extract(module, training, "penultimate", CPU).values)
    assert not any(each._forward_pre_hooks for each in module.modules())


def test_the_head_of_a_network_is_its_last_linear_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), nn.Tanh())
    assert head(net).out_features == 2
    with FeatureHook(net, "penultimate") as tap:
        net(torch.ones(5, 4))
    assert tap.values.shape == (5, 3)
    with pytest.raises(ConfigError, match="Tanh has no linear layer"):
        head(nn.Tanh())


def test_forward_hooks_are_registered_in_one_module() -> None:
    """The hook in unused_columns.py is an exception: it reads only shapes."""
    allowed = {"numerics/layers.py", "training/unused_columns.py"}
    package = Path(backdoor_lab.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_forward_")
    }
    assert found == allowed
