"""The gradients of networks as the lab trains them, each case in a process of its own.

Run as a program: one case in JSON on each line of stdin, one answer on each of stdout. The parent
imports everything and computes nothing; each case is a fork of it, so that a kernel which crashes,
corrupts memory or hangs ends that case alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from backdoor_lab.core.types import TrainingSet
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.train import TrainingJob, new_classifier

CLASSES = tuple("abcde")
HANGS_AFTER_S = 40
"""Seconds of computing, as long as a spinning thread computes: a busy machine is no failure."""


def classifier(case: dict[str, Any], images: Tensor) -> Classifier:
    """A network as a training on one CPU begins with it."""
    machine = ComputeDevice(torch.device("cpu"), case["bf16"], channels_last=True, threads=1)
    where = torch.arange(len(images))
    training = TrainingSet(images, images[:0], where, where % len(CLASSES), CLASSES, "", None)
    model = {"name": case["name"], "width": case["width"], "stem": case["stem"]}
    recipe = Recipe.of({"name": "t", "epochs": 1, "batch": 2, "lr": 0.1, "schedule": "constant"})
    some = torch.full((images.shape[1],), 64.0)
    return new_classifier(TrainingJob(model, recipe, training, 1, some, some), machine)


def drawn(case: dict[str, Any]) -> Tensor:
    """Random images that lie in memory as augmentation leaves them: channels last."""
    shape = (case["batch"], case["side"], case["side"], case["channels"])
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return images.permute(0, 3, 1, 2)


def prepared(case: dict[str, Any], images: Tensor) -> Classifier:
    """The network as the lab trains it; without the guard, channels last whatever its width."""
    module = classifier(case, images)
    if case["guarded"]:
        return module
    return Classifier(
        module.net, module.recipe, mean=module.mean.flatten(), std=module.std.flatten(),
        total_steps=1, memory_format="channels_last",
    )  # fmt: skip


def gradients(module: nn.Module, images: Tensor, *, bf16: bool) -> Tensor:
    """The gradient of all weights, float64 in one row."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        said = module(images)
    (said * torch.linspace(-1, 1, said.shape[1], dtype=said.dtype)).square().sum().backward()
    return torch.cat([x.grad.double().flatten() for x in module.parameters() if x.grad is not None])


def exact(module: Classifier, images: Tensor) -> Tensor:
    """The gradients in float64 and contiguous layout; no kernel of oneDNN has part in them."""
    net = module.net.double().to(memory_format=torch.contiguous_format)
    mean, std = module.mean.double(), module.std.double()
    values = ((images.double() - mean) / std).flatten(1).unflatten(1, images.shape[1:])
    return gradients(net, values, bf16=False)


class Watched:
    """What goes into each convolution of a network, and the gradient of what comes out."""

    def __init__(self, net: nn.Module, *, bf16: bool) -> None:
        self.seen: dict[nn.Conv2d, list[Tensor]] = {}
        self.number = torch.bfloat16 if bf16 else torch.float32
        for each in net.modules():
            if isinstance(each, nn.Conv2d):
                each.register_forward_hook(self._watch)

    def _watch(self, conv: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen[conv] = [inputs[0].detach().to(self.number)]
        output.register_hook(lambda gradient: self.seen[conv].append(gradient.detach()))

    def errors(self) -> Iterator[float]:
        """How far each convolution's weight gradient is from that of the very same numbers in
        float64 and contiguous layout."""
        for conv, tensors in self.seen.items():
            values, gradient = (
                each.double().flatten(1).unflatten(1, each.shape[1:]) for each in tensors
            )
            shape, where = conv.weight.shape, (conv.stride, conv.padding)
            truth, terms = (
                torch.nn.grad.conv2d_weight(x, shape, g, *where)  # type: ignore[arg-type]
                for x, g in ((values, gradient), (values.abs(), gradient.abs()))
            )
            assert conv.weight.grad is not None
            # A layer whose scale decides nothing has a gradient of 0, rounding apart: there the
            # terms that cancel are the measure.
            yield distance(conv.weight.grad, truth, least=1e-3 * float(terms.norm()))


def distance(one: Tensor, other: Tensor, *, least: float = 0.0) -> float:
    """The length of the difference relative to that of `other`, or to `least` where it is less."""
    return float((one.double() - other).norm() / max(float(other.norm()), least, 1e-30))


def errors(case: dict[str, Any]) -> dict[str, float]:
    """How far the gradients are off, relative to their length: those of the worst
    convolution, given its input and what comes back to it; and in float32 of the whole network.

    The whole network says nothing in bfloat16, whose rounding alone turns gradients around.
    """
    torch.set_num_threads(case["threads"])
    images = drawn(case)
    # One image has no statistics: there the running ones are used, as in some defenses.
    module = prepared(case, images).train(case["batch"] > 1)
    watched = Watched(module.net, bf16=case["bf16"])
    ours = gradients(module, images, bf16=case["bf16"])
    found = {"convolution": max(watched.errors())}
    if not case["bf16"]:
        theirs = exact(classifier(case, images).train(case["batch"] > 1), images)
        found["network"] = distance(ours, theirs)
    return found


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """The case with its errors, or with how its process `ended`."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _die_with_an_answer(case, write)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return {**case, "ended": signal.Signals(os.WTERMSIG(status)).name}
    return {**case, **json.loads(said)} if said else {**case, "ended": "exception"}


def _die_with_an_answer(case: dict[str, Any], write: int) -> NoReturn:
    # By default a timer ends the process whatever its threads are doing.
    signal.setitimer(signal.ITIMER_PROF, HANGS_AFTER_S)
    try:
        os.write(write, json.dumps(errors(case)).encode())
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
