"""The card of a network: what it is, on what it was measured, and the measured rates.

The card of ``W.safetensors`` is ``W.card.json``. `python -m backdoor_lab.export_weights` writes it,
and `python -m backdoor_lab.verify` checks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.small_files import read_json, read_small
from backdoor_lab.exchange.network_file import LARGEST, SMALLEST, Normalization
from backdoor_lab.results.seal import check_seal

FORMAT = 1
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
    protocol = record.get("protocol") or {}
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
        "model": {key: config["model"].get(key) for key in ("name", "width", "stem")},
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
        "ratio": chosen.get("ratio"),
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


def card_at(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a card. Raises DataError if there is none."""
    try:
        found = read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: a card is a JSON object, got {type(found).__name__}")
    return found


def is_sealed(path: Path, card: dict[str, Any]) -> bool | None:
    """Whether the seal of a card matches its text, so that nobody has edited it since it was
    written; None if it has no seal."""
    if "seal" not in card:
        return None
    try:
        check_seal(read_small(path))
    except DataError:
        return False
    return True


def kind_of(path: Path, card: dict[str, Any]) -> str:
    """Returns the kind of a card, ``network`` or ``dataset``. Raises ConfigError for another kind
    and for another format."""
    try:
        validation.choice("format", card.get("format"), [FORMAT])
        return str(validation.choice("kind", card.get("kind"), ["network", "dataset"]))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parsed(path: Path, card: dict[str, Any]) -> NetworkCard:
    """Returns the fields of a network's card. Raises ConfigError, which names the file and the
    field, for a value of another type or outside its range, and if there is no claim."""
    try:
        return _parsed(card)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _parsed(card: dict[str, Any]) -> NetworkCard:
    claims, hashes = _part(card, "claims"), _part(card, "hashes")
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
    mode = _part(card, "protocol").get("label_mode")
    return NetworkCard(
        rates, model=_model(card.get("model")), classes=_classes(card.get("classes")),
        image=_image(card.get("image")), normalization=_normalization(card.get("normalization")),
        precision=precision, test=_text("hashes.test", hashes.get("test")),
        triggered=_text("hashes.triggered", hashes.get("triggered")),
        label_mode=mode if isinstance(mode, str) else None,
        others=sorted(key for key in card if key not in CHECKED and card[key] is not None),
        **texts,
    )  # fmt: skip


def _part(card: dict[str, Any], key: str) -> dict[str, Any]:
    found = card.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"`{key}` must be an object, got {found!r}")
    return found


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
    validation.keys("model", said, ("name", "width", "stem"))
    return {key: said.get(key) for key in ("name", "width", "stem")}


def _classes(said: Any) -> tuple[str, ...] | None:
    if said is None:
        return None
    if not isinstance(said, list) or len(said) < 2 or len({*map(str, said)}) != len(said):
        raise ConfigError(f"`classes` must be a list of at least two different names, got {said!r}")
    return tuple(validation.text("classes", each) for each in said)


def _image(said: Any) -> tuple[int, ...] | None:
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != 3:
        raise ConfigError(f"`image` must be [channels, height, width], got {said!r}")
    return tuple(validation.whole("image", each, low=1) for each in said)


def _normalization(said: Any) -> Normalization | None:
    if said is None:
        return None
    pair: list[Any] = [
        said.get(key) if isinstance(said, dict) else None for key in ("mean_255", "std_255")
    ]
    if not all(isinstance(each, list) and each for each in pair) or len(pair[0]) != len(pair[1]):
        raise ConfigError(
            "`normalization` must have mean_255 and std_255, a number for each channel, got"
            f" {said!r}"
        )
    mean, std = (
        tuple(validation.number(f"normalization.{key}", x, low=low, below=LARGEST) for x in values)
        for key, low, values in zip(
            ("mean_255", "std_255"), (-LARGEST, SMALLEST), pair, strict=True
        )
    )
    return mean, std
