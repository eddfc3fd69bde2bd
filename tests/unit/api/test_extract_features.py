"""Features of models that do not come from this package, and of this package's own networks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backdoor_lab as bl
from backdoor_lab.training.evaluate import extract
from backdoor_lab.training.train import new_classifier
from tests.helpers.cells import CPU, job, training_set
from tests.helpers.foreign import TakesDict, Wrapped, sequential, some_images, transformer


def scaled(images: Tensor) -> Tensor:
    return images.float() / 255


def test_the_penultimate_features_of_a_vision_transformer_are_the_input_of_its_head() -> None:
    net, images = transformer().eval(), some_images()
    found = bl.extract_features(net, images, batch_size=12)
    with torch.no_grad():
        assert torch.allclose(net.heads[-1](found), net(scaled(images)), atol=1e-5)
    assert (found.dtype, found.shape) == (torch.float32, (12, 8))


def test_tokens_are_flattened_averaged_or_reduced_to_the_first() -> None:
    net, images = transformer(), some_images()
    block = "encoder.layers.encoder_layer_1"
    whole = bl.extract_features(net, images, layer=block).unflatten(1, (17, 8))
    first = bl.extract_features(net, images, layer=f"{block}:cls")
    assert torch.equal(first, whole[:, 0])
    mean = bl.extract_features(net, images, layer=f"{block}:pool")
    assert torch.allclose(mean, whole.mean(dim=1), atol=1e-6)
    patches = bl.extract_features(net, images, layer=f"{block}:mean")
    assert torch.allclose(patches, whole[:, 1:].mean(dim=1), atol=1e-6)
    entering = bl.extract_features(net, images, layer=f"{block}:input")
    before = bl.extract_features(net, images, layer="encoder.layers.encoder_layer_0")
    assert torch.equal(entering, before)
    # The first token of the last layer, normalized, is what the head sees.
    last = bl.extract_features(net, images, layer="encoder.ln:cls")
    assert torch.equal(last, bl.extract_features(net, images))


def test_tokens_of_a_vision_transformer_of_timm() -> None:
    timm = pytest.importorskip("timm")
    options = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 12, "num_heads": 3}
    net = timm.create_model("vit_tiny_patch16_224", num_classes=4, **options)
    images = some_images()
    whole = bl.extract_features(net, images, layer="blocks.1").unflatten(1, (5, 12))
    first = bl.extract_features(net, images, layer="blocks.1:cls")
    assert torch.equal(first, whole[:, 0])
    patches = bl.extract_features(net, images, layer="blocks.1:mean")
    assert torch.allclose(patches, whole[:, 1:].mean(dim=1), atol=1e-6)
    with pytest.raises(ValueError, match=r"Did you mean 'blocks.1:cls'"):
        bl.extract_features(net, images, layer="blocks.12:cls")


def test_feature_maps_are_flattened_or_averaged() -> None:
    net, images = sequential().eval(), some_images()
    with torch.no_grad():
        output = net[:3](scaled(images))
    assert torch.equal(bl.extract_features(net, images, layer="2"), output.flatten(1))
    assert torch.allclose(
        bl.extract_features(net, images, layer="2:pool"), output.mean(dim=(2, 3)), atol=1e-6
    )


def test_the_recorded_output_is_not_overwritten_by_a_later_in_place_module() -> None:
    net, images = sequential().eval(), some_images()
    with torch.no_grad():
        expected = net[0](scaled(images)).flatten(1)
    found = bl.extract_features(net, images, layer="0")
    assert float(found.min()) < 0
    assert torch.equal(found, expected)


def test_a_wrapped_model_with_dictionaries_gives_its_features() -> None:
    net, images = Wrapped().eval(), some_images()
    found = bl.extract_features(net, images, layer="inner.net.5")
    assert torch.equal(found, bl.extract_features(sequential(), images))
    assert torch.equal(found, bl.extract_features(net, images))


def test_the_first_tensor_of_an_output_or_input_is_used() -> None:
    net, images = Wrapped(), some_images()
    means = bl.extract_features(net, images, layer="inner")
    assert torch.allclose(means, scaled(images).mean(dim=(2, 3)))
    whole = bl.extract_features(net, images, layer="inner:input")
    assert torch.equal(whole, scaled(images).flatten(1))


class Named(nn.Module):
    """Passes the input of its part by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.part = TakesDict()

    def forward(self, images: Tensor) -> object:
        return self.part(batch={"pixel_values": images})


def test_the_input_of_a_module_may_be_passed_by_keyword() -> None:
    found = bl.extract_features(Named(), some_images(), layer="part:input")
    assert torch.equal(found, scaled(some_images()).flatten(1))


class Numbers(nn.Module):
    """Returns no tensor."""

    def forward(self, images: Tensor) -> dict[str, object]:
        return {"n": len(images), "each": [None, "x"]}


