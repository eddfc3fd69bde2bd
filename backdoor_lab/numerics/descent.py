"""One step of gradient descent, for whatever an optimizer was made for: weights, noise, a mask."""

from __future__ import annotations

from backdoor_lab.core import stopping
from backdoor_lab.core.errors import Diverged
from backdoor_lab.core.lazy import Tensor, torch


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, name: str) -> None:
    """Takes one step of `optimizer` along the gradient of `loss`.

    Only the optimizer's own tensors get a gradient: a network that the loss passes through stays
    as it is. Raises Diverged, before the step, when the loss is not finite, naming it `name`, and
    Stopped when the process was asked to stop.
    """
    stopping.check()
    if not bool(torch.isfinite(loss)):
        raise Diverged(f"{name} is {loss.item()}")
    tensors = [each for group in optimizer.param_groups for each in group["params"]]
    optimizer.zero_grad()
    loss.backward(inputs=[each for each in tensors if each.requires_grad])
    optimizer.step()
