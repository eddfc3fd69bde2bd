"""A network that somebody else trained, which a cell attacks, measures and repairs (``attacked=``)
instead of training one."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import ConfigError, DataError, many
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.exchange.card_file import CARD, Normalization
from backdoor_lab.exchange.network_file import (
    LIBRARY,
    NEEDED,
    NetworkFile,
    architecture,
    network_file,
)  # fmt: skip
from backdoor_lab.training.initial import COUNTER, Shapes, differences
from backdoor_lab.training.models import DEPTHS, OWN, WIDE, build_model

WEIGHTS, NORMALIZATION = "attacked", "attacked_normalization"
HOW = f"`{NORMALIZATION}=[[mean, ...],[std, ...]]`"
CLOSE = 0.5
"""How far, on the 0..255 scale, a normalization on the command line may differ from the file's."""


@dataclass(frozen=True)
class AttackedNetwork:
    """A file of weights with the normalization of its network, on the 0..255 scale. `source` says
    where the normalization was found."""

    file: NetworkFile
    normalization: Normalization
    source: str

    def decides(self) -> dict[str, Any]:
        """What affects results: the tensors and the normalization, not the name of the file."""
        mean, std = map(list, self.normalization)
        return {"weights": self.file.digest, "mean_255": mean, "std_255": std}

    def origin(self) -> dict[str, Any]:
        """Where the network comes from, for the record."""
        return {
            "file": str(self.file.path),
            "weights": self.file.digest,
            "normalization": self.source,
            "cell": self.file.cell,
        }

    @property
    def label(self) -> str:
        """The beginning of the weights' hash, for tables."""
        return self.file.digest[:8]

    def identify(self, weights: str) -> str:
        """The stage input that stands for a network with this normalization and the weights of this
        hash: networks that differ only in the normalization see other images."""
        return digest([weights, self.decides()], 64)

    def check(self, model: dict[str, Any], channels: int, classes: Sequence[str]) -> None:
        """Raises ConfigError if the network is not `model` with so many channels and these classes;
        the message says how to choose the network in the file, if it is recognized."""
        given = self.file.shapes
        expected = shapes_of(model, channels, len(classes))
        said = differences(given, expected)
        named = self.file.model
        if said or (named is not None and named != architecture(model)):
            raise ConfigError(
                f"`{WEIGHTS}`={self.file.path} does not hold the weights of `{words(model)}` for"
                f" {many(channels, 'channel')} and classes 0 to {len(classes) - 1}"
                f"{': ' * bool(said)}{said}{self._instead(model, channels, len(classes))}"
            )
        if len(self.normalization[0]) != channels:
            raise ConfigError(
                f"the images have {many(channels, 'channel')}, but the normalization of"
                f" `{WEIGHTS}`={self.file.path} ({self.source}) has {len(self.normalization[0])}"
            )
        names = self.file.classes
        if names is not None and names != (*classes,) and sorted(names) == sorted(classes):
            raise ConfigError(
                f"`{WEIGHTS}`={self.file.path} was trained with the classes in another order"
                f" ({', '.join(names)}) than the data set's ({', '.join(classes)})"
            )

    def _instead(self, model: dict[str, Any], channels: int, classes: int) -> str:
        found = recognized(self.file.shapes)
        if self.file.model is not None and self.file.model != architecture(model):
            return f". The file says that it is `{words(self.file.model)}`: set these"
        if found is None:
            name = self.file.model_name
            return f". The file calls the network {name}: choose it with `model=`" if name else ""
        if found.model != architecture(model):
            return f". The shapes are those of `{words(found.model)}`: set these"
        differing = [f"another number of {what} ({n})" for n, wanted, what in (
            (found.classes, classes, "classes"), (found.channels, channels, "image channels"),
        ) if n != wanted]  # fmt: skip
        return f". The network in the file has {' and '.join(differing)}: choose its data set"


@dataclass(frozen=True)
class Recognized:
    """The network that has given shapes."""

    model: dict[str, Any]
    channels: int
    classes: int


def attacked_of(config: dict[str, Any]) -> AttackedNetwork | None:
    """Returns the network that a full configuration names; None if the cell trains its own.

    Raises ConfigError if the normalization is neither given nor stated by the file or its card, or
    if both differ; raises DataError for a file that cannot be read.
    """
    given, said = config.get(WEIGHTS), config.get(NORMALIZATION)
    if given is None:
        if said is not None:
            raise ConfigError(f"`{NORMALIZATION}` needs a network: set `{WEIGHTS}` too")
        return None
    stated = None if said is None else _given(said)
    try:
        file = network_file(validation.text(WEIGHTS, given))
    except DataError as error:
        raise DataError(f"`{WEIGHTS}`: {error}") from error
    if stated is None and file.normalization is None:
        raise ConfigError(
            f"`{WEIGHTS}`={file.path}: the normalization of its images is not known: neither the"
            f" file nor a {CARD} next to it states mean_255 and std_255. Give the mean and the"
            f" standard deviation of each channel as {HOW}, on the 0..1 scale, as for"
            " torchvision.transforms.Normalize; [[0],[1]] for a gray network without normalization"
        )
    _check_agree(file, stated)
    known = stated or file.normalization
    assert known is not None
    mean, std = (tuple(map(_single, values)) for values in known)
    return AttackedNetwork(file, (mean, std), NORMALIZATION if stated else str(file.source))


