"""Poisoned data sets of this package are read as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.exchange import backdoorbench
from backdoor_lab.exchange.source import PoisonedSet
from backdoor_lab.verify.data import read_set
from tests.helpers.foreign_layouts import CLASSES, clean_file, record_folder, toolbox_set
from tests.helpers.own_sets import WRITERS, equal, own_set, poisoned_arrays, without_test


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("channels", [3, 1])
def test_a_set_is_read_as_it_was_written(layout: str, channels: int, tmp_path: Path) -> None:
    arrays = poisoned_arrays(channels)
    source = PoisonedSet(root=str(own_set(tmp_path / "set", layout, arrays)))
    assert equal(source.read(), arrays)
    assert source.known_classes() == CLASSES
    assert source.name == "set"


@pytest.mark.parametrize("layout", WRITERS)
def test_the_facts_are_those_of_the_card(layout: str, tmp_path: Path) -> None:
    facts = PoisonedSet(root=str(own_set(tmp_path, layout))).imported()
    assert facts.trigger == "pixel"
    assert facts.options == {"color": 255, "position": [-1, -1]}
    assert (facts.target, facts.source, facts.ratio, facts.seed) == ("cat", None, 0.5, 3)
    assert facts.protocol == "group13@1"
    assert facts.choices == {
        "label_mode": "all_to_one", "cover_rate": 0.5, "ratio_of": "target",
        "placement": "replace", "poison_from": "not_target", "asr_on": "not_target",
    }  # fmt: skip
    assert (facts.n_poisoned, facts.n_covers, facts.triggered) == (2, 1, True)


@pytest.mark.parametrize("layout", WRITERS)
def test_the_identity_is_that_of_the_content(layout: str, tmp_path: Path) -> None:
    one, other = own_set(tmp_path / "a", layout), own_set(tmp_path / "b", layout)
    known = PoisonedSet(root=str(one)).identity()
    assert PoisonedSet(root=str(other)).identity() == known
    assert str(tmp_path) not in json.dumps(known)
    arrays = poisoned_arrays()
    arrays.train.images[0, 0, 0, 0] ^= 1
    third = own_set(tmp_path / "c", layout, arrays)
    assert PoisonedSet(root=str(third)).identity() != known


@pytest.mark.parametrize("layout", WRITERS)
def test_test_images_come_from_another_data_set_if_the_set_has_none(
    layout: str, tmp_path: Path
) -> None:
    arrays = poisoned_arrays()
    root = str(own_set(tmp_path / "set", layout, without_test(arrays)))
    with pytest.raises(
        DataError, match=r"no test images: set dataset\.test_root.*or set dataset\.test_share"
    ):
        PoisonedSet(root=root).identity()
    clean = clean_file(tmp_path / "clean.npz")
    source = PoisonedSet(root=root, test_root=str(clean))
    found = source.read()
    assert np.array_equal(found.test.images, arrays.test.images)
    assert np.array_equal(found.train.images, arrays.train.images)
    assert found.attack is not None
    assert found.attack.triggered is None
    assert not source.imported().triggered
    before = source.identity()
    np.savez(clean, **{**np.load(clean, allow_pickle=False), "test_labels": np.arange(6) % 2})
    assert PoisonedSet(root=root, test_root=str(clean)).identity() != before


@pytest.mark.parametrize("layout", WRITERS)
def test_clean_training_images_are_held_out_if_asked_for(layout: str, tmp_path: Path) -> None:
    arrays = without_test(poisoned_arrays())
    root = str(own_set(tmp_path / "set", layout, arrays))
    source = PoisonedSet(root=root, test_share=0.4)
    found = source.read()
    assert len(found.train.labels) + len(found.test.labels) == 14
    assert found.attack is not None
    assert found.attack.is_poison is not None
    assert found.attack.is_cover is not None
    assert (found.attack.is_poison.sum(), found.attack.is_cover.sum()) == (2, 1)
    rows = [*range(3), 4, 6, 7, 8, *range(10, 14)]
    clean = {image.tobytes() for image in arrays.train.images[rows]}
    assert {image.tobytes() for image in found.test.images} <= clean
    assert set(found.test.labels) == {0, 1, 2}
    assert len(found.attack.source_index) == len(found.train.labels)  # type: ignore[arg-type]
    assert PoisonedSet(root=root, test_share=0.4, split_seed=1).identity() != source.identity()


def test_options_that_a_layout_does_not_use_are_refused(tmp_path: Path) -> None:
    root = str(own_set(tmp_path / "set"))
    clean = str(clean_file(tmp_path / "clean.npz"))
    with pytest.raises(DataError, match=r"remove dataset\.test_root"):
        PoisonedSet(root=root, test_root=clean).read()
    with pytest.raises(DataError, match=r"remove dataset\.test_share"):
        PoisonedSet(root=root, test_share=0.2).imported()
    with pytest.raises(DataError, match=r"remove dataset\.clean_root"):
        PoisonedSet(root=root, clean_root=clean).read()
    with pytest.raises(ConfigError, match=r"`dataset\.test_root` and `dataset\.test_share`"):
        PoisonedSet(root=root, test_root=clean, test_share=0.2)
    with pytest.raises(ConfigError, match=r"`dataset\.clean_root` must be the path"):
        PoisonedSet(root=root, clean_root="")
    with pytest.raises(ConfigError, match=r"`dataset\.root` must be the path"):
        PoisonedSet()


def test_an_unknown_layout_is_refused_with_a_list_of_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"card\.json of kind dataset.*BackdoorBench.*toolbox"):
        PoisonedSet(root=str(tmp_path)).imported()
    for text, said in (('{"kind": "network"}', "is 'network'"), ("{}", "is missing")):
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(DataError, match=rf"card\.json: `kind` {said}, but .* 'dataset'"):
            PoisonedSet(root=str(tmp_path)).imported()
    with pytest.raises(DataError, match="no such folder"):
        PoisonedSet(root=str(tmp_path / "gone")).read()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="not a folder"):
        PoisonedSet(root=str(tmp_path / "file")).read()


def test_a_record_of_backdoorbench_is_a_poisoned_set(tmp_path: Path) -> None:
    root = str(record_folder(tmp_path))
    clean = str(tmp_path / "data/clean.npz")
    source = PoisonedSet(root=root, clean_root=clean)
    assert source.known_classes() == CLASSES
    assert (source.imported().trigger, source.imported().n_poisoned) == ("badnet", 3)
    found = source.read()
    assert found.attack is not None
    assert found.attack.triggered is not None
    assert len(found.attack.triggered) == 4
    with pytest.raises(DataError, match=r"remove dataset\.test_root"):
        PoisonedSet(root=root, clean_root=clean, test_root=clean).imported()
    with pytest.raises(DataError, match=r"remove dataset\.test_share"):
        PoisonedSet(root=root, clean_root=clean, test_share=0.5).read()


def test_a_record_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It contains the attacked network and can be large."""
    calls = []
    usual = backdoorbench.read_result

    def counted(root: Path) -> dict[str, Any]:
        calls.append(root)
        return usual(root)

    monkeypatch.setattr(backdoorbench, "read_result", counted)
    root = record_folder(tmp_path)
    source = PoisonedSet(root=str(root), clean_root=str(tmp_path / "data/clean.npz"))
    source.identity()
    source.imported()
    source.read()
    assert calls == [root]
    read_set(root, tmp_path / "data/clean.npz")
    assert calls == [root, root]


