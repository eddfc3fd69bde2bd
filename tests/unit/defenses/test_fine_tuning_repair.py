"""Fine-tuning on hand-made networks: which tensors change, and which images are used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.fine_tuning import FineTuning, evenly
from tests.helpers.contexts import Small, context, hidden

ATTACKED = hidden(12, 3, seed=5)
STATISTICS = {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}
LAST = {"body.3.weight", "body.3.bias"}


def images(n: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, 256, (n, 1, 3, 4), generator=generator, dtype=torch.uint8)
    return found, torch.arange(n) % 3


def given(n: int = 24, **changes: Any) -> DefenseContext:
    return context(*images(60, 1), **{"network": ATTACKED, "clean": images(n)} | changes)


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(method: FineTuning, found: DefenseContext) -> set[str]:
    before, after = tensors(found.network()), tensors(method.repair(found)[0])
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_layers_last_changes_only_the_last_linear_layer() -> None:
    assert changed(FineTuning(layers="last", epochs=2), given()) == LAST


def test_layers_all_changes_every_weight_and_the_running_statistics() -> None:
    assert changed(FineTuning(epochs=2), given()) == {*ATTACKED.state_dict()} >= STATISTICS


def test_layers_last_normalizes_by_the_running_statistics() -> None:
    """The first step has the gradient of the loss in eval mode."""
    found = given(clean=images(12))
    network, (shown, labels) = found.network(), images(12)
    loss = nn.functional.cross_entropy(network(shown), labels)
    last = network.body[3]  # type: ignore[union-attr, index]
    gradient = torch.autograd.grad(loss, last.bias)[0]
    options = {"epochs": 1, "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    repaired, _ = FineTuning(layers="last", **options).repair(found)  # type: ignore[arg-type]
    after = tensors(repaired)["body.3.bias"]
    assert torch.allclose(after, last.bias.detach() - 0.5 * gradient, atol=1e-6)


def test_no_epochs_change_nothing() -> None:
    assert changed(FineTuning(epochs=0), given()) == set()


def test_the_result_depends_on_the_seed_alone() -> None:
    method = FineTuning(epochs=2, batch_size=8, clean_images=12)
    one, again, other = (tensors(method.repair(given(seed=s))[0]) for s in (3, 3, 4))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["body.3.weight"], other["body.3.weight"])


def test_the_used_images_are_divided_evenly_among_the_classes() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    order = torch.tensor([6, 1, 0, 5, 3, 4, 2])
    assert evenly(labels, order, 3).tolist() == [1, 5, 6]
    assert evenly(labels, order, 5).tolist() == [0, 1, 4, 5, 6]
    assert evenly(labels, order, 100).tolist() == list(range(7))
    _, notes = FineTuning(epochs=1, clean_images=5).repair(given())
    assert notes["images"] == 5


def test_a_single_left_over_image_does_not_stop_batch_normalization() -> None:
    network, notes = FineTuning(epochs=2, batch_size=8).repair(given(17))
    assert notes["images"] == 17
    assert all(bool(torch.isfinite(value).all()) for value in tensors(network).values())


def test_the_notes_count_the_tuned_weights_and_have_the_accuracy_before_and_after() -> None:
    _, notes = FineTuning(layers="last", epochs=60, lr=0.2).repair(given())
    assert notes["tuned_parameters"] == 12 * 3 + 3
    before, after = notes["accuracy_on_them"]  # type: ignore[misc]
    assert before < after


def test_missing_clean_images_are_named_by_the_option_that_provides_them() -> None:
    with pytest.raises(ConfigError, match=r"set protocol\.clean_holdout"):
        FineTuning(epochs=1).repair(replace(given(), clean=None))


def test_layers_last_needs_a_linear_layer() -> None:
    network = Small(nn.Identity())
    FineTuning().check_network(network, 12)
    with pytest.raises(ConfigError, match="has no linear layer"):
        FineTuning(layers="last").check_network(network, 12)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"layers": "first"}, "`defense.layers`"), ({"epochs": -1}, "`defense.epochs`"),
     ({"batch_size": 1}, "`defense.batch_size`"), ({"clean_images": 0}, "`defense.clean_images`"),
     ({"lr": float("nan")}, "`defense.lr`"), ({"data": "digits"}, r"\+dataset@defense.data=NAME")],
)  # fmt: skip
def test_invalid_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FineTuning(**options)
