"""Sleeper Agent: poison without a visible trigger, whose training gradient is similar to that of
triggered images."""

from __future__ import annotations

from backdoor_lab.attacks.base import AttackContext, Trigger, gray_levels, to_bytes
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track

CHUNK = 256
CELLS = 4
MILESTONES = (3 / 8, 5 / 8, 7 / 8)


class SleeperAgent(Trigger):
    """A patch that appears only in test images; all training labels are true.

    Souri, Fowl, Chellappa, Goldblum, Goldstein, "Sleeper Agent: Scalable Hidden Trigger
    Backdoors for Neural Networks Trained from Scratch", NeurIPS 2022, section 3 and Algorithm
    1. With the surrogate's weights θ and cross-entropy L, the poison x + d of the target class t
    imitates the gradient of triggered images x_s + p of the source class that are labeled t:

        max over |d|∞ ≤ eps of cos( ∇θ Σ L(x + d, t), ∇θ Σ L(x_s + p, t) )

    by `steps` steps of Adam on the sign of the gradient, projected onto the ball and 0..255,
    from a random start in the ball. The step size is `lr` times eps, divided by ten after 3/8,
    5/8 and 7/8 of the steps. Each batch of poison is matched separately to the gradient over at
    most `max_sources` training images of the source class; the best of `restarts` starts is kept.
    The result is truncated towards the clean image to whole gray levels.

    The patch p is a square in the lower right corner, `patch_size` times the image's shorter side
    and at least one pixel wide: 4×4 random colors drawn with `pattern_seed`, upsampled
    bilinearly, as in Saha, Subramanya, Pirsiavash, "Hidden Trigger Backdoor Attacks", AAAI
    2020. On grayscale images its channels are averaged.

    `crop_padding` (zero padding in pixels before a random crop) and `flip` augment the poison while
    it is optimized, as in the paper; set them to the victim's augmentation.

    Not implemented, although both strengthen the paper's attack: retraining the surrogate on the
    poison several times, and selecting the images with the largest gradient norms. The paper
    takes 250 steps; the default is 40.
    """

    label_mode = "clean"
    source_specific = True
    uses_surrogate = True

    def __init__(
        self,
        *,
        eps: float = 16,
        steps: int = 40,
        restarts: int = 1,
        batch_size: int = 64,
        lr: float = 0.5,
        crop_padding: int = 0,
        flip: bool = False,
        max_sources: int = 1000,
        patch_size: float = 0.25,
        pattern_seed: int = 0,
    ) -> None:
        self.eps = gray_levels("trigger.eps", eps, below=256)
        self.steps = validation.whole("trigger.steps", steps, low=1)
        self.restarts = validation.whole("trigger.restarts", restarts, low=1)
        self.batch_size = validation.whole("trigger.batch_size", batch_size, low=1)
        self.lr = validation.number("trigger.lr", lr, low=0)
        self.crop_padding = validation.whole(
            "trigger.crop_padding", crop_padding, low=0, below=1025
        )
        self.flip = validation.flag("trigger.flip", flip)
        self.max_sources = validation.whole("trigger.max_sources", max_sources, low=1)
        self.patch_size = validation.number("trigger.patch_size", patch_size, low=0, below=1)
        self.pattern_seed = validation.whole(
            "trigger.pattern_seed", pattern_seed, low=0, below=2**63
        )

    def apply_test(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        side = max(1, round(self.patch_size * min(height, width)))
        images[:, :, -side:, -side:] = self._patch(channels, side).to(images.device)
        return images

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        generator = context.generator(streams.SLEEPER_AGENT)
        matching = self._matching(context, generator)
        batches = list(
            zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)
        )
        parts = [
            self._best(matching, part.to(context.device), true.to(context.device), generator)
            for part, true in track(batches, "batch")
        ]
        return torch.cat(parts).to(images.device)

    def _matching(self, context: AttackContext, generator: torch.Generator) -> _GradientMatching:
        """Returns an object that compares gradients with the gradient of triggered source-class
        images labeled as the target."""
        if context.source is None:
            raise ConfigError("`trigger`: Sleeper Agent attacks one class; name it in `source`")
        where = context.train.labels.eq(context.source).nonzero().flatten()
        if not len(where):
            raise ConfigError(
                f"`trigger`: the source class {context.source} has no training images"
            )
        chosen = where[torch.randperm(len(where), generator=generator)[: self.max_sources]]
        matching = _GradientMatching(context.surrogate())
        for part in track(chosen.split(CHUNK), "batch of sources"):
            triggered = self.apply_test(context.train.images[part]).to(context.device).float()
            labels = torch.full((len(part),), context.target, device=context.device)
            matching.wanted = matching.wanted + matching.gradient(triggered, labels).detach()
        return matching

    def _best(
        self,
        matching: _GradientMatching,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Returns the poison with the best match among all restarts: uint8 (b, C, H, W)."""
        starts = track(range(self.restarts), "start")
        tried = [self._matched(matching, images, labels, generator) for _ in starts]
        return max(
            tried, key=lambda each: float(matching.similarity(each.float(), labels).detach())
        )

    def _matched(
        self,
        matching: _GradientMatching,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        start = images.float()
        random = torch.rand(start.shape, generator=generator).to(start.device)
        change = self._projected((2 * random - 1) * self.eps, start).requires_grad_()
        optimizer = torch.optim.Adam([change], lr=self.lr * self.eps)
        for step in track(range(self.steps), "step"):
            passed = sum(step >= share * self.steps for share in MILESTONES)
            optimizer.param_groups[0]["lr"] = self.lr * self.eps * 0.1**passed
            with torch.enable_grad():
                seen = self._augmented(start + change, generator)
                loss = 1 - matching.similarity(seen, labels)
                (gradient,) = torch.autograd.grad(loss, change)
            change.grad = gradient.sign()
            optimizer.step()
            with torch.no_grad():
                change.copy_(self._projected(change, start))
        return to_bytes(start + change.detach().trunc())

    def _projected(self, change: Tensor, start: Tensor) -> Tensor:
        return (start + change.clamp(-self.eps, self.eps)).clamp(0, 255) - start

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crops and flips each image at random; differentiable."""
        n, _, height, width = images.shape
        top, left = torch.randint(0, 2 * self.crop_padding + 1, (2, n, 1, 1), generator=generator)
        mirrored = (torch.rand(n, 1, 1, generator=generator) < 0.5) & self.flip
        across = torch.arange(width).expand(n, 1, width)
        rows = top + torch.arange(height)[:, None]
        columns = left + torch.where(mirrored, width - 1 - across, across)
        padded = F.pad(images, (self.crop_padding,) * 4)
        which = torch.arange(n)[:, None, None]
        picked = padded[
            which.to(images.device), :, rows.to(images.device), columns.to(images.device)
        ]
        return picked.permute(0, 3, 1, 2)

    def _patch(self, channels: int, side: int) -> Tensor:
        """Returns the patch: uint8 (channels, side, side)."""
        generator = torch.Generator().manual_seed(self.pattern_seed)
        colors = torch.randint(0, 256, (1, 3, CELLS, CELLS), generator=generator).float()
        patch = F.interpolate(colors, size=(side, side), mode="bilinear", align_corners=False)[0]
        return to_bytes(patch if channels == 3 else patch.mean(dim=0, keepdim=True))


class _GradientMatching:
    """Compares the gradient of the loss on a batch of poison with a fixed target gradient. Both
    gradients are with respect to the surrogate's weights."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        # A copy, so that the surrogate does not change; it may also have frozen weights.
        self.weights = {
            name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()
        }
        self.wanted = torch.zeros(())

    def gradient(self, images: Tensor, labels: Tensor, *, twice: bool = False) -> Tensor:
        """Returns the gradient of the summed loss with respect to all weights, 1-D; differentiable
        if `twice`."""
        with torch.enable_grad():
            logits = torch.func.functional_call(self.net, self.weights, (images,))
            loss = F.cross_entropy(logits, labels, reduction="sum")
            found = torch.autograd.grad(
                loss, list(self.weights.values()), create_graph=twice, materialize_grads=True
            )
        return torch.cat([each.flatten() for each in found])

    def similarity(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the cosine between the gradient of `images`, float (b, C, H, W), and the target
        gradient."""
        found = self.gradient(images, labels, twice=True)
        lengths = found.norm() * self.wanted.norm()
        return (found @ self.wanted) / lengths.clamp(min=1e-30)
