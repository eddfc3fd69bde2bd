"""Paths on command lines and in configurations are made absolute and checked. Errors are one line
with exit code 2."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backdoor_lab import (
    distortion,
    export,
    export_weights,
    preview,
    separation,
    status,
    visibility,
)
from backdoor_lab.attacks.base import Trigger
from backdoor_lab.compare import __main__ as compare
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.instantiate import build
from backdoor_lab.core.paths import IN_CONFIGURATION, absolute, check_writable, settle
from backdoor_lab.figures import __main__ as figures
from backdoor_lab.reports import __main__ as reports
from backdoor_lab.results import __main__ as results
from tests.helpers.cells import TINY
from tests.helpers.program import many
from tests.helpers.records import record, write_sweep

ROOT = Path(__file__).resolve().parents[3]
UNUSABLE = {
    "no such user": "~nosuchuser/x",
    "NUL": "a\0b",
    "long name": "x" * 5000,
    "long path": "/".join(["x" * 100] * 50),
    "dangling link": "dangling",
    "below a dangling link": "dangling/x",
    "loop": "loop",
    "below a loop": "a/../loop/x",
    "below a file": "file/x",
    "surrogate": "a\ud800b",
}


def obstacles(folder: Path) -> None:
    folder.joinpath("dangling").symlink_to(folder / "nowhere")
    folder.joinpath("loop").symlink_to(folder / "loop")
    folder.joinpath("file").write_text("")
    folder.joinpath("a").mkdir()


@pytest.mark.parametrize("name", UNUSABLE)
def test_the_error_for_an_unusable_path_is_one_short_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    obstacles(tmp_path)
    with pytest.raises(ConfigError) as caught:
        absolute("store.root", UNUSABLE[name])
    said = str(caught.value)
    assert said.startswith("`store.root`='")
    assert "is not a usable path: " in said
    assert said.isprintable()
    assert len(said) < 500


def test_paths_become_absolute_without_resolving_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for given, meant in {
        "~/x": "me/x", "~": "me", "x/y z": "x/y z", "link/x": "link/x", "é": "é", "a=b,c": "a=b,c",
    }.items():  # fmt: skip
        assert absolute("path", given) == tmp_path / meant
    assert absolute("path", "x", tmp_path / "other") == tmp_path / "other" / "x"
    assert absolute("path", "/x", tmp_path / "other") == Path("/x")


def test_every_path_in_a_configuration_becomes_absolute(tmp_path: Path) -> None:
    config = {
        "store": {"root": "s"}, "dataset": {"root": None}, "trigger": {"image": "p.png"},
        "logger": {"save_dir": "l", "tracking_uri": "file:m"}, "model": None,
    }  # fmt: skip
    settle(config, tmp_path)
    assert config == {
        "store": {"root": f"{tmp_path}/s"}, "dataset": {"root": None},
        "trigger": {"image": f"{tmp_path}/p.png"}, "model": None,
        "logger": {"save_dir": f"{tmp_path}/l", "tracking_uri": f"file:{tmp_path}/m"},
    }  # fmt: skip
    remote = {"logger": {"tracking_uri": "https://example.org"}}
    settle(remote, tmp_path)
    assert remote["logger"]["tracking_uri"] == "https://example.org"


def test_every_path_option_of_a_trigger_is_made_absolute() -> None:
    from omegaconf import OmegaConf

    for path in sorted((ROOT / "conf/trigger").glob("*.yaml")):
        whole = OmegaConf.create({"source": None, "trigger": OmegaConf.load(path)})
        trigger = build("trigger", OmegaConf.to_container(whole.trigger), Trigger)  # type: ignore[arg-type, type-abstract]
        assert set(trigger.path_options) <= set(IN_CONFIGURATION["trigger"])


def test_the_check_that_a_path_is_writable_leaves_no_folder_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not a writable directory"):
        check_writable(tmp_path / "file")
    if Path("/proc/self").is_dir():
        # The permission bits of /proc claim that root may write there.
        with pytest.raises(ConfigError, match="cannot write to /proc/x: /proc is not a writable"):
            check_writable(Path("/proc/x"))


WRONG = {
    "store.root='~nosuchuser/x'": ["`store.root`='~nosuchuser/x'", "no home folder is known"],
    f"store.root={'x' * 5000}": ["`store.root`=", "longer than"],
    "store.root=dangling": ["`store.root`=", "a broken link"],
    "store.root=~nosuchuser/y": ["`store.root`=", "no home folder is known for ~nosuchuser"],
    "trigger=patch trigger.image=~nosuchuser/x.png": ["`trigger.image`=", "~nosuchuser"],
    "model.name.x=3": ["`model.name` has no subkeys"],
    "logger=none logger.save_dirr=x": ["key 'logger.save_dirr' is not known", "has no keys"],
    "+defense.k=3": ["key in `defense=spectral`: 'k' is not known"],
    '+hydra.job_logging.formatters.e.format="x"': ["`hydra.job_logging`: ", "Unable to configure"],
    "store.root=loop": ["`store.root`=", "a circular link"],
    "store.root=file/x": ["`store.root`=", "is a file, not a folder"],
    "store.root=file": ["cannot write to", "file is not a writable"],
    "store.root=/proc/x": ["cannot write to /proc/x"],
    "hydra.run.dir=/proc/x": ["cannot write to /proc/x"],
    "hydra.run.dir='~nosuchuser'": ["`hydra.run.dir`='~nosuchuser'"],
    "hydra.run.dir=loop/${cell_id:}": ["`hydra.run.dir`=", "a circular link"],
    "-m hydra.sweep.dir=/proc/x": ["cannot write to /proc/x"],
    "-m hydra.sweep.dir=dangling/x": ["`hydra.sweep.dir`=", "a broken link"],
    f"-m hydra.sweep.dir={'x' * 300}": ["`hydra.sweep.dir`=", "longer than"],
    "dataset=arrays dataset.root='~nosuchuser/set.npz'": ["`dataset.root`='~nosuchuser/set.npz'"],
    "dataset=image_folder dataset.root=loop": ["`dataset.root`=", "a circular link"],
    "trigger=patch trigger.image=dangling": ["`trigger.image`=", "a broken link"],
    "logger=csv logger.save_dir='~nosuchuser'": ["`logger.save_dir`='~nosuchuser'"],
    "-m hydra.sweep.subdir=mine": ["`hydra.sweep.subdir`=mine cannot be set", "hydra.sweep.dir"],
    "ratio=1e-400": ["1e-400 is too small to be distinguished from 0"],
    "-m ratio=0.3,1e-400": ["1e-400 is too small to be distinguished from 0"],
    f"ratio=0.{'0' * 400}1": ["is too small to be distinguished from 0"],
    "recipe.weight_decay=5e-999": ["5e-999 is too small"],
    "trigger.color=3.5": ["trigger.color", "3.5"],
    "trigger.strength_test=3": [
        "key 'trigger.strength_test' is not known: `trigger=pixel` has no key 'strength_test'.",
        "Choices of `trigger` that have it: adaptive_blend, blended",
        "Keys of `trigger`: name, position, color, margin.",
    ],
    "labels=clean": ["`labels` was renamed to `label_mode`"],
    "covers=1": ["`covers` was renamed to `cover_rate`"],
    "protocol.inject=replace": ["`protocol.inject` was renamed to `protocol.placement`"],
    "+protocol.stamp=after": ["`protocol.stamp` was renamed to `protocol.apply_trigger`"],
    "defense.budget_cap=3": ["`defense.budget_cap` was renamed to `defense.max_removed`"],
    "defense=random defense.like.centred=false": [
        "`defense.like.centred` was renamed to `defense.like.center`",
    ],
    "defense=random +defense.like.budget=3": [
        "`defense.like.budget` was renamed to `defense.like.removal_budget`",
    ],
    "+recipe.crop=3": ["`recipe.crop` was renamed to `recipe.crop_padding`"],
    "+hydra.sweeper.params.seed=1": ["is null, so its keys cannot be set"],
    "hydra.sweeper.params={seed:1}": ["`hydra.sweeper.params` is null"],
    "recipe=null": ["Got NoneType: set the group to one of its choices"],
    "~labels": ["`labels` was renamed to `label_mode`"],
    "~protocol.inject=append": ["`protocol.inject` was renamed to `protocol.placement`"],
    "defense=random ~defense.like.centred": [
        "`defense.like.centred` was renamed to `defense.like.center`",
    ],
    "~colour": ["key 'colour' is not known"],
    "~source": ["Could not delete from config. 'source' does not exist"],
    "protocol={inject:append}": ["`protocol.inject` was renamed to `protocol.placement`"],
    "protocol={colour:3}": ["`protocol=group13` has no key 'colour'"],
    "trigger=adaptive_patch trigger.patches.0.train=1": [
        "`trigger.patches.0.train` was renamed to `trigger.patches.0.strength_train`",
    ],
    "trigger.position.0.x=1": ["`trigger.position` has no subkeys"],
    "-m trigger=blended trigger.alpha=0.1,0.2": [
        "`trigger.alpha` was renamed to `trigger.strength_test`",
    ],
    "trigger.alpha=3": [
        "`trigger.alpha` was renamed to `trigger.strength_test`:"
        " key 'trigger.strength_test' is not known",
        "Choices of `trigger` that have it: adaptive_blend, blended",
    ],
    "trigger=adaptive_patch trigger.patches=[{at:[0,0]}]": [
        "`trigger.patches[0].at` was renamed to `trigger.patches[0].position`",
    ],
    "protocol.apply_trigger=after": ["'after' was renamed to 'after_augmentation'"],
    "trigger.colour=3": ["has no key 'colour'", "Did you mean 'trigger.color'?"],
    "trigger=warp trigger.color=3": ["`trigger=warp` has no key 'color'", "pixel"],
    "defense.k=3": ["`defense=spectral` has no key 'k'", "Keys of `defense`: ", "rank, rounds"],
    "defense=random defense.like.k=3": ["`defense.like` has no key 'k'"],
    "recipe.epoch=3": ["`recipe=demo` has no key 'epoch'", "Did you mean 'recipe.epochs'?"],
    "dataste.size=3": ["key 'dataste' is not known", "Did you mean 'dataset'?"],
    "-m trigger=patch,pixel trigger.size=3,4": ["`trigger=pixel` has no key 'size'", "tact"],
    "hydra/launcher=ray -m": ["ray needs hydra_plugins.hydra_ray_launcher", "'backdoor-lab[ray]'"],
    "logger=wandb": ["`logger`: wandb is not installed: pip install wandb"],
    "logger=mlflow": ["`logger`: mlflow is not installed: pip install mlflow"],
    "recipe.epochs=99999999999999999999": ["`recipe.epochs` must be smaller than 2**31"],
    "retries=99999999999999999999": ["`retries` must be smaller than 2**31"],
    "seed=9223372036854775808": ["`seed` must satisfy 0 <= seed < 9223372036854775808"],
    "recipe.crop_padding=100000": [
        "`recipe.crop_padding` must satisfy 0 <= recipe.crop_padding < 257"],
    "cover_rate=1e-300": ["`cover_rate`=1e-300 with 6 poisoned images gives less than one"],
    "retrain_seed=old": ["`retrain_seed` 'old' is not known", "new, same"],
    "measure.asr_under=[jpg75]": ["'jpg75' is not known", "Did you mean 'jpeg75'?", "rescale ("],
    "measure.asr_under=[noise999]": ["noise999 is out of range", "0.5 to 128"],
    "measure.asr_under=[shift8]": ["would move images of 8x8 out of view"],
    "hydra.jop.chdir=true": ["`hydra` has no key 'jop'", "Did you mean 'hydra.job'?"],
}  # fmt: skip


NEEDS = {"hydra/launcher=ray -m": "hydra_plugins.hydra_ray_launcher", "logger=wandb": "wandb",
         "logger=mlflow": "mlflow"}  # fmt: skip


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[object]]]:
    cwd = tmp_path_factory.mktemp("refused")
    obstacles(cwd)
    tiny = [word for word in TINY if not word.startswith("dataset")]
    commands = [
        sorted([*(tiny if "dataset=" in words else TINY), *words.split()], key=lambda w: w != "-m")
        for words in WRONG
    ]
    return cwd, dict(zip(WRONG, many(cwd, commands)[0], strict=True))


@pytest.mark.parametrize("words", WRONG, ids=lambda words: words[:40])
def test_a_bad_value_is_refused_in_one_line_with_exit_code_2(
    refused: tuple[Path, dict[str, list[object]]], words: str
) -> None:
    if words in NEEDS and installed(NEEDS[words]):
        pytest.skip(f"{NEEDS[words]} is installed")
    code, _, said, _ = refused[1][words]
    assert code == 2, said
    assert len(str(said).strip().splitlines()) == 1, said
    for part in WRONG[words]:
        assert part in str(said)


def test_suggestions_never_repeat_the_unknown_key(
    refused: tuple[Path, dict[str, list[object]]],
) -> None:
    suggested = {
        w: str(said) for w, (_, _, said, _) in refused[1].items() if "Did you" in str(said)
    }
    assert suggested
    for words, said in suggested.items():
        assert f"Did you mean '{words.split()[-1].partition('=')[0]}'" not in said


def test_tilde_is_expanded_and_chdir_does_not_change_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder named `~` is created, and `hydra.job.chdir` does not affect relative paths."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    words = [*TINY, "retrain=false", "hydra.job.chdir=true", "dataset.per_class_train=8"]
    commands = [
        [*words, "store.root='~/store'", "hydra.run.dir='~/cell'"],
        ["-m", *words, "store.root=rel/store", "hydra.sweep.dir=rel/sweep", "seed=0,1"],
    ]
    for code, _, said, _ in many(tmp_path, commands)[0]:
        assert code == 0, said
    assert (tmp_path / "me/cell/record.json").is_file()
    assert (tmp_path / "me/store/train").is_dir()
    assert len(list(tmp_path.glob("rel/sweep/*/record.json"))) == 2
    assert (tmp_path / "rel/store/train").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["me", "rel"]


COMMANDS: dict[str, Callable[[str], tuple[Callable[[list[str]], int], list[str]]]] = {
    "compare": lambda path: (compare.main, [path, "reference"]),
    "compare to": lambda path: (compare.main, ["A", "reference", "--out", path]),
    "distortion": lambda path: (distortion.main, [path]),
    "export": lambda path: (export.main, [path, "--out", "x.csv"]),
    "export to": lambda path: (export.main, ["A", "--out", path]),
    "export_weights": lambda path: (export_weights.main, [path, "--out", "w.safetensors"]),
    "export_weights of": lambda p: (export_weights.main, ["A", "--out", "w", "--store", p]),
    "figures": lambda path: (figures.main, [path]),
    "preview": lambda path: (preview.main, ["--out", path]),
    "results": lambda path: (results.main, ["freeze", path]),
    "results of": lambda path: (results.main, ["index", path]),
    "reports": lambda path: (reports.main, [path]),
    "separation": lambda path: (separation.main, [path]),
    "status": lambda path: (status.main, [path]),
    "visibility": lambda path: (visibility.main, ["A", "--store", path]),
}


@pytest.mark.parametrize("name", UNUSABLE)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_an_unusable_path(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    obstacles(tmp_path)
    write_sweep(tmp_path / "A", [record()])
    main, words = COMMANDS[command](UNUSABLE[name])
    try:
        code: object = main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")


def test_every_command_expands_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_sweep(tmp_path / "A", [record()])
    assert export.main(["~/A", "--out", "~/x.csv"]) == 0
    assert (tmp_path / "x.csv").is_file()
    assert status.main(["~/A"]) == 0
    assert reports.main(["~/A"]) == 0
    assert compare.main(["~/A", "reference", "--out", "~/c.csv"]) == 0
    assert not os.path.exists("~")
    capsys.readouterr()
