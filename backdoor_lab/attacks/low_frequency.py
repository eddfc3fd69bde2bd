"""A smooth trigger made of low frequencies."""

from __future__ import annotations

import logging

from backdoor_lab.attacks.additive import Additive
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.drawing import scale
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.core.rng import torch_generator

log = logging.getLogger(__name__)
COMMON = 0.05
"""Share of the images that must change class before the target of the search is updated."""


class LowFrequency(Additive):
    """Adds a smooth bright pattern without high-frequency artifacts to the whole image.

    Based on the smooth trigger of Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers:
    A Frequency Perspective", ICCV 2021. As in the authors' code, the pattern is smoothed by a
    Gaussian low-pass filter with a standard deviation of `sigma` pixels, 5 `sigma` taps (rounded)
    and zero padding. Then it is scaled, all channels together, to 0..`strength` gray levels, so
    that it makes images brighter. `sigma` is given for images of 32x32 pixels; for others it is
    multiplied by the shorter side / 32.

    The authors optimize the pattern on a trained model (`trigger=low_frequency_authors`). This
    pattern is not optimized: it is normal noise, drawn for each pixel and channel with
    `pattern_seed`.

    Rounding and clipping spread a little energy to other frequencies, as in the paper.
    """

    threat_model = ThreatModel(paper="knows data and model, to optimize the pattern")

    def __init__(self, *, strength: float = 51, sigma: float = 6, pattern_seed: int = 0) -> None:
        self.strength = validation.number("trigger.strength", strength, low=0.5)
        self.sigma = validation.number("trigger.sigma", sigma, low=0.01, below=4097)
        self.pattern_seed = validation.whole("trigger.pattern_seed", pattern_seed)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        generator = torch_generator(self.pattern_seed, streams.LOW_FREQUENCY)
        noise = torch.randn(channels, height, width, generator=generator, dtype=torch.float64)
        return (self.strength * _rescaled(_smooth(noise, self.sigma))).float()

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        _check_pixels(height, width)
        super().check_image_size(channels, height, width)


class OptimizedLowFrequency(Additive):
    """Adds a smooth bright pattern that is optimized to change the classes of clean images.

    The smooth trigger of Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers: A
    Frequency Perspective", ICCV 2021, computed as in the authors' code. The pattern v starts at
    zero. Each pass takes `images` training images x in random order. If the surrogate predicts the
    same class for x + v as for x, DeepFool finds a change r of x + v that the surrogate classifies
    as the target class, in less than `max_iter` - 1 steps. Then

        v ← R(S(v + S(r))),

    where S is the low-pass filter of `LowFrequency` and R scales v to 0..`strength`. With the
    probabilities p of the surrogate, its first prediction l and the target t, a step of DeepFool is

        r ← r + |p_t − p_l| w / |w|²,   w = ∇(p_t − p_l)   at x + v + (1 + `overshoot`) r,

    and the final r is multiplied by 1 + `overshoot`. The passes end as soon as v changes the
    prediction of a share `fooling_rate` of the images. If it does not, but changes that of more
    than 5 %, the next pass has their most common new class as its target; the first pass has the
    target of the attack. If `max_passes` passes do not suffice, the attack fails.

    Difference: after the search, the authors choose the most common new class as the target of the
    attack. Here the target is the configured one, and the log names the most common new class.
    """

    threat_model = ThreatModel(knows=("data", "model"))
    needs_preparing = True
    uses_surrogate = True

    def __init__(
        self,
        *,
        strength: float = 51,
        sigma: float = 6,
        images: int = 100,
        fooling_rate: float = 0.2,
        overshoot: float = 0.02,
        max_iter: int = 200,
        max_passes: int = 20,
    ) -> None:
        self.strength = validation.number("trigger.strength", strength, low=0.5)
        self.sigma = validation.number("trigger.sigma", sigma, low=0.01, below=4097)
        self.images = validation.whole("trigger.images", images, low=1)
        self.fooling_rate = validation.share("trigger.fooling_rate", fooling_rate)
        self.overshoot = validation.number("trigger.overshoot", overshoot, low=0)
        self.max_iter = validation.whole("trigger.max_iter", max_iter, low=3)
        self.max_passes = validation.whole("trigger.max_passes", max_passes, low=1)

    def prepare(self, context: AttackContext) -> dict[str, Tensor]:
        """Returns the pattern under the name ``pattern``: float32 (C, H, W), in gray levels.

        Raises ConfigError if it changes the class of too few images after the last pass.
        """
        generator = context.generator(streams.LOW_FREQUENCY)
        model = _Surrogate(context.surrogate(), context.device)
        where = torch.randperm(len(context.train), generator=generator)[: self.images]
        images = context.train.images[where].double()
        clean, target = model.classes(images), context.target
        pattern, best = torch.zeros(context.train.shape, dtype=torch.float64), 0
        for _ in track(range(self.max_passes), "pass"):
            for k in track(torch.randperm(len(images), generator=generator).tolist(), "image"):
                image = images[k : k + 1] + pattern
                if model.classes(image) == clean[k]:
                    change = self._deepfool(model, image, int(clean[k]), target)
                    pattern = self._updated(pattern, change)
            found = model.classes(images + pattern)
            changed = found[found != clean]
            common = int(changed.bincount(minlength=len(context.train.classes)).argmax())
            if pattern.any() and len(changed) / len(images) >= self.fooling_rate:
                name = context.train.classes[common]
                log.info("most images that the optimized pattern changes become %s", name)
                return {"pattern": pattern.float()}
            if len(changed) > COMMON * len(images):
                target = common
            best = max(best, len(changed))
        raise ConfigError(
            f"`trigger`: the pattern changed the class of only {best} of"
            f" {many(len(images), 'image')}, even in its best pass"
            f" (`trigger.max_passes={self.max_passes}`); lower `trigger.fooling_rate` or raise"
            " `trigger.strength`"
        )

    def _deepfool(self, model: _Surrogate, image: Tensor, label: int, target: int) -> Tensor | None:
        """Returns the change of `image`, float64 (1, C, H, W), of class `label`, that makes the
        surrogate predict `target`. Returns None if the steps do not suffice, or if one is zero or
        not finite."""
        change = torch.zeros_like(image)
        for _ in range(self.max_iter - 1):
            found, margin, slope = model.margin(image + change, target, label)
            if found == target:
                return change
            step = abs(margin) * slope / slope.square().sum()
            if not step.isfinite().all() or not step.any():
                return None
            change = change + (1 + self.overshoot) * step
        return None

    def _updated(self, pattern: Tensor, change: Tensor | None) -> Tensor:
        if change is None:
            return pattern
        smooth = _smooth(pattern + _smooth(change[0], self.sigma), self.sigma)
        # In the authors' code the pattern becomes NaN if the first image has the target class.
        return self.strength * _rescaled(smooth) if smooth.any() else pattern

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        found = self.state["pattern"]
        if found.shape != (channels, height, width):
            made_for, high, wide = found.shape
            raise ConfigError(
                f"`trigger`: the pattern was made for images of {high}x{wide} pixels with"
                f" {many(made_for, 'channel')}, and cannot be added to images of"
                f" {height}x{width} pixels with {many(channels, 'channel')}"
            )
        return found

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        _check_pixels(height, width)


