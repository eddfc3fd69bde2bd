"""Computes gradients of networks as the package does in training, each case in a separate process.

As a program, this module reads a JSON case per line from stdin and writes an answer per line to
stdout. The parent process imports everything and computes nothing. Each case runs in a fork, so
that a kernel that crashes, corrupts memory or hangs affects only this case.
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
"""The limit in seconds of CPU time, which a thread that hangs by spinning uses too. A limit on
wall-clock time would fail on a busy machine."""


def classifier(case: dict[str, Any], images: Tensor) -> Classifier:
    """The network of a case, as at the start of training on one CPU."""
    machine = ComputeDevice(torch.device("cpu"), case["bf16"], channels_last=True, threads=1)
    where = torch.arange(len(images))
    training = TrainingSet(images, images[:0], where, where % len(CLASSES), CLASSES, "", None)
    model = {"name": case["name"], "width": case["width"], "stem": case["stem"]}
    recipe = Recipe.of(
        {"name": "t", "epochs": 1, "batch_size": 2, "lr": 0.1, "schedule": "constant"}
    )
    some = torch.full((images.shape[1],), 64.0)
    return new_classifier(TrainingJob(model, recipe, training, 1, some, some), machine)


def drawn(case: dict[str, Any]) -> Tensor:
    """Random images in the memory format that augmentation produces, channels last."""
    shape = (case["batch"], case["side"], case["side"], case["channels"])
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return images.permute(0, 3, 1, 2)


def prepared(case: dict[str, Any], images: Tensor) -> Classifier:
    """The network as the package trains it. If the case is not `guarded`, its memory format is
    always channels last, even if oneDNN then returns wrong gradients."""
    module = classifier(case, images)
    if case["guarded"]:
        return module
    return Classifier(
        module.net, module.recipe, mean=module.mean.flatten(), std=module.std.flatten(),
        total_steps=1, memory_format="channels_last",
    )  # fmt: skip


def gradients(module: nn.Module, images: Tensor, *, bf16: bool) -> Tensor:
    """The gradient of all weights as one vector, float64."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        said = module(images)
    (said * torch.linspace(-1, 1, said.shape[1], dtype=said.dtype)).square().sum().backward()
    return torch.cat([x.grad.double().flatten() for x in module.parameters() if x.grad is not None])


def exact(module: Classifier, images: Tensor) -> Tensor:
    """The gradient of all weights, computed in float64 and the contiguous format, without
    oneDNN."""
    net = module.net.double().to(memory_format=torch.contiguous_format)
    mean, std = module.mean.double(), module.std.double()
    values = ((images.double() - mean) / std).flatten(1).unflatten(1, images.shape[1:])
    return gradients(net, values, bf16=False)


class Watched:
    """Records the input of each convolution of a network, and the gradient of its output."""

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
        """The error of each convolution's weight gradient, relative to the gradient that float64
        and the contiguous format yield from the same inputs."""
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
            # If the scale of a layer does not affect the loss, its gradient is 0 except for
            # rounding. Compare with the terms whose sum it is.
            yield distance(conv.weight.grad, truth, least=1e-3 * float(terms.norm()))


def distance(one: Tensor, other: Tensor, *, least: float = 0.0) -> float:
    """The length of `one` - `other`, divided by the length of `other` or by `least` if that is
    larger."""
    return float((one.double() - other).norm() / max(float(other.norm()), least, 1e-30))


def errors(case: dict[str, Any]) -> dict[str, float]:
    """The relative errors of the gradients of a case: the largest error of any convolution and, in
    float32, the error of the whole network. The error of a convolution is computed from its own
    input and output gradient.

    In bfloat16, the whole network is not compared: rounding alone can reverse its gradients.
    """
    torch.set_num_threads(case["threads"])
    images = drawn(case)
    # A batch of one image has no statistics. Use the running statistics, as some defenses do.
    module = prepared(case, images).train(case["batch"] > 1)
    watched = Watched(module.net, bf16=case["bf16"])
    ours = gradients(module, images, bf16=case["bf16"])
    found = {"convolution": max(watched.errors())}
    if not case["bf16"]:
        theirs = exact(classifier(case, images).train(case["batch"] > 1), images)
        found["network"] = distance(ours, theirs)
    return found


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """The case with its errors, or with the reason why its process `ended` without a result."""
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
    # When this timer expires, its default action ends the process, no matter what its threads are
    # doing.
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
