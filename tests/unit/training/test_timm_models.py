"""Networks of timm, their input size and their normalization. Nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.numerics.layers import FeatureHook, head
from backdoor_lab.sweep.trial import try_network
from backdoor_lab.training.evaluate import normalization_of
from backdoor_lab.training.models import build_model, check_model
from tests.helpers.cells import cell_of, run_here, toy_set
from tests.helpers.small_networks import MOBILENET, MOBILENET_WORDS, VIT, VIT_WORDS, WIDE, small

timm = pytest.importorskip("timm")
PLAIN = {"name": "vit_tiny_patch16_224", "width": None, "stem": None, "library": "timm"}


def test_the_network_is_that_of_timm() -> None:
    with torch.device("meta"):
        ours = build_model(PLAIN, channels=3, classes=10, seed=0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    # 5.5 million parameters.
    assert sum(each.numel() for each in ours.parameters()) == 5_526_346


def test_initial_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(3)
    first, again = small().state_dict(), small().state_dict()
    other = build_model(VIT, channels=3, classes=10, seed=1).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(("size", "expected"), [(None, 224), (32, 32)])
def test_a_vit_resizes_images_to_its_own_size_or_is_built_for_another(
    size: int | None, expected: int
) -> None:
    model = PLAIN | {"options": {"depth": 1}} | ({} if size is None else {"input_size": size})
    net = build_model(model, channels=1, classes=3, seed=0)
    assert net.get_submodule("patch_embed").img_size == (expected, expected)
    with torch.inference_mode():
        assert net(torch.zeros(2, 1, 12, 12)).shape == (2, 3)


def test_images_are_resized_bilinearly_with_antialiasing_before_the_first_layer() -> None:
    torch.manual_seed(0)
    images, seen = torch.rand(2, 3, 40, 40), []
    for size in (24, 64):
        net = build_model(WIDE | {"input_size": size}, channels=3, classes=10, seed=0).eval()
        plain = build_model(WIDE, channels=3, classes=10, seed=0).eval()
        expected = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        net.get_submodule("conv1").register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        with torch.no_grad():
            assert torch.equal(net(images), plain(expected))
        assert torch.equal(seen[-1], expected)
    constant = torch.full((1, 3, 9, 9), 0.25)
    net(constant)
    assert torch.allclose(seen[-1], torch.tensor(0.25))


def test_a_mobilenet_accepts_any_size_and_gray_images() -> None:
    for size in (12, 33):
        _, features = try_network(MOBILENET, "penultimate", (1, size, size), 5)
        assert features == 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_tiny_patch16_242"}, "Did you mean 'vit_tiny_patch16_224'.*names of timm"),
        ({"name": "vit_tiny_patch16_224.augreg_in21"}, "Did you mean 'vit_tiny_patch16_224.aug"),
        ({"name": "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k"}, "is not known"),
        ({"width": 64}, "has no `width` or `stem`"),
        ({"stem": "cifar"}, "has no `width` or `stem`"),
        ({"library": "tim"}, "`model.library` 'tim' is not known. Did you mean 'timm'"),
        ({"options": {"pretrained": True}}, "model.options.pretrained` cannot be set"),
        ({"options": {"checkpoint_path": "x"}}, "weights are given as model.weights=FILE"),
        ({"options": {"depth": {"a": 1}}}, "must be a number, a text, a flag or a list"),
        ({"options": [1]}, "`model.options` must be a mapping"),
        ({"input_size": 0}, "`model.input_size` must satisfy 1 <= model.input_size"),
        ({"normalize": "imagnet"}, "Did you mean 'imagenet'"),
        ({"normalize": [[0.5]]}, r"must be null, imagenet, timm or \[\[mean"),
        ({"normalize": [[0.5, 0.5], [0.5]]}, "2 means and 1 deviation"),
        ({"normalize": [[0.5], [0.0]]}, "std` must satisfy"),
        ({"library": None, "options": {"depth": 2}}, "it needs `model=timm`, or `model.fact"),
        ({"library": None, "name": "resnet18", "normalize": "timm"}, "needs `model=timm`"),
    ],
)
def test_names_and_options_that_cannot_be_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(PLAIN | changes)


def test_airbench_has_no_input_size() -> None:
    with pytest.raises(ConfigError, match=r"set dataset.size instead"):
        check_model({"name": "airbench", "width": 8, "stem": None, "input_size": 32})


def test_the_reason_of_timm_is_given_if_it_cannot_build_the_network() -> None:
    with pytest.raises(ConfigError, match=r"cannot build .*\(banana=3, img_size=224\).*banana"):
        build_model(PLAIN | {"options": {"banana": 3}}, channels=3, classes=2, seed=0)


def test_without_timm_the_remedy_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'backdoor-lab\[timm\]'"):
        check_model(PLAIN)


def test_the_normalization_is_the_stated_one_or_that_of_the_training_set() -> None:
    training = toy_set()
    stated = {
        "imagenet": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        "timm": ([127.5] * 3, [127.5] * 3),
    }
    for normalize, (mean, std) in stated.items():
        found = normalization_of(training, PLAIN | {"normalize": normalize})
        torch.testing.assert_close(found[0], torch.tensor(mean))
        torch.testing.assert_close(found[1], torch.tensor(std))
    own = normalization_of(training, PLAIN)
    torch.testing.assert_close(own[0], training.base.float().mean(dim=(0, 2, 3)))
    given = normalization_of(training, PLAIN | {"normalize": [[0, 0.5, 1], [1, 0.1, 1]]})
    assert given[0].tolist() == [0, 127.5, 255]


def test_a_normalization_for_other_channels_is_refused() -> None:
    training = toy_set()
    gray = TrainingSet(
        training.base[:, :1], training.rows, training.index, training.labels, training.classes, ""
    )
    with pytest.raises(ConfigError, match="has 3 channels, but the images have 1"):
        normalization_of(gray, PLAIN | {"normalize": "imagenet"})


def test_penultimate_features_are_the_input_of_the_head() -> None:
    for model in (VIT, MOBILENET):
        net = small(model).eval()
        with torch.no_grad(), FeatureHook(net, "penultimate") as tap:
            logits = net(torch.rand(3, 3, 16, 16))
            torch.testing.assert_close(head(net)(tap.values), logits)


def test_the_optional_keys_decide_the_cell_and_defaults_do_not(tmp_path: Path) -> None:
    plain = cell_of(tmp_path)
    assert plain.decides()["model"] == {"name": "resnet18", "width": 4, "stem": "cifar"}
    assert plain.parts.network_id("0a") == "0a"
    same = cell_of(tmp_path, "model.input_size=null", "model.normalize=null")
    others = [
        cell_of(tmp_path, word) for word in ("model.input_size=16", "model.normalize=imagenet")
    ]
    assert same.id == plain.id
    assert len({plain.id, *(each.id for each in others)}) == 3
    labels = [each.choices["model"] for each in (plain, *others)]
    assert labels == ["resnet18-w4", "resnet18-w4@16", "resnet18-w4 normalize=imagenet"]
    assert others[0].parts.network_id("0a") != "0a"
    assert others[1].parts.network_id("0a") == "0a"


@pytest.mark.parametrize(
    ("words", "label"),
    [(VIT_WORDS, "timm/vit_tiny_patch16_224@16 depth=2 embed_dim=24 num_heads=3 patch_size=4"),
     (MOBILENET_WORDS, "timm/mobilenetv3_small_050")],
)  # fmt: skip
def test_a_cell_with_a_network_of_timm_runs(
    words: tuple[str, ...], label: str, tmp_path: Path
) -> None:
    record = run_here(tmp_path / "store", tmp_path / "cell", "model.normalize=timm", *words)
    assert record["status"] == "done"
    assert record["choices"]["model"] == f"{label} normalize=timm"
    assert record["config"]["model"]["library"] == "timm"
    assert record["run"]["timm"] == timm.__version__
    assert 0 <= record["nat2"] <= 1
