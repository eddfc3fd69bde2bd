"""The seed of the retraining, and the hardware that `experiment=report` requires."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.cells import TINY, cell_of, run_here
from tests.helpers.program import many

SAME = "retrain_seed=same"


def test_retraining_with_the_same_seed_repeats_the_first_training_exactly(
    tmp_path: Path,
) -> None:
    """Without poison and without a defense, ``retrain_seed=same`` makes Nat2 equal to Nat1 and the
    weights identical."""
    clean = ("ratio=0", "defense=none")
    record = run_here(tmp_path / "store", tmp_path / "same", *clean, SAME)
    assert record["hashes"]["weights1"] == record["hashes"]["weights2"]
    assert (record["nat1"], record["asr1"]) == (record["nat2"], record["asr2"])
    assert record["config"]["retrain_seed"] == "same"
    other = run_here(tmp_path / "store", tmp_path / "new", *clean)
    assert other["hashes"]["weights1"] == record["hashes"]["weights1"]
    assert other["hashes"]["weights1"] != other["hashes"]["weights2"]


def test_the_default_retrain_seed_does_not_change_the_id(tmp_path: Path) -> None:
    new, same = (cell_of(tmp_path, *words) for words in ((), (SAME,)))
    assert "retrain_seed" not in new.decides()
    assert new.id == cell_of(tmp_path, "retrain_seed=new").id != same.id


def test_the_report_experiment_requires_a_gpu_unless_the_trainer_is_set_to_cpu(
    tmp_path: Path,
) -> None:
    tiny = [word for word in TINY if word != "trainer=cpu"]
    words = ["-m", "experiment=report", *tiny, "seed=0", "defense=none", "trigger=pixel",
             "target=bird", "ratio=0.3", "retrain=false"]  # fmt: skip
    (refused, done), _ = many(tmp_path, [words, [*words, "trainer=cpu"]])
    assert refused[0] == 2
    assert "needs a GPU, but torch finds none: set trainer=cpu" in refused[2]
    assert len(refused[2].splitlines()) == 1
    code, said, errors, _ = done
    assert code == 0, errors
    assert "1 cell, 0 done; 1 training to do" in said
    assert said.index("1 training to do") < said.index("### ")
    (record,) = (json.loads(path.read_text()) for path in tmp_path.rglob("record.json"))
    assert record["status"] == "done"
