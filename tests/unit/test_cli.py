"""The command line: one clear line per mistake, exit codes, and a real sweep of four cells."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab import run
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.hydra_options import flags_first
from backdoor_lab.results.seal import write_sealed
from tests.helpers.cells import TINY, environment, started
from tests.helpers.program import many
from tests.helpers.records import failed, record

CONF = Path(__file__).resolve().parents[2] / "conf"
WRONG = {
    "target=brid": ["`target` 'brid'", "Did you mean 'bird'"],
    "ratio=1.5": ["`ratio` must satisfy 0 <= ratio <= 1, got 1.5"],
    "ratio=10": [
        "0 <= ratio <= 1, got 10",
        "to give a number of images, set protocol.ratio_of=count",
    ],
    "-m target=bird --cfg job": ["Only one of", "for --cfg and --info, leave out -m"],
    "-m seed=0,1 --help": ["`seed=0,1` gives several values", "with --help, --cfg or --info, give"],
    "ratio=nan": ["`ratio` must satisfy 0 <= ratio <= 1, got nan"],
    "ratio=abc": ["`ratio` must satisfy 0 <= ratio <= 1, got 'abc'"],
    "trigger=pixle": ["pixle", "pattern"],
    "ratoi=0.1": ["ratoi"],
    "target=Straße": ["target=Straße", "needs quotes"],
    "trainer=gpu": ["trainer=gpu", "trainer=cpu"],
    "dataset.sise=3": ["sise"],
    "+dataset.sise=3": ["sise", "size"],
    "ratio=": ["ratio"],
    "ratio=[": ["ratio"],
    "~trainer": ["trainer"],
    "-m ratio=0.05,1.5": ["cell 2 of 2 (", "ratio=1.5", "0 <= ratio <= 1, got 1.5"],
    "-m target=bird,brid,dog": ["cell 2 of 3 (", "'brid'"],
    "-m trigger=pixel,pixle": ["pixle"],
    "-m trigger=glob(x*)": ["glob", "nothing"],
    "experiment=demos": ["'demos' is not known. Did you mean 'demo'", "matrix, pairs"],
    "trigger=blendd": ["`trigger`: 'blendd' is not known. Did you mean 'blended'", "pixel, refl"],
    "-m defense=none,spectr": ["cell 2 of 2", "'spectr' is not known. Did you mean 'spectre'"],
    "-m defense=spectre,randm": ["Did you mean 'random'? Known: abl, ", "none, ", "strip."],
    "recipe=smal": ["`recipe`: 'smal' is not known. Did you mean 'small'"],
    "hydra/launcher=joblb": ["`hydra/launcher`: 'joblb' is not known. Did you mean 'joblib'"],
    "defense=spectral_uncentred": ["was renamed to `defense=spectral_uncentered`"],
    "trigger=pixel,pattern": ["`trigger=pixel,pattern` gives several values", "add -m"],
    "seed=0,1": ["`seed=0,1` gives several values", "add -m"],
    "seed=range(3)": ["`seed=range(3)` gives several values", "add -m"],
    "target=cat, dog": ["write several values without spaces between them"],
    "+trigger=pixel": ["write trigger= without a `+`"],
    "seed=1 --fast": ["unknown flag --fast", "--hydra-help"],
    "seed=1 --dryrun": ["unknown flag --dryrun: write dry_run=true; options have no dashes"],
    "--cfg job +defense.budget=3": ["`defense.budget` was renamed to `defense.removal_budget`"],
    "++trigger.alpha=0.3": [
        "`trigger.alpha` was renamed to `trigger.strength_test`",
        "`trigger=pixel` has no key",
        "blended",
    ],
    "trigger=blended ++trigger.alpha=0.3": [
        "`trigger.alpha` was renamed to `trigger.strength_test`",
    ],
    "protocol.apply_trigger=before": ["'before' was renamed to 'before_augmentation'"],
    "protocol.apply_trigger=after": ["'after' was renamed to 'after_augmentation'"],
    "defense._target_=backdoor_lab.defenses.none.Keep": [
        "was renamed to backdoor_lab.defenses.none.NoD"
    ],
    "trigger._target_=backdoor_lab.attacks.pixel.Pixl": ["'Pixl' is not known", "'Pixel'"],
    "-m hydra.sweeper.max_batch_size=-1": ["1 <= hydra.sweeper.max_batch_size, got -1"],
    "hydra.hydra_logging.version=3": ["`hydra.hydra_logging`: ", "Unsupported version: 3"],
    "hydra.verbose=3": ["`hydra.verbose` must be true, false"],
    "target=ankle boot": [
        "'boot' is not of the form KEY=VALUE: write several values without spaces between them"
        ' (target=ankle,boot), or a value that contains a space in quotes ("target=ankle boot")'
    ],
    "boot": ["'boot' is not of the form KEY=VALUE"],
    "trigger=tact source=cat trigger.cover_classes=50": ["at most 8", "got 50"],
    "trigger._target_=backdoor_lab.attacks.pixl.Pixel": ["Did you mean backdoor_lab.attacks.pixel"],
}


def test_flags_and_overrides_may_be_mixed_in_any_order(tmp_path: Path) -> None:
    wanted = ["-m", "--cfg", "job", "trigger=pixel", "seed=0,1"]
    for words in (["trigger=pixel", "-m", "seed=0,1", "--cfg", "job"],
                  ["trigger=pixel", "seed=0,1", "-m", "--cfg", "job"], wanted):  # fmt: skip
        assert flags_first(words, CONF) == wanted
    assert flags_first([], CONF) == []
    ((code, said, _, _),), _ = many(tmp_path, [["trigger=patch", "--cfg", "job", "seed=7"]])
    assert (code, "seed: 7\n" in said, "name: patch\n" in said) == (0, True, True)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--dryrun", "write dry_run=true; options have no dashes, KEY=VALUE: --help lists them"),
        ("--dry-run -m", "write dry_run=true;"),
        ("--seed 3 target=cat", "write seed=3;"),
        ("--seed=0,1 -m", "write seed=0,1;"),
        ("--target", "write target=VALUE;"),
        ("target=cat --dataset.root=photos", "write dataset.root=photos;"),
        ("-m --defence spectral", "write defense=spectral;"),
        ("--multrun seed=0,1", "did you mean --multirun? options have no dashes"),
        ("--by=defense", "unknown flag --by: options have no dashes, KEY=VALUE"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_spelling_that_works(words: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(hint)):
        flags_first(words.split(), CONF)


def choices(group: str) -> list[str]:
    """The names of a config group's files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    cwd = tmp_path_factory.mktemp("refused")
    # Flags come first, since Hydra's parser accepts no flag between overrides.
    commands = [sorted([*TINY, *words.split()], key=lambda word: word != "-m") for words in WRONG]
    return cwd, dict(zip(WRONG, many(cwd, commands)[0], strict=True))


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_in_a_command_gives_a_one_line_error_and_exit_code_2(
    refused: tuple[Path, dict[str, Any]], words: str
) -> None:
    code, _, said, _ = refused[1][words]
    lines = said.strip().splitlines()
    assert code == 2, said
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    for part in WRONG[words]:
        assert part in lines[0]