class _Surrogate:
    """The predictions of the surrogate `network` and their gradients, on its `device`."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network, device

    def classes(self, images: Tensor) -> Tensor:
        """Returns the predicted classes of `images`, float64 (n, C, H, W): int64 (n,)."""
        with torch.no_grad():
            found: Tensor = self.network(images.to(self.device)).argmax(dim=1).cpu()
        return found

    def margin(self, image: Tensor, target: int, label: int) -> tuple[int, float, Tensor]:
        """Returns the predicted class of `image`, float64 (1, C, H, W), the probability of `target`
        minus that of `label`, and its gradient, which has the shape of the image."""
        with torch.enable_grad():
            given = image.to(self.device).requires_grad_()
            probabilities = self.network(given)[0].double().softmax(dim=0)
            margin = probabilities[target] - probabilities[label]
            (slope,) = torch.autograd.grad(margin, given)
        return int(probabilities.argmax()), float(margin.detach()), slope.cpu()


def _check_pixels(height: int, width: int) -> None:
    if height * width == 1:
        raise ConfigError(
            f"`trigger`: images of {height}x{width} pixels contain only the zero frequency;"
            " this trigger needs images of at least 2 pixels"
        )


def _smooth(image: Tensor, sigma: float) -> Tensor:
    """Returns `image`, float64 (C, H, W), after the low-pass filter; same shape."""
    height, width = image.shape[-2:]
    sigma = sigma * scale(height, width)
    return _filter(height, sigma) @ image @ _filter(width, sigma).T


def _filter(n: int, sigma: float) -> Tensor:
    """Returns the matrix (n, n) that applies a Gaussian filter to a row or column of n pixels. If
    the number of taps is even, there is one more tap after the pixel than before the pixel, as in
    the authors' code."""
    taps = max(1, round(5 * sigma))
    distance = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    kernel = torch.exp(-((distance / sigma) ** 2) / 2)
    kernel /= kernel.sum()
    tap = torch.arange(n) - torch.arange(n)[:, None] + (taps - 1) // 2
    return torch.where((tap >= 0) & (tap < taps), kernel[tap.clamp(0, taps - 1)], 0)


def _rescaled(image: Tensor) -> Tensor:
    """Returns `image`, rescaled so that its values range from 0 to 1."""
    image = image - image.min()
    return image / image.max()