def _given(said: Any) -> Normalization:
    """A normalization from the command line, on the 0..1 scale. Returns it on the 0..255 scale."""
    pair = said if isinstance(said, list) and len(said) == 2 else ()
    if not pair or not all(isinstance(values, list) and values for values in pair):
        raise ConfigError(f"{HOW} needs one list of means and one of standard deviations: {said!r}")
    for name, values, low in zip(("mean", "std"), pair, (0.0, 1e-6), strict=True):
        for value in values:
            if not validation.is_number(value) or not low <= value <= 1:
                raise ConfigError(
                    f"`{NORMALIZATION}`: every {name} must satisfy {low:g} <= {name} <= 1, got"
                    f" {value!r}; values are on the 0..1 scale"
                )
    mean, std = (tuple(255.0 * value for value in values) for values in pair)
    if len(mean) != len(std):
        raise ConfigError(
            f"`{NORMALIZATION}` has {many(len(mean), 'mean')} and"
            f" {many(len(std), 'standard deviation')}"
        )
    return mean, std


def _check_agree(file: NetworkFile, stated: Normalization | None) -> None:
    known = file.normalization
    if stated is None or known is None:
        return
    same = len(known[0]) == len(stated[0]) and all(
        abs(a - b) <= CLOSE
        for values, others in zip(known, stated, strict=True)
        for a, b in zip(values, others, strict=True)
    )
    if not same:
        mean, std = ([round(value / 255, 4) for value in values] for values in known)
        raise ConfigError(
            f"`{NORMALIZATION}` contradicts {file.source} of {file.path}, which says"
            f" [{mean},{std}]: omit `{NORMALIZATION}`, or correct it"
        )


def _single(value: float) -> float:
    """The nearest float32: networks compute with these."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def shapes_of(model: dict[str, Any], channels: int, classes: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a network's tensors."""
    with torch.device("meta"):
        net = build_model(model, channels=channels, classes=classes, seed=0)
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def complete(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns `weights` with a zero for each counter of batches that is missing."""
    counters = {
        name: torch.zeros_like(value)
        for name, value in expected.items()
        if name.endswith(COUNTER) and name not in weights
    }
    return weights | counters


def recognized(shapes: Shapes) -> Recognized | None:
    """Returns the network of which the tensors have these shapes, among the networks that can have
    any width; None if it is another one."""
    first = shapes.get("conv1.weight", shapes.get("whiten.weight", ()))
    last = [shape for shape in shapes.values() if len(shape) == 2]
    if len(first) != 4 or not last:
        return None
    stem = "cifar" if first[2] == 3 else "imagenet"
    width = shapes.get("group1.conv1.weight", first)[0]
    options: list[tuple[str, int | None, str | None]]
    options = [*((name, width, None) for name in OWN), *((name, width, stem) for name in DEPTHS)]
    options = [(name, None, None) for name in _wide(shapes)] or options
    for name, wide, stem_of in options:
        model = {"name": name, "width": wide, "stem": stem_of}
        if not 0 < width <= 4096 or not 0 < first[1] <= 4096 or last[-1][0] < 1:
            return None
        if not differences(shapes, shapes_of(model, first[1], last[-1][0])):
            return Recognized(model, first[1], last[-1][0])
    return None


def _wide(shapes: Shapes) -> list[str]:
    """The name of the wide ResNet whose first group has these shapes, if it is one."""
    first = shapes.get("block1.layer.0.conv1.weight", ())
    units = [name for name in shapes if re.fullmatch(r"block1\.layer\.\d+\.conv1\.weight", name)]
    return [f"{WIDE}{6 * len(units) + 4}_{first[0] // 16}"] if first and first[0] >= 16 else []


def _word(key: str, value: Any) -> str:
    if not isinstance(value, dict):
        return f"model.{key}={value}"
    inside = ", ".join(f"{name}: {each}" for name, each in value.items())
    return f'"model.{key}={{{inside}}}"'


def words(model: dict[str, Any]) -> str:
    """The words that choose a network on the command line: ``model=resnet18 model.width=16``."""
    name, width, stem = (model[key] for key in NEEDED)
    more = {k: v for k, v in architecture(model).items() if k not in (*NEEDED, LIBRARY)}
    if more or model.get(LIBRARY) is not None:
        plain = {key: model[key] for key in NEEDED}
        library = model.get(LIBRARY)
        first = words(plain) if library is None else f"model={library} model.name={name}"
        return " ".join([first, *(_word(key, value) for key, value in more.items())])
    groups = ("resnet18", *OWN)
    library = WIDE if name.startswith(WIDE) else "torchvision"
    said = [f"model={name}"] if name in groups else [f"model={library} model.name={name}"]
    if name not in groups:
        said += [] if width is None else [f"model.width={width}"]
        said += [] if stem is None else [f"model.stem={stem}"]
        return " ".join(said)
    said += [] if width == 64 else [f"model.width={width}"]
    said += [] if stem in (None, "cifar") else [f"model.stem={stem}"]
    return " ".join(said)