class Scalar(nn.Module):
    """Returns one number for each image, without a second axis."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("module", "message"),
    [(Numbers(), "output must be a tensor .* got type dict"),
     (Scalar(), r"output must be a tensor .* got shape \(12,\)")],
)  # fmt: skip
def test_an_output_without_usable_tensor_is_an_error(module: nn.Module, message: str) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = module

        def forward(self, images: Tensor) -> Tensor:
            self.part(images)
            return images

    with pytest.raises(ValueError, match=message):
        bl.extract_features(Outer(), some_images(), layer="part")


class Twice(nn.Module):
    """Calls one of its parts twice and the other never, and gives a third part other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.never, self.split = nn.ReLU(), nn.ReLU(), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        out = self.often(self.often(images) - 0.5)
        self.split(out.flatten(0, 1))
        return out


@pytest.mark.parametrize(
    ("layer", "message"),
    [("never", "`layer=never` is not called in a forward pass of the model"),
     ("split", r"`layer=split` must give one row per image, but gives shape \(36, 256\) for 12"),
     ("often:cls", r"`layer=often:cls` needs tokens \(n, tokens, d\), got shape \(n, 3, 16, 16\)"),
     ("nevr", "`layer` 'nevr' is not known. Did you mean 'never'.* often, never, split"),
     ("never:max", "`layer` 'never:max' is not known"),
     ("never:input:pool", "is not known"),
     ("", "`layer` '' is not known"),
     ("penultimate", "needs a torch.nn.Linear in the model. Modules of the model: often, never")],
)  # fmt: skip
def test_a_layer_that_gives_no_features_is_an_error(layer: str, message: str) -> None:
    net = Twice()
    with pytest.raises(ValueError, match=message):
        bl.extract_features(net, some_images(), layer=layer)
    assert hooks_of(net) == 0


@pytest.mark.parametrize("layer", ["often", "often:input"])
def test_the_last_call_of_a_shared_module_counts(layer: str) -> None:
    """As on the command line, where `spectre_authors` uses a ReLU that a block calls twice."""
    inner = scaled(some_images()) - 0.5
    expected = inner.relu() if layer == "often" else inner
    assert torch.equal(
        bl.extract_features(Twice(), some_images(), layer=layer), expected.flatten(1)
    )


def test_a_long_list_of_modules_is_cut() -> None:
    net = nn.Sequential(*[nn.Identity() for _ in range(250)])
    with pytest.raises(ValueError, match=r"0, 1, 2, .*, 199 and 50 more\."):
        bl.extract_features(net, some_images(), layer="x")


def test_a_module_with_two_names_is_found_by_both() -> None:
    shared = nn.Flatten()
    net = nn.ModuleDict({"a": shared, "b": shared})
    net.forward = lambda images: shared(images)  # type: ignore[method-assign]
    one, other = (bl.extract_features(net, some_images(), layer=name) for name in "ab")
    assert torch.equal(one, other)


def hooks_of(net: nn.Module) -> int:
    return sum(
        len(each._forward_hooks) + len(each._forward_pre_hooks) + len(each._backward_hooks)
        for each in net.modules()
    )


class Fails(nn.Module):
    """Raises an error in its second batch."""

    batches = 0

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches += 1
        if self.batches == 2:
            raise KeyError("broken")
        return images


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_hooks_and_weights_are_as_before(fails: bool) -> None:
    net = nn.Sequential(sequential(), Fails() if fails else nn.Identity())
    net.train()
    net[0][3].eval()
    calls: list[int] = []
    net[0][5].register_forward_hook(lambda *_: calls.append(1))
    modes = [module.training for module in net.modules()]
    weights = copy.deepcopy(net.state_dict())
    arguments: dict[str, Any] = {"batch_size": 5}
    if fails:
        with pytest.raises(KeyError, match="broken"):
            bl.extract_features(net, some_images(), **arguments)
    else:
        bl.extract_features(net, some_images(), **arguments)
    assert [module.training for module in net.modules()] == modes
    assert hooks_of(net) == 1
    assert len(calls) == (2 if fails else 3)
    assert torch.is_grad_enabled()
    for name, values in net.state_dict().items():
        assert torch.equal(values, weights[name]), name


def test_the_model_can_be_trained_afterwards() -> None:
    net = transformer()
    bl.extract_features(net, some_images())
    net(scaled(some_images())).sum().backward()
    assert all(each.grad is not None for each in net.parameters())


def test_features_do_not_depend_on_the_batch_size_or_kind_of_array() -> None:
    net, images = transformer(), some_images(11)
    whole = bl.extract_features(net, images)
    for size in (1, 4, 11):
        part = bl.extract_features(net, images, batch_size=size)
        assert torch.allclose(part, whole, atol=1e-5)
    kept = images.numpy().copy()
    found = bl.extract_features(net, images.numpy())
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    assert np.array_equal(found, whole.numpy())
    assert np.array_equal(images.numpy(), kept)


def test_the_model_gets_images_as_normalize_says() -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), some_images()

    def shown(normalize: Any) -> Tensor:
        found = bl.extract_features(net, images, normalize=normalize)
        return found.unflatten(1, images.shape[1:])

    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    assert torch.equal(shown(None), images / 255)
    assert torch.equal(shown("bytes"), images.float())
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(shown((mean, std)), expected)
    assert torch.equal(shown(lambda x: 1 - x), 1 - images / 255)


