"""Row 3 of the fault table for every writer: a full disk, or a file size limit (EFBIG). Writing
functions are found in the sources, so that a new writer must be tested here."""

from __future__ import annotations

import ast
import io
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import backdoor_lab as bl
from backdoor_lab.core.atomic_io import write_atomic
from backdoor_lab.core.errors import LabError
from backdoor_lab.core.output import LogFile
from backdoor_lab.core.small_files import make_folder, write_json
from backdoor_lab.core.store import Store
from backdoor_lab.core.tensor_io import write_tensors
from backdoor_lab.data import workspace
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.data.synthetic_source import Synthetic
from backdoor_lab.exchange.layouts import LAYOUTS
from backdoor_lab.exchange.write import write_set
from backdoor_lab.export_weights import main as export_weights
from backdoor_lab.page.write import write_tables
from backdoor_lab.sweep.manifest import halt
from backdoor_lab.training.logs import logger_of
from tests.helpers.cells import run_here
from tests.helpers.exported import DESCRIBED, small_set
from tests.helpers.project import PACKAGE, SOURCES, name_of, tree
from tests.helpers.stages import sweep

WRITING = {
    "write_bytes", "write_text", "write_through", "write_atomic", "write_ours", "write_json",
    "write_sealed",
    "write_array", "savefig", "to_csv", "to_parquet", "touch", "mkdir", "makedirs", "mkstemp",
    "NamedTemporaryFile", "FileLock", "download_url", "ModelCheckpoint", "symlink_to", "fdopen",
    "make_folder", "write_tensors", "write_as_named", "write_frame",
}  # fmt: skip
"""The last part of the names of functions that write to a disk."""

# For every function with such a call, the key of its full-disk test in FULL, or the reason why it
# needs no such test.
TEXT = "makes text or bytes in memory, which its caller writes"
ATOMIC = "writes with write_atomic alone"
STAGE = "runs inside a stage, see `stage`"
WRITERS = {
    "identity/table.py:record": ATOMIC, "identity/table.py:_set_version": ATOMIC,
    "results/seal.py:write_sealed": ATOMIC,
    "figures/style.py:_drawn": ATOMIC, "core/paths.py:check_writable": "asks only",
    "core/lease.py:_create": STAGE,
    "core/lease.py:_say": "a lost beat costs nothing, see test_lease",
    "data/download.py:_fetch": "download",
    "data/download.py:_locked": "download",
    "export_weights.py:export_weights": "export_weights", "figures/style.py:save": ATOMIC,
    "core/atomic_io.py:write_atomic": "atomic", "core/atomic_io.py:write_through": "atomic",
    "core/output.py:survive_lost_output": "opens the null device",
    "core/output.py:_lasting": "opens nothing new", "results/index.py:rewrite": ATOMIC,
    "preview.py:_preview": ATOMIC,
    "export.py:_parquet": TEXT, "export.py:write_frame": ATOMIC,
    "page/analysis_command.py:_answer": ATOMIC,
    "page/document.py:write_page": "tables",
    "page/write.py:write_as_named": ATOMIC, "page/write.py:write_files": "tables",
    "compare/__main__.py:_compare": ATOMIC, "export.py:_export": ATOMIC,
    "scan/report.py:to_html": ATOMIC, "scan/report.py:write": ATOMIC,
    "scan/reference_file.py:write_reference": ATOMIC, "scan/trials.py:_run": ATOMIC,
    "results/__main__.py:freeze": ATOMIC, "verify/__main__.py:_verify": ATOMIC,
    "core/small_files.py:make_folder": "folder", "core/small_files.py:write_json": "json",
    "core/small_files.py:write_ours": "json",
    "core/store.py:_make": "stage", "core/store.py:_remembered": "a lost note costs time only",
    "core/store.py:_seal": "stage", "core/store.py:get": "stage",
    "pipeline/cell_pipeline.py:run_cell": "record",
    "sweep/manifest.py:halt": "halt", "sweep/manifest.py:note_failure": "told by the driver",
    "sweep/launching/loss.py:record_loss": "json",
    "pipeline/progress.py:_beat": "a lost beat costs nothing",
    "sweep/sweeper.py:_announce": "sweep",
    "sweep/launching/task.py:_crashes_told": "a warning, see `log`",
    "core/artifacts.py:write": STAGE, "data/workspace.py:write": "data set",
    "data/workspace.py:_named": "large data set",
    "core/artifacts.py:write_attack": STAGE,
    "core/tensor_io.py:write_array": STAGE, "core/tensor_io.py:write_tensors": STAGE,
    "core/atomic_io.py:new_folder": "poisoned arrays", "exchange/write.py:write_set": ATOMIC,
    "exchange/write_npz.py:write_npz": "export npz",
    "exchange/write_parquet.py:write_parquet": "export parquet",
    "exchange/write_folder.py:_write_split": "export folder",
    "exchange/write_toolbox.py:_write_images": "export toolbox",
    "exchange/write_toolbox.py:_save": "export toolbox",
    "export.py:_export_images": ATOMIC,
    "training/train.py:_checkpointer": STAGE, "training/gpu_lock.py:_first_free": "gpu lock",
    "training/gpu_lock.py:own_device": "gpu lock",
}  # fmt: skip


