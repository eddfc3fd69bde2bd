"""Measures a network on a poisoned data set, and checks what its card says about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.core.errors import ConfigError, DataError, many
from backdoor_lab.core.resources import cores
from backdoor_lab.core.types import ImportedAttack, TrainingSet
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.exchange.card_file import Normalization
from backdoor_lab.exchange.network_card import NetworkCard
from backdoor_lab.exchange.network_file import NetworkFile, network_file, read_weights
from backdoor_lab.exchange.own_card import scored_images, scored_originals
from backdoor_lab.pipeline.attacked import recognized
from backdoor_lab.pipeline.stages.attacked import loaded_classifier
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import predictions
from backdoor_lab.training.models import check_model
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.train import TrainingJob
from backdoor_lab.verify.finding import Finding, Verdict
from backdoor_lab.verify.rule import Claim, Count, Judgment, judge

CLOSE = 1e-3
"""How far, on the 0..255 scale, two statements of the same normalization may differ."""
_UNUSED = {"name": "none", "epochs": 1, "batch_size": 2, "lr": 0.1, "schedule": "constant"}


@dataclass(frozen=True)
class Material:
    """What a network is measured on: the clean test images with their labels, and the triggered
    ones with the labels that the attacker wants. `rows` are the indices of the latter's originals
    in the former; -1 or None if unknown. `cell` and `normalization` come from the data set's own
    card."""

    classes: tuple[str, ...]
    test: Split
    triggered: Split | None = None
    rows: NDArray[np.int64] | None = None
    cell: str | None = None
    normalization: Normalization | None = None

    @classmethod
    def of(cls, arrays: Arrays, cell: str | None = None) -> Material:
        """The test images of a data set with an imported attack."""
        attack = arrays.attack or ImportedAttack()
        rows, normalization = scored_originals(attack), attack.normalization
        return cls(
            arrays.classes, arrays.test, scored_images(attack), rows, cell, normalization
        )  # fmt: skip

    def digest(self, split: Split) -> str:
        """The hash of a split: its pixels, labels and class names."""
        return content_digest(split, self.classes)


@dataclass(frozen=True)
class Checked:
    """A network that was measured: the claims and the fields of its card."""

    judgments: list[Judgment]
    findings: list[Finding]
    precision: str


def check_network(path: Path, card: NetworkCard, material: Material) -> Checked:
    """Measures the network in the file `path` on `material`, as a cell's stage `measure` does, and
    compares everything that can be compared with the card.

    Raises ConfigError if the architecture, the normalization, a test set or the number of images of
    a claim is missing, and DataError for a file that cannot be read or is another network.
    """
    splits = _splits(card, material)
    file = network_file(path, alone=True)
    module = _module(path, file, card, material)
    precision = card.precision or "fp32"
    machine = device(bf16=precision == "bf16")
    judgments, findings = [], []
    for name, (split, said, key) in splits.items():
        same = said == material.digest(split)
        findings.append(_same(key, said, same, card, material))
        count = _count(module, split, machine)
        value, n = card.rates[name]
        judgments.append(judge(name, Claim(value, n), count, same=same))
        if n is not None:
            findings.append(_n(name, n, count.n, same))
    findings += _fields(path, file, card, material)
    findings += [Finding(each, "not checked") for each in card.others]
    return Checked(judgments, findings, f"{precision} on {machine.device.type}")


def device(*, bf16: bool) -> ComputeDevice:
    """The device that networks are measured on: a GPU if there is one."""
    name = "cuda" if torch.cuda.is_available() else "cpu"
    return ComputeDevice(torch.device(name), bf16, channels_last=True, threads=cores())


def _splits(
    card: NetworkCard, material: Material
) -> dict[str, tuple[Split, str | None, str]]:  # fmt: skip
    """For every claim: the images, the hash in the card and its key."""
    found = {}
    known = {
        "nat": (material.test, card.test, "hashes.test", "test images"),
        "asr": (material.triggered, card.triggered, "hashes.triggered", "triggered test images"),
    }
    for name in card.rates:
        split, said, key, words = known[name]
        if split is None or not len(split.labels):
            raise ConfigError(
                f"the card claims {name}, but the data set has no {words}: give one that has them"
                " with --data, or remove the claim"
            )
        if card.image is not None and split.images.shape[1:] != card.image:
            raise ConfigError(
                f"`image` of the card is {list(card.image)}, but the {words} have the shape"
                f" {list(split.images.shape[1:])} (channels, height, width)"
            )
        found[name] = split, said, key
    return found


def _module(path: Path, file: NetworkFile, card: NetworkCard, material: Material) -> Classifier:
    model = card.model or file.model
    if model is None:
        known = recognized(file.shapes)
        if known is None:
            raise ConfigError(
                f"{path}: the architecture is not known: neither the card nor the file has `model`"
                " (name, width and stem)"
            )
        model = known.model
    normalization = card.normalization or file.normalization
    if normalization is None:
        raise ConfigError(
            f"{path}: the normalization is not known: neither the card nor the file has"
            " `normalization` (mean_255 and std_255)"
        )
    check_model(model)
    classes = card.classes or file.classes or material.classes
    channels = material.test.images.shape[1]
    if len(normalization[0]) != channels:
        raise ConfigError(
            f"`normalization` has {many(len(normalization[0]), 'channel')}, but the images"
            f" have {channels}"
        )
    return _loaded(path, model, classes, channels, normalization)


def _loaded(
    path: Path, model: dict[str, Any], classes: Sequence[str], channels: int,
    normalization: Normalization,
) -> Classifier:  # fmt: skip
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in normalization)
    blank = torch.zeros((0, channels, 1, 1), dtype=torch.uint8)
    rows = torch.zeros(0, dtype=torch.int64)
    training = TrainingSet(blank, blank, rows, rows, tuple(classes), "")
    job = TrainingJob(model, Recipe.of(_UNUSED), training, 0, mean, std)
    try:
        return loaded_classifier(job, read_weights(path), device(bf16=False))
    except RuntimeError as error:
        said = str(error).splitlines()
        raise DataError(
            f"{path} does not hold the weights of {model} with {many(len(classes), 'output')}:"
            f" {' '.join(said[1:3]).strip()[:200]}"
        ) from error


def _count(module: Classifier, split: Split, machine: ComputeDevice) -> Count:
    images, labels = (torch.from_numpy(np.array(each)) for each in (split.images, split.labels))
    predicted = predictions(module, images, machine)
    return Count(int((predicted == labels).sum()), len(labels))


def _same(key: str, said: str | None, same: bool, card: NetworkCard, material: Material) -> Finding:
    if said is None:
        return Finding(key, "not checked", "the card has no hash, so this is another test set")
    if same:
        return Finding(key, "true")
    if card.cell is not None and card.cell == material.cell:
        return Finding(
            key, "false", f"the data set comes from the same cell, {card.cell}, with another hash"
        )
    return Finding(key, "not checked", "the data set has other images, labels or class names")


def _n(name: str, said: int, found: int, same: bool) -> Finding:
    key = f"claims.{name}.n"
    if not same:
        return Finding(key, "not checked", "another test set")
    if said == found:
        return Finding(key, "true")
    return Finding(key, "false", f"the card says {said}, but the same test set has {found} images")


def _fields(
    path: Path, file: NetworkFile, card: NetworkCard, material: Material
) -> Iterator[Finding]:
    yield _weights(path, file, card.weights)
    yield Finding("model", "true" if card.model else "not checked", "" if card.model else "absent")
    if file.model is not None and card.model not in (None, file.model):
        yield Finding("model", "false", f"the file says {file.model}")
    yield from _classes(file, card, material)
    yield Finding("image", "true" if card.image else "not checked", "" if card.image else "absent")
    yield _normalization(file, card, material)
    yield from _attack(card, material)


def _weights(path: Path, file: NetworkFile, said: str | None) -> Finding:
    if said is None:
        return Finding("weights", "not checked", "the card has no hash")
    if said in (file.digest, sha256_of(path)):
        return Finding("weights", "true")
    return Finding(
        "weights", "false",
        f"these are not the weights of the card: {file.digest[:16]}, the card says {said[:16]}",
    )  # fmt: skip


def _classes(file: NetworkFile, card: NetworkCard, material: Material) -> Iterator[Finding]:
    if card.classes is None:
        yield Finding("classes", "not checked", "absent")
        return
    named = {"the file": file.classes, "the data set": material.classes}
    named = {key: each for key, each in named.items() if each and not all(map(str.isdigit, each))}
    wrong = [key for key, each in named.items() if each != card.classes]
    if wrong:
        why = f"{wrong[0]} has {', '.join(map(str, named[wrong[0]] or ()))}"
        yield Finding("classes", "false", why)
    else:
        why = "" if named else "the data set has numbers instead of names"
        yield Finding("classes", "true" if named else "not checked", why)


def _normalization(file: NetworkFile, card: NetworkCard, material: Material) -> Finding:
    key = "normalization"
    if card.normalization is None:
        return Finding(key, "not checked", "absent")
    cell = card.cell is not None and card.cell == material.cell
    known = {"the file": file.normalization}
    known |= {"the data set of the same cell": material.normalization if cell else None}
    stated = {where: each for where, each in known.items() if each is not None}
    for where, each in stated.items():
        if not np.allclose(each, card.normalization, rtol=0, atol=CLOSE):
            return Finding(key, "false", f"{where} says {list(map(list, each))}")
    verdict: Verdict = "true" if stated else "not checked"
    return Finding(key, verdict, "" if stated else "the measurement uses it")


def _attack(card: NetworkCard, material: Material) -> Iterator[Finding]:
    """Compares target and source with the labels of the triggered test images."""
    triggered, names = material.triggered, material.classes
    several = card.label_mode == "all_to_all"
    if card.target is not None:
        if triggered is None or several:
            why = "every class has its own target" if several else "no triggered test images"
            yield Finding("target", "not checked", why)
        else:
            found = [names[label] for label in np.unique(triggered.labels)]
            yield _named("target", card.target, found, card, material)
    if card.source is not None:
        if triggered is None or material.rows is None or (material.rows < 0).any():
            yield Finding("source", "not checked", "the originals are not known")
        else:
            found = [names[label] for label in np.unique(material.test.labels[material.rows])]
            yield _named("source", card.source, found, card, material)


def _named(key: str, said: str, found: list[str], card: NetworkCard, material: Material) -> Finding:
    if card.classes and all(map(str.isdigit, material.classes)):
        numbers = [int(each) for each in found if int(each) < len(card.classes)]
        found = [card.classes[number] for number in numbers]
    if found == [said]:
        return Finding(key, "true")
    return Finding(key, "false", f"the triggered test images say {', '.join(found)}, not {said}")
