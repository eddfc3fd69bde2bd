"""Checks of a trigger on random images. Each takes a function that makes the trigger, ready for
images of a given number of channels, height and width."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from multiprocessing.reduction import ForkingPickler
from typing import Any

from backdoor_lab.attacks.base import AttackContext, Trigger
from backdoor_lab.attacks.plan import PoisonSpec, implied
from backdoor_lab.attacks.poison import poison
from backdoor_lab.check_plugin.finding import CheckError, Checks, require
from backdoor_lab.core.errors import ConfigError, reason_of
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.types import LabeledImages

Ready = Callable[[int, int, int], Trigger]
SIZES = ((32, 32), (28, 28), (33, 17), (5, 64))
SMALL = ((1, 1), (2, 2), (3, 3), (1, 32), (32, 1), (2, 3))
COLOR = (3, 32, 32)


def noise(n: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Returns `n` random images uint8 (n, C, H, W), which depend only on `n` and the shape."""
    generator = torch.Generator().manual_seed(n)
    return torch.randint(
        0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator
    )


class ScaledModel(nn.Module):
    """A network that takes images in 0..255, uint8 or float, as the package's networks do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Any:
        return self.net((images.float() - 127.5) / 64.0)


def attack_context(made: Trigger, *shape: int, seed: int = 0) -> AttackContext:
    """Returns what an attacker has: forty random images of four classes, of this `shape` (C, H, W),
    and a small untrained surrogate network."""

    def surrogate() -> nn.Module:
        require(made.uses_surrogate, "it requests a surrogate, so it must set uses_surrogate")
        # With this seed, small changes reach every class.
        torch.manual_seed(2)
        net = nn.Sequential(
            nn.Conv2d(shape[0], 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 4),
        )  # fmt: skip
        return ScaledModel(net).eval()

    train = LabeledImages(
        noise(40, *shape), torch.arange(40) % 4, ("a", "b", "c", "d"), digest="noise"
    )
    return AttackContext(train, 1, 2 if made.source_specific else None, seed, surrogate)


def prepared(made: Trigger, *shape: int) -> Trigger:
    """Returns the trigger `made`, prepared for images of this `shape` (C, H, W) if it needs
    preparation. Raises ConfigError if it refuses this shape."""
    channels, height, width = shape
    made.check_image_size(channels, height, width)
    if made.needs_preparing:
        made.state = made.prepare(attack_context(made, *shape))
    return made


def must_change(name: str, channels: int, height: int, width: int) -> str:
    """Returns what the trigger `name` must do that left such images as they were."""
    return (
        f"trigger={name} did not change images of {channels} x {height} x {width} (channels,"
        " height, width). A trigger gets images of 1 or 3 channels and of any size, and must change"
        " them. If it cannot change such images, its method"
        " check_image_size(channels, height, width) must raise a ConfigError that names their"
        " size (such as 5x64) or the channels."
    )


def keeps_form(made: Trigger, name: str, *shape: int) -> None:
    """Checks that test images, poison and covers keep shape, dtype and device, that they differ
    from the clean images, and that these are not modified."""
    images = noise(3, *shape)
    before = images.clone()
    context, labels = attack_context(made, *shape), torch.tensor([0, 2, 3])
    for triggered in (
        made(images), made.poisoned(images, labels, context),
        made.make_covers(images, labels, context),
    ):  # fmt: skip
        require(triggered.shape == images.shape, f"the shape became {tuple(triggered.shape)}")
        require(triggered.dtype == torch.uint8, f"the dtype became {triggered.dtype}")
        require(triggered.device == images.device, f"the device became {triggered.device}")
        require(not torch.equal(triggered, images), must_change(name, *shape))
    require(torch.equal(images, before), "it modified the clean images")


def keeps_form_at_every_size(ready: Ready) -> None:
    """Checks `keeps_form` for gray and color images of several sizes, except for those that the
    trigger refuses. Checks that it accepts some."""
    refused = []
    for shape in ((channels, *size) for channels in (1, 3) for size in SIZES):
        try:
            made = ready(*shape)
        except ConfigError as error:
            refused.append(str(error))
            continue
        keeps_form(made, type(made).__name__, *shape)
    everything = len(refused) == 2 * len(SIZES)
    require(not everything, f"it refuses all images of the sizes {SIZES}: {refused[-1:]}")


def changes_every_image(ready: Ready) -> None:
    """Checks that no image stays as it was."""
    made, images = ready(*COLOR), noise(4)
    changed = (made(images) != images).flatten(1).any(dim=1).tolist()
    require(all(changed), must_change(type(made).__name__, *COLOR))


def depends_only_on_the_seed(ready: Ready) -> None:
    """Checks that the state of torch's global generator does not affect poison and covers."""
    made, images = ready(*COLOR), noise(6)
    labels = torch.full((6,), 1 if made.label_mode == "clean" else 3)
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        context = attack_context(made, *COLOR)
        torch.manual_seed(global_seed)
        runs.append([getattr(made, kind)(images, labels, context)
                     for kind in ("poisoned", "make_covers")])  # fmt: skip
    for kind, first, second in zip(("poison", "covers"), *runs, strict=True):
        require(
            torch.equal(first, second),
            f"{kind} of the same seed differ: take random numbers from"
            " context.generator(backdoor_lab.core.streams…) only",
        )