def writing() -> Iterator[str]:
    """``file:function`` for every function of the package that calls a writing function."""
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            inner = {id(n) for f in ast.walk(node) if f is not node
                     and isinstance(f, ast.FunctionDef) for n in ast.walk(f)}  # fmt: skip
            calls = (n for n in ast.walk(node) if isinstance(n, ast.Call) and id(n) not in inner)
            if any(_writes(call) for call in calls):
                yield f"{name_of(path)}:{node.name}"


def _writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    if name in ("open", "_Output"):
        given = [*call.args, *(each.value for each in call.keywords if each.arg == "mode")]
        modes = [n.value for n in given if isinstance(n, ast.Constant)]
        return any(isinstance(m, str) and set(m) & set("wax") and len(m) < 4 for m in modes)
    return name in WRITING


def test_every_function_that_writes_a_file_is_listed_in_this_test() -> None:
    found = set(writing())
    assert found - WRITERS.keys() == set(), "add a test of a full disk for it to FULL"
    assert WRITERS.keys() - found == set(), "WRITERS lists a function that no longer writes"
    named = {each for each in WRITERS.values() if each in FULL or " " not in each}
    assert named | {"logger"} == FULL.keys()  # Lightning's logger writes on its own.


def write_stage(root: Path) -> object:
    def make(folder: Path) -> dict[str, Any]:
        write_tensors(folder / "weights.safetensors", {"a": torch.zeros(2000)})
        return {}

    return Store(root).get("train", {}, make)


def log_into(root: Path) -> None:
    logger = logger_of({"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": None,
                        "name": "log"}, "train", root)  # fmt: skip
    for step in range(200):
        logger.log_metrics({"loss": 0.123456789}, step)
    logger.save()


def lock(root: Path) -> None:
    from backdoor_lab.training.gpu_lock import own_device

    with own_device(["gpu"], folder=root / "gpus"):
        pass


def fetch(root: Path) -> None:
    from torchvision.datasets import utils

    from backdoor_lab.data import download as ours
    from backdoor_lab.data.download import Official, obtain

    def download(url: str, folder: str, name: str, md5: str) -> None:
        Path(folder, name).write_bytes(bytes(50_000))

    utils.download_url = download  # This runs in a forked process, so nothing else is affected.
    ours.urlopen = lambda url: io.BytesIO()
    file = Official("set.bin", "0" * 32, ("https://nowhere.invalid/set.bin",))
    obtain("set", root / "d", (file,), download=True, ready=lambda: False)


def announce(root: Path) -> None:
    from types import SimpleNamespace

    from omegaconf import OmegaConf

    from backdoor_lab.sweep.sweeper import ResumeSweeper

    config = OmegaConf.create({"said": "x" * 5000})
    ResumeSweeper._announce(SimpleNamespace(config=config), root / "sweep", [])


def save_arrays(root: Path) -> None:
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    made = bl.poison(images, torch.arange(20) % 2, "pixel", target=1, ratio=0.5)
    try:
        made.save(root / "poisoned")
    finally:
        assert not (root / "poisoned").exists()


def export(layout: str) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        before = sorted(root.iterdir())
        try:
            write_set(root / "new/set", small_set(), layout, DESCRIBED)
        finally:
            assert sorted(root.iterdir()) == before

    return write


def read_large(root: Path) -> None:
    """Reads images into a file, as for a large data set."""
    workspace.SMALL = 0  # This runs in a forked process, so nothing else is affected.
    space = workspace.Workspace(root)
    found = space.empty((5000, 1, 2, 2), "the images", "")
    found[:] = 1
    space.write({root / "images.npy": found[:4000]})