def test_the_error_for_an_unknown_key_says_whether_the_experiment_sets_the_key(
    tmp_path: Path,
) -> None:
    """The error also says how to leave the key out. A key that the user sets is not attributed to
    the experiment."""
    own = ["experiment=smoke", "dataset=image_folder", "dataset.root=."]
    swept = ["-m", *own, "~dataset.noise", "target=cat,dog"]
    users = ["experiment=smoke", "+trigger.colour=3"]
    (single, sweep, user), _ = many(tmp_path, [own, swept, users])
    assert [each[0] for each in (single, sweep, user)] == [2, 2, 2]
    assert "key in `dataset`: 'noise' is not known." in single[2]
    hint = "`experiment=smoke` sets it, for another choice: to leave it out, add "
    assert single[2].endswith(f"{hint}'~dataset.noise' '~dataset.shift'\n")
    assert "error: cell 1 of 2 (" in sweep[2]
    assert sweep[2].endswith(f"{hint}'~dataset.shift'\n")
    assert "colour" in user[2]
    assert "sets it" not in user[2]


def test_refused_commands_compute_nothing(refused: tuple[Path, dict[str, Any]]) -> None:
    stages = {path.parent.parent.name for path in refused[0].rglob("manifest.json")}
    assert stages <= {"data"}
    assert list(refused[0].rglob("record.json")) == []
    assert list(refused[0].rglob("sweep.json")) == []


def test_running_the_package_as_a_module_gives_a_one_line_error_and_exit_code_2_for_a_mistake(
    tmp_path: Path,
) -> None:
    run = started(tmp_path, *TINY, "target=brid")
    assert run.returncode == 2
    assert run.stdout == ""
    assert re.fullmatch(r"error: `target` 'brid' is not known\..*truck, or 0 to 9\.\n", run.stderr)


def test_an_error_about_the_default_target_says_that_the_command_does_not_set_it(
    tmp_path: Path,
) -> None:
    run = started(tmp_path, "dataset=digits", "trainer=cpu", "dry_run=true")
    assert run.returncode == 2
    assert run.stderr.startswith("error: `target` 'bird' is not known.")
    assert run.stderr.endswith(" The command does not set it: add target=NAME\n")


def test_help_and_tab_completion_load_no_torch(tmp_path: Path) -> None:
    asked = [["--help"], ["--cfg", "job"], ["--info", "defaults"], ["--version"],
             ["--cfg", "job", "experiment=demo", "target=dog"]]  # fmt: skip
    found, torch_loaded = many(tmp_path, asked)
    assert not torch_loaded
    assert [code for code, *_ in found] == [0] * 5, found
    texts = [out for _, out, *_ in found]
    listed = [f"{group}: {', '.join(choices(group))}" for group in ("trigger", "defense")]
    for part in (*listed, "ratio"):
        assert part in texts[0]
    assert "target: bird" in texts[1]
    assert "trigger" in texts[2]
    assert "Hydra" in texts[3]
    assert "target: dog" in texts[4]
    assert list(tmp_path.iterdir()) == []


