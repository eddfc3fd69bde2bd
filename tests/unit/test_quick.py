"""Commands that compute nothing do not import torch: refused commands, finished sweeps, tables,
help."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backdoor_lab import identity
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.data import download
from backdoor_lab.data.digits import Digits
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.data.synthetic_source import Synthetic
from backdoor_lab.identity import sources
from backdoor_lab.sweep.job import run_job
from backdoor_lab.sweep.manifest import finished
from backdoor_lab.sweep.preflight import Preflight
from tests.helpers.cells import TINY, configuration, environment, run_here, started

HEAVY = ("torch", "torchvision", "pytorch_lightning", "sklearn")
WATCHED = f"""
import runpy, sys
sys.argv = sys.argv[1:]
code = 0
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code or 0
print("heavy:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""
FOLDER = ("dataset=image_folder", "dataset.root=images")
REFUSED = {
    "unknown key": ("tigger=x", "tigger"),
    "unknown key of a group": ("recipe.learning_rate=1", "learning_rate"),
    "unknown option of a trigger": ("trigger=blended +trigger.beta=1", "beta"),
    "unknown trigger": ("trigger=pixle", "pixle"),
    "unknown defense": ("defense=spectrall", "spectrall"),
    "option of a trigger": ("trigger=blended trigger.strength_test=2", "strength_test"),
    "option of a defense": ("defense=strip defense.n_overlays=0", "n_overlays"),
    "option of a repair": ("defense=anp defense.steps=0", "steps"),
    "budget": ("protocol.removal_budget=-1", "removal_budget"),
    "protocol": ("protocol.placement=add", "protocol.placement"),
    "ratio": ("ratio=7", "ratio"),
    "seed": ("seed=-1", "seed"),
    "recipe": ("recipe.lr=-1", "recipe.lr"),
    "width": ("model.width=0", "model.width"),
    "threads": ("trainer.threads=0", "trainer.threads"),
    "processes": ("hydra/launcher=joblib hydra.launcher.n_jobs=0", "n_jobs"),
    "size of images": ("dataset.size=0", "dataset.size"),
    "transformation": ("measure.asr_under=[blurred]", "blurred"),
    "class of synthetic images": ("target=brid", "brid"),
    "class of a folder": (" ".join([*FOLDER, "target=brid"]), "brid"),
    "same source and target": ("target=0 source=0", "source"),
    "class of a later cell": ("target=bird,brid", "brid"),
    "ratio of a later cell": ("ratio=0.3,7", "ratio"),
    "missing folder": ("dataset=image_folder dataset.root=nowhere", "nowhere"),
    "missing archive": ("dataset=image_folder dataset.root=nowhere.tar.xz", "nowhere.tar.xz"),
    "missing arrays": ("dataset=arrays dataset.root=nowhere.npz", "nowhere.npz"),
    "missing data set": ("dataset=cifar10 dataset.download=false", "cifar-10-python.tar.gz"),
    "missing MNIST": ("dataset=mnist target=1 dataset.download=false", "MNIST"),
}
AS_CELLS = (
    "unknown key", "option of a trigger", "option of a defense", "ratio", "class of a folder",
    "missing data set",
)  # fmt: skip


def watched(cwd: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the package whose last line lists the heavy packages it has imported."""
    return subprocess.run(
        [sys.executable, "-c", WATCHED, module, *arguments], cwd=cwd, env=environment(),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def imported(done: subprocess.CompletedProcess[str]) -> list[str]:
    return done.stderr.strip().splitlines()[-1].split()[1:]


def images(root: Path) -> Path:
    """A folder of two classes, two images of each in both splits."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = np.full((8, 8, 3), 20 * number + 5 * (name == "dog"), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("what", "multirun"),
    [*((what, True) for what in REFUSED), *((what, False) for what in AS_CELLS)],
    ids=[*REFUSED, *(f"{what}, one cell" for what in AS_CELLS)],
)
def test_a_refused_command_does_not_import_torch(tmp_path: Path, what: str, multirun: bool) -> None:
    given, named = REFUSED[what]
    if what == "class of a folder":
        images(tmp_path / "images")
    base = [] if "dataset=" in given else TINY
    done = watched(tmp_path, "backdoor_lab", *["-m"] * multirun, *base, *given.split())
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert imported(done) == []
    assert sorted(os.listdir(tmp_path)) == ["images"] * (what == "class of a folder")


def test_a_finished_sweep_is_reported_without_torch(tmp_path: Path) -> None:
    """The tables and records are the same as before, and nothing is computed."""
    asked = (
        "-m",
        *TINY,
        "defense=spectral,random",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=1",
    )
    first = started(tmp_path, *asked)
    assert first.returncode == 0, first.stderr
    (sweep,) = (tmp_path / "multirun_reports/runs").iterdir()
    records = {path: path.read_bytes() for path in sweep.glob("*/record.json")}
    assert len(records) == 2
    again = watched(tmp_path, "backdoor_lab", *asked)
    assert again.returncode == 0, again.stderr
    assert imported(again) == []
    tables = [done.stdout[done.stdout.index("### trigger pixel") :] for done in (first, again)]
    assert tables[0] == tables[1]
    assert {path: path.read_bytes() for path in records} == records
    for module, *more in (("status",), ("reports",), ("export", "--out", "records.csv")):
        done = watched(tmp_path, f"backdoor_lab.{module}", str(sweep), *more)
        assert done.returncode == 0, done.stderr
        assert imported(done) == []
    compared = watched(tmp_path, "backdoor_lab.compare", str(sweep), "by=defense", "base=random")
    assert compared.returncode == 0, compared.stderr
    assert imported(compared) == []


def test_a_finished_cell_is_reported_without_torch(tmp_path: Path) -> None:
    asked = (*TINY, "hydra.run.dir=cell")
    assert started(tmp_path, *asked).returncode == 0
    again = watched(tmp_path, "backdoor_lab", *asked)
    assert again.returncode == 0, again.stderr
    assert imported(again) == []
    assert "Nat1" in again.stderr + again.stdout


@pytest.mark.parametrize(
    "asked",
    ["preview trigger=pixle", "preview trigger=blended trigger.strength_test=7",
     "export_weights nowhere --out n.safetensors", "export_dataset nowhere --as npz --out n",
     "reports nowhere", "compare nowhere reference"],
)  # fmt: skip
def test_auxiliary_commands_refuse_bad_arguments_before_importing_torch(
    tmp_path: Path, asked: str
) -> None:
    module, *arguments = asked.split()
    done = watched(tmp_path, f"backdoor_lab.{module}", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert imported(done) == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("module", [
    "backdoor_lab", "backdoor_lab.reports", "backdoor_lab.status", "backdoor_lab.compare",
    "backdoor_lab.export", "backdoor_lab.figures", "backdoor_lab.results", "backdoor_lab.preview",
    "backdoor_lab.separation", "backdoor_lab.visibility", "backdoor_lab.export_weights",
    "backdoor_lab.export_dataset", "backdoor_lab.distortion",
])  # fmt: skip
def test_help_imports_no_torch(tmp_path: Path, module: str) -> None:
    done = watched(tmp_path, module, "--help")
    assert done.returncode == 0, done.stderr
    assert imported(done) == []


def test_an_unreachable_server_is_reported_before_torchvision_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str) -> None:
        raise OSError("no answer")

    monkeypatch.setattr(download, "urlopen", refuse)
    monkeypatch.setitem(sys.modules, "torchvision.datasets.utils", None)
    asked = "dataset=cifar10", f"dataset.root={tmp_path}/data"
    config = configuration(tmp_path / "store", *asked, data=())
    with pytest.raises(Exception, match="cifar-10-python.tar.gz: no answer"):
        Preflight().cell(config)


def test_the_class_names_known_without_reading_images_equal_those_of_the_data(
    tmp_path: Path,
) -> None:
    for source in (
        Synthetic(size=8, per_class_train=1, per_class_test=1), Digits(),
        ImageFolder(root=str(images(tmp_path / "images"))),
    ):  # fmt: skip
        assert source.known_classes() == source.read().classes


def done_cell(root: Path, folder: Path, *changes: str) -> None:
    """Runs a cell on a folder of images in `folder`."""
    record = run_here(root / "store", folder, *on_images(root), *changes, data=())
    assert record["status"] == "done", record


def on_images(root: Path) -> tuple[str, ...]:
    return "dataset=image_folder", f"dataset.root={root / 'images'}", "target=cat", "ratio=0.25"


def is_done(root: Path, folder: Path) -> bool:
    """Whether a new process with the command of `folder` would find its cell done."""
    identity.forget()
    cell = Preflight().identify(configuration(root / "store", *on_images(root), data=()))
    with suppress(ConfigError):  # The folder may have the record of another cell.
        return finished(folder, cell.id)
    return False


@pytest.fixture
def finished_cell(tmp_path: Path) -> Path:
    images(tmp_path / "images")
    done_cell(tmp_path, tmp_path / "cell")
    assert is_done(tmp_path, tmp_path / "cell")
    return tmp_path


def test_a_cell_is_not_done_after_a_data_file_changed(finished_cell: Path) -> None:
    """This holds even if the file has the same path as before."""
    path = finished_cell / "images/train/cat/0.png"
    before = path.stat().st_size
    data = bytearray(path.read_bytes())
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(path)
    assert (path.stat().st_size, path.read_bytes()) != (before, bytes(data))
    assert not is_done(finished_cell, finished_cell / "cell")


def test_a_cell_is_not_done_after_a_local_code_edit(
    finished_cell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = sources._text
    edited = sources.ROOT / "defenses/spectral.py"
    monkeypatch.setattr(
        sources, "_text", lambda path: usual(path) + b"\nEDITED = 1\n" * (path == edited)
    )
    assert not is_done(finished_cell, finished_cell / "cell")
    monkeypatch.undo()
    assert is_done(finished_cell, finished_cell / "cell")


def test_a_cell_is_not_done_after_a_component_got_a_new_version(
    finished_cell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = identity.committed()
    spectral = {**table["defenses"]["spectral"], "version": 99}
    changed = {**table, "defenses": {**table["defenses"], "spectral": spectral}}
    monkeypatch.setattr(identity, "forget", lambda: None)
    identity._mark.cache_clear()
    monkeypatch.setattr(identity, "committed", lambda: changed)
    assert not is_done(finished_cell, finished_cell / "cell")
    identity._mark.cache_clear()


def test_a_damaged_record_is_computed_again(finished_cell: Path) -> None:
    record = finished_cell / "cell/record.json"
    whole = record.read_bytes()
    for damaged in (whole[:-40], whole.replace(b'"nat1": 0.', b'"nat1": 1.', 1), b""):
        assert damaged != whole
        record.write_bytes(damaged)
        assert not is_done(finished_cell, finished_cell / "cell")
    shutil.rmtree(finished_cell / "cell")
    (finished_cell / "cell").mkdir()
    config = configuration(finished_cell / "store", *on_images(finished_cell), data=())
    assert run_job(config, finished_cell / "cell", 1) == "done"
    assert is_done(finished_cell, finished_cell / "cell")