def test_autocast_of_the_caller_does_not_round_features() -> None:
    net, images = sequential(), some_images()
    expected = bl.extract_features(net, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bl.extract_features(net, images), expected)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_gives_the_features_of_the_original(in_place: bool) -> None:
    net, images = sequential(), some_images()
    expected = bl.extract_features(net, images)
    made: Any = torch.compile(net, backend="eager")
    if in_place:
        net.compile(backend="eager")
        made = net
    # The model is compiled without the hook.
    with torch.no_grad():
        made.eval()(images / 255)
    assert torch.equal(bl.extract_features(made, images), expected)


def test_a_model_on_two_devices_is_not_moved() -> None:
    net = nn.Sequential(sequential(), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="since the model is on several devices: cpu, meta"):
        bl.extract_features(net, some_images(), layer="0.5", device="cpu")
    assert net[1].weight.device.type == "meta"


def test_random_numbers_of_the_caller_are_unaffected() -> None:
    net = sequential()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    bl.extract_features(net, some_images())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [({"model": lambda x: x}, TypeError, "`model` must be a torch.nn.Module, got function"),
     ({"model": torch.jit.script(sequential())}, TypeError, "`model` must not be scripted"),
     ({"layer": 3}, TypeError, "`layer` must be a string, got int"),
     ({"images": [1]}, TypeError, "`images` must be a NumPy array or a torch tensor, got list"),
     ({"images": some_images().float()}, ValueError, "`images` must have dtype uint8"),
     ({"images": some_images()[:0]}, ValueError, "`images` must have at least one row"),
     ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
     ({"batch_size": "4"}, TypeError, "`batch_size` must be an integer, got str"),
     ({"device": "nowhere"}, ValueError, "`device` 'nowhere' is not available: "),
     ({"device": "meta"}, ValueError, "`device` must have memory, got 'meta'"),
     ({"device": 1.5}, TypeError, "`device` must be a device or its name, got float"),
     ({"normalize": ((0.5, 0.5), (1, 1))}, ValueError, "`normalize` must have one mean")],
)  # fmt: skip
def test_a_wrong_argument_is_named(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"model": sequential(), "images": some_images(), **arguments}
    with pytest.raises(error, match=message):
        bl.extract_features(given.pop("model"), given.pop("images"), **given)


def test_a_feature_that_is_not_finite_is_an_error_that_names_the_image() -> None:
    net, images = sequential(), some_images()
    images[7] = 0
    with pytest.raises(ValueError, match="the features of row 7 of `images` are not finite"):
        bl.extract_features(
            net, images, layer="0:input", normalize=lambda x: x / x.amax((1, 2, 3), True)
        )


@pytest.mark.parametrize("layer", ["penultimate", "layer4", "layer3:pool", "layer3.1.conv1:input",
                                   "layer2.0.bn1", "last_stage_input"])  # fmt: skip
def test_features_of_a_classifier_have_the_bits_of_the_command_line(layer: str) -> None:
    images = some_images(530, size=8)
    training = training_set(images, torch.arange(530) % 2)
    module = new_classifier(job(training), CPU).eval()
    expected = extract(module, training, layer, CPU).values
    name = layer if layer in ("penultimate", "last_stage_input") else f"net.{layer}"
    found = bl.extract_features(module, images, layer=name, batch_size=512, normalize="bytes")
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("net", "layer"),
    [(transformer(), "penultimate"), (transformer(), "encoder.layers.encoder_layer_0:cls"),
     (sequential(), "penultimate"), (sequential(), "1:pool"), (Wrapped(), "inner.net.4")],
    ids=["transformer", "transformer-cls", "sequential", "sequential-pool", "wrapped"],
)  # fmt: skip
def test_a_filter_scores_the_features_of_a_model(net: nn.Module, layer: str) -> None:
    """Spectral signatures are compared with a singular value decomposition by NumPy."""
    images, labels = some_images(60).numpy(), np.arange(60) % 3
    features = bl.extract_features(net, images, layer=layer)
    assert isinstance(features, np.ndarray)
    found = bl.get_filter("spectral").fit(features, labels, target=1, n_poisoned=4)
    chosen = features[labels == 1].astype(np.float64)
    centered = chosen - chosen.mean(axis=0)
    expected = (centered @ np.linalg.svd(centered)[2][0]) ** 2
    assert np.allclose(found.scores_[labels == 1], expected)
    assert np.isnan(found.scores_[labels != 1]).all()
    removed = np.flatnonzero(labels == 1)[np.sort(np.argsort(expected)[-6:])]
    assert np.array_equal(np.flatnonzero(~found.keep_), removed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.gpu
def test_the_model_is_on_a_gpu_only_for_the_pass() -> None:
    net, images = sequential(), some_images()
    expected = bl.extract_features(net, images)
    found = bl.extract_features(net, images, device="cuda")
    assert torch.allclose(found, expected, atol=1e-5)
    assert {each.device.type for each in (found, *net.parameters(), *net.buffers())} == {"cpu"}