def test_tab_completion_offers_the_choices(tmp_path: Path) -> None:
    def completed(line: str) -> list[str]:
        told = environment(COMP_LINE=line, COMP_POINT=str(len(line)))
        script = Path(sys.executable).with_name("backdoor-lab")
        run = subprocess.run(
            [script, "-sc", "query=bash"], env=told, cwd=tmp_path, text=True,
            capture_output=True, timeout=100, check=True,
        )  # fmt: skip
        return run.stdout.split()

    triggers = [f"trigger={name}" for name in choices("trigger")]
    assert completed("backdoor-lab trigger=") == triggers


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A sweep of four cells in two processes, the same command again, and a sweep with a failing
    cell."""
    cwd = tmp_path_factory.mktemp("sweep")
    words = ["-m", *TINY, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "name=four",
             "trigger=pixel,pattern", "defense=spectral,oracle"]  # fmt: skip
    first = started(cwd, *words)
    failing = ["-m", *TINY, "name=failing", "recipe.lr=1e30,0.05"]
    return cwd, first, many(cwd, [words, failing])[0]


def records(cwd: Path, name: str) -> dict[Path, dict[str, Any]]:
    found = (cwd / "multirun_reports" / "runs").glob(f"{name}-*/*/record.json")
    return {path: json.loads(path.read_text()) for path in found}


def test_a_sweep_writes_records_and_tables(swept: tuple[Path, Any, Any]) -> None:
    cwd, first, _ = swept
    assert first.returncode == 0, first.stderr
    found = records(cwd, "four")
    assert [each["status"] for each in found.values()] == ["done"] * 4
    (folder,) = {path.parent.parent for path in found}
    assert re.fullmatch(r"four-[0-9a-f]{8}", folder.name)
    assert folder.parent == cwd / "multirun_reports" / "runs"
    assert {path.parent.name for path in found} == {each["id"] for each in found.values()}
    asked = json.loads((folder / "sweep.json").read_text())
    assert {each["id"] for each in asked["asked"]} == {path.parent.name for path in found}
    assert asked["command"].startswith("python -m backdoor_lab ")
    for word in ("Nat1", "ASR2", "bird", "pixel", "pattern"):
        assert word in first.stdout
    assert list((folder / "tables").iterdir())
    assert "Traceback" not in first.stdout + first.stderr
    # Two attacked networks, two retrained after the filter, and one retrained on the oracle's clean
    # set, which is the same for both attacks.
    networks = list((cwd / "multirun_reports" / ".store").glob("*train/*/weights.safetensors"))
    assert len(networks) == 2 + 2 + 1
    assert not list(cwd.rglob("running.json"))


def test_repeating_the_command_computes_nothing(swept: tuple[Path, Any, Any]) -> None:
    cwd, _, ((code, said, _, _), _) = swept
    assert code == 0
    assert "4 of 4 cells already done" in said
    assert "Nat1" in said
    tables = min(path.stat().st_mtime for path in cwd.rglob("four-*/tables/*"))
    assert all(path.stat().st_mtime < tables for path in records(cwd, "four"))


def test_one_failing_cell_does_not_affect_the_others(swept: tuple[Path, Any, Any]) -> None:
    cwd, _, (_, (code, said, errors, _)) = swept
    found = {each["config"]["recipe"]["lr"]: each for each in records(cwd, "failing").values()}
    assert code == 1, errors
    assert found[0.05]["status"] == "done"
    assert found[1e30]["status"].startswith("diverged: loss is nan at epoch 1")
    assert "diverged" in said
    assert "1 of 2 cells done" in said
    assert "Traceback" not in said + errors


def test_checks_before_a_sweep_import_no_training_code() -> None:
    """Errors and finished sweeps therefore do not wait for Lightning to load."""
    program = "import sys, backdoor_lab.sweep.preflight; print('pytorch_lightning' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"


def test_an_address_space_limit_too_small_for_pytorch_gives_a_one_line_error(
    tmp_path: Path,
) -> None:
    """Otherwise loading PyTorch would abort the process."""
    resource = pytest.importorskip("resource")
    limit = 3_000_000_000
    done = subprocess.run(
        [sys.executable, "-m", "backdoor_lab", *TINY], cwd=tmp_path, env=environment(), text=True,
        capture_output=True, check=False, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: the address space of this process is limited to 3,000")
    assert len(done.stderr.splitlines()) == 1


def test_running_out_of_memory_in_a_single_cell_command_fails_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has the reason, as in a sweep, and no further error is raised."""

    def fail(config: dict[str, Any], folder: Path, *, parallel_cells: int) -> str:
        write_sealed(folder / "record.json", failed(record()))
        raise MemoryError("planned")

    monkeypatch.setattr("backdoor_lab.sweep.job.run_job", fail)
    monkeypatch.setattr(run, "_outcome", {})
    assert run._single({}, tmp_path) == "failed: oom"
    assert run._outcome == {"code": 1}
