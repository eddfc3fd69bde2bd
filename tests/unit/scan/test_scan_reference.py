"""The reference file: written, read, matched to a set, refused, built and resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.scan import reference_file
from backdoor_lab.scan.images import ScanImages, scan_images
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.reference import main, share_of
from backdoor_lab.scan.reference_file import (
    Bin,
    bin_for,
    read_reference,
    versions,
    write_reference,
)
from backdoor_lab.scan.statistics import FILTERS

OPTIONS = ScanOptions(networks=1, size=8, width=2, epochs=1)


def bin_of(**changes: object) -> Bin:
    filters = list(FILTERS)
    maxima = [[float(k + row) for k in range(len(filters))] for row in range(19)]
    found = Bin(
        5, 50, 60, "19 sets", OPTIONS.decides(), versions(), filters, maxima,
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def images_of(sizes: list[int]) -> ScanImages:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.zeros((len(labels), 1, 8, 8), np.uint8)
    names = [str(i) for i in range(len(labels))]
    return scan_images(images, labels, [f"c{k}" for k in range(len(sizes))], names, "set")


def test_a_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_reference(tmp_path / "r.json", [bin_of()])
    (found,) = read_reference(tmp_path / "r.json")
    assert found == bin_of()
    assert found.null.tolist() == [row + len(FILTERS) - 1 for row in range(19)]


@pytest.mark.parametrize("edit", [("20.0", "19.5"), ('"format": 1', '"format": 2'), ("{", "[")])
def test_an_edited_or_damaged_reference_is_refused(edit: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_reference(path, [bin_of()])
    text = path.read_text()
    assert edit[0] in text
    path.write_text(text.replace(*edit, 1))
    with pytest.raises(DataError, match="not a valid reference file"):
        read_reference(path)


def test_a_reference_with_numbers_that_are_not_finite_or_missing_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.json"
    for maxima in ([], [[1.0]], [[1.0] * (len(FILTERS) + 1)]):
        write_reference(path, [bin_of(maxima=maxima)])
        with pytest.raises(DataError, match="one column per statistic"):
            read_reference(path)
    with pytest.raises(DataError, match="no such reference file"):
        read_reference(tmp_path / "none.json")


def test_a_set_inside_the_bin_has_p_values() -> None:
    chosen, why = bin_for([bin_of()], images_of([50, 60, 55, 50, 50]), OPTIONS)
    assert chosen == bin_of()
    assert why == "p values are relative to 19 sets"


NOT_CALIBRATED = {
    "no reference": ([], [50] * 5, OPTIONS, "no reference of trained clean sets"),
    "few classes": ([bin_of(classes=4)], [50] * 4, OPTIONS, "fewer than 5 classes"),
    "more classes": ([bin_of()], [50] * 6, OPTIONS, "6 classes of 50 to 50 images, outside"),
    "a larger class": ([bin_of()], [50, 50, 50, 50, 61], OPTIONS, "50 to 61 images, outside"),
    "a small class": ([bin_of()], [50] * 5 + [9], OPTIONS, "6 classes of 9 to 50 images, outside"),
    "another recipe": (
        [bin_of()], [50] * 5, dataclasses.replace(OPTIONS, epochs=2), "with other options"
    ),
    "another network": (
        [bin_of()], [50] * 5, dataclasses.replace(OPTIONS, networks=2), "with other options"
    ),
    "another version": ([bin_of(versions={})], [50] * 5, OPTIONS, "another version"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_CALIBRATED)
def test_outside_of_a_bin_there_is_no_p_value(case: str) -> None:
    bins, sizes, options, said = NOT_CALIBRATED[case]
    chosen, why = bin_for(bins, images_of(sizes), options)
    assert chosen is None
    assert said in why


def test_alpha_and_the_seed_do_not_belong_to_the_recipe() -> None:
    options = dataclasses.replace(OPTIONS, alpha=0.2, seed=7, permutations=2000)
    assert bin_for([bin_of()], images_of([50] * 5), options)[0] is not None


def test_a_new_version_of_a_filter_or_a_stage_invalidates_a_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = bin_of()
    found = images_of([50] * 5)
    assert "spectre" in versions()["defenses"]
    for name in ("scan_network", "scan_statistics"):
        with monkeypatch.context() as patch:
            patch.setattr(
                reference_file.identity, "stage", lambda x, name=name: 9 if x == name else 1
            )
            assert bin_for([made], found, OPTIONS)[0] is None
    monkeypatch.setattr(reference_file, "components", lambda: {"spectre": "2+0123456789"})
    assert bin_for([made], found, OPTIONS)[0] is None


BUILD = (
    "--networks", "1", "--width", "2", "--epochs", "1", "--size", "8", "--images", "50",
    "--threads", "1",
)  # fmt: skip


def test_a_reference_is_built_in_shares_and_a_finished_set_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backdoor_lab.scan import networks

    trained: list[int] = []
    original = networks.fit
    monkeypatch.setattr(shutdown, "install", lambda: None)
    monkeypatch.setattr(networks, "fit", lambda *a, **k: trained.append(1) or original(*a, **k))
    where = ("--store", str(tmp_path / "store"), "--out", str(tmp_path / "r.json"))
    assert main(["--sets", "2", "--share", "1/2", *where, *BUILD]) == 0
    assert not (tmp_path / "r.json").exists()
    assert len(trained) == 1
    assert main(["--sets", "2", *where, *BUILD]) == 0
    assert len(trained) == 2
    (found,) = read_reference(tmp_path / "r.json")
    assert (found.classes, found.smallest, found.largest) == (10, 50, 50)
    assert np.array(found.maxima).shape == (2, len(FILTERS))
    assert found.maxima[0] != found.maxima[1]
    assert bin_for([found], images_of([50] * 10), OPTIONS)[0] == found
    before = (tmp_path / "r.json").read_bytes()
    assert main(["--sets", "2", *where, *BUILD]) == 0
    assert len(trained) == 2
    assert (tmp_path / "r.json").read_bytes() == before


@pytest.mark.parametrize("text", ["2/2", "a/2", "1", "-1/2", "1/"])
def test_an_invalid_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--share"):
        share_of(text)


def test_the_reference_of_this_package_applies_to_default_scans_of_ten_classes() -> None:
    """Fails after a change of a version that decides the statistics: compute the reference anew."""
    (committed,) = read_reference()
    for sizes in ([500] * 10, [400] * 5 + [600] * 5):
        chosen, why = bin_for([committed], images_of(sizes), ScanOptions())
        assert chosen is committed, why
    assert len(committed.null) >= 99
    assert "clean synthetic sets" in why
    assert bin_for([committed], images_of([399] + [500] * 9), ScanOptions())[0] is None
