"""STRIP: a trigger decides also when another image is laid over it."""

from __future__ import annotations

from backdoor_lab.core import checks, streams
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import NetworkFilter, Rating, clean_of, logits
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class Strip(NetworkFilter):
    """Removes the images whose class the attacked network is sure of whatever is laid over them.

    Gao, Xu, Wang, Chen, Ranasinghe, Nepal, "STRIP: A Defence Against Trojan Attacks on Deep
    Neural Networks", ACSAC 2019, section 4. Over each image x clean images c_1..c_N that were
    held out are laid, clip(x + `overlay` · c_i, 0, 255); H = mean over i of the entropy in bits
    of the network's answer. Score: -H. ``budget=auto`` removes what lies below the entropy that
    a share `false_alarms` of the held-out images undercuts, by a normal fitted to theirs.

    The paper screens inputs at run time, here it cleans a training set. N = `overlays`, at most
    as many as are held out; every image gets the same ones, so that its score depends on
    nothing else than itself.
    """

    needs_clean = True

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        overlays: int = 100,
        overlay: float = 1.0,
        false_alarms: float = 0.01,
    ) -> None:
        super().__init__(options)
        self.overlays = checks.whole("defense.overlays", overlays, low=1)
        self.overlay = checks.number("defense.overlay", overlay, low=0, below=256)
        self.false_alarms = checks.number("defense.false_alarms", false_alarms, low=1e-9, below=1)

    def rate(self, material: Material, where: Tensor) -> Rating:
        clean = clean_of(material)
        order = torch.randperm(len(clean), generator=material.generator(streams.OVERLAYS))
        # The threshold comes from other images than those laid over, as long as there are some.
        split = min(self.overlays, max(1, len(clean) // 2))
        over, rest = clean.images[order[:split]], clean.images[order[split:]]
        network = material.network()

        def entropies(images: Tensor) -> Tensor:
            return entropy(network, images, over.to(material.device), self.overlay)

        parts = [
            entropies(material.images(part, None))
            for part in track(where.split(64), "group of images")
        ]
        found = torch.cat(parts)
        usual = entropies((rest if len(rest) else over).to(material.device))
        spread = usual.std(unbiased=False) * normal_quantile(self.false_alarms)
        threshold = float(usual.mean() + spread)
        return Rating(-found, found < threshold, {"threshold_bits": threshold})


def entropy(network: nn.Module, images: Tensor, over: Tensor, weight: float) -> Tensor:
    """The mean entropy in bits float64 (n,) of the answers to each of `images` uint8
    (n, C, H, W) with each of `over` uint8 (N, C, H, W) added, `weight` times, and clipped."""
    count, below = len(over), images.float()

    def mixed(start: int, stop: int) -> Tensor:
        at = torch.arange(start, stop, device=images.device)
        return (below[at // count] + weight * over[at % count].float()).clamp(0, 255)

    said = logits(network, mixed, len(images) * count).double()
    logs = said.log_softmax(dim=1)
    bits = -(logs.exp() * logs).sum(dim=1) / torch.tensor(2.0).double().log()
    return bits.view(len(images), count).mean(dim=1)


def normal_quantile(share: float) -> float:
    """The value that a share of a standard normal variable lies below."""
    return float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)))
