"""The airbench network: published shape, whitening, and reproducible training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.tensor_io import read_tensors, tensors_digest
from backdoor_lab.numerics.layers import FeatureHook, head
from backdoor_lab.pipeline.cell import model_label
from backdoor_lab.sweep.estimate import estimate
from backdoor_lab.sweep.preflight import Preflight
from backdoor_lab.sweep.trial import try_network
from backdoor_lab.training import train as training
from backdoor_lab.training.airbench import Airbench, Group, ScaledLinear, whiten
from backdoor_lab.training.evaluate import predictions
from backdoor_lab.training.memory_format import CHANNELS_LAST, memory_format_of
from backdoor_lab.training.models import build_model, check_model
from backdoor_lab.training.train import TrainingJob, blank_classifier, fit, new_classifier
from tests.helpers.cells import (
    CPU,
    cell_of,
    configuration,
    job,
    lasting,
    run_here,
    toy_set,
    training_set,
)

AIRBENCH = ("model=airbench", "model.width=4", "recipe=airbench", "recipe.epochs=2",
            "recipe.batch_size=32", "recipe.lr=0.3")  # fmt: skip
LIKE_ITS_RECIPE: dict[str, Any] = {
    "epochs": 4, "lr": 0.3, "momentum": 0.85, "nesterov": True, "weight_decay": 1.33e-3,
    "schedule": "triangle", "warmup": 0.23, "bias_lr": 64, "label_smoothing": 0.2,
    "crop_padding": 2, "flip": "alternating",
}  # fmt: skip


def spec(width: Any = 64, stem: Any = None) -> dict[str, Any]:
    return {"name": "airbench", "width": width, "stem": stem}


def build(width: int = 64, channels: int = 3, classes: int = 10, seed: int = 0) -> Airbench:
    net = build_model(spec(width), channels=channels, classes=classes, seed=seed)
    assert isinstance(net, Airbench)
    return net


def airbench_job(width: int = 4, **changes: Any) -> TrainingJob:
    return replace(job(**(LIKE_ITS_RECIPE | changes)), model=spec(width))


def state(asked: TrainingJob, **said: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = fit(asked, CPU, **said).net.state_dict()
    return found


def test_the_published_network_has_the_known_number_of_parameters() -> None:
    """The paper states 1.97 million; whitening filters and batch normalization scales are
    frozen."""
    found = {True: 0, False: 0}
    for parameter in build().parameters():
        found[parameter.requires_grad] += parameter.numel()
    assert found == {True: 1_971_352, False: 288 + 2 * (64 + 256 + 256)}


def test_training_the_published_network_takes_the_published_number_of_flops() -> None:
    """The authors' README states 0.36 PFLOP for 9.9 epochs of 50,000 images."""
    with FlopCounterMode(display=False) as counter:
        build()(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert counter.get_total_flops() / 2 * 50_000 * 9.9 == pytest.approx(0.36e15, rel=0.03)


def shapes_inside(net: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for layer in ("whiten", "group1", "group2", "group3"):

        def note(_: Any, __: Any, output: Tensor, layer: str = layer) -> None:
            shapes[layer] = tuple(output.shape[1:])

        net.get_submodule(layer).register_forward_hook(note)
    net(images)
    return shapes


def test_the_weights_of_the_airbench_network_have_the_published_shapes() -> None:
    assert shapes_inside(build(), torch.zeros(2, 3, 32, 32)) == {
        "whiten": (24, 31, 31), "group1": (64, 15, 15), "group2": (256, 7, 7),
        "group3": (256, 3, 3),
    }  # fmt: skip


@pytest.mark.parametrize("width", [1, 4, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 20), (28, 28), (65, 64)])
def test_every_width_accepts_color_and_gray_images_of_any_size(
    width: int, channels: int, size: tuple[int, int]
) -> None:
    net = build(width, channels, classes=7)
    found = shapes_inside(net, torch.zeros(2, channels, *size))
    height, wide = (side - 1 for side in size)
    for layer, outputs in (("group1", width), ("group2", 4 * width), ("group3", 4 * width)):
        height, wide = max(1, height // 2), max(1, wide // 2)
        assert found[layer] == (outputs, height, wide)
    assert net(torch.zeros(3, channels, *size)).shape == (3, 7)
    # Preflight builds the network on the meta device.
    _, features = try_network(spec(width), "penultimate", (channels, *size), 7)
    assert features == 4 * width


@pytest.mark.parametrize(
    ("layer", "features"),
    [("penultimate", 16), ("group1", 4 * 9), ("group1:pool", 4), ("group2", 16), ("group3", 16),
     ("group3:pool", 16), ("group2.conv1:pool", 16)],
)  # fmt: skip
def test_features_can_be_extracted_from_every_layer(layer: str, features: int) -> None:
    # 8x8 is 7x7 after the whitening, then 3x3, 1x1, 1x1.
    net = build(4).eval()
    with torch.inference_mode(), FeatureHook(net, layer) as tap:
        net(torch.randn(5, 3, 8, 8))
    assert tap.values.shape == (5, features)


def test_penultimate_features_are_the_input_of_the_scaled_head() -> None:
    net = build(8).eval()
    images = torch.randn(5, 3, 32, 32)
    with (
        torch.no_grad(),
        FeatureHook(net, "penultimate") as tap,
        FeatureHook(net, "group3") as last,
    ):
        logits = net(images)
    pooled = F.max_pool2d(last.values.view(5, 32, 3, 3), 3).flatten(1)
    assert torch.equal(tap.values, pooled)
    last_layer = head(net)
    assert isinstance(last_layer, ScaledLinear)
    assert last_layer.bias is None
    torch.testing.assert_close(last_layer(tap.values), logits)
    torch.testing.assert_close(tap.values @ last_layer.weight.T / 9, logits)


def test_batch_normalization_scales_are_frozen_at_one() -> None:
    norms = [each for each in build(4).modules() if isinstance(each, nn.BatchNorm2d)]
    assert len(norms) == 6
    for norm in norms:
        assert (norm.eps, norm.momentum) == (1e-12, 0.4)
        assert not norm.weight.requires_grad
        assert bool((norm.weight == 1).all())
        assert norm.bias.requires_grad


def test_the_first_filters_of_a_convolution_are_initialized_as_identity() -> None:
    group = Group(3, 5)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(group.conv1(x)[:, :3], x)
    narrow = Group(5, 3)
    torch.testing.assert_close(narrow.conv1(torch.ones(1, 5, 4, 4)), torch.ones(1, 3, 4, 4))


def correlated(n: int = 60, channels: int = 3) -> Tensor:
    """Smooth float images with correlated channels."""
    generator = torch.Generator().manual_seed(4)
    rough = torch.randn(n, channels, 4, 4, generator=generator) + torch.randn(
        n, 1, 4, 4, generator=generator
    )
    smooth = F.interpolate(rough, size=(16, 16), mode="bilinear")
    return smooth + 0.3 * torch.randn(n, channels, 16, 16, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_have_identity_covariance(channels: int) -> None:
    images, net = correlated(channels=channels), build(4, channels)
    images = images - images.mean(dim=(0, 2, 3), keepdim=True)
    before = torch.cov(F.unfold(images, 2).transpose(0, 1).flatten(1))
    whiten(net, images.split(25))
    with torch.no_grad():
        white = net.whiten(images).transpose(0, 1).flatten(1)
    half = len(white) // 2
    identity = torch.eye(half)
    assert float((before - identity).abs().max()) > 0.9
    torch.testing.assert_close(torch.cov(white[:half]), identity, atol=0.02, rtol=0)
    # The second half is the negated first half.
    assert torch.equal(white[half:], -white[:half])


def test_whitening_filters_are_eigenvectors_over_the_square_root_of_their_eigenvalues() -> None:
    images, net = correlated(), build(4)
    whiten(net, [images])
    patches = images.double().unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5)
    patches = patches.reshape(-1, 12)
    moment = patches.T @ patches / len(patches)
    filters = net.whiten.weight.detach().double()[:12].flatten(1)
    values = torch.linalg.eigvalsh(moment).flip(0)
    torch.testing.assert_close(filters.norm(dim=1), (values + 5e-4).rsqrt(), rtol=1e-5, atol=0)
    expected = values[:, None] * filters
    torch.testing.assert_close(filters @ moment, expected, rtol=1e-4, atol=1e-4)


def test_whitening_does_not_depend_on_the_chunk_size() -> None:
    first, second, images = build(4), build(4, seed=1), correlated()
    whiten(first, [images])
    whiten(second, images.split(7))
    torch.testing.assert_close(first.whiten.weight, second.whiten.weight, rtol=1e-4, atol=1e-5)


def test_images_of_one_color_can_be_whitened() -> None:
    net = build(4)
    whiten(net, [torch.zeros(4, 3, 8, 8)])
    assert bool(torch.isfinite(net.whiten.weight).all())
    assert float(net.whiten.weight.detach().abs().max()) <= 5e-4**-0.5 * 1.001


def test_whitening_uses_the_poisoned_training_set() -> None:
    clean = airbench_job()
    base = clean.training.base
    rows = base[:20].clone()
    rows[:, 0] = 255
    index = torch.cat([torch.arange(48), 48 + torch.arange(20)])
    labels = torch.cat([clean.training.labels, torch.ones(20, dtype=torch.long)])
    poisoned = replace(clean, training=training_set(base, labels, rows=rows, index=index))
    filters = [new_classifier(each, CPU).net.state_dict()["whiten.weight"]
               for each in (clean, poisoned)]  # fmt: skip
    assert not torch.allclose(*filters, atol=1e-2)


def test_whitening_uses_triggered_images_even_if_the_trigger_is_applied_to_batches() -> None:
    images, labels, index = toy_set().base, torch.zeros(20, dtype=torch.long), torch.arange(20) + 48
    stamp = Pixel(position=(-1, -1), color=255)
    late = training_set(images, labels, rows=images[:20], index=index, late_trigger=stamp)
    early = training_set(images, labels, rows=stamp(images[:20]), index=index)
    asked = airbench_job()
    found = [new_classifier(replace(asked, training=each), CPU).net.state_dict()
             for each in (late, early)]  # fmt: skip
    assert tensors_digest(found[0]) == tensors_digest(found[1])


def test_training_reaches_a_high_accuracy_and_does_not_change_the_whitening() -> None:
    asked = airbench_job(width=8, epochs=10, crop_padding=0, flip=False)
    fresh, module = new_classifier(asked, CPU).net.state_dict(), fit(asked, CPU)
    trained = module.net.state_dict()
    kept = {name for name in fresh if torch.equal(fresh[name], trained[name])}
    norms = {f"group{i}.norm{j}.weight" for i in (1, 2, 3) for j in (1, 2)}
    assert kept == norms | {"whiten.weight"}
    predicted = predictions(module, asked.training.base, CPU)
    assert float((predicted == asked.training.labels).double().mean()) > 0.9


def test_training_an_airbench_network_twice_gives_the_same_weights() -> None:
    torch.manual_seed(1)
    first = tensors_digest(state(airbench_job()))
    torch.manual_seed(2)
    assert tensors_digest(state(airbench_job())) == first
    assert tensors_digest(state(replace(airbench_job(), seed=2))) != first


class Kill(pl.Callback):
    """Interrupts training in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int
    ) -> None:
        if trainer.current_epoch == self.epoch and index == 2:
            raise KeyError("killed")


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_training_resumed_after_a_kill_gives_identical_weights(tmp_path: Path, epoch: int) -> None:
    unbroken = state(airbench_job())
    with pytest.raises(KeyError, match="killed"):
        fit(airbench_job(), CPU, scratch=tmp_path, callbacks=[Kill(epoch)])
    resumed = state(airbench_job(), scratch=tmp_path)
    assert tensors_digest(resumed) == tensors_digest(unbroken)


def test_loading_trained_weights_does_not_need_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = airbench_job()
    trained = fit(asked, CPU)

    def unwanted(*_: Any) -> None:
        raise AssertionError("the training set was looked at")

    monkeypatch.setattr(training, "whiten", unwanted)
    monkeypatch.setattr(type(asked.training), "shown", unwanted)
    blank = blank_classifier(asked, CPU)
    blank.net.load_state_dict(trained.net.state_dict())
    images = asked.training.base
    assert torch.equal(blank.eval()(images), trained(images))


def test_airbench_networks_are_trained_in_channels_last_format_even_in_bfloat16() -> None:
    """In the channels-last format oneDNN computes all convolutions of this network correctly."""
    assert memory_format_of(build(1), CPU) == CHANNELS_LAST
    asked = airbench_job(width=8, epochs=10, crop_padding=0, flip=False)
    module = fit(asked, replace(CPU, bf16=True))
    assert module.memory_format == CHANNELS_LAST
    predicted = predictions(module, asked.training.base, CPU)
    assert float((predicted == asked.training.labels).double().mean()) > 0.9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (spec(width=0), "`model.width` must satisfy 1 <= model.width < 4097, got 0"),
        (spec(width=8.0), "`model.width` must be an integer without a decimal point, got 8.0"),
        (spec(width=None), "`model.width` must satisfy .* got None"),
        (spec(stem="cifar"), "`model.name=airbench` has no `stem`; set `model.stem` to null"),
        ({**spec(), "name": "airbensh"}, "`model.name` 'airbensh' .*mean 'airbench'"),
    ],
)
def test_unknown_model_options_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(config)


def test_an_unknown_layer_is_refused_with_a_list_of_the_known_layers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'layer4' is not known.*group1"):
        cell_of(tmp_path, *AIRBENCH, "protocol.layer=layer4")


def test_the_label_of_a_model_contains_the_width_only_if_it_is_not_the_default() -> None:
    assert [model_label(spec(width)) for width in (64, 32)] == ["airbench", "airbench-w32"]


def test_a_cell_runs_and_stores_the_whitening_filters(tmp_path: Path) -> None:
    record = run_here(
        tmp_path / "store", tmp_path / "cell", *AIRBENCH, "protocol.layer=group2:pool"
    )
    assert record["status"] == "done"
    paths = sorted((tmp_path / "store").glob("*train/*/weights.safetensors"))
    assert len(paths) == 2
    filters = [read_tensors(path)["whiten.weight"] for path in paths]
    # The retrained network is whitened on the filtered set, with another random stream.
    assert not torch.equal(*filters)
    for each in filters:
        assert torch.equal(each[:12], -each[12:])
    again = run_here(tmp_path / "store2", tmp_path / "cell2", *AIRBENCH,
                     "protocol.layer=group2:pool")  # fmt: skip
    assert lasting(again) == lasting(record)


@pytest.mark.parametrize("defense", ["anp", "fine_pruning", "abl", "d_br"])
def test_defenses_that_train_networks_work_with_airbench(tmp_path: Path, defense: str) -> None:
    asked = (*AIRBENCH, f"defense={defense}", "protocol.clean_holdout=20")
    asked += ("defense.steps=20",) if defense == "anp" else ()
    record = run_here(tmp_path / "store", tmp_path / "cell", *asked)
    assert record["status"] == "done"


def test_the_estimated_disk_space_is_that_of_the_weights_and_features(tmp_path: Path) -> None:
    config = configuration(tmp_path, *AIRBENCH, "defense=none")
    preflight = Preflight()
    cell = preflight.cell(config)
    preflight.publish()
    work = estimate([cell], set(), CPU)
    assert work.trainings == 2
    weights = sum(value.nbytes for value in build(4).state_dict().values())
    n_train = work.amounts[0][1].trained // (2 * 2)
    assert work.bytes == 2 * weights + n_train * 16 * 4
