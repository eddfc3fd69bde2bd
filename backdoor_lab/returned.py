"""Checks what the methods of triggers and defenses return.

An error names the class, the method, the returned value and the expected one. Without these checks,
a wrong value from a user's own method would fail later, in code that the user does not know.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.types import FilterResult

T = TypeVar("T")
NEEDS = ("target", "epsilon", "clean", "context", "clean images")
"""What a defense may require."""


def name_of(owner: object, method: str) -> str:
    """Returns the full name of a method, for messages."""
    return f"{type(owner).__module__}.{type(owner).__qualname__}.{method}"


def wrong(owner: object, method: str, value: object, expected: str) -> ConfigError:
    """Returns the error for a method that returned a wrong `value`. `expected`: a description of
    the values that are allowed."""
    hint = ": is a `return` missing?" if value is None else ""
    return ConfigError(
        f"`{name_of(owner, method)}` must return {expected}, got {described(value)}{hint}"
    )


def described(value: object) -> str:
    """Returns the type of a value with further details: the dtype and shape of a tensor, the length
    of a container, or the value of a number.

    >>> described([1, 2]), described(None), described(0.5)
    ('list of length 2', 'None', 'float 0.5')
    """
    if value is None:
        return "None"
    kind = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and not isinstance(value, type):
        return (
            f"{kind} of {str(dtype).removeprefix('torch.')} and shape {tuple(shape)}{_place(value)}"
        )
    if isinstance(value, (list, tuple, dict, set)):
        return f"{kind} of length {len(value)}"
    return f"{kind} {value!r}" if isinstance(value, (bool, int, float)) else kind


def _place(value: object) -> str:
    """Returns `` on cuda:0`` for a tensor on that device; an empty string on the CPU."""
    device = str(getattr(value, "device", "cpu"))
    return "" if device == "cpu" else f" on {device}"


def images(owner: object, method: str, value: object, given: Tensor) -> Tensor:
    """Returns the images `value` if their shape, dtype and device type are those of the images
    `given` to the trigger. Raises ConfigError otherwise."""
    if (
        isinstance(value, torch.Tensor)
        and (value.dtype, value.shape) == (given.dtype, given.shape)
        and value.device.type == given.device.type
    ):
        return value
    expected = f"uint8 images of the shape of its input, {tuple(given.shape)}"
    raise wrong(owner, method, value, expected + _place(given))


def chosen(owner: object, value: object, candidates: Tensor, wanted: int) -> Tensor | None:
    """Returns `value` if it is None or a valid choice of images to poison: distinct indices from
    `candidates`, sorted. `wanted`: the required number of indices. Otherwise raises ConfigError."""
    if value is None:
        return None
    if (
        isinstance(value, torch.Tensor)
        and (value.dtype, value.shape) == (torch.int64, (wanted,))
        and bool((value.diff() > 0).all() and torch.isin(value, candidates).all())
    ):
        return value
    expected = f"None or {wanted} of the indices that it is given, sorted, int64 ({wanted},)"
    raise wrong(owner, "choose", value, expected)


def tensors(owner: object, method: str, value: object) -> dict[str, Tensor]:
    """Returns `value` if it is a dict that maps names to tensors. Raises ConfigError otherwise."""
    if isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items()
    ):
        return value
    raise wrong(owner, method, value, "a dict that maps names to tensors")


def scores(owner: object, method: str, value: object, n: int) -> Tensor:
    """Returns `value` if it holds `n` finite scores. Raises ConfigError for another type or shape,
    DivergedError for NaN and infinity."""
    if not isinstance(value, torch.Tensor) or not _are_scores(value, n):
        raise wrong(owner, method, value, f"one score per example, a Tensor of shape ({n},)")
    finite(value, "scores", name_of(owner, method))
    return value


def finite(values: Tensor, what: str, where: str = "") -> None:
    """Raises DivergedError if any of `values` (n, ...) is NaN or infinite. `where` is the method
    that returned them."""
    good = torch.isfinite(values)
    good = good if good.ndim == 1 else good.all(dim=1)
    bad = (~good).nonzero().flatten()
    if len(bad):
        raise DivergedError(
            f"{f'`{where}`: ' * bool(where)}{len(bad)} of {len(values)} {what} are not finite, the"
            f" first at position {int(bad[0])}: they cannot be ranked"
        )


def class_scores(owner: object, method: str, value: object, kind: type, n: int) -> None:
    """Raises ConfigError unless `value` is an instance of `kind` (ClassScores) that is valid for
    `n` examples. Does not check that the scores are finite."""
    given = _of_kind(owner, method, value, kind)
    found, name = given.scores, kind.__name__
    if not _are_scores(found, n):
        expected = f"a {name} with one score per example, a Tensor of shape ({n},)"
        raise wrong(owner, method, found, expected)
    for field, number in (("suspicion", Real), ("auto", Integral)):
        each = getattr(given, field)
        if each is not None and not isinstance(each, number):
            raise wrong(owner, method, each, f"a {name} whose `{field}` is a number or None")
    noted(owner, method, given.notes)


def scores_by_class(
    owner: object, method: str, value: Any, kind: type[T], sizes: Mapping[int, int]
) -> dict[int, T]:
    """Returns `value` if it maps labels to valid instances of `kind` (ClassScores). Raises
    ConfigError otherwise. `sizes` maps each allowed label to its number of examples."""
    if not isinstance(value, dict) or not value.keys() <= sizes.keys():
        raise wrong(owner, method, value, f"a dict that maps labels to {kind.__name__}")
    for label, each in value.items():
        class_scores(owner, method, each, kind, sizes[label])
    return value


def sample_scores(owner: object, method: str, value: object, kind: type, n: int) -> None:
    """Raises ConfigError unless `value` has the type `kind` (SampleScores) and is valid for `n`
    images. Raises DivergedError if a score is not finite."""
    given = _of_kind(owner, method, value, kind)
    scores(owner, method, given.scores, n)
    flagged = given.flagged
    if flagged is not None and not _is_mask(flagged, n):
        expected = f"a {kind.__name__} whose `flagged` is None or a bool Tensor of shape ({n},)"
        raise wrong(owner, method, flagged, expected)
    noted(owner, method, given.notes)


def labels(owner: object, method: str, value: object, known: Collection[int]) -> list[int]:
    """Returns `value` as a list if it contains only labels in `known`. Raises ConfigError
    otherwise."""
    if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)):
        found = list(value)
        if all(isinstance(label, Integral) and label in known for label in found):
            return found
    raise wrong(owner, method, value, f"a list of scored labels (any of {sorted(known)})")


def filter_result(owner: object, method: str, value: Any, n: int) -> FilterResult:
    """Returns `value` if it is a FilterResult of `n` examples; scores may be NaN (not scored).
    Raises ConfigError otherwise."""
    if not isinstance(value, FilterResult):
        raise wrong(owner, method, value, "a FilterResult")
    found = value.scores
    floats = isinstance(found, torch.Tensor) and found.is_floating_point()
    if not floats or found.shape != (n,):
        expected = (
            f"a FilterResult whose `scores` are floats of shape ({n},), with NaN for examples"
            " without a score"
        )
        raise wrong(owner, method, found, expected)
    if infinite := int(found.isinf().sum()):
        raise ConfigError(
            f"`{name_of(owner, method)}` must return finite scores, or NaN for examples without a"
            f" score, but {infinite} of {n} are infinite"
        )
    if not _is_mask(value.keep, n):
        expected = f"a FilterResult whose `keep` is a bool Tensor of shape ({n},)"
        raise wrong(owner, method, value.keep, expected)
    noted(owner, method, value.notes)
    return value


def repaired(owner: object, method: str, value: Any, like: nn.Module) -> tuple[Any, dict[str, Any]]:
    """Returns `value` if it is a pair: a network with the architecture of `like`, and its notes.
    Raises ConfigError otherwise, and DivergedError if a weight is not finite."""
    expected = "(network, notes), a network from `context.network()` or `context.fresh(seed)`"
    if not isinstance(value, tuple) or len(value) != 2:
        raise wrong(owner, method, value, expected)
    network, notes = value
    if type(network) is not type(like):
        raise wrong(owner, method, network, f"{expected}, as its first value")
    shapes = [{k: v.shape for k, v in each.state_dict().items()} for each in (network, like)]
    if shapes[0] != shapes[1]:
        names = [k for k in shapes[0] | shapes[1] if shapes[0].get(k) != shapes[1].get(k)]
        raise ConfigError(
            f"`{name_of(owner, method)}` must return a network with the attacked network's"
            f" architecture; in the returned network, the weight {names[0]} is missing,"
            " unexpected, or has a different shape"
        )
    for name, weight in network.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            where = name_of(owner, method)
            raise DivergedError(f"`{where}`: weight {name} is not finite after the repair")
    return network, noted(owner, method, notes)


def requirements(owner: object, value: object) -> list[str]:
    """Returns `value`, the result of the `requires` method of a defense. Raises ConfigError unless
    `value` is a list of names in `NEEDS`."""
    if isinstance(value, (list, tuple)) and all(each in NEEDS for each in value):
        return list(value)
    raise wrong(owner, "requires", value, f"a list of names (any of {', '.join(NEEDS)})")


def noted(owner: object, method: str, value: Any) -> dict[str, Any]:
    """Returns `value` if it is a dict that JSON can store. Raises ConfigError otherwise."""
    if not isinstance(value, dict):
        raise wrong(owner, method, value, "its notes as a dict")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"`{name_of(owner, method)}` must return notes that JSON can store (text, finite"
            f" numbers, lists, dicts): {error}"
        ) from error
    return value


def _of_kind(owner: object, method: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise wrong(owner, method, value, f"a {kind.__name__}")
    return value


def _are_scores(value: object, n: int) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.shape == (n,)
        and not (value.is_complex() or value.dtype == torch.bool)
    )


def _is_mask(value: object, n: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.shape == (n,)
