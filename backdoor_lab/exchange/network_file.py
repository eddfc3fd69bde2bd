"""Reads the weights of a network that somebody else trained, without running code from the file.

A file is in the safetensors format, or was written by ``torch.save``. It holds a state_dict, alone
or in a dict: ``{"model": state_dict, ...}`` as BackdoorBench's ``attack_result.pt``, or
``{"state_dict": ...}`` as a checkpoint of Lightning.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.small_files import check_regular
from backdoor_lab.core.tensor_io import read_tensors, tensors_digest
from backdoor_lab.core.torch_files import load_torch_file
from backdoor_lab.exchange.card_file import CARD, Normalization, normalization_of, read_card

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""The keys below which a file of ``torch.save`` may hold the state_dict."""
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
"""Prefixes that DataParallel, Lightning and torch.compile put before the name of every tensor."""
NEEDED = ("name", "width", "stem")
LIBRARY, OPTIONS, INPUT_SIZE, NORMALIZE, WEIGHTS = OPTIONAL = (
    "library", "options", "input_size", "normalize", "weights",
)  # fmt: skip
"""The keys that may be missing: the library that defines the network (null: torchvision or this
package), the library's options, the size to which images are resized, their normalization, and a
file with initial weights."""
_HEADER = 8
_LISTED = 8


