"""Separation of features: the figures compared with closed forms and a second implementation, and
the command on a made-up store."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from backdoor_lab.analysis.separation import separation
from backdoor_lab.separation import main
from tests.helpers.records import write_sweep
from tests.helpers.stages import TARGET, Made, cell, sweep

Array = NDArray[Any]


def planted(share: float, shift: float, spread: float, n: int = 40_000) -> tuple[Array, Array]:
    """Gaussians with standard deviations 1, `spread` and 0.5 along three axes. A share of them is
    poison, which is shifted along the first axis."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=(n, 3)) * [1, spread, 0.5] + [3, -4, 5]
    poison = np.arange(n) < share * n
    values[poison, 0] += shift
    return values, poison


def expected(share: float, shift: float) -> float:
    """The closed form of the AUROC of squared values. Clean values are normal around -pδ, and
    poison is normal around (1-p)δ."""
    far, near = shift / np.sqrt(2), (1 - 2 * share) * shift / np.sqrt(2)
    return float(norm.cdf(far) * norm.cdf(near) + norm.cdf(-far) * norm.cdf(-near))


@pytest.mark.parametrize(("share", "shift"), [(0.05, 6.0), (0.1, 4.0), (0.5, 4.0)])
def test_a_poison_shift_larger_than_the_class_variance_is_the_top_principal_direction(
    share: float, shift: float
) -> None:
    found = separation(*planted(share, shift, spread=1.0))
    assert found.share == share
    assert found.shift == pytest.approx(share * (1 - share) * shift**2, rel=0.02)
    assert found.along == pytest.approx(found.shift + 1, rel=0.02)
    assert found.own == pytest.approx(1, rel=0.03)
    assert found.ratio == found.along / found.own > 1
    assert found.cosine > 0.99
    assert found.auroc_top == pytest.approx(expected(share, shift), abs=0.01)
    assert found.auroc_shift == pytest.approx(expected(share, shift), abs=0.01)
    assert found.predicted == pytest.approx(expected(share, shift), abs=0.005)


def test_a_class_variance_larger_than_the_poison_shift_hides_the_poison() -> None:
    """The poison shift is 4, and the class has a standard deviation of 3 along another axis. That
    axis is the top principal direction."""
    found = separation(*planted(0.1, 4.0, spread=3.0))
    assert found.own == pytest.approx(9, rel=0.03)
    assert found.ratio == pytest.approx((0.09 * 16 + 1) / 9, rel=0.03)
    assert found.cosine < 0.05
    assert found.auroc_top == pytest.approx(0.5, abs=0.02)
    assert found.auroc_shift == pytest.approx(expected(0.1, 4.0), abs=0.01)


@pytest.mark.parametrize("shape", [(60, 7), (20, 50)])
def test_separation_values_agree_with_a_full_svd(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(1)
    values, poison = draw.gamma(1.0, size=shape), np.arange(shape[0]) % 4 == 0
    values[poison] += draw.normal(size=shape[1])
    found = separation(values, poison)
    centered = values - values.mean(axis=0)
    top = np.linalg.svd(centered)[2][0]
    delta = values[poison].mean(axis=0) - values[~poison].mean(axis=0)
    own = np.linalg.svd(values[~poison] - values[~poison].mean(axis=0))[1][0] ** 2
    assert found.own == pytest.approx(own / (~poison).sum())
    assert found.cosine == pytest.approx(abs(top @ delta) / np.linalg.norm(delta))
    assert found.auroc_top == pytest.approx(roc_auc_score(poison, (centered @ top) ** 2))
    assert found.auroc_shift == pytest.approx(roc_auc_score(poison, (centered @ delta) ** 2))


def test_undefined_separation_values_are_nan_and_missing_poison_is_refused() -> None:
    same = separation(np.ones((6, 2)), np.arange(6) < 2)
    assert (same.shift, same.own) == (0, 0)
    assert np.isnan(
        [same.ratio, same.cosine, same.auroc_top, same.auroc_shift, same.predicted]
    ).all()
    with pytest.raises(ValueError, match="unless there are both clean and poisoned"):
        separation(np.ones((6, 2)), np.zeros(6, bool))


def test_the_separation_command_prints_one_line_per_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two networks with different seeds give two lines, although two defenses use one of them. The
    values are computed from the stored features of the target class."""
    store = tmp_path / ".store"
    made = [Made(0), Made(1)]
    records = [cell(store, each, f"cell{n}", seed=n) for n, each in enumerate(made)]
    other = json.loads(json.dumps(records[0])) | {"id": "other"}
    other["choices"]["defense"] = "random"
    folder = write_sweep(tmp_path / "sweep", [*records, other])
    out = tmp_path / "separation.csv"
    assert main([str(folder), "--out", str(out)]) == 0
    lines = list(csv.DictReader(out.read_text().splitlines()))
    assert [line["seed"] for line in lines] == ["0", "1"]
    for line, each in zip(lines, made, strict=True):
        mine = each.labels == TARGET
        told = separation(each.features[mine].astype(np.float64), each.poison[mine])
        assert float(line["cosine"]) == pytest.approx(told.cosine)
        assert float(line["auroc_top"]) == pytest.approx(told.auroc_top)
    said = capsys.readouterr().out
    assert said.count("| pixel") == 2
    for suffix in ("md", "tex", "html"):
        assert main([str(folder), "--out", str(out.with_suffix(f".{suffix}"))]) == 0
        assert "AUROC top" in out.with_suffix(f".{suffix}").read_text()


@pytest.mark.parametrize("what", ["extract/cell0/features", "poison/cell0/poison"])
def test_a_cell_with_modified_artifacts_is_omitted_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """The last byte of a stored file of one cell is changed. The other cell is still printed."""
    folder, _ = sweep(tmp_path)
    path = tmp_path / ".store" / f"{what}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.count("| pixel") == 1
    assert "of some cells are damaged in the store" in said


def test_bad_arguments_of_the_separation_command_give_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = sweep(tmp_path)
    wrong = {
        "no such folder": [str(tmp_path / "none")],
        "must end in one of": [str(folder), "--out", str(tmp_path / "table.xls")],
        "no such folder: ": [str(folder), "--store", str(tmp_path / "none")],
    }
    for text, words in wrong.items():
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
    shutil.rmtree(tmp_path / ".store" / "extract")
    assert main([str(folder)]) == 2
    assert "has features, poison and images in the store" in capsys.readouterr().err
