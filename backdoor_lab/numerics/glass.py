"""Reflections in a window pane: an image behind glass, mixed with a scene in linear light.

All tensors are float64. Images and scenes have the shape (n, channels, height, width) and values in
0..1; those called linear have been raised to the power `GAMMA`. Parameters that are drawn for each
image have the shape (n,). Lengths are in pixels at the resolution at which the longer side of an
image is `SIDE` pixels.
"""

from __future__ import annotations

from backdoor_lab.core.lazy import F, Tensor, torch

GAMMA = 2.2
SIDE = 560
"""The authors enlarge images to this longer side."""
RADIUS = 3
"""Standard deviations of the Gaussian that fades a blurred reflection, on half of the side."""


def ghost(scene: Tensor, down: Tensor, right: Tensor, first: Tensor) -> Tensor:
    """Returns the reflection of a scene in thick glass, both in linear light: two copies, displaced
    by `down` and `right` pixels, with the weights `first` and 1 - `first`. The area where the
    copies overlap is enlarged to the size of the scene."""
    height, width = scene.shape[2:]
    rows, columns = (
        offset * max(height, width) / (SIDE * side)
        for offset, side in ((down, height), (right, width))
    )
    weight = first[:, None, None, None]
    return weight * _part(scene, rows, columns) + (1 - weight) * _part(scene, -rows, -columns)


def _part(scene: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Crops the scene by the fraction `rows` of its height and the fraction `columns` of its width,
    then enlarges the rest to the original size. Positive fractions are cut off at the top and left,
    negative ones at the bottom and right."""
    zero = torch.zeros_like(rows)
    across = torch.stack([1 - columns.abs(), zero, columns], dim=1)
    along = torch.stack([zero, 1 - rows.abs(), rows], dim=1)
    grid = F.affine_grid(torch.stack([across, along], dim=1), list(scene.shape), False)
    return F.grid_sample(scene, grid, padding_mode="border", align_corners=False)


def blurred(scene: Tensor, sigma: Tensor) -> Tensor:
    """Blurs a linear scene by a Gaussian of standard deviation `sigma`, as if out of focus."""
    height, width = scene.shape[2:]
    pixels = sigma * max(height, width) / SIDE
    return _gaussian(height, pixels) @ scene @ _gaussian(width, pixels).transpose(2, 3)


def _gaussian(n: int, sigma: Tensor) -> Tensor:
    """Returns the matrices of Gaussian blurs along one axis of n pixels: (len(sigma), 1, n, n),
    with rows that sum to one."""
    at = torch.arange(n, dtype=torch.float64, device=sigma.device)
    squares = ((at[:, None] - at) ** 2)[None, None]
    return torch.softmax(-squares / (2 * sigma[:, None, None, None] ** 2), dim=3)


def darkened(scene: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """Darkens a linear scene if its sum with a linear image is above 1 at some pixels.

    From each channel, subtracts `factor` times the mean amount by which the sum exceeds 1 at such
    pixels. The result is clipped to 0..1.
    """
    total = scene + image
    over = (total > 1).double()
    mean = (total * over).sum(dim=(2, 3)) / (over.sum(dim=(2, 3)) + 1e-6)
    excess = (mean.clamp(min=1) - 1) * factor[:, None]
    return (scene - excess[:, :, None, None]).clamp(0, 1)


def fading(scene: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Returns the weights (n, 1, height, width) by which blurred reflections are multiplied so that
    they fade towards the edges; height and width are those of `scene`.

    The weights are computed for a square and are 1 at its center. For a scene that is not square,
    the square is cropped: a fraction `top` of the rows cut off lies above the crop, and a fraction
    `left` of the columns cut off lies to the left of the crop.
    """
    sides = []
    for n, share in zip(scene.shape[2:], (top, left), strict=True):
        part = n / max(scene.shape[2:])
        at = (torch.arange(n, dtype=torch.float64, device=top.device) + 0.5) / n
        place = share[:, None] * (1 - part) + at * part
        sides.append(torch.exp(-((RADIUS * (2 * place - 1)) ** 2) / 4))
    return (sides[0][:, :, None] * sides[1][:, None, :])[:, None]
