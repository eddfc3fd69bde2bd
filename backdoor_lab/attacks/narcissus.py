"""Narcissus: universal noise that a model reads as strong evidence for the target class."""

from __future__ import annotations

import copy
import itertools

from backdoor_lab.attacks.base import AttackContext, Trigger, gray_levels, to_bytes
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.numerics.descent import descend

HALF = 127.5
WARMUP_LR = 0.1


class Narcissus(Trigger):
    """Adds universal noise to target-class images with true labels; the noise is amplified at test
    time.

    Zeng, Pan, Just, Lyu, Qiu, Jia, "Narcissus: A Practical Clean-Label Backdoor Attack with
    Limited Information", CCS 2023, section 4 and Algorithm 1. With the surrogate's cross-entropy
    L and the training images x of the target class t, the noise d solves

        min over |d|∞ ≤ eps of the mean of L(clip(A(x) + d, 0, 255), t)

    by `steps` steps of RAdam on random batches, starting at d = 0. A is the augmentation of the
    victim's recipe. As in the authors' code, d = clip(v, -eps, eps), where v is unbounded and
    optimized in units of 127.5 gray levels, half the range of an image. The final d is
    truncated towards 0 to whole gray levels. Poisoned images are clip(x + d); triggered test images
    are clip(x + `strength_test` · d). `eps` and `lr` are in gray levels (0..255).

    A copy of the surrogate is first trained for `warmup_epochs` epochs on the target class alone,
    by RAdam with a learning rate of 0.1. Its batch normalization uses the statistics of the batch
    throughout.

    The noise also fools models trained without poison, and nearly always does so on low-contrast
    images. To measure what the poison adds, compare with a run at ratio=0.

    Differences: the paper trains its surrogate on public out-of-distribution data (POOD) and the
    target class, so the attacker needs no images of other classes; here the surrogate is trained on
    the whole clean training set, with the victim's recipe. The authors take 15,000 steps on 350
    images (`trigger=narcissus_authors`).
    """

    label_mode = "clean"
    threat_model = ThreatModel(
        ("images",), ("data", "model"), "knows the target class and public images of other classes"
    )
    needs_preparing = True
    uses_surrogate = True

    def __init__(
        self,
        *,
        eps: float = 16,
        strength_test: float = 3,
        steps: int = 300,
        batch_size: int = 64,
        lr: float = 1.275,
        warmup_epochs: int = 5,
    ) -> None:
        self.eps = gray_levels("trigger.eps", eps, below=256)
        self.strength_test = validation.number(
            "trigger.strength_test", strength_test, low=1, below=256
        )
        self.steps = validation.whole("trigger.steps", steps, low=1)
        self.batch_size = validation.whole("trigger.batch_size", batch_size, low=2)
        self.lr = validation.number("trigger.lr", lr, low=0)
        self.warmup_epochs = validation.whole("trigger.warmup_epochs", warmup_epochs, low=0)

    def prepare(self, context: AttackContext) -> dict[str, Tensor]:
        """Returns a dict with the tensor ``noise``: float32 (C, H, W), whole numbers from -eps to
        eps.

        Raises ConfigError if the target class has fewer than two training images or if the noise is
        0 everywhere.
        """
        where = context.train.labels.eq(context.target).nonzero().flatten()
        if len(where) < 2:
            raise ConfigError(
                f"`trigger`: the target class {context.target} has"
                f" {many(len(where), 'training image')}; the noise requires at least 2. Choose"
                " another target"
            )
        generator = context.generator(streams.NARCISSUS)
        network = self._warmed_up(context, where, generator)
        free = torch.zeros(context.train.shape, device=context.device, requires_grad=True)
        optimizer = torch.optim.RAdam([free], lr=self.lr / HALF)
        passes = (self._batches(where, generator) for _ in itertools.count())
        batches = itertools.islice(itertools.chain.from_iterable(passes), self.steps)
        for part in track(batches, "step", self.steps):
            images, labels = _shown(context, part, generator)
            with torch.enable_grad():
                noise = (HALF * free).clamp(-self.eps, self.eps)
                loss = F.cross_entropy(network((images + noise).clamp(0, 255)), labels)
            descend(optimizer, loss, "the loss of the trigger's noise")
        found = (HALF * free.detach()).clamp(-self.eps, self.eps).trunc().cpu()
        if not found.any():
            raise ConfigError(
                f"`trigger`: after {self.steps} steps of {self.lr:g} gray levels the noise is 0"
                " everywhere; raise `trigger.steps` or `trigger.lr`"
            )
        return {"noise": found}

    def _warmed_up(
        self, context: AttackContext, where: Tensor, generator: torch.Generator
    ) -> nn.Module:
        """Returns a copy of the surrogate, trained on the images with the indices `where` and left
        in train mode."""
        network = copy.deepcopy(context.surrogate()).requires_grad_().train()
        optimizer = torch.optim.RAdam(network.parameters(), lr=WARMUP_LR)
        for _ in track(range(self.warmup_epochs), "warm-up epoch"):
            for part in self._batches(where, generator):
                images, labels = _shown(context, part, generator)
                with torch.enable_grad():
                    loss = F.cross_entropy(network(images), labels)
                descend(optimizer, loss, "the loss of the trigger's surrogate")
        return network.requires_grad_(False)

    def _batches(self, where: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Splits the indices `where` into batches in random order. Drops a last batch of one image,
        on which batch normalization may be undefined."""
        order = torch.randperm(len(where), generator=generator)
        return [part for part in where[order].split(self.batch_size) if len(part) > 1]

    def apply_test(self, images: Tensor) -> Tensor:
        return self._added(images, self.strength_test)

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        return self._added(images, 1.0)

    def _added(self, images: Tensor, times: float) -> Tensor:
        noise = self.state["noise"]
        if noise.shape != images.shape[1:]:
            channels, height, width = images.shape[1:]
            made_for, high, wide = noise.shape
            raise ConfigError(
                f"`trigger`: the noise was made for images of {high}x{wide} pixels with"
                f" {many(made_for, 'channel')}, and cannot be added to images of"
                f" {height}x{width} pixels with {many(channels, 'channel')}"
            )
        return to_bytes(images.float() + times * noise.to(images.device))


def _shown(
    context: AttackContext, where: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns augmented training images as floats, and one label, the target class, for each."""
    images = context.augment(context.train.images[where].to(context.device), generator)
    return images.float(), torch.full((len(where),), context.target, device=context.device)
