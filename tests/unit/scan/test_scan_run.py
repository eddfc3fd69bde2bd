"""Tiny scans from data to report: exit codes, suspects, resume, trusted images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.store import Store
from backdoor_lab.scan import networks, run, statistics
from backdoor_lab.scan.__main__ import main
from backdoor_lab.scan.images import scan_images
from backdoor_lab.scan.reference_file import write_reference
from backdoor_lab.scan.report import ClassFinding, ScanReport, Suspect
from backdoor_lab.scan.run import run_scan
from tests.helpers.cells import CPU
from tests.helpers.scanning import (
    CLASSES,
    EACH,
    OPTIONS,
    POISONED,
    TINY,
    arrays,
    found_of,
    pixels,
    reference,
)


@pytest.fixture(autouse=True)
def _no_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command must not change how this process reacts to signals."""
    monkeypatch.setattr(shutdown, "install", lambda: None)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store for scans whose features are pixels."""
    monkeypatch.setattr(statistics, "network_stage", pixels)
    monkeypatch.setattr(run, "network_stage", pixels)
    return Store(tmp_path / "store of pixels")


def test_poison_raises_an_alarm_and_its_images_are_the_first_suspects(store: Store) -> None:
    report = run_scan(found_of(*arrays()), OPTIONS, store, CPU, [reference(2.0)])
    assert report.exit_code == 3
    assert report.alarmed == ["2"]
    assert report.classes["p"].tolist() == [1.0, 1.0, 0.05, 1.0, 1.0]
    assert report.classes["calibrated"].all()
    # A tenth of the class is listed.
    assert len(report.suspects) == POISONED
    poisoned = {f"{2 * EACH + i}.png" for i in range(POISONED)}
    assert report.suspects["path"].iloc[0] in poisoned
    assert len(poisoned & set(report.suspects["path"])) >= POISONED - 1
    assert report.suspects["rank"].tolist() == list(range(1, len(report.suspects) + 1))
    assert report.suspects["alarm"].all()


def test_the_same_set_without_alarm_exits_with_0_and_without_reference_with_4(
    store: Store,
) -> None:
    found = found_of(*arrays())
    clean = run_scan(found, OPTIONS, store, CPU, [reference(1e6)])
    assert (clean.exit_code, clean.alarmed, len(clean.suspects)) == (0, [], 0)
    unknown = run_scan(found, OPTIONS, store, CPU, [])
    assert (unknown.exit_code, unknown.alarmed) == (4, [])
    assert unknown.classes["p"].isna().all()
    assert not unknown.classes["calibrated"].any()
    assert "not calibrated: there is no reference" in unknown.text()
    # The most conspicuous class is shown, but raises no alarm.
    assert set(unknown.suspects["class"]) == {"2"}
    assert not unknown.suspects["alarm"].any()
    for report in (clean, unknown):
        assert "does not show that the set is clean" in report.text()


def test_a_finished_scan_trains_nothing_and_an_interrupted_one_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    original = networks.fit
    monkeypatch.setattr(networks, "fit", lambda *a, **k: trained.append(1) or original(*a, **k))
    options = dataclasses.replace(OPTIONS, networks=2)
    found, where = found_of(*arrays()), Store(tmp_path / "store")
    real = run.mean_statistics

    def killed(*given: object, **more: object) -> object:
        networks.network_stage(found.training_set(), found.training_set(), 0, options, where, CPU)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "mean_statistics", killed)
    with pytest.raises(KeyboardInterrupt):
        run_scan(found, options, where, CPU, [])
    monkeypatch.setattr(run, "mean_statistics", real)
    first = run_scan(found, options, where, CPU, [])
    assert len(trained) == 2
    again = run_scan(found, options, Store(tmp_path / "store"), CPU, [])
    assert len(trained) == 2
    assert again.json() == first.json()
    other = run_scan(found, options, Store(tmp_path / "other"), CPU, [])
    assert other.json() == first.json()


def test_alpha_below_the_smallest_p_value_is_refused_before_training(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, alpha=0.04)
    with pytest.raises(ConfigError, match=r"`scan.alpha` must be at least 1 / \(N \+ 1\) = 0.05"):
        run_scan(found_of(*arrays()), options, Store(tmp_path), CPU, [reference(1.0)])
    assert not list(tmp_path.iterdir())


def test_trusted_images_calibrate_a_set_without_reference(store: Store) -> None:
    trusted = found_of(*arrays(1, poisoned=0, each=EACH))
    found = found_of(*arrays(poisoned=30, each=120))
    report = run_scan(found, OPTIONS, store, CPU, [], trusted=trusted)
    p = dict(zip(report.classes["class"], report.classes["p"], strict=True))
    assert report.exit_code == 3
    assert report.alarmed == ["2"]
    assert p["2"] <= 0.05
    assert report.classes["calibrated"].all()
    assert report.population is None
    assert "999 permutations" in report.calibration


def test_a_class_without_trusted_images_is_not_calibrated(store: Store) -> None:
    images, labels = arrays(1, poisoned=0)
    few = found_of(images[labels != 4], labels[labels != 4])
    clean = found_of(*arrays(poisoned=0))
    report = run_scan(clean, OPTIONS, store, CPU, [], trusted=few)
    assert report.classes["calibrated"].tolist() == [True] * 4 + [False]
    assert report.exit_code == 4
    assert "Fewer than 10 trusted images: 4" in report.calibration


def test_a_class_that_is_too_small_is_listed_and_never_clean(store: Store) -> None:
    images, labels = arrays()
    keep = np.flatnonzero((labels != 4) | (np.arange(len(labels)) < 4 * EACH + 10))
    report = run_scan(found_of(images[keep], labels[keep]), OPTIONS, store, CPU, [reference(1.0)])
    assert report.classes["note"].iloc[4].startswith("too small to judge")
    assert np.isnan(report.classes["p"].iloc[4])
    assert report.exit_code == 4


def test_the_files_of_a_report_agree_with_it(store: Store, tmp_path: Path) -> None:
    report = run_scan(found_of(*arrays()), OPTIONS, store, CPU, [reference(2.0)])
    report.write(tmp_path / "out")
    written = json.loads((tmp_path / "out/scan.json").read_text())
    assert (written["exit_code"], written["population"]) == (3, "invented sets")
    assert [each["alarm"] for each in written["classes"]] == [False, False, True, False, False]
    suspects = pd.read_csv(tmp_path / "out/suspects.csv")
    assert suspects["path"].tolist() == report.suspects["path"].tolist()
    keep = pd.read_csv(tmp_path / "out/keep.csv")
    assert set(keep.loc[~keep["keep"], "path"]) == set(suspects["path"])
    assert len(keep) == CLASSES * EACH
    assert pd.read_csv(tmp_path / "out/classes.csv")["p"].tolist()[2] == 0.05
    page = (tmp_path / "out/index.html").read_text()
    assert "alarm at 0.05: 2" in page
    assert page.count("data:image/png") == min(24, len(suspects)) + 12
    assert "invented sets" in page
    assert "<script" not in page


def test_names_from_a_data_set_are_escaped_on_the_page_and_in_csv(tmp_path: Path) -> None:
    images, labels = arrays()
    names = [f"=<b>{i}" for i in range(len(labels))]
    classes = [f"<i>{k}</i>" for k in range(CLASSES)]
    found = scan_images(images, labels, classes, names, "set")
    report = ScanReport(
        "<u>set", 0.05, [ClassFinding(name, 60, 60, 1.0, "f") for name in classes],
        [Suspect("=<b>0", 0, classes[0], 1.0, 1)], "not calibrated", None, [1.0], found, OPTIONS,
    )  # fmt: skip
    report.write(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "<u>" not in page
    assert "<i>" not in page
    assert "<b>" not in page
    assert "&lt;i&gt;0&lt;/i&gt;" in page
    assert (tmp_path / "suspects.csv").read_text().splitlines()[1].startswith("'=<b>0")


@pytest.mark.parametrize("reference_of", [2.0, 1e6, None])
def test_the_command_writes_the_report_and_exits_with_its_code(
    reference_of: float | None, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = arrays()
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels)
    more = []
    if reference_of is not None:
        write_reference(tmp_path / "r.json", [reference(reference_of)])
        more = [f"scan.reference={tmp_path / 'r.json'}"]
    words = [str(tmp_path / "set.npz"), *TINY, f"store.root='{store.root}'", *more]
    code = main([*words, "--out", str(tmp_path / "out")])
    assert code == {2.0: 3, 1e6: 0, None: 4}[reference_of]
    said = capsys.readouterr().out
    assert "statistic" in said
    assert (tmp_path / "out/index.html").is_file()


def test_a_dry_run_writes_nothing_and_states_the_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = arrays()
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels)
    where = f"store.root={tmp_path / 'store'}"
    assert main([str(tmp_path / "set.npz"), *TINY, where, "dry_run=true"]) == 0
    said = capsys.readouterr().out
    assert "400 images, 400 examined; classes: 5" in said
    assert "networks: 1, 0 stored; about" in said
    assert "the set has 5 classes of 80 to 80 images, outside of the reference (10 classes" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.npz"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(400, int), "at least two"),
        (np.arange(400) % 40, "too few images"),
        (np.arange(399) % 5, "400 images but 399 labels"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(
    labels: np.ndarray, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "set.npz", x_train=arrays()[0], y_train=labels)
    where = f"store.root={tmp_path / 'store'}"
    assert main([str(tmp_path / "set.npz"), *TINY, where, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_out_and_trusted_images_of_other_classes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], store: Store
) -> None:
    images, labels = arrays()
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels)
    assert main([str(tmp_path / "set.npz"), *TINY]) == 2
    assert "`--out` is missing" in capsys.readouterr().err
    trusted = scan_images(
        images, labels, list("vwxyz"), list(map(str, range(CLASSES * EACH))), "trusted"
    )
    with pytest.raises(DataError, match="the class v, which the scanned set does not have"):
        run_scan(found_of(images, labels), OPTIONS, store, CPU, [], trusted=trusted)
