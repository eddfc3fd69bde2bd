"""One optimizer step changes only the optimizer's own tensors, and a non-finite loss raises an
error."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import backdoor_lab
from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import DivergedError, StoppedError
from backdoor_lab.numerics.descent import descend


def test_one_step_of_sgd_matches_a_computation_by_hand() -> None:
    weight = torch.tensor([2.0, -1.0], requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=0.5)
    for expected in ([0.0, 0.0], [0.0, 0.0]):
        descend(sgd, weight.square().sum(), "the loss")
        assert weight.tolist() == expected


def test_a_network_that_the_optimizer_does_not_update_gets_no_gradient() -> None:
    net = nn.Linear(3, 2)
    noise = torch.zeros(3, requires_grad=True)
    descend(torch.optim.SGD([noise], lr=1.0), net(noise).sum(), "the loss")
    assert noise.any()
    assert all(each.grad is None for each in net.parameters())


def test_frozen_and_unused_tensors_do_not_change() -> None:
    used, frozen, unused = torch.ones(2, requires_grad=True), torch.ones(2), torch.ones(2)
    unused.requires_grad_()
    sgd = torch.optim.SGD([used, frozen, unused], lr=1.0, weight_decay=0.5)
    descend(sgd, (used * frozen).sum(), "the loss")
    assert used.tolist() == [-0.5, -0.5]
    assert frozen.tolist() == unused.tolist() == [1, 1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_non_finite_loss_raises_an_error_before_the_step(bad: float) -> None:
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(DivergedError, match=f"the loss of the test is {bad}"):
        descend(torch.optim.SGD([weight], lr=1.0), weight.sum() * bad, "the loss of the test")
    assert weight.item() == 1


def test_no_step_is_taken_after_a_stop_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop() -> None:
        raise StoppedError("asked to")

    monkeypatch.setattr(shutdown, "check", stop)
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(StoppedError):
        descend(torch.optim.SGD([weight], lr=1.0), weight.sum(), "the loss")
    assert weight.item() == 1


def test_only_the_descent_module_calls_backward() -> None:
    """Lightning trains the classifiers. Two methods call `step` themselves: Sleeper Agent with the
    sign of a gradient, and ANP with the gradient of a weighted sum of two losses."""
    package = Path(backdoor_lab.__file__).parent
    found: dict[str, set[str]] = {"backward": set(), "step": set()}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = node.func.attr
                plain = isinstance(node.func.value, ast.Name) and not node.args
                if name == "backward" or (name == "step" and plain):
                    found[name].add(path.relative_to(package).as_posix())
    assert found["backward"] == {"numerics/descent.py"}
    others = {"attacks/sleeper_agent.py", "defenses/anp.py"}
    assert found["step"] == {"numerics/descent.py", *others}