def is_deterministic(ready: Ready) -> None:
    """Checks that triggered test images are always the same."""
    made = ready(*COLOR)
    torch.manual_seed(1)
    first = made(noise(3))
    torch.manual_seed(2)
    require(torch.equal(made(noise(3)), first), "two calls on the same images differ")


def shares_no_memory(ready: Ready) -> None:
    """Checks that clean and triggered images can be modified independently."""
    made, images = ready(*COLOR), noise(3)
    before = images.clone()
    triggered = made(images)
    require(torch.equal(images, before), "it modified the clean images")
    triggered.fill_(7)
    require(torch.equal(images, before), "triggered images share memory with the clean ones")


def treats_views_as_copies(ready: Ready) -> None:
    """Checks slices and channels-last images."""
    made, images = ready(*COLOR), noise(6)
    before = images.clone()
    same = torch.equal(made(images[::2]), made(images[::2].clone()))
    require(same, "a slice gives another result than its copy")
    last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    require(torch.equal(made(last), made(before)), "channels-last images give another result")
    require(torch.equal(images, before), "it modified the clean images")


def accepts_any_batch(ready: Ready) -> None:
    """Checks batches of zero and one image."""
    made, images = ready(*COLOR), noise(3)
    require(made(noise(0)).shape == (0, *COLOR), "a batch of no images changes its shape")
    same = torch.equal(made(images[1:2]), made(images)[1:2])
    require(same, "an image alone gives another result than in a batch")


def accepts_or_refuses_small_images(ready: Ready) -> None:
    """Checks that images smaller than the trigger are accepted, or refused with a ConfigError that
    names their size or channels."""
    for shape in ((channels, *size) for channels in (1, 3) for size in SMALL):
        said = f"{shape[1]}x{shape[2]}"
        try:
            made = ready(*shape)
        except ConfigError as error:
            named = said in str(error) or "channel" in str(error)
            require(named, f"the refusal of {said} names neither size nor channels: {error}")
            continue
        images = noise(2, *shape)
        require(made(images).shape == images.shape, f"it changes the shape of images of {said}")


def poisons_only_the_chosen(ready: Ready) -> None:
    """Checks that poisoning a set changes only the chosen images, in both placements."""
    for placement in ("append", "replace"):
        poisons_only_chosen_images(ready(*COLOR), placement)


def poisons_only_chosen_images(made: Trigger, placement: str) -> None:
    """Checks that the clean set stays as it is, and that labels follow the label mode."""
    context = attack_context(made, *COLOR)
    train = context.train
    before, labels = train.images.clone(), train.labels.clone()
    words = {"placement": placement} | implied(made.label_mode, on_source=made.source_specific)
    plan = PoisonSpec(
        1, context.source, 0.5, label_mode=made.label_mode, cover_rate=made.cover_rate, **words
    )
    result = poison(train, made, plan, seed=0, context=context)
    unchanged = torch.equal(train.images, before) and torch.equal(train.labels, labels)
    require(unchanged, "poisoning modified the clean training set")
    seen = result.training.gather(torch.arange(len(result.training)))
    clean = ~result.is_poison & ~result.is_cover
    origins, hidden = result.source_index, result.cover_index
    require(int(result.is_poison.sum()) == 5, "the number of poisoned images is not 5")
    require(
        int(result.is_cover.sum()) == len(hidden) == round(5 * made.cover_rate),
        "the number of covers does not follow from cover_rate",
    )
    same = torch.equal(seen[clean], before[result.training.index[clean]])
    require(same, "an image that was not chosen changed")
    expected = made.poisoned(before[origins], labels[origins], context)
    require(torch.equal(seen[result.is_poison], expected), "the poison is not that of `poisoned`")
    poisoned = result.training.labels[result.is_poison]
    require((poisoned == 1).all(), "a poisoned image has another label than the target")
    require(
        (labels[origins] == 1).all() == (made.label_mode == "clean"),
        "the classes of the poisoned images do not follow from label_mode",
    )
    apart = not set(hidden.tolist()) & set(origins.tolist())
    require(apart, "an image is both poison and cover")
    kept = torch.equal(result.training.labels[result.is_cover], labels[hidden])
    require(kept, "a cover does not keep its label")
    covers = made.make_covers(before[hidden], labels[hidden], context)
    require(torch.equal(seen[result.is_cover], covers), "covers are not those of `make_covers`")


def can_be_pickled(ready: Ready) -> None:
    """Checks that the trigger can be sent to another process, and that a copy gives the same
    images."""
    made = ready(*COLOR)
    try:
        ForkingPickler.dumps(made)
    except Exception as error:
        raise CheckError(f"it cannot be sent to another process: {reason_of(error)}") from error
    require(torch.equal(deepcopy(made)(noise(3)), made(noise(3))), "its copy gives other images")


CHECKS: Checks = {
    "keeps shape and dtype, and changes pixels": keeps_form_at_every_size,
    "changes every image": changes_every_image,
    "is deterministic": is_deterministic,
    "depends only on the seed": depends_only_on_the_seed,
    "does not modify its input": shares_no_memory,
    "treats views as copies": treats_views_as_copies,
    "accepts batches of 0 and 1 image": accepts_any_batch,
    "accepts or refuses small images": accepts_or_refuses_small_images,
    "poisons only the chosen images": poisons_only_the_chosen,
    "can be pickled": can_be_pickled,
}
