"""`backdoor_lab.poison`: its result, its errors, and saving."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backdoor_lab as bl
from backdoor_lab.api import attacker
from backdoor_lab.api.poisoning import PoisonResult
from backdoor_lab.attacks import base
from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.exchange.write import write_set
from backdoor_lab.results.seal import sealed
from tests.helpers.exported import DESCRIBED, small_set
from tests.helpers.picture_sets import LABELS, pictures
from tests.helpers.triggers import NAMES, brief, fitted, surrogate

SPECIAL = ["label_consistent", "narcissus", "sleeper_agent"]
"""Triggers that need a surrogate, in three ways."""


def poisoned(trigger: Any = "pattern", **changes: Any) -> PoisonResult:
    given = {"images": pictures(40), "labels": LABELS, "target": 1, "ratio": 0.3} | changes
    return bl.poison(given.pop("images"), given.pop("labels"), trigger, **given)


def assert_same(first: PoisonResult, second: PoisonResult) -> None:
    for name in ("images", "labels", "is_poison", "is_cover", "source_index"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), name)
    for name in ("protocol", "trigger", "target", "source", "ratio", "seed"):
        assert getattr(first, name) == getattr(second, name), name


def test_the_ground_truth_says_which_image_every_row_was_made_from() -> None:
    images, trigger = pictures(40), bl.get_trigger("adaptive_patch")
    found = poisoned(trigger, images=images, seed=4)
    clean = ~found.is_poison & ~found.is_cover
    assert int(found.is_poison.sum()) == 3
    assert int(found.is_cover.sum()) == 6
    assert torch.equal(found.images[clean], images)
    assert torch.equal(found.labels[clean], LABELS)
    assert (found.source_index[clean] == -1).all()
    origin = found.source_index[found.is_poison]
    assert (found.labels[found.is_poison] == 1).all()
    assert (LABELS[origin] != 1).all()
    expected = trigger.apply_train(images[origin], seed=4)
    assert torch.equal(found.images[found.is_poison], expected)
    hidden = found.source_index[found.is_cover]
    assert torch.equal(found.labels[found.is_cover], LABELS[hidden])
    expected = trigger.apply_cover(images[hidden], seed=4)
    assert torch.equal(found.images[found.is_cover], expected)


def test_the_result_has_the_kind_and_dtype_of_the_input() -> None:
    tensors = poisoned()
    arrays = poisoned(images=pictures(40).numpy(), labels=LABELS.numpy().astype(np.uint8))
    assert_same(tensors, arrays)
    assert isinstance(arrays.images, np.ndarray)
    assert arrays.labels.dtype == np.uint8
    assert (arrays.is_poison.dtype, arrays.source_index.dtype) == (np.bool_, np.int64)
    assert (tensors.is_cover.dtype, tensors.source_index.dtype) == (torch.bool, torch.int64)
    mixed = poisoned(labels=LABELS.to(torch.int32).numpy())
    assert isinstance(mixed.labels, np.ndarray)
    assert mixed.labels.dtype == np.int32
    assert isinstance(mixed.images, torch.Tensor)
    listed = poisoned(images=pictures(40).numpy(), labels=LABELS.tolist())
    assert_same(listed, tensors)
    assert isinstance(listed.labels, np.ndarray)


def test_the_result_says_how_it_was_made() -> None:
    found = poisoned(bl.get_trigger("patch", color=[1, 2, 3]), source=3, seed=np.int64(5))
    assert (found.protocol, found.target, found.source) == ("group13@1", 1, 3)
    assert (found.ratio, found.seed) == (0.3, 5)
    assert found.trigger["name"] == "patch"
    assert (found.trigger["color"], found.trigger["size"]) == ([1, 2, 3], 3)
    assert repr(found) == (
        "PoisonResult(n=43, poisoned=3, covers=0, trigger='patch', target=1, protocol='group13@1')"
    )


@pytest.mark.parametrize("name", NAMES)
def test_poisoning_does_not_modify_the_input_or_the_random_state(name: str) -> None:
    images, labels, model = pictures(40), LABELS.clone(), surrogate()
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        results.append(poisoned(brief(name), images=images, labels=labels, model=model))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(*results)
    results[0].images.fill_(7)
    results[0].labels.fill_(0)
    assert torch.equal(images, pictures(40))
    assert torch.equal(labels, LABELS)
    assert model.training


def test_a_ratio_of_zero_returns_the_clean_images() -> None:
    found = poisoned(ratio=0)
    assert torch.equal(found.images, pictures(40))
    assert torch.equal(found.labels, LABELS)
    assert not found.is_poison.any()


def test_the_version_of_a_protocol_is_checked() -> None:
    assert_same(poisoned(protocol="group13@1"), poisoned(protocol="group13"))
    for protocol in ("group13@2", "group13@0"):
        with pytest.raises(ValueError, match="`protocol` must be group13@1, the version in this"):
            poisoned(protocol=protocol)
    for protocol in ("group12", "group13@", "group13@one", "@1", "group13@1@1"):
        with pytest.raises(ValueError, match="protocol name .* is not known"):
            poisoned(protocol=protocol)


def test_a_protocol_that_applies_the_trigger_after_augmentation_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = attacker.defaults

    def late(*arguments: Any, **options: Any) -> dict[str, Any]:
        return usual(*arguments, **options) | {"apply_trigger": "after_augmentation"}

    monkeypatch.setattr(attacker, "defaults", late)
    with pytest.raises(ValueError, match="group13 applies the trigger after augmentation, which"):
        poisoned()


@pytest.mark.parametrize("name", SPECIAL)
def test_a_trigger_that_needs_a_surrogate_requires_a_model(name: str) -> None:
    with pytest.raises(ValueError, match="`model` is missing"):
        poisoned(brief(name))


@pytest.mark.parametrize("name", [*SPECIAL, "steganographic"])
def test_a_fitted_trigger_gives_the_same_result_as_one_that_poison_fits(name: str) -> None:
    mine, source = fitted(name), 2 if name == "sleeper_agent" else None
    unfitted = brief(name)
    expected = poisoned(unfitted, model=surrogate(), source=source)
    found = poisoned(mine, source=source)
    assert_same(found, expected)
    assert torch.equal(unfitted(pictures(4)), mine(pictures(4)))


def test_a_trigger_that_was_not_fitted_by_its_user_is_fitted_by_every_call() -> None:
    again, model = brief("narcissus"), surrogate()
    poisoned(again, model=model, seed=0, target=2)
    found = poisoned(again, model=model, seed=3)
    assert_same(found, poisoned(brief("narcissus"), model=model, seed=3))


def test_a_fitted_trigger_keeps_what_it_was_fitted_to() -> None:
    trigger = fitted("narcissus")
    before = trigger(pictures(4))
    poisoned(trigger, seed=9)
    assert torch.equal(trigger(pictures(4)), before)
    with pytest.raises(ValueError, match="`target` is 2, but `trigger` was fitted for 1"):
        poisoned(trigger, target=2)
    with pytest.raises(ValueError, match="`model` must be left out, because `trigger` is fitted"):
        poisoned(trigger, model=surrogate())
    assert poisoned(fitted("steganographic"), target=2).is_poison.any()
    again = pickle.loads(pickle.dumps(trigger))
    assert_same(poisoned(again), poisoned(trigger))


def test_poisoning_with_a_trigger_that_needs_no_fit_leaves_its_seed_open() -> None:
    trigger, images = bl.get_trigger("adaptive_blend"), pictures(6)
    first, second = (trigger.apply_train(images, seed=seed) for seed in (0, 1))
    poisoned(trigger, seed=1)
    assert torch.equal(trigger.apply_train(images, seed=0), first)
    assert torch.equal(trigger.apply_train(images, seed=1), second)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"trigger": 3},
            TypeError,
            "`trigger` must be a name, a trigger from get_trigger.* got int",
        ),
        ({"trigger": "pixle"}, ValueError, "trigger name 'pixle' is not known"),
        ({"images": pictures(40).float()}, ValueError, "`images` must have dtype uint8"),
        ({"images": pictures(40).tolist()}, TypeError, "`images` must be a NumPy array or a"),
        ({"images": pictures(39)}, ValueError, r"one value per row of `images` \(39\), got 40"),
        ({"images": pictures(0), "labels": []}, ValueError, "at least one value, got 0"),
        ({"labels": LABELS.float()}, ValueError, "`labels` must be integers, got float32"),
        ({"labels": LABELS - 1}, ValueError, "`labels` must not be negative, got -1 in row 0"),
        ({"labels": None}, TypeError, "`labels` must be a NumPy array or a torch tensor"),
        ({"target": 4}, ValueError, "`target` must satisfy 0 <= target < 4, got 4"),
        ({"target": "cat"}, TypeError, "`target` must be a class number, got 'cat'"),
        ({"source": 1}, ValueError, "`source` and `target` must differ, but both are class 1"),
        ({"source": 2.0}, TypeError, "`source` must be a class number, got 2.0"),
        ({"ratio": 1.5}, ValueError, "`ratio` must satisfy 0 <= ratio <= 1, got 1.5"),
        ({"ratio": -0.1}, ValueError, "`ratio` must satisfy 0 <= ratio"),
        ({"ratio": float("nan")}, ValueError, "`ratio` must .*nan"),
        ({"ratio": "0.1"}, TypeError, "`ratio` must be a number, got str"),
        ({"ratio": True}, TypeError, "`ratio` must be a number, got bool"),
        ({"ratio": 0.01}, ValueError, "`ratio`=0.01 of 10 images .* is less than one image"),
        ({"protocol": 13}, TypeError, "`protocol` must be a string, got int"),
        ({"protocol": "madry2018"}, ValueError, "needs a class in `source`"),
        ({"seed": -1}, ValueError, "`seed` must satisfy 0 <= seed < 2\\*\\*63, got -1"),
        ({"seed": "a"}, TypeError, "`seed` must be an integer, got str"),
        ({"augment": []}, TypeError, "`augment` must be a mapping or None, got list"),
        ({"images": torch.full((40, 3, 16, 16), 255).byte()}, ValueError, "changes no pixel"),
        ({"images": pictures(40)[:, :, :2]}, ValueError, "outside images of 2x16 pixels"),
        ({"labels": LABELS * 0, "target": 0}, ValueError, "only 0 are eligible"),
    ],
)
def test_wrong_arguments_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        poisoned(**changes)
    assert "protocol.ratio" not in str(caught.value)


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_a_saved_result_is_loaded_without_loss(tmp_path: Path, kind: str) -> None:
    images: Any = pictures(40, channels=1)
    labels: Any = LABELS.to(torch.int16)
    if kind == "arrays":
        images, labels = images.numpy(), labels.numpy()
    found = poisoned("warp", images=images, labels=labels, seed=2)
    folder = tmp_path / "new" / "poisoned"
    found.save(folder)
    assert sorted(os.listdir(folder)) == ["README.md", "card.json", "data.npz"]
    again = PoisonResult.load(str(folder))
    assert_same(again, found)
    assert again.labels.dtype == labels.dtype
    assert type(again.images) is type(images)
    with np.load(folder / "data.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["train_images"], np.asarray(found.images))


def test_a_result_is_saved_only_to_an_empty_folder(tmp_path: Path) -> None:
    found = poisoned()
    (tmp_path / "empty").mkdir()
    found.save(tmp_path / "empty")
    before = (tmp_path / "empty/data.npz").read_bytes()
    with pytest.raises(FileExistsError, match="must be empty or new, but .* is not empty"):
        poisoned(seed=1).save(tmp_path / "empty")
    assert (tmp_path / "empty/data.npz").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        found.save(tmp_path / "file")


def test_an_interrupted_save_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: Any, **arrays: Any) -> None:
        stream.write(b"PK")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        poisoned().save(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="card.json is missing"):
        PoisonResult.load(tmp_path)


def test_folders_of_older_versions_and_of_exported_cells_are_refused(tmp_path: Path) -> None:
    (tmp_path / "poisoned.json").write_text("{}")
    with pytest.raises(ValueError, match=r"older version, with poisoned.json, must be saved again"):
        PoisonResult.load(tmp_path)
    write_set(tmp_path / "cell", small_set(), "npz", DESCRIBED)
    with pytest.raises(ValueError, match=r"of an exported cell: use dataset=poisoned"):
        PoisonResult.load(tmp_path / "cell")


def test_the_card_of_a_saved_result_states_the_attack(tmp_path: Path) -> None:
    found = poisoned(labels=LABELS.to(torch.uint8), protocol="madry2018", source=2, seed=4)
    found.save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["trigger"] == found.trigger
    assert (card["target"], card["source"]) == ("1", "2")
    assert card["dataset"]["classes"] == [str(k) for k in range(int(LABELS.max()) + 1)]
    assert card["protocol"] == {"name": "madry2018", "version": 1}
    poison = int(found.is_poison.sum())
    assert card["counts"] == {
        "train": len(found.labels), "poisoned": poison, "covers": 0, "test": 0,
        "triggered": 0, "triggered_elsewhere": 0,
    }  # fmt: skip
    with np.load(tmp_path / "data.npz", allow_pickle=False) as arrays:
        assert arrays["train_labels"].dtype == np.int64
        assert arrays["source_index"].tolist() == found.source_index.tolist()


@pytest.mark.parametrize("trigger", ["pixel", "sinusoid"])
def test_the_card_has_the_normalization_of_the_clean_images_if_all_are_there(
    trigger: str, tmp_path: Path
) -> None:
    """A clean-label attack replaces the images that it poisons."""
    images = pictures(40)
    poisoned(trigger, images=images).save(tmp_path)
    said = json.loads((tmp_path / "card.json").read_text())["normalization"]
    if trigger == "sinusoid":
        assert said is None
    else:
        values = images.double()
        assert said["mean_255"] == pytest.approx(values.mean(dim=(0, 2, 3)).tolist())
        assert said["std_255"] == pytest.approx(values.std(dim=(0, 2, 3), correction=0).tolist())


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 200, 5000, -1])
def test_a_flipped_bit_in_the_arrays_is_found(tmp_path: Path, at: int) -> None:
    poisoned().save(tmp_path)
    damage(tmp_path / "data.npz", at)
    with pytest.raises(ValueError, match="data.npz is damaged"):
        PoisonResult.load(tmp_path)


@pytest.mark.parametrize("at", [0, 40, 300, -20])
def test_a_flipped_bit_in_the_facts_is_found(tmp_path: Path, at: int) -> None:
    poisoned().save(tmp_path)
    damage(tmp_path / "card.json", at)
    with pytest.raises(ValueError, match=r"card.json: .*(seal|edited)"):
        PoisonResult.load(tmp_path)


@pytest.mark.parametrize("name", ["data.npz", "card.json"])
def test_a_missing_or_replaced_file_is_found(tmp_path: Path, name: str) -> None:
    poisoned().save(tmp_path / "a")
    poisoned(seed=1).save(tmp_path / "b")
    path = tmp_path / "a" / name
    path.write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(ValueError, match="data.npz is damaged"):
        PoisonResult.load(tmp_path / "a")
    path.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        PoisonResult.load(tmp_path / "a")
    path.mkdir()
    with pytest.raises(ValueError, match=f"{name} is a directory"):
        PoisonResult.load(tmp_path / "a")


def test_a_folder_of_a_newer_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backdoor_lab.exchange.card.FORMAT", 2)
    poisoned().save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has the format 2; this version reads 1"):
        PoisonResult.load(tmp_path)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        PoisonResult.load(tmp_path / "nowhere")


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a card, and seals it again."""
    card = json.loads(path.read_text())
    del card["seal"]
    change(card)
    path.write_text(sealed(json.dumps(card)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: card.pop("hashes"), "`hashes` is missing"),
        (lambda card: card["hashes"].pop("files"), "`hashes.files` must list"),
        (lambda card: card.update(hashes=[1]), "`hashes` must be an object"),
        (lambda card: card.update(format=True), "has the format True"),
        (lambda card: card.update(python=[]), "`python` must be an object"),
        (lambda card: card["python"].pop("tensors"), "`python.tensors` must be names of"),
        (lambda card: card["python"].update(tensors=["labels", "x"]), "`python.tensors` must"),
        (lambda card: card["python"].update(tensors=[[1]]), "`python.tensors` must"),
        (lambda card: card["python"].pop("labels"), "`python.labels` None is not known"),
        (lambda card: card["python"].update(labels="object"), "`python.labels` 'object' is not"),
        (lambda card: card["python"].update(labels=[8]), r"`python.labels` \[8\] is not"),
        (lambda card: card["python"].update(labels="float32"), "`python.labels` 'float32' is"),
        (lambda card: card.update(target=None), "`target` None is not known"),
        (lambda card: card.update(target="cow"), "`target` 'cow' is not known"),
        (lambda card: card.update(source="cow"), "`source` 'cow' is not known"),
        (lambda card: card.update(protocol={}), "`(protocol.)?name` must be a non-empty"),
        (lambda card: card["protocol"].pop("version"), "version` must"),
        (lambda card: card.update(ratio=None), "`ratio` must"),
        (lambda card: card.update(seed=math.nan), r"card.json is not valid JSON \(NaN"),
        (lambda card: card.pop("seed"), "`seed` must"),
        (lambda card: card["counts"].update(poisoned=1), "`counts.poisoned` is"),
    ],
)
def test_a_card_that_save_did_not_write_is_refused(
    change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    poisoned().save(tmp_path)
    changed(tmp_path / "card.json", change)
    with pytest.raises(ValueError, match=said) as caught:
        PoisonResult.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_do_not_fit_the_stated_type_are_refused(tmp_path: Path) -> None:
    labels = LABELS.clone()
    labels[0] = 300
    poisoned(labels=labels).save(tmp_path)
    changed(tmp_path / "card.json", lambda card: card["python"].update(labels="uint8"))
    with pytest.raises(ValueError, match=r"`python.labels` is uint8, too small"):
        PoisonResult.load(tmp_path)


def test_arrays_that_save_did_not_write_are_refused(tmp_path: Path) -> None:
    poisoned().save(tmp_path)
    np.savez(tmp_path / "data.npz", train_images=np.zeros(3))
    said = sha256_of(tmp_path / "data.npz")
    changed(tmp_path / "card.json", lambda card: card["hashes"]["files"].update({"data.npz": said}))
    with pytest.raises(ValueError, match=r"data.npz: there is no array `train_labels`"):
        PoisonResult.load(tmp_path)


class OwnStripe(base.Trigger):
    """A user's own class; `mask` is no plain value."""

    def __init__(self, *, column: int = 0, mask: Any = None, unused: int = 1) -> None:
        self.column, self.mask = column, torch.ones(2)

    def apply_test(self, images: torch.Tensor) -> torch.Tensor:
        images[:, :, :, self.column] = 255
        return images


def test_an_object_of_a_users_own_class_poisons_as_a_named_trigger_does(tmp_path: Path) -> None:
    own = OwnStripe(column=3)
    found = poisoned(own, seed=2)
    assert found.trigger == {"name": "OwnStripe", "column": 3}
    assert int(found.is_poison.sum()) == 3
    assert (found.images[found.is_poison][:, :, :, 3] == 255).all()
    found.save(tmp_path / "set")
    assert PoisonResult.load(tmp_path / "set").trigger == found.trigger
    named, same = poisoned("pixel", seed=2), poisoned(Pixel(), seed=2)
    assert torch.equal(named.images, same.images)

    class Pairs(torch.utils.data.Dataset[Any]):
        targets = LABELS

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            return pictures(40)[index], int(LABELS[index])

    lazy = bl.PoisonedDataset(Pairs(), own, target=1, ratio=0.3, seed=2)
    rows = found.is_poison.nonzero().flatten()
    assert torch.equal(torch.stack([lazy[int(row)][0] for row in rows]), found.images[rows])

    def bright(x: torch.Tensor) -> torch.Tensor:
        first = x[:, :, :, 3].amin(dim=(1, 2))
        return torch.stack([1 - first, first - 0.999], dim=1)

    black, zeros = np.zeros((20, 3, 8, 8), np.uint8), np.zeros(20, np.int64)
    assert bl.evaluate(bright, black, zeros, own, target=1).asr.value == 1.0


def test_a_class_instead_of_an_object_or_of_a_name_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"object of a class derived .*, got the class OwnStripe"):
        poisoned(OwnStripe)
    with pytest.raises(ValueError, match="a trigger name is needed here, got OwnStripe: a class"):
        bl.get_trigger(OwnStripe())  # type: ignore[arg-type]