FULL: dict[str, Callable[[Path], object]] = {
    "data set": lambda root: open_dataset(Synthetic(per_class_train=20, per_class_test=5, size=8),
                                          Store(root)),
    "large data set": read_large,
    "atomic": lambda root: write_atomic(root / "x", bytes(5000)),
    "json": lambda root: write_json(root / "x", "x" * 5000),
    "stage": write_stage,
    "record": lambda root: run_here(root.parent / "ready/store", root / "cell"),
    "tables": lambda root: write_tables(root / "sweep"),
    "export_weights": lambda root: export_weights(
        [str(next((root.parent / "ready").glob("cell"))), "--out", str(root / "x.safetensors"),
         "--store", str(root.parent / "ready/store")]),
    "logger": log_into,
    "download": fetch,
    "sweep": announce,
    "gpu lock": lock,
    "halt": halt,
    "poisoned arrays": save_arrays,
    **{f"export {layout}": export(layout) for layout in LAYOUTS},
    "folder": lambda root: make_folder(root / "new"),
}  # fmt: skip
FOLDERS_ONLY = ("gpu lock", "halt", "folder")
"""Writers of empty files and folders: they only fail on a disk without inodes."""


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prerequisites of the writers: a cell with its store."""
    base = tmp_path_factory.mktemp("room")
    run_here(base / "ready/store", base / "ready/cell")
    return base


def in_child(work: Callable[[], object]) -> tuple[str, str]:
    """Runs `work` in a forked process. Returns the name and text of its error."""
    reading, writing_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "done\n"
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (no limit there)
            found = work()
            said = f"code {found}\n" if isinstance(found, int) else said
            if isinstance(found, dict):
                said = f"record\n{found['status']}"
        except LabError as error:
            said = f"{type(error).__name__}\n{error}"
        except BaseException as error:
            said = f"{type(error).__name__}\n{error!r}"
        finally:
            os.write(writing_end, said.encode()[:4000])
            os._exit(0)
    os.close(writing_end)
    with os.fdopen(reading) as stream:
        kind, _, text = stream.read().partition("\n")
    os.waitpid(pid, 0)
    return kind, text


def met_clearly(what: str, kind: str, text: str) -> None:
    if what == "export_weights":
        assert kind == "code 1"
    else:
        assert kind == "StoreFullError", text
        assert "not enough disk space" in text
        assert "bytes free" in text


@pytest.mark.parametrize("what", [each for each in FULL if each not in FOLDERS_ONLY])
@pytest.mark.parametrize("limit", [0, 900])
def test_a_file_size_limit_is_reported_as_a_full_disk(
    what: str, limit: int, ready: Path, tmp_path: Path
) -> None:
    """With RLIMIT_FSIZE the kernel refuses the write, as on a full disk."""
    root = ready / f"{what}-{limit}"
    root.mkdir()
    if what == "tables":
        sweep(root)

    def work() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return FULL[what](root)

    met_clearly(what, *in_child(work))
    assert not [path for path in root.rglob("*.part*") if path.name[0] == "."]
    assert not list(root.rglob("*.claim"))


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="requires root and mount"
)
# Empty folders take no space.
@pytest.mark.parametrize(
    ("option", "what"),
    [("size=8k", w) for w in FULL if w not in FOLDERS_ONLY] + [("nr_inodes=3", w) for w in FULL],
)
def test_a_full_disk_is_reported_by_every_writer(what: str, option: str, ready: Path) -> None:
    """The disk is a small tmpfs without free space, or one without free inodes."""
    root = ready / f"disk-{what}-{option.partition('=')[0]}"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(root)], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted")
    try:
        if what == "tables":
            (root / "sweep").mkdir()
            made = ready / f"made-{option.partition('=')[0]}"
            sweep(made)
            (root / "sweep/sweep.json").write_bytes((made / "sweep/sweep.json").read_bytes())
        if what == "record":
            (root / "cell").mkdir()
        fill(root, option)
        met_clearly(what, *in_child(lambda: FULL[what](root)))
    finally:
        subprocess.run(["umount", str(root)], check=True)


def fill(root: Path, option: str) -> None:
    """Fills the rest of a small disk."""
    try:
        if option.startswith("size"):
            with (root / "filler").open("wb") as stream:
                while True:
                    stream.write(bytes(1024))
                    stream.flush()
        for number in range(10):
            (root / f"filler{number}").touch()
    except OSError:
        return


def test_a_log_that_cannot_be_written_gives_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    (tmp_path / "x.log").mkdir()
    record = logging.LogRecord("x", 20, "x", 1, "said", None, None)
    handlers = [LogFile("/dev/full"), LogFile(tmp_path / "x.log", delay=True)]
    for handler in handlers:
        handler.emit(record)
        handler.emit(record)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("logging to this file stops")[0] for line in lines] == [
        "warning: /dev/full: ", f"warning: {tmp_path / 'x.log'}: ",
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["nobody", "full", "closed"])
def test_lost_output_does_not_stop_the_program(where: str, tmp_path: Path) -> None:
    """The exit code is still 3 if the output has no reader, is closed, or goes to a full disk."""
    code = (
        "import sys, logging\n"
        "from backdoor_lab.core.output import Terminal, survive_lost_output\n"
        "survive_lost_output()\n"
        "logging.basicConfig(handlers=[Terminal()], force=True)\n"
        "for _ in range(3000): print('x' * 60); logging.warning('y' * 60)\n"
        "open('end', 'w').close(); sys.exit(3)\n"
    )
    (tmp_path / "code.py").write_text(code)
    after = {"nobody": "| head -1", "full": "> /dev/full", "closed": ">&-"}[where]
    line = f'"{sys.executable}" code.py {after}; echo "${{PIPESTATUS[0]}}" > code'
    result = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, text=True, capture_output=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert (tmp_path / "code").read_text() == "3\n"
    assert (tmp_path / "end").exists()
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
    assert result.stderr.count("output is lost") == (where == "full")
