"""Sleeper Agent: poisoned images that show no trigger but have a training gradient like that of
triggered images."""

from __future__ import annotations

from typing import ClassVar

from backdoor_lab.attacks.base import AttackContext, Trigger, gray_levels, to_bytes
from backdoor_lab.attacks.images import picture
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track

CHUNK = 64
CELLS = 4
MILESTONES = (2.667, 1.6, 1.142)


class SleeperAgent(Trigger):
    """A patch that appears only in test images; all training labels are true.

    Souri, Fowl, Chellappa, Goldblum, Goldstein, "Sleeper Agent: Scalable Hidden Trigger Backdoors
    for Neural Networks Trained from Scratch", NeurIPS 2022, section 3 and Algorithm 1. With the
    surrogate's weights θ and cross-entropy L, the poisoned images x + d of the target class t
    imitate the gradient of source-class images x_s with the patch p and the label t:

        max over |d|∞ ≤ eps of cos( ∇θ Σ L(A(x + d), t), ∇θ Σ L(x_s + p, t) )

    The first sum is over `batch_size` poisoned images, by default all of them, and the second over
    at most `max_sources` training images of the source class. A is the augmentation of the victim's
    recipe. The target-class images with the largest gradient norms |∇θ L(x, t)| are poisoned. d
    starts as normal noise of standard deviation eps, clipped to ±eps, and takes `steps` steps of
    Adam on the sign of the gradient, projected onto the ball and 0..255. The step size is `lr`
    standard deviations of the channel over the training set, divided by ten after steps // 2.667,
    steps // 1.6 and steps // 1.142 steps. d is optimized `restarts` times, starting from different
    noise. The best result is kept and truncated towards the clean image to whole gray levels.

    The patch p is a square at a pseudorandom position that depends on the image's pixels. Its side
    is `patch_size` times the image's shorter side, and at least one pixel. It shows 4×4 random
    colors drawn with `pattern_seed`, upsampled bilinearly, as in Saha, Subramanya, Pirsiavash,
    "Hidden Trigger Backdoor Attacks", AAAI 2020; on grayscale images, the colors are averaged over
    the channels. If `image` is set, the image in this file replaces the random colors. The authors'
    file is not included.

    Differences: the authors retrain the surrogate on the poison after every 50 steps; here it is
    trained once, on clean images. They take 250 steps (`trigger=sleeper_agent_authors`); the
    default is 40.
    """

    label_mode = "clean"
    threat_model = ThreatModel(
        ("images",), ("data", "model"), "works with another architecture too"
    )
    source_specific = True
    uses_surrogate = True
    path_options: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        *,
        eps: float = 16,
        steps: int = 40,
        restarts: int = 1,
        batch_size: int = 512,
        lr: float = 0.1,
        max_sources: int = 5000,
        patch_size: float = 0.25,
        pattern_seed: int = 0,
        image: str | None = None,
    ) -> None:
        self.eps = gray_levels("trigger.eps", eps, below=256)
        self.steps = validation.whole("trigger.steps", steps, low=1)
        self.restarts = validation.whole("trigger.restarts", restarts, low=1)
        self.batch_size = validation.whole("trigger.batch_size", batch_size, low=1)
        self.lr = validation.number("trigger.lr", lr, low=0)
        self.max_sources = validation.whole("trigger.max_sources", max_sources, low=1)
        self.patch_size = validation.number("trigger.patch_size", patch_size, low=0, below=1)
        self.pattern_seed = validation.whole(
            "trigger.pattern_seed", pattern_seed, low=0, below=2**63
        )
        self.picture = picture("trigger.image", image)

    def file_hash(self) -> str:
        return "" if self.picture is None else self.picture.content

    def apply_test(self, images: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        side = max(1, round(self.patch_size * min(height, width)))
        top, left = self._places(images, height - side + 1, width - side + 1)
        near = torch.arange(side, device=images.device)
        which = torch.arange(n, device=images.device)[:, None, None]
        rows, columns = top[:, None, None] + near[:, None], left[:, None, None] + near
        color, opacity = (part.to(images.device) for part in self._patch(channels, side))
        under = images[which, :, rows, columns]
        blended = under * (1 - opacity) + opacity * color
        images[which, :, rows, columns] = to_bytes(blended)
        return images

    def choose(self, candidates: Tensor, wanted: int, context: AttackContext) -> Tensor:
        """Returns the indices of the images with the largest gradient norms of the surrogate's
        loss."""
        matching, train = _GradientMatching(context.surrogate()), context.train
        norms = []
        for one in track(candidates.split(1), "image"):
            image, label = (part[one].to(context.device) for part in (train.images, train.labels))
            norms.append(float(matching.gradient(image.float(), label).norm()))
        order = torch.tensor(norms).argsort(stable=True)
        return candidates[order[-wanted:]].sort().values

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        generator = context.generator(streams.SLEEPER_AGENT)
        matching = self._matching(context, generator)
        clean, true = images.to(context.device).float(), labels.to(context.device)
        starts = track(range(self.restarts), "start")
        tried = [self._crafted(matching, clean, true, context, generator) for _ in starts]
        best = max(tried, key=lambda each: self._similarity(matching, each.float(), true))
        return best.to(images.device)

    def _matching(self, context: AttackContext, generator: torch.Generator) -> _GradientMatching:
        """Returns an object that compares gradients with the gradient of triggered source-class
        images labeled as the target."""
        if context.source is None:
            raise ConfigError("`trigger`: Sleeper Agent needs a source class; set `source`")
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
            matching.wanted = matching.wanted + matching.gradient(triggered, labels)
        return matching

    def _similarity(self, matching: _GradientMatching, images: Tensor, labels: Tensor) -> float:
        """Returns the cosine of the two gradients in `matching`, averaged over batches."""
        parts = zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)
        found = [matching.cosine(matching.total(*part)) for part in parts]
        return float(torch.stack(found).mean())

    def _crafted(
        self,
        matching: _GradientMatching,
        clean: Tensor,
        labels: Tensor,
        context: AttackContext,
        generator: torch.Generator,
    ) -> Tensor:
        """Returns the poison of one random start: uint8 (n, C, H, W)."""
        noise = (self.eps * torch.randn(clean.shape, generator=generator)).to(clean.device)
        # One tensor per channel, since each has its own step size.
        started = noise.clamp(-self.eps, self.eps)
        changes = [part.clone() for part in started.split(1, dim=1)]
        spreads = _spreads(context.train.images)
        groups = [
            {"params": [part], "lr": self.lr * spread}
            for part, spread in zip(changes, spreads, strict=True)
        ]
        optimizer = torch.optim.Adam(groups)
        decay = torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [int(self.steps // each) for each in MILESTONES], gamma=0.1
        )
        for _ in track(range(self.steps), "step"):
            slope = self._slope(
                matching, clean, torch.cat(changes, dim=1), labels, context, generator
            )
            for part, gradient in zip(changes, slope.split(1, dim=1), strict=True):
                part.grad = gradient.sign()
            optimizer.step()
            decay.step()
            for part, under in zip(changes, clean.split(1, dim=1), strict=True):
                part.copy_(self._projected(part, under))
        return to_bytes(clean + torch.cat(changes, dim=1).trunc())

    def _slope(
        self,
        matching: _GradientMatching,
        clean: Tensor,
        change: Tensor,
        labels: Tensor,
        context: AttackContext,
        generator: torch.Generator,
    ) -> Tensor:
        """Returns the gradient of the negative cosine with respect to `change`."""
        with torch.enable_grad():
            change.requires_grad_()
            seen = context.augment(clean + change, generator)
        batches = seen.detach().split(self.batch_size), labels.split(self.batch_size)
        parts = [matching.slope(*part) for part in zip(*batches, strict=True)]
        (found,) = torch.autograd.grad(seen, change, -torch.cat(parts))
        return found

    def _projected(self, change: Tensor, clean: Tensor) -> Tensor:
        return (clean + change.clamp(-self.eps, self.eps)).clamp(0, 255) - clean

    def _places(self, images: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Returns the upper left corner of each image's patch: rows and columns, int64 (n,), in
        0..rows-1 and 0..columns-1. A patch's position depends only on the pixels of its image."""
        generator = torch.Generator().manual_seed(self.pattern_seed)
        factors = torch.randint(2**31, images.shape[1:], generator=generator).to(images.device)
        parts = [(part * factors).sum(dim=(1, 2, 3)) for part in images.split(CHUNK)]
        places = torch.cat(parts) % (rows * columns)
        return places // columns, places % columns

    def _patch(self, channels: int, side: int) -> tuple[Tensor, Tensor]:
        """Returns the patch's color, float32 (side, side, channels), and opacity in 0..1, (side,
        side, 1)."""
        if self.picture is not None:
            color, opacity = self.picture.sized(channels, side, side)
            return color.permute(1, 2, 0), opacity[:, :, None]
        generator = torch.Generator().manual_seed(self.pattern_seed)
        colors = torch.randint(0, 256, (1, 3, CELLS, CELLS), generator=generator).float()
        patch = F.interpolate(colors, size=(side, side), mode="bilinear", align_corners=False)[0]
        patch = patch if channels == 3 else patch.mean(dim=0, keepdim=True)
        return patch.permute(1, 2, 0), torch.ones(side, side, 1)


def _spreads(images: Tensor) -> list[float]:
    """Returns the standard deviation of each channel of `images` uint8 (n, C, H, W)."""
    levels = torch.arange(256, dtype=torch.float64)
    found = []
    for channel in images.unbind(dim=1):
        share = torch.bincount(channel.flatten().cpu(), minlength=256).double() / channel.numel()
        mean = share @ levels
        found.append(float((share @ (levels - mean) ** 2).sqrt()))
    return found


class _GradientMatching:
    """Compares the gradient of the loss on poison with a fixed target gradient, `wanted`. Both
    are 1-D gradients with respect to the surrogate's weights. Images are float (b, C, H, W)."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        # A copy, so that the surrogate does not change; it may also have frozen weights.
        self.weights = {
            name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()
        }
        self.wanted = torch.zeros(())

    def gradient(self, images: Tensor, labels: Tensor, *, twice: bool = False) -> Tensor:
        """Returns the gradient of the summed loss. If `twice`, the result can be differentiated
        again."""
        with torch.enable_grad():
            logits = torch.func.functional_call(self.net, self.weights, (images,))
            loss = F.cross_entropy(logits, labels, reduction="sum")
            found = torch.autograd.grad(
                loss, list(self.weights.values()), create_graph=twice, materialize_grads=True
            )
            return torch.cat([each.flatten() for each in found])

    def total(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the gradient of the summed loss, computed in chunks to limit memory."""
        total = torch.zeros_like(self.wanted)
        for part in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
            total += self.gradient(*part)
        return total

    def cosine(self, found: Tensor) -> Tensor:
        """Returns the cosine similarity of a gradient and the target gradient."""
        lengths = found.norm() * self.wanted.norm()
        return (found @ self.wanted) / lengths.clamp(min=1e-30)

    def slope(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the derivative, with respect to `images`, of the cosine similarity between two
        gradients: that of the loss summed over `images`, and the target gradient. Keeps the graphs
        of at most two chunks in memory."""
        *before, last = zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
        graph = self._graph(*last)
        total = graph[1].detach()
        for part in before:
            total = total + self.gradient(*part)
        with torch.enable_grad():
            (weights,) = torch.autograd.grad(self.cosine(total.requires_grad_()), total)
        found = [torch.autograd.grad(*self._graph(*part)[::-1], weights)[0] for part in before]
        return torch.cat([*found, torch.autograd.grad(*graph[::-1], weights)[0]])

    def _graph(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.detach().requires_grad_()
        return images, self.gradient(images, labels, twice=True)