@dataclass(frozen=True)
class NetworkFile:
    """What is known about a file of weights; None if the file does not say it.

    `digest` is the hash of the tensors (`tensors_digest`) after `read_weights` has converted them,
    and `shapes` has their shapes. `model` is the `model` group of the configuration, `classes` are
    the class names and `image` is the shape of an image. `normalization` is what the network's
    images are normalized by, and `source` says where it was found. `cell` is the id of the cell
    that trained the network. `model_name` is the name that BackdoorBench gives the architecture.
    """

    path: Path
    digest: str
    shapes: Mapping[str, tuple[int, ...]]
    model: dict[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    image: tuple[int, ...] | None = None
    normalization: Normalization | None = None
    source: str | None = None
    cell: str | None = None
    model_name: str | None = None


def network_file(path: Path | str, *, alone: bool = False) -> NetworkFile:
    """Read a file of weights and everything that it says about its network. Unless `alone`, what
    the file does not say is taken from a card of kind ``network`` next to it, if there is one:
    ``<name>.card.json`` (see `card_of`), otherwise ``card.json``.

    Raises DataError, which names the file, if it is missing or damaged, contains anything but
    tensors and plain values, has weights that are not finite, or does not match its own metadata or
    its card.
    """
    path = Path(path)
    try:
        stamp = _stamp(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    card = (
        None if alone else next(filter(Path.is_file, (card_of(path), path.with_name(CARD))), None)
    )
    return _network_file(path, card, (*stamp, *(_stamp(card) if card else ())))


def card_of(path: Path) -> Path:
    """Returns the path of the card that belongs to a file of weights.

    >>> card_of(Path("runs/network.safetensors")).as_posix()
    'runs/network.card.json'
    """
    return path.with_suffix(f".{CARD}")


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a file of weights, on the CPU.

    Floating-point tensors of any precision are converted to float32, which rounds float64 to the
    nearest value; integers stay as they are. Raises the errors of `network_file`.
    """
    return _converted(Path(path), _content(Path(path))[0])


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _network_file(path: Path, beside: Path | None, stamp: tuple[int, ...]) -> NetworkFile:
    given, said = _content(path)
    weights = _converted(path, given)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    file = _described(NetworkFile(path, tensors_digest(weights), shapes), said, "its metadata")
    hashes = {file.digest, tensors_digest(given)}
    _check_hash(path, said.get("weights"), hashes, "its own metadata")
    if beside is None or (file.normalization is not None and file.model is not None):
        return file
    card = _card(beside)
    if card:
        _check_hash(path, card.get("weights"), {*hashes, sha256_of(path)}, beside.name)
    return _described(file, card, beside.name)


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file under their names in the network, and what the file says about it."""
    if _is_safetensors(path):
        found, said = _safetensors(path)
    else:
        content = load_torch_file(path)
        if not isinstance(content, dict):
            raise DataError(f"{path}: holds a {type(content).__name__}, not a state_dict")
        found, said = _state_dict(path, content), content
        said = {key: said[key] for key in ("model_name", "num_classes") if key in said}
    if not found:
        raise DataError(f"{path}: holds no tensors")
    return _without_prefix(found), said


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as the safetensors format does: a length, and a JSON object."""
    try:
        check_regular(path)
        with path.open("rb") as stream:
            begin = stream.read(_HEADER + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return begin[_HEADER:] == b"{" or path.suffix == ".safetensors"


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
        found = read_tensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a valid safetensors file ({error})") from error
    said: dict[str, Any] = {key: texts[key] for key in ("weights", "cell") if key in texts}
    for key in ("model", "classes", "image", "mean_255", "std_255"):
        if key in texts:
            try:
                said[key] = json.loads(texts[key])
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: `{key}` in its metadata is not valid JSON") from error
    if "mean_255" in said or "std_255" in said:
        said["normalization"] = {key: said.pop(key, None) for key in ("mean_255", "std_255")}
    return found, said


def _state_dict(path: Path, content: dict[Any, Any]) -> dict[str, Tensor]:
    """The state_dict in the content of a file of ``torch.save``."""
    if _all_tensors(content):
        return content
    inside = [content[key] for key in CONTAINERS if _all_tensors(content.get(key))]
    if len(inside) == 1:
        found: dict[str, Tensor] = inside[0]
        return found
    keys = [str(key) for key in content]
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    what = "several state_dicts" if inside else "no state_dict"
    raise DataError(
        f"{path}: holds {what}: the state_dict must be the whole content, or the value of one of"
        f" the keys {', '.join(CONTAINERS)}; the file has the keys"
        f" {', '.join(keys[:_LISTED])}{more}"
    )


def _all_tensors(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items())
    )


def _without_prefix(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that the names of all of them have."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            return _without_prefix({k.removeprefix(prefix): v for k, v in found.items()})
    return found


def _converted(path: Path, found: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, given in found.items():
        if given.is_complex():
            raise DataError(f"{path}: {name} has complex numbers, which no network here has")
        value = given.float() if given.is_floating_point() else given
        if not bool(torch.isfinite(value).all()):
            raise DataError(f"{path}: {name} has values that are not finite in float32")
        weights[name] = value.contiguous()
    return weights


def _card(path: Path) -> dict[str, Any]:
    """The card at `path`; empty if it is not the card of a network."""
    card = read_card(path).content
    return card if card.get("kind") == "network" else {}


def _check_hash(path: Path, said: Any, hashes: set[str], where: str) -> None:
    if said is not None and said not in hashes:
        raise DataError(
            f"{path}: its weights do not match the hash in {where} ({str(said)[:16]}): the file is"
            " damaged or was changed, or belongs to another card"
        )


def _described(file: NetworkFile, said: dict[str, Any], where: str) -> NetworkFile:
    """Add what `said`, which was found in `where`, states about a network and `file` does not."""
    known: dict[str, Any] = {}
    model = said.get("model")
    if isinstance(model, dict) and model.keys() >= {*NEEDED}:
        known["model"] = architecture(model)
    for key, kind in (("classes", str), ("image", int)):
        values = said.get(key)
        if isinstance(values, list) and all(type(each) is kind for each in values):
            known[key] = tuple(values)
    for key in ("cell", "model_name"):
        if isinstance(said.get(key), str):
            known[key] = said[key]
    if said.get("normalization") is not None:
        known["normalization"] = _normalization(file.path, said["normalization"], where)
        known["source"] = where
    missing = {key: value for key, value in known.items() if getattr(file, key) is None}
    if "normalization" not in missing:
        missing.pop("source", None)
    return replace(file, **missing)


def _normalization(path: Path, said: Any, where: str) -> Normalization:
    try:
        return normalization_of(said)
    except ConfigError as error:
        raise DataError(f"{path}: in {where}, {error}") from error


def completed(group: Mapping[str, Any]) -> dict[str, Any]:
    """A `model` group in which `width` and `stem` are null if they are missing.

    >>> completed({"name": "mine", "stem": "cifar"})
    {'name': 'mine', 'stem': 'cifar', 'width': None}
    """
    return {**group, **{key: None for key in NEEDED if key not in group}}


def without_defaults(group: Mapping[str, Any]) -> dict[str, Any]:
    """A `model` group without the optional keys that are not set.

    >>> without_defaults({"name": "resnet18", "width": 64, "stem": "cifar", "input_size": None})
    {'name': 'resnet18', 'width': 64, 'stem': 'cifar'}
    """
    return {
        key: value
        for key, value in group.items()
        if key not in OPTIONAL or (value is not None and value != {})
    }


def architecture(group: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the function of a network with given weights and normalization."""
    found = {key: group.get(key) for key in NEEDED}
    more = {key: group.get(key) for key in OPTIONAL if key not in (NORMALIZE, WEIGHTS)}
    return found | without_defaults(more)
