"""Methods of a user's trigger or defense that return the wrong type, shape or values: one error
that names the class and the method, what was returned and what is expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backdoor_lab import returned
from backdoor_lab.attacks.base import AttackContext, Trigger
from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.core.errors import ConfigError, DivergedError, LabError
from backdoor_lab.core.types import Features, FilterResult, LabeledImages
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, SampleFilter
from backdoor_lab.defenses.fine_pruning import FinePruning
from backdoor_lab.defenses.networks import ModelBasedFilter, SampleScores
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.random import Random
from backdoor_lab.defenses.spectral import SpectralSignatures
from tests.helpers.cells import run_here
from tests.helpers.contexts import context, linear

Maker = Callable[..., Any]
IMAGES = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
LABELS = torch.tensor([0, 1])
ATTACK = AttackContext(LabeledImages(IMAGES, LABELS, ("a", "b")), 0, None, 0, lambda: linear(1, 1))
FEATURES = Features(torch.randn(6, 3), torch.tensor([0, 0, 0, 0, 1, 1]))
KNOWN = DefenderKnowledge(("a", "b"), 0, 1, 0)
HERE = re.escape(__name__)


def made_class(base: type, **own: Any) -> Any:
    return type("Mine", (base,), {"__module__": __name__, **own})


def trigger(make: Maker, *methods: str) -> Trigger:
    """A trigger whose `methods` return what `make` makes of the images."""
    own = {name: lambda self, images, *rest: make(images) for name in methods}
    found: Trigger = made_class(Trigger, **{"apply_test": lambda self, images: images, **own})()
    return found


WRONG_IMAGES: dict[str, tuple[Maker, str]] = {
    "nothing": (lambda images: None, r"None: is a `return` missing\?"),
    "a list": (lambda images: [*images], "list of length 2"),
    "float64": (lambda images: images.double(), r"Tensor of float64 and shape \(2, 3, 4, 5\)"),
    "an array": (lambda images: images.numpy(), r"ndarray of uint8 and shape \(2, 3, 4, 5\)"),
    "one image": (lambda images: images[0], r"Tensor of uint8 and shape \(3, 4, 5\)"),
    "fewer images": (lambda images: images[1:], r"Tensor of uint8 and shape \(1, 3, 4, 5\)"),
    "another size": (lambda images: images[..., 1:], r"Tensor of uint8 and shape \(2, 3, 4, 4\)"),
    "another device": (
        lambda images: images.to("meta"),
        r"Tensor of uint8 and shape \(2, 3, 4, 5\) on meta",
    ),
    "text": (lambda images: "images", "str"),
    "a class": (lambda images: Tensor, "_TensorMeta"),
}


@pytest.mark.parametrize(
    ("method", "use"),
    [
        ("apply_test", lambda t: t(IMAGES)),
        ("apply_test", lambda t: t.poisoned(IMAGES, LABELS, ATTACK)),
        ("apply_test", lambda t: t.make_covers(IMAGES, LABELS, ATTACK)),
        ("apply_train", lambda t: t.poisoned(IMAGES, LABELS, ATTACK)),
        ("apply_train", lambda t: t.make_covers(IMAGES, LABELS, ATTACK)),
        ("apply_cover", lambda t: t.make_covers(IMAGES, LABELS, ATTACK)),
    ],
)
@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_an_invalid_return_value_of_a_trigger_method_is_refused(
    method: str, use: Callable[[Trigger], Tensor], name: str
) -> None:
    make, got = WRONG_IMAGES[name]
    expected = r"uint8 images of the shape of its input, \(2, 3, 4, 5\)"
    with pytest.raises(
        ConfigError, match=f"^`{HERE}.Mine.{method}` must return {expected}, got {got}$"
    ):
        use(trigger(make, method))
    assert torch.equal(use(trigger(torch.clone, method)), IMAGES)


def filter_with(**methods: Maker) -> SampleFilter:
    scope = "suspicious" if "suspicious_classes" in methods else "target"
    own = {"score_class": lambda self, values, *rest: ClassScores(values.norm(dim=1)), **methods}
    options = FilterOptions(filter_scope=scope, removal_budget="auto")
    found: SampleFilter = made_class(SampleFilter, **own)(options)
    return found


N = torch.zeros(4)
OWNER = object()
ONE = r"one score per example, a Tensor of shape \(4,\)"


@pytest.mark.parametrize(
    ("method", "make", "said"),
    [
        ("score_class", lambda *a: None, r"a ClassScores, got None: is a `return` missing\?"),
        ("score_class", lambda *a: N, r"a ClassScores, got Tensor of float32 and shape \(4,\)"),
        ("score_class", lambda *a: ClassScores([0.5]), f"{ONE}, got list of length 1"),  # type: ignore[arg-type]
        ("score_class", lambda *a: ClassScores(N[:3]), rf"{ONE}, got Tensor of float32 .* \(3,\)"),
        ("score_class", lambda *a: ClassScores(N[:1]), rf"{ONE}, got Tensor of float32 .* \(1,\)"),
        ("score_class", lambda *a: ClassScores(N[:, None]), rf"{ONE}, got .* \(4, 1\)"),
        ("score_class", lambda *a: ClassScores(N.cfloat()), f"{ONE}, got Tensor of complex64"),
        ("score_class", lambda *a: ClassScores(N.bool()), f"{ONE}, got Tensor of bool"),
        ("score_class", lambda *a: ClassScores(np.zeros(4)), f"{ONE}, got ndarray of float64"),  # type: ignore[arg-type]
        ("score_class", lambda *a: ClassScores(N, "high"), "`suspicion` is a number .* got str"),  # type: ignore[arg-type]
        ("score_class", lambda *a: ClassScores(N, auto=0.5), "`auto` is a .* got float 0.5"),  # type: ignore[arg-type]
        ("score_class", lambda *a: ClassScores(N, notes=[]), "its notes as a dict, got list"),  # type: ignore[arg-type]
        ("score_class", lambda *a: ClassScores(N, notes={"a": N}), "notes that JSON can store"),
        ("score_classes", lambda *a: None, "a dict that maps labels to ClassScores, got None"),
        ("score_classes", lambda *a: {7: ClassScores(N)}, "a dict that maps labels .* length 1"),
        ("score_classes", lambda *a: {0: N}, "a ClassScores, got Tensor"),
        ("suspicious_classes", lambda *a: None, r"scored labels \(any of \[0, 1\]\), got"),
        ("suspicious_classes", lambda *a: [5], "a list of scored labels"),
        ("suspicious_classes", lambda *a: "a", "a list of scored labels"),
        ("refine_scores", lambda *a: None, f"{ONE}, got None"),
        ("refine_scores", lambda *a: N[1:], rf"{ONE}, got Tensor of float32 .* \(3,\)"),
    ],
)  # fmt: skip
def test_an_invalid_return_value_of_a_filter_method_is_refused(
    method: str, make: Maker, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"^`{HERE}.Mine.{method}` must return .*{said}"):
        filter_with(**{method: make})(FEATURES, KNOWN)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["score_class", "score_classes", "refine_scores"])
def test_the_error_for_non_finite_scores_names_the_method(method: str, bad: float) -> None:
    scores = torch.tensor([0.0, bad, 1.0, 2.0])
    make: dict[str, Maker] = {
        "score_class": lambda *a: ClassScores(scores), "refine_scores": lambda *a: scores,
        "score_classes": lambda *a: {0: ClassScores(scores)},
    }  # fmt: skip
    said = "1 of 4 scores are not finite, the first at position 1: they cannot be ranked"
    with pytest.raises(DivergedError, match=f"^`{HERE}.Mine.{method}`: {said}$"):
        filter_with(**{method: make[method]})(FEATURES, KNOWN)


def test_float_and_integer_scores_and_scores_with_a_gradient_are_accepted() -> None:
    for scores in (N.clone().requires_grad_(), N.int(), N.half()):
        result = filter_with(score_class=lambda self, v, *a, s=scores: ClassScores(s[: len(v)]))(
            FEATURES, KNOWN
        )
        assert result.scores.dtype == torch.float64
        assert not result.scores.requires_grad


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "a SampleScores, got None"),
        (SampleScores(N[1:]), r"one score per example, a Tensor of shape \(4,\), got .* \(3,\)"),
        (SampleScores(N, N), "`flagged` is None or a bool .* float32"),
        (SampleScores(N, N[1:].bool()), r"`flagged` is .* \(3,\)"),
    ],
)
def test_an_invalid_return_value_of_the_method_score_images_is_refused(
    made: Any, said: str
) -> None:
    mine = made_class(ModelBasedFilter, score_images=lambda *a: made)()
    given = context(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), FEATURES.labels)
    known = DefenderKnowledge(("a", "b"), 0, 1, 0, context=given)
    with pytest.raises(ConfigError, match=f"^`{HERE}.Mine.score_images` must return .*{said}"):
        mine(FEATURES, known)


def changed(**weights: Tensor) -> Any:
    network = linear(4, 2)
    network.load_state_dict(network.state_dict() | weights)
    return network


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, r"\(network, notes\), .*, got None: is a `return` missing\?"),
        (linear(4, 2), r"must return \(network, notes\), .*, got Small"),
        ((linear(4, 2), {}, 1), "got tuple of length 3"),
        ((linear(4, 2).body, {}), "as its first value, got Linear"),
        ((linear(4, 3), {}), "body.weight is missing, unexpected, or has a different shape"),
        ((linear(4, 2), None), "its notes as a dict, got None"),
        ((linear(4, 2), {"x": float("nan")}), "notes that JSON can store"),
        ((changed(**{"body.bias": torch.tensor([0.0, float("nan")])}), {}),
         "weight body.bias is not finite after the repair"),
    ],
)  # fmt: skip
def test_an_invalid_return_value_of_a_repair_is_refused(made: Any, said: str) -> None:
    with pytest.raises(LabError, match=rf"^`{HERE}\.Mine\.repair`.*{said}"):
        returned.repaired(made_class(object)(), "repair", made, linear(4, 2))
    assert returned.repaired(OWNER, "repair", (linear(4, 2), {"a": 1}), linear(4, 2))[1] == {"a": 1}


KEEP = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "a FilterResult, got None"),
        ((N, KEEP), "a FilterResult, got tuple of length 2"),
        (FilterResult(N.long(), KEEP), "`scores` are floats of .* got Tensor of int64"),
        (FilterResult(N[1:], KEEP), r"`scores` are floats of shape \(4,\)"),
        (FilterResult(N + torch.inf, KEEP), "without a score, but 4 of 4 are infinite"),
        (FilterResult(N, KEEP.long()), r"`keep` is a bool Tensor of shape \(4,\), got .* int64"),
        (FilterResult(N, [True] * 4), "`keep` is a bool Tensor .* got list of length 4"),  # type: ignore[arg-type]
        (FilterResult(N, KEEP, {"a": KEEP}), "notes that JSON can store"),
    ],
)
def test_an_invalid_return_value_of_a_defense_is_refused(made: Any, said: str) -> None:
    fine = FilterResult(N.masked_fill(KEEP, torch.nan), KEEP)
    assert returned.filter_result(OWNER, "__call__", fine, 4) is fine
    with pytest.raises(ConfigError, match=f"^`builtins.object.__call__` must return .*{said}"):
        returned.filter_result(OWNER, "__call__", made, 4)


@pytest.mark.parametrize("made", [None, "target", ["images"], [1]])
def test_unknown_requirements_are_refused(made: Any) -> None:
    said = r"a list of names \(any of target, epsilon, clean, context, clean images\)"
    with pytest.raises(ConfigError, match=f"`builtins.object.requires` must return {said}"):
        returned.requirements(OWNER, made)


@pytest.mark.parametrize("made", [None, [N], {"a": 1}, {1: N}])
def test_the_prepare_method_of_a_trigger_must_return_a_dict_of_named_tensors(made: Any) -> None:
    with pytest.raises(ConfigError, match="prepare` must return a dict that maps names to tensors"):
        returned.tensors(OWNER, "prepare", made)


@pytest.mark.parametrize(
    ("cls", "method", "words", "said"),
    [
        (SpectralSignatures, "score_class", ["defense=spectral"], "a ClassScores, got list"),
        (Random, "__call__", ["defense=random"], "a FilterResult, got list of length 0"),
        (FinePruning, "repair", ["defense=fine_pruning", "protocol.clean_holdout=20"],
         "(network, notes), a network from `context.network()` or `context.fresh(seed)`, got list"),
    ],
)  # fmt: skip
def test_a_cell_whose_defense_returns_an_invalid_value_fails_without_a_stack_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    cls: type, method: str, words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(cls, method, lambda *a: [])
    record = run_here(tmp_path / "store", tmp_path / "cell", *words)
    start = f"failed: `{cls.__module__}.{cls.__name__}.{method}` must return {said}"
    assert record["status"].startswith(start)
    assert not [each for each in caplog.records if each.exc_info]


def test_an_invalid_return_value_of_a_trigger_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pixel, "apply_test", lambda self, images: None)
    with pytest.raises(ConfigError, match=r"Pixel\.apply_test` must return uint8 images"):
        run_here(tmp_path / "store", tmp_path / "cell", "trigger=pixel")
    assert not (tmp_path / "cell").exists()
