"""STRIP: a triggered image keeps its prediction when another image is superimposed."""

from __future__ import annotations

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelBasedFilter, SampleScores, clean_of, logits
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class STRIP(ModelBasedFilter):
    """Removes images whose prediction stays confident when clean images are superimposed.

    Gao, Xu, Wang, Chen, Ranasinghe, Nepal, "STRIP: A Defence Against Trojan Attacks on Deep Neural
    Networks", ACSAC 2019, section 4. Held-out clean images c_1..c_N are added to each image x:
    clip(x + `overlay_weight` · c_i, 0, 255). H is the mean over i of the entropy in bits of the
    attacked model's prediction. Score: -H. ``removal_budget=auto`` removes images with an entropy
    below the quantile `false_positive_rate` of a normal distribution fitted to the entropies of
    held-out images.

    The paper screens inputs at run time; this filter cleans a training set. N is `n_overlays`, at
    most half of the held-out images; all images get the same ones, so that the score of an image
    depends on that image alone.
    """

    needs_clean = True

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        n_overlays: int = 100,
        overlay_weight: float = 1.0,
        false_positive_rate: float = 0.01,
    ) -> None:
        super().__init__(options)
        self.n_overlays = validation.whole("defense.n_overlays", n_overlays, low=1)
        self.overlay_weight = validation.number(
            "defense.overlay_weight", overlay_weight, low=0, below=256
        )
        self.false_positive_rate = validation.number(
            "defense.false_positive_rate", false_positive_rate, low=1e-9, below=1
        )

    def score_images(self, context: DefenseContext, where: Tensor) -> SampleScores:
        clean = clean_of(context)
        order = torch.randperm(len(clean), generator=context.generator(streams.OVERLAYS))
        # If possible, the threshold is computed on other images than the overlays.
        split = min(self.n_overlays, max(1, len(clean) // 2))
        over, rest = clean.images[order[:split]], clean.images[order[split:]]
        network = context.network()

        def entropies(images: Tensor) -> Tensor:
            return entropy(network, images, over.to(context.device), self.overlay_weight)

        parts = [
            entropies(context.images(part, None))
            for part in track(where.split(64), "group of images")
        ]
        found = torch.cat(parts)
        usual = entropies((rest if len(rest) else over).to(context.device))
        spread = usual.std(unbiased=False) * normal_quantile(self.false_positive_rate)
        threshold = float(usual.mean() + spread)
        return SampleScores(-found, found < threshold, {"threshold_bits": threshold})


def entropy(network: nn.Module, images: Tensor, over: Tensor, weight: float) -> Tensor:
    """Mean entropy in bits, float64 (n,), of the predictions for each of `images` uint8
    (n, C, H, W) plus `weight` times each of `over` uint8 (N, C, H, W), clipped."""
    count, below = len(over), images.float()

    def mixed(start: int, stop: int) -> Tensor:
        at = torch.arange(start, stop, device=images.device)
        return (below[at // count] + weight * over[at % count].float()).clamp(0, 255)

    outputs = logits(network, mixed, len(images) * count).double()
    logs = outputs.log_softmax(dim=1)
    bits = -(logs.exp() * logs).sum(dim=1) / torch.tensor(2.0).double().log()
    return bits.view(len(images), count).mean(dim=1)


def normal_quantile(share: float) -> float:
    """The quantile `share` of the standard normal distribution."""
    return float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)))