def test_a_set_of_backdoor_toolbox_is_a_poisoned_set(tmp_path: Path) -> None:
    root = str(toolbox_set(tmp_path, poison=(1, 2, 5)))
    source = PoisonedSet(root=root)
    assert source.known_classes() is None
    assert (source.imported().trigger, source.imported().target) == ("badnet", "0")
    assert source.read().classes == ("0", "1", "2")
    assert len(PoisonedSet(root=root, test_share=0.4).read().test.labels) == 4
    with pytest.raises(DataError, match=r"no record of BackdoorBench: remove dataset\.clean_root"):
        PoisonedSet(root=root, clean_root=root).imported()
    assert source.identity() != PoisonedSet(root=root, test_share=0.4).identity()


def test_the_class_names_of_other_test_images_must_be_those_of_the_set(tmp_path: Path) -> None:
    root = own_set(tmp_path / "set", "npz", without_test(poisoned_arrays()))
    clean = clean_file(tmp_path / "clean.npz")
    arrays = dict(np.load(clean, allow_pickle=False))
    np.savez(clean, **{**arrays, "classes": np.array(["dog", "cat", "owl"])})
    with pytest.raises(DataError, match="the classes are dog, cat, owl, but those of .* are cat"):
        PoisonedSet(root=str(root), test_root=str(clean)).read()
    np.savez(clean, **{**arrays, "test_images": np.zeros((6, 3, 9, 9), np.uint8)})
    with pytest.raises(DataError, match=r"shape \(3, 8, 8\), the clean ones \(3, 9, 9\)"):
        PoisonedSet(root=str(root), test_root=str(clean)).read()
