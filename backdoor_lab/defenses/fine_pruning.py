"""Fine-pruning: prunes channels that are inactive on clean images, then fine-tunes."""

from __future__ import annotations

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelRepair, clean_batches, clean_of, features, train
from backdoor_lab.numerics.layers import head


class FinePruning(ModelRepair):
    """Prunes dormant channels of the attacked model and fine-tunes it on clean images.

    Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
    Networks", RAID 2018, section 3. The inputs of the last linear layer (in a ResNet the pooled
    channels of the last convolutions) are pruned in increasing order of their mean activation on
    held-out clean images, as long as the accuracy on these images drops by at most
    `max_accuracy_drop`. Then the model is trained on the held-out images by SGD for `epochs` epochs
    with learning rate `lr`; pruned channels stay pruned.

    The stopping rule is the paper's; the authors' code prunes a fixed number of channels: 48 of 60
    for faces and 250 of 256 for speech. Neither the paper nor the code gives the number of epochs
    or the learning rate of the fine-tuning; momentum and weight decay are the recipe's, which must
    use SGD.

    The method assumes that some channels are activated only by the trigger. If triggered images
    have the same features as their target class, this layer has no such channels, and pruning stops
    the attack only when it also destroys accuracy. Held-out images that the model already fits
    contribute almost no gradient.
    """

    needs_sgd = True

    def __init__(
        self,
        *,
        max_accuracy_drop: float = 0.04,
        epochs: int = 10,
        lr: float = 0.01,
    ) -> None:
        self.max_accuracy_drop = validation.number(
            "defense.max_accuracy_drop", max_accuracy_drop, low=0, below=1
        )
        self.epochs = validation.whole("defense.epochs", epochs, low=0)
        self.lr = validation.number("defense.lr", lr, low=0)

    def check_network(self, network: nn.Module, features: int) -> None:
        head(network)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        network, clean = context.network(), clean_of(context)
        last = head(network)
        values = features(network, lambda a, b: clean.images[a:b].to(context.device), len(clean))
        pruned = dormant(values, last, clean.labels, self.max_accuracy_drop).to(context.device)

        def cut_off() -> None:
            with torch.no_grad():
                last.weight[:, pruned] = 0

        cut_off()
        rates = self.lr, context.hyperparameters.momentum, context.hyperparameters.weight_decay
        train(network, clean_batches(context, self.epochs, streams.TUNING), rates, after=cut_off)
        return network, {"pruned": len(pruned), "of": values.shape[1]}


def dormant(values: Tensor, last: nn.Linear, labels: Tensor, max_accuracy_drop: float) -> Tensor:
    """Returns the indices, int64 (k,), of the inputs to prune of the final linear layer (`last`).
    Inputs with the smallest mean over the images come first.

    `values` float64 (n, d) are the inputs of `last` for n images with the labels `labels` int64
    (n,). At least one input is kept.
    """
    weight = last.weight.detach().double().cpu()
    outputs = values @ weight.T
    if last.bias is not None:
        outputs = outputs + last.bias.detach().double().cpu()
    least = accuracy(outputs, labels) - max_accuracy_drop
    order = values.mean(dim=0).sort(stable=True).indices
    for count, column in enumerate(order.tolist()):
        outputs = outputs - values[:, column, None] * weight[:, column]
        if accuracy(outputs, labels) < least - 1e-12:
            return order[:count]
    return order[:-1]


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Returns the accuracy of the logits `outputs` (n, classes) for `labels` int64 (n,)."""
    return float((outputs.argmax(dim=1) == labels).double().mean())
