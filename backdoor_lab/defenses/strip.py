"""STRIP: a triggered image keeps its prediction when another image is superimposed."""

from __future__ import annotations

import zlib

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelBasedFilter, SampleScores, clean_of, logits
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class STRIP(ModelBasedFilter):
    """Removes images whose prediction stays confident when clean images are superimposed.

    Gao, Xu, Wang, Chen, Ranasinghe, Nepal, "STRIP: A Defence Against Trojan Attacks on Deep Neural
    Networks", ACSAC 2019, section 4. For each image x, `n_overlays` held-out clean images c_1..c_N
    are drawn with replacement and added: x + `overlay_weight` · c_i, without clipping, as in the
    authors' code. The score is -H, where H is the mean over i of the entropy, in bits, of the
    attacked model's prediction. ``removal_budget=auto`` removes the images whose H is at most the
    `false_positive_rate` quantile of a normal distribution fitted to the H of held-out images.

    One half of the held-out images is the pool of overlays, and the other half determines the
    threshold (the authors use 10,000 and 2,000 images). The overlays of an image depend on its
    pixels and the seed alone, so that equal images have equal scores. The paper screens inputs at
    run time; this filter cleans a training set.
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
        pool, rest = self._halves(context)
        network = context.network()

        def entropies(images: Tensor) -> Tensor:
            chosen = [drawn(context, each, len(pool), self.n_overlays) for each in images.cpu()]
            over = torch.stack(chosen).to(images.device)
            return entropy(network, images, pool, over, self.overlay_weight)

        parts = [
            entropies(context.images(part, None))
            for part in track(where.split(64), "group of images")
        ]
        found = torch.cat(parts)
        threshold = self.threshold(torch.cat([entropies(part) for part in rest.split(64)]))
        return SampleScores(-found, found <= threshold, {"threshold_bits": threshold})

    def threshold(self, usual: Tensor) -> float:
        """Returns the largest entropy at which an image is suspicious: the `false_positive_rate`
        quantile of a normal distribution fitted to `usual` (m,), the entropies of clean images."""
        spread = usual.std(unbiased=False) * normal_quantile(self.false_positive_rate)
        return float(usual.mean() + spread)

    @staticmethod
    def _halves(context: DefenseContext) -> tuple[Tensor, Tensor]:
        """Returns the two halves of the clean images, on the device: the pool of overlays, and the
        images that determine the threshold. A single clean image is in both."""
        clean = clean_of(context)
        order = torch.randperm(len(clean), generator=context.generator(streams.OVERLAYS))
        shuffled = clean.images[order].to(context.device)
        half = max(1, len(clean) // 2)
        return shuffled[:half], shuffled[half:] if len(clean) > 1 else shuffled


def drawn(context: DefenseContext, image: Tensor, pool: int, count: int) -> Tensor:
    """Returns the indices, int64 (count,), of an image's overlays, drawn with replacement from
    0..pool-1. The indices depend on the seed and the pixels of `image` uint8 (C, H, W), but not on
    the position of the image in the data set."""
    content = zlib.crc32(image.contiguous().numpy().tobytes())
    generator = context.generator(streams.OVERLAYS, content)
    return torch.randint(pool, (count,), generator=generator)


def entropy(
    network: nn.Module, images: Tensor, pool: Tensor, over: Tensor, weight: float
) -> Tensor:
    """Returns the entropy in bits of the predictions for overlaid `images` uint8 (n, C, H, W),
    averaged over the N overlays of each image: float64 (n,).

    The overlays are images of `pool` uint8 (m, C, H, W). An overlay is multiplied by `weight` and
    added to the image, without clipping. Row i of `over` int64 (n, N) has the indices into `pool`
    for image i.
    """
    count, flat = over.shape[1], over.flatten()

    def mixed(start: int, stop: int) -> Tensor:
        at = torch.arange(start, stop, device=images.device)
        return images[at // count].float() + weight * pool[flat[start:stop]].float()

    outputs = logits(network, mixed, len(flat)).double()
    logs = outputs.log_softmax(dim=1)
    bits = -(logs.exp() * logs).sum(dim=1) / torch.tensor(2.0).double().log()
    return bits.view(over.shape).mean(dim=1)


def normal_quantile(share: float) -> float:
    """Returns the quantile of the standard normal distribution at the probability `share`."""
    return float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)))
