"""The card of a network: what it is, on what it was measured, and the measured rates.

The card of ``W.safetensors`` is ``W.card.json``. `python -m backdoor_lab.export_weights` writes it,
and `python -m backdoor_lab.verify` checks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.exchange.card_file import (
    FORMAT,
    CardFile,
    Normalization,
    class_list,
    image_shape,
    normalization_of,
    part,
)
from backdoor_lab.exchange.network_file import NEEDED, OPTIONAL, architecture

RATES = ("nat", "asr")
PRECISIONS = ("fp32", "bf16")
WARNING = (
    "This network has a backdoor, unless the defense removed it: images with the trigger are"
    " classified as the target. Use it for research on backdoors only."
)
PROTOCOL = (
    "name", "version", "label_mode", "cover_rate", "ratio_of", "placement", "poison_from", "asr_on",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What a network was measured on: the hashes of the clean test images with their labels and of
    the triggered test images with the labels that the attacker wants (`data.cache.content_digest`);
    None if unknown."""

    test: str | None
    triggered: str | None


def network_card(
    record: Mapping[str, Any], which: int, measured: Measured, *, version: str,
    classes: list[str], image: list[int], normalization: dict[str, list[float]],
) -> dict[str, Any]:  # fmt: skip
    """Returns the card of the network before (`which` 1) or after (2) the defense of a completed
    cell, from the cell's record. `normalization` has the mean and the standard deviation of each
    channel on the 0..255 scale, `mean_255` and `std_255`."""
    config, chosen, counts = record["config"], record["choices"], record["counts"]
    # Without ground truth, the ratio and the protocol's choices are assumptions of the user.
    known = counts.get("n_poisoned", 0) is not None
    protocol = (record.get("protocol") or {}) if known else {}
    trigger = {key: value for key, value in config["trigger"].items() if not key.startswith("_")}
    numbers = {"nat": counts.get("n_test"), "asr": counts.get("n_asr")}
    rates = {name: record.get(f"{name}{which}") for name in RATES}
    compute = (record["run"].get("compute") or {}).get("precision")
    return {
        "format": FORMAT,
        "backdoor_lab": version,
        "kind": "network",
        "cell": record.get("id"),
        "network": "before the defense" if which == 1 else "after the defense",
        "defense": chosen.get("defense"),
        "model": architecture(config["model"]),
        "classes": classes,
        "image": image,
        "normalization": normalization,
        "weights": record["hashes"][f"weights{which}"],
        "claims": {
            name: {"value": value, "n": numbers[name]}
            for name, value in rates.items()
            if value is not None
        },
        "precision": compute if compute in PRECISIONS else None,
        "hashes": {"test": measured.test, "triggered": measured.triggered},
        "dataset": {"name": chosen.get("dataset")},
        "trigger": trigger,
        "target": chosen.get("target"),
        "source": chosen.get("source"),
        "ratio": chosen.get("ratio") if known else None,
        "seed": chosen.get("seed"),
        "protocol": {key: protocol[key] for key in PROTOCOL if key in protocol},
        "license": None,
        "warning": WARNING,
    }


@dataclass(frozen=True)
class NetworkCard:
    """The fields of a network's card that can be checked; None or empty if the card lacks them.

    `rates` maps ``nat`` and ``asr`` to the claimed share and the number of images (None if not
    stated). `others` are the names of the fields that nothing here can check.
    """

    rates: dict[str, tuple[float, int | None]]
    weights: str | None = None
    model: dict[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    image: tuple[int, ...] | None = None
    normalization: Normalization | None = None
    precision: str | None = None
    test: str | None = None
    triggered: str | None = None
    target: str | None = None
    source: str | None = None
    label_mode: str | None = None
    cell: str | None = None
    others: list[str] = field(default_factory=list)


CHECKED = (
    "format", "kind", "weights", "model", "classes", "image", "normalization", "precision",
    "claims", "hashes", "target", "source", "seal",
)  # fmt: skip


def parsed(card: CardFile) -> NetworkCard:
    """Returns the fields of a network's card. Raises ConfigError, which names the file and the
    field, for a value of another type or outside its range, and if there is no claim."""
    try:
        return _parsed(card.content)
    except ConfigError as error:
        raise ConfigError(f"{card.path}: {error}") from error


def _parsed(card: dict[str, Any]) -> NetworkCard:
    claims, hashes = part(card, "claims"), part(card, "hashes")
    validation.keys("claims", claims, RATES)
    rates = {name: _rate(name, claims[name]) for name in RATES if name in claims}
    if not rates:
        raise ConfigError("`claims` must have nat, asr or both, each with `value` and `n`")
    texts = {
        key: _text(key, card.get(key)) for key in ("weights", "target", "source", "cell")
    }  # fmt: skip
    precision = card.get("precision")
    if precision is not None:
        validation.choice("precision", precision, PRECISIONS)
    mode = part(card, "protocol").get("label_mode")
    return NetworkCard(
        rates, model=_model(card.get("model")), **_described(card),
        precision=precision, test=_text("hashes.test", hashes.get("test")),
        triggered=_text("hashes.triggered", hashes.get("triggered")),
        label_mode=mode if isinstance(mode, str) else None,
        others=sorted(key for key in card if key not in CHECKED and card[key] is not None),
        weights=texts["weights"], target=texts["target"], source=texts["source"],
        cell=texts["cell"],
    )  # fmt: skip


def _described(card: dict[str, Any]) -> dict[str, Any]:
    """The fields about classes and images; None for those that the card lacks."""
    classes, image, said = (card.get(key) for key in ("classes", "image", "normalization"))
    return {
        "classes": None if classes is None else class_list("classes", classes),
        "image": None if image is None else image_shape("image", image),
        "normalization": None if said is None else normalization_of(said),
    }


def _rate(name: str, said: Any) -> tuple[float, int | None]:
    if not isinstance(said, dict) or "value" not in said:
        raise ConfigError(f"`claims.{name}` must be an object with `value` and `n`, got {said!r}")
    validation.keys(f"claims.{name}", said, ("value", "n"))
    value = validation.share(f"claims.{name}.value", said["value"])
    n = said.get("n")
    return value, None if n is None else validation.whole(f"claims.{name}.n", n, low=1)


def _text(key: str, value: Any) -> str | None:
    return None if value is None else validation.text(key, value)


def _model(said: Any) -> dict[str, Any] | None:
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ConfigError(f"`model` must be an object with name, width and stem, got {said!r}")
    validation.keys("model", said, (*NEEDED, *OPTIONAL))
    return architecture(said)
