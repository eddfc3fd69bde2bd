"""The DCT against SciPy's, and the rule that a pattern must survive rounding."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from backdoor_lab.attacks.additive import Additive, add, dct_matrix, inverse_dct
from backdoor_lab.core.errors import ConfigError


class Flat(Additive):
    """One value everywhere."""

    def __init__(self, value: float) -> None:
        self.value = value

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        return torch.full((channels, height, width), self.value)


@pytest.mark.parametrize("n", [1, 2, 5, 17, 32])
def test_dct_matrix_is_orthonormal(n: int) -> None:
    """The transpose of the matrix is its inverse."""
    matrix = dct_matrix(n)
    assert torch.allclose(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (32, 32)])
def test_inverse_dct_inverts_the_dct_of_scipy(size: tuple[int, int]) -> None:
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).double()
    spectrum = torch.from_numpy(dctn(images.numpy(), axes=(1, 2), norm="ortho"))
    assert torch.allclose(inverse_dct(spectrum), images, atol=1e-12)


def test_image_plus_pattern_is_rounded_and_clipped() -> None:
    """Sums are rounded to the nearest gray level and never wrap around at 0 or 255."""
    images = torch.tensor([0, 100, 250], dtype=torch.uint8).view(3, 1, 1, 1)
    for value, expected in ((9.4, [9, 109, 255]), (9.6, [10, 110, 255]), (-9.6, [0, 90, 240])):
        assert add(images, torch.full((1, 1, 1), value)).flatten().tolist() == expected


def test_a_pattern_below_half_a_gray_level_is_refused() -> None:
    """Such a pattern is lost in rounding; a stronger one changes pixels."""
    images = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(add(images, torch.full((1, 16, 16), 0.49)), images)
    with pytest.raises(ConfigError, match="16x16 pixels the pattern is below half"):
        Flat(0.49)(images)
    assert not torch.equal(Flat(-0.51)(images), images)
