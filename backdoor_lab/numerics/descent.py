"""One step of gradient descent, used for weights, noise and masks."""

from __future__ import annotations

from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import DivergedError
from backdoor_lab.core.lazy import Tensor, torch


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, name: str) -> None:
    """Takes one step of `optimizer` that decreases `loss`.

    Only the optimizer's own tensors receive gradients; a model that the loss depends on is not
    modified. Before the step, raises DivergedError, with `name` in the message, if the loss is not
    finite, and StoppedError if the process has been asked to stop.
    """
    shutdown.check()
    if not bool(torch.isfinite(loss)):
        raise DivergedError(f"{name} is {loss.item()}; a lower learning rate may help")
    tensors = [each for group in optimizer.param_groups for each in group["params"]]
    optimizer.zero_grad()
    loss.backward(inputs=[each for each in tensors if each.requires_grad])
    optimizer.step()
