"""Columns of a convolution kernel that see only padding have gradient 0, also in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from backdoor_lab.training.train import new_classifier
from backdoor_lab.training.unused_columns import guard_unused_columns, unused_columns
from tests.helpers.cells import CPU, job, training_set


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 2, 1, 1), (3, 3, 1, 1), (3, 4, 1, 1), (5, 2, 2, 1), (5, 3, 2, 1), (7, 2, 3, 1),
     (2, 2, 1, 1), (3, 2, 2, 2), (3, 2, "valid", 1), (1, 2, 0, 1)],
)  # fmt: skip
def test_unused_columns_of_a_kernel_are_exactly_those_without_a_gradient(
    width: int, kernel: int, stride: int, padding: int | str, dilation: int
) -> None:
    if padding == "valid" and width < kernel:
        pytest.skip("no output")
    conv = nn.Conv2d(1, 1, kernel, stride, padding, dilation).double()
    conv(torch.ones(1, 1, 8, width, dtype=torch.float64)).sum().backward()
    assert conv.weight.grad is not None
    found = conv.weight.grad[0, 0].eq(0).all(dim=0).nonzero().flatten().tolist()
    side = conv._reversed_padding_repeated_twice[0]
    assert list(unused_columns(width, kernel, stride, side, side, dilation)) == found


def test_wrong_values_in_unused_gradient_columns_are_set_to_zero() -> None:
    conv = nn.Conv2d(1, 1, 3, 2, 1)
    guard_unused_columns(conv)
    conv(torch.ones(2, 1, 1, 1))
    gradient = torch.full((1, 1, 3, 3), torch.nan)
    gradient[..., 1] = 5
    conv.weight.grad = None
    (conv.weight * gradient.nan_to_num(nan=1e30)).sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad[..., 1].eq(5).all()
    assert conv.weight.grad[..., [0, 2]].eq(0).all()


def test_the_weight_gradient_is_unchanged_if_no_kernel_column_sees_only_padding() -> None:
    conv = nn.Conv2d(1, 1, 3, 2, 1)
    guard_unused_columns(conv)
    conv(torch.ones(2, 1, 1, 1))
    conv(torch.ones(2, 1, 8, 8))
    conv.weight.grad = None
    (conv.weight * 7).sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.eq(7).all()


@pytest.mark.parametrize(("bf16", "guarded"), [(True, True), (False, False)])
def test_unused_gradient_columns_are_cleared_only_in_bfloat16_training(
    bf16: bool, guarded: bool
) -> None:
    """With 16x16 images the input of the last stage has one pixel, so most columns of its kernels
    are applied only to padding."""
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    training = training_set(images, torch.zeros(4, dtype=torch.int64))
    asked = replace(job(training), model={"name": "resnet18", "width": 4, "stem": "imagenet"})
    module = new_classifier(replace(asked, std=torch.ones(3)), replace(CPU, bf16=bf16)).train()
    module(images)
    weight = module.get_parameter("net.layer4.0.conv1.weight")
    (weight * 3).sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad[..., 0].eq(0).all()) == guarded
