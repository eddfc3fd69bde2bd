"""Narcissus: universal noise that a model reads as strong evidence for the target class."""

from __future__ import annotations

from backdoor_lab.attacks.base import AttackContext, Trigger, gray_levels, to_bytes
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.core.lazy import F, Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.numerics.descent import descend


class Narcissus(Trigger):
    """Adds universal noise to target-class images with true labels; the noise is amplified at test
    time.

    Zeng, Pan, Just, Lyu, Qiu, Jia, "Narcissus: A Practical Clean-Label Backdoor Attack with
    Limited Information", CCS 2023, section 4 and Algorithm 1. With the surrogate's cross-entropy
    L and the training images x of the target class t, the noise d solves

        min over |d|∞ ≤ eps of the mean of L(clip(x + d, 0, 255), t)

    by `steps` steps of Adam on random batches, starting at d = 0; each step is projected onto the
    ball. The final d is truncated towards 0 to whole gray levels. Poisoned images are clip(x + d);
    triggered test images are clip(x + `strength_test` · d). `eps` and `lr` are in gray levels
    (0..255).

    The noise also fools models trained without poison, and nearly always does so on low-contrast
    images. To measure what the poison adds, compare with a run at ratio=0.

    Differences: the paper trains its surrogate on public out-of-distribution data (POOD) and then
    for a few epochs on the target class, so the attacker needs no images of other classes; here the
    surrogate is trained on the whole clean training set, with the victim's recipe. The authors'
    code uses RAdam and augments the images; this implementation does neither.
    """

    label_mode = "clean"
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
    ) -> None:
        self.eps = gray_levels("trigger.eps", eps, below=256)
        self.strength_test = validation.number(
            "trigger.strength_test", strength_test, low=1, below=256
        )
        self.steps = validation.whole("trigger.steps", steps, low=1)
        self.batch_size = validation.whole("trigger.batch_size", batch_size, low=1)
        self.lr = validation.number("trigger.lr", lr, low=0)

    def prepare(self, context: AttackContext) -> dict[str, Tensor]:
        """Returns the noise under the name ``noise``: float32 (C, H, W), whole numbers from -eps to
        eps.

        Raises ConfigError if the target class has no training images or if the noise is 0
        everywhere.
        """
        where = context.train.labels.eq(context.target).nonzero().flatten()
        if not len(where):
            raise ConfigError(
                f"`trigger`: the target class {context.target} has no training images to make the"
                " noise from; choose another target"
            )
        surrogate = context.surrogate()
        generator = context.generator(streams.NARCISSUS)
        noise = torch.zeros(context.train.shape, device=context.device, requires_grad=True)
        # Gradients of a confident model are tiny; Adam's default eps of 1e-8 would swamp them.
        optimizer = torch.optim.Adam([noise], lr=self.lr, eps=1e-20)
        for _ in track(range(self.steps), "step"):
            chosen = where[torch.randint(len(where), (self.batch_size,), generator=generator)]
            images = context.train.images[chosen].to(context.device).float()
            labels = torch.full((self.batch_size,), context.target, device=context.device)
            with torch.enable_grad():
                loss = F.cross_entropy(surrogate((images + noise).clamp(0, 255)), labels)
            descend(optimizer, loss, "the loss of the trigger's noise")
            with torch.no_grad():
                noise.clamp_(-self.eps, self.eps)
        found = noise.detach().trunc().cpu()
        if not found.any():
            raise ConfigError(
                f"`trigger`: after {self.steps} steps of {self.lr:g} gray levels the noise is 0"
                " everywhere; raise `trigger.steps` or `trigger.lr`"
            )
        return {"noise": found}

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
