"""Fine-pruning: channels that clean images leave asleep go, then the rest is fine-tuned."""

from __future__ import annotations

from backdoor_lab.core import checks, streams
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import Repair, clean_batches, clean_of, features, train
from backdoor_lab.numerics.layers import head


class FinePruning(Repair):
    """Prunes the dormant channels of the attacked network and trains on with clean images.

    Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
    Networks", RAID 2018, section 3. The channels that feed the last linear layer,
    which in a ResNet are those of the last convolutions after pooling, are cut off in the order
    of their mean absolute activation on held-out clean images, least first, for as long as the
    accuracy on these falls by no more than `drop`. Then `epochs` passes of SGD over them with
    rate `lr`; pruned channels stay cut off.

    It rests on channels that only the trigger wakes. Where a triggered image has the very features
    of its target class there are none in this layer, and pruning ends the attack no sooner than
    the accuracy; held-out images that are fitted already give fine-tuning no gradient.
    """

    def __init__(
        self,
        *,
        drop: float = 0.04,
        epochs: int = 10,
        lr: float = 0.01,
    ) -> None:
        self.drop = checks.number("defense.drop", drop, low=0, below=1)
        self.epochs = checks.whole("defense.epochs", epochs, low=0)
        self.lr = checks.number("defense.lr", lr, low=0)

    def check_network(self, network: nn.Module, features: int) -> None:
        head(network)

    def repair(self, material: Material) -> tuple[nn.Module, dict[str, object]]:
        network, clean = material.network(), clean_of(material)
        last = head(network)
        values = features(network, lambda a, b: clean.images[a:b].to(material.device), len(clean))
        pruned = dormant(values, last, clean.labels, self.drop).to(material.device)

        def cut_off() -> None:
            with torch.no_grad():
                last.weight[:, pruned] = 0

        cut_off()
        rates = self.lr, material.practice.momentum, material.practice.weight_decay
        train(network, clean_batches(material, self.epochs, streams.TUNING), rates, after=cut_off)
        return network, {"pruned": len(pruned), "of": values.shape[1]}


def dormant(values: Tensor, last: nn.Linear, labels: Tensor, drop: float) -> Tensor:
    """Which columns of `values` float64 (n, d) to prune: positions int64, least active first.

    At least one column stays.
    """
    weight = last.weight.detach().double().cpu()
    said = values @ weight.T
    if last.bias is not None:
        said = said + last.bias.detach().double().cpu()
    least = accuracy(said, labels) - drop
    order = values.abs().mean(dim=0).sort(stable=True).indices
    for count, column in enumerate(order.tolist()):
        said = said - values[:, column, None] * weight[:, column]
        if accuracy(said, labels) < least - 1e-12:
            return order[:count]
    return order[:-1]


def accuracy(said: Tensor, labels: Tensor) -> float:
    """The share of rows of the logits `said` (n, classes) whose largest is at their label."""
    return float((said.argmax(dim=1) == labels).double().mean())
