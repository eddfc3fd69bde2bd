"""Label-consistent attack: adversarially perturbed target-class images with a corner mark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from backdoor_lab.attacks.base import AttackContext, Trigger, gray_levels, to_bytes
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track

NORMS = ("linf", "l2")
CORNERS = ("all", "lower_right")
MARK = ((1, -1, -1), (-1, 1, -1), (1, -1, 1))
SIDE = len(MARK)
CHUNK = 256


class LabelConsistent(Trigger):
    """Perturbs target-class images, so that the model learns an added mark; labels stay true.

    Turner, Tsipras, Madry, "Label-Consistent Backdoor Attacks", 2019 (arXiv 1912.02771). Each
    poisoned image of the target class is first perturbed by projected gradient ascent on the
    cross-entropy L of its true label, so that the attacker's surrogate misclassifies it:

        d ← P(d + s · sign ∇L(x + d)),   |d|∞ ≤ eps     (linf)
        d ← P(d + s · ∇L / |∇L|₂),       |d|₂ ≤ eps     (l2)

    P projects onto the ball and keeps x + d in 0..255. The ascent starts at d = 0, takes `steps`
    steps of `step_size`, and finally truncates d towards 0, so that the bound also holds for the
    stored uint8 image. Then the mark p is added (section 4.4 and the authors' code). The mark
    is a pattern of 3×3 values of +1 and −1 in each corner, mirrored in the two right corners. With
    `corners` = ``lower_right``, only that corner has the pattern:

        x' = clip(x + d + strength_train · p, 0, 255)

    Training images get `strength_train`; test images get `strength_test` and no perturbation.
    `eps`, `step_size`, `strength_train` and `strength_test` are in gray levels (0..255); the l2
    norm is over the whole image. On images smaller than 6×6 the corners overlap; there the lower
    and right corners take precedence.

    Differences: the paper's surrogate is trained adversarially, which takes about eight times as
    long; here it is trained normally, so the perturbations transfer less well to other models. The
    paper's alternative, interpolation in the latent space of a GAN, is not available. The paper
    tries several bounds; ``trigger=label_consistent_authors`` uses the bound of the authors' code.
    """

    label_mode = "clean"
    threat_model = ThreatModel(
        ("images",), ("data", "model"), "works with another architecture too"
    )
    uses_surrogate = True
    later: ClassVar[Mapping[str, object]] = {"corners": "all"}

    def __init__(
        self,
        *,
        norm: str = "linf",
        eps: float = 8,
        steps: int = 100,
        step_size: float = 1.5,
        strength_train: float = 255,
        strength_test: float = 255,
        corners: str = "all",
    ) -> None:
        self.norm = validation.choice("trigger.norm", norm, NORMS)
        self.eps = gray_levels("trigger.eps", eps, zero=True)
        self.steps = validation.whole("trigger.steps", steps, low=0)
        self.step_size = validation.number("trigger.step_size", step_size, low=0)
        self.strength_train = validation.number(
            "trigger.strength_train", strength_train, low=0, below=256
        )
        self.strength_test = validation.number(
            "trigger.strength_test", strength_test, low=0, below=256
        )
        self.corners = validation.choice("trigger.corners", corners, CORNERS)

    def apply_test(self, images: Tensor) -> Tensor:
        return self._marked(images.float(), self.strength_test)

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        harder = self.perturbed(images, labels, context)
        return self._marked(harder.float(), self.strength_train)

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if min(height, width) < SIDE:
            raise ConfigError(
                f"`trigger`: images of {height}x{width} pixels are too small for corner marks of"
                f" {SIDE}x{SIDE} pixels"
            )

    def perturbed(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        """Returns `images`, uint8 (n, C, H, W), perturbed by at most `eps` to be harder to classify
        as `labels`, int64 (n,). The mark p is not added. The result has the shape and dtype of
        `images`."""
        surrogate = context.surrogate()
        batches = list(zip(images.split(CHUNK), labels.split(CHUNK), strict=True))
        parts = [
            self._ascend(surrogate, part.to(context.device), true.to(context.device)).to(
                images.device
            )
            for part, true in track(batches, "batch")
        ]
        return torch.cat(parts)

    def _ascend(self, surrogate: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        start = images.float()
        change = torch.zeros_like(start)
        for _ in track(range(self.steps), "step"):
            change = self._project(change + self._step(surrogate, start + change, labels), start)
        return to_bytes(start + change.trunc())

    def _step(self, surrogate: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            images = images.requires_grad_()
            # A sum, not a mean, so that an image's gradient does not depend on its batch.
            loss = F.cross_entropy(surrogate(images), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, images)
        direction = gradient.sign() if self.norm == "linf" else gradient / _length(gradient)
        return self.step_size * direction

    def _project(self, change: Tensor, start: Tensor) -> Tensor:
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / _length(change)).clamp(max=1)
        # Clipping only moves values towards 0, so the change stays inside the ball.
        return (start + change).clamp(0, 255) - start

    def _marked(self, values: Tensor, strength: float) -> Tensor:
        mark = _corners(*values.shape[2:])
        if self.corners == "lower_right":
            mark[:-SIDE], mark[:, :-SIDE] = 0, 0
        return to_bytes(values + strength * mark.to(values.device))


def _length(values: Tensor) -> Tensor:
    """Returns the l2 norm of each image, at least 1e-12: (n, 1, 1, 1)."""
    return values.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]


def _corners(height: int, width: int) -> Tensor:
    """Returns the mark for images of this size: float32 (height, width), 0 outside the four
    corners."""
    left = torch.tensor(MARK, dtype=torch.float32)
    right = left.flip(1)
    plane = torch.zeros(height, width)
    for rows in (slice(0, SIDE), slice(height - SIDE, height)):
        plane[rows, :SIDE] = left
        plane[rows, width - SIDE :] = right
    return plane
