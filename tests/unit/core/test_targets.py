"""Code named by a configuration is refused before any import unless it is allowed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from backdoor_lab.config_loader import check_composed
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.targets import HYDRA, LOGGING, check_targets, package_names
from backdoor_lab.plugins.trust import Trust
from backdoor_lab.run import conf_dir
from tests.helpers.cells import TINY, lasting, run_here
from tests.helpers.program import many

MARKER = "from pathlib import Path\nPath('imported').touch()\n"
HOSTILE_OVERRIDES = {
    "callback": "+hydra.callbacks.x._target_=marker.f",
    "callback in a list": "+hydra.callbacks.x={_target_:%s,a:[1,{b:{_target_:marker.f}}]}",
    "launcher": "hydra.launcher._target_=hydra_plugins.marker.Launcher",
    "launcher argument": "+hydra.launcher.x._target_=marker.f",
    "sweeper": "hydra.sweeper._target_=marker.f",
    "handler": "hydra.job_logging.handlers.console.class=marker.Handler",
    "early handler": "hydra.hydra_logging.handlers.console.class=marker.Handler",
    "formatter": "+hydra.job_logging.formatters.terminal.class=marker.Formatter",
    "stream": "++hydra.job_logging.handlers.console.stream=ext://marker.f",
    "stream by another key": "++hydra.job_logging.handlers.console.stream=${name} name=ext://marker.f",
    "listener": "+hydra.job_logging.handlers.console.listener=marker.f",
    "by reference": "+hydra.callbacks.x=${store} +store._target_=marker.f",
    "by environment": "+hydra.callbacks.x._target_=${oc.env:HOSTILE}",
    "made of parts": "+hydra.callbacks.x._target_=mark${oc.env:HOSTILE_END}",
    "hydra's importer": "+hydra.callbacks.x={_target_:hydra.utils.get_object,path:marker.f}",
    "package name in Hydra's place": "+hydra.callbacks.x._target_=backdoor_lab.data.decode.Path",
    "search path": "hydra.searchpath=[pkg://marker]",
    "trigger": "trigger._target_=marker.f",
    "logger": "logger._target_=marker.f",
    "unknown key": "+anything.x=[[{_target_:marker.f}]]",
    "a sweep": "-m trigger._target_=backdoor_lab.attacks.pixel.Pixel,marker.f",
    "PYTHONPATH": "+hydra.job.env_set.PYTHONPATH=here",
    "git configuration": "+hydra.job.env_set.GIT_CONFIG_COUNT='1'",
    "sweep over allow_plugins": "-m allow_plugins=[marker],[] seed=1",
    "sweep over plugins": "-m plugins=[marker.py],[] seed=1",
    "path instead of a list": "plugins=marker.py",
    "this package as a plug-in": "allow_plugins=[backdoor_lab]",
    "factory": "+model.factory=marker:f",
    "factory in the standard library": "+model.factory=os:system",
    "name instead of a list": "allow_plugins=marker",
    "a pickle": "--experimental-rerun=config.pickle",
    "a pickle, abbreviated": "--exp config.pickle",
    "package as config path": "--config-path pkg://marker",
}
HOSTILE_FILES = {
    "formatter": {"hydra": {"job_logging": {"formatters": {"terminal": {"()": "marker.f"}}}}},
    "filter": {"hydra": {"hydra_logging": {"filters": {"x": {"()": "marker.f"}}}}},
    "attribute": {
        "hydra": {"job_logging": {"handlers": {"console": {".": {"namer": "ext://marker.f"}}}}}
    },
    "callback": {"hydra": {"callbacks": {"x": {"_target_": "marker.f"}}}},
    "by resolver": {"hydra": {"callbacks": {"x": "${oc.decode:${oc.env:HOSTILE_DICT}}"}}},
    "hook": {
        "defaults": [{"override /hydra/launcher": "ray"}],
        "hydra": {"launcher": {"ray": {"init": {"worker_process_setup_hook": "marker.f"}}}},
    },
    "sweeper overrides": {
        "hydra": {
            "sweeper": {
                "params": {
                    "allow_plugins": "[marker]",
                    "hydra.job_logging.handlers.console.class": "marker.Handler",
                }
            }
        }
    },
    "plugins in the file": {"plugins": ["marker.py"], "trigger": {"_target_": "marker.f"}},
    "sweeper plugins": {"hydra": {"sweeper": {"params": {"plugins": "[marker.py]"}}}},
    "allow_plugins in the file": {
        "allow_plugins": ["marker"],
        "hydra": {"callbacks": {"x": {"_target_": "marker.f"}}},
    },
}
# Overrides that a sweep adds to its cells have no effect without -m.
FLAGS = {name: [[], ["-m"]] for name in HOSTILE_FILES}
FLAGS |= {key: [["-m"]] for key in ("sweeper overrides", "sweeper plugins")}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every hostile command, run in a folder with an importable module `marker`."""
    cwd = tmp_path_factory.mktemp("hostile")
    (cwd / "marker.py").write_text(MARKER)
    (cwd / "conf/experiment").mkdir(parents=True)
    commands = {}
    for name, words in HOSTILE_OVERRIDES.items():
        flags = [word for word in words.split() if word.startswith("-")]
        rest = [word for word in words.split() if not word.startswith("-")]
        commands[name] = [*flags, *(word.replace("%s", next(iter(HYDRA))) for word in rest)]
        commands[name] += TINY if flags == ["-m"] else ()
        if flags not in (["-m"], []):
            commands[name] = words.split()
    for name, content in HOSTILE_FILES.items():
        path = cwd / "conf/experiment" / f"evil_{name.replace(' ', '_')}.yaml"
        path.write_text("# @package _global_\n" + json.dumps(content))
        for flag in FLAGS[name]:
            words = ["--config-dir", "conf", f"experiment={path.stem}"]
            commands[f"file: {name} {flag}"] = [*flag, *words, *(TINY if flag else ())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTILE", "marker.f")
        patch.setenv("HOSTILE_END", "er.f")
        patch.setenv("HOSTILE_DICT", "{_target_: marker.f}")
        return cwd, dict(zip(commands, many(cwd, list(commands.values()))[0], strict=True))


FILE_CASES = [f"file: {name} {flag}" for name in HOSTILE_FILES for flag in FLAGS[name]]


@pytest.mark.parametrize("name", [*HOSTILE_OVERRIDES, *FILE_CASES])
def test_hostile_configuration_is_refused_in_one_line_before_any_import(
    name: str, refused: tuple[Path, dict[str, Any]]
) -> None:
    cwd, found = refused
    code, _, said, _ = found[name]
    assert code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert re.search("is not allowed|would import|plugins|must not set|loads a pickle", said)
    assert not (cwd / "imported").exists(), "something imported the marker module"


def composed(*overrides: str) -> Any:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ["hydra/launcher=joblib"],
        ["hydra/launcher=submitit_local"],
        ["hydra/launcher=submitit_slurm"],
        ["hydra/job_logging=default", "hydra/hydra_logging=hydra_debug"],
        ["hydra/job_logging=none", "hydra/hydra_logging=disabled"],
        ["++hydra.job_logging.handlers.console.stream=ext://sys.stderr"],
        ["hydra.job_logging.handlers.file.class=logging.handlers.RotatingFileHandler"],
        [
            "hydra.job_logging.handlers.file.filename=${hydra.runtime.output_dir}/${hydra.job.num}.log"
        ],
        ["+hydra.callbacks.x._target_=hydra.experimental.callbacks.LogJobReturnCallback"],
        ["+hydra.job.env_set.OMP_NUM_THREADS='1'"],
        ["hydra.job.env_copy=[PATH]"],
        ["logger=wandb"],
        ["logger=mlflow", "logger.tracking_uri=${oc.env:HOME}"],
        ["defense=random", "trigger=blended"],
        ["hydra.searchpath=[pkg://hydra.conf]"],
    ],
)
def test_common_configurations_are_accepted(overrides: list[str]) -> None:
    taken = OmegaConf.to_container(composed(*overrides).hydra.overrides, resolve=False)
    assert isinstance(taken, dict)
    assert {*taken["hydra"], *taken["task"]} == {*overrides}


@pytest.mark.parametrize("name", sorted(p.stem for p in Path(conf_dir()).glob("experiment/*.yaml")))
def test_the_classes_that_an_experiment_names_are_allowed(name: str) -> None:
    assert composed(f"experiment={name}").hydra.runtime.choices.experiment == name


@pytest.mark.parametrize(
    "allowed", ["[my_launcher]", "[hydra_plugins.my_launcher]", "[a,hydra_plugins]"]
)
def test_a_launcher_from_a_plugin_is_accepted_only_if_allow_plugins_lists_its_package(
    allowed: str,
) -> None:
    target = "hydra.launcher._target_=hydra_plugins.my_launcher.core.Launcher"
    assert composed(target, f"allow_plugins={allowed}").hydra.launcher._target_.endswith("Launcher")
    with pytest.raises(ConfigError, match=r"allow_plugins=\[package\]"):
        composed(target)
    with pytest.raises(ConfigError, match=r"allow_plugins=\[package\]"):
        composed(target, "allow_plugins=[my]")


def test_a_trigger_from_a_plugin_is_accepted_only_if_its_package_is_trusted() -> None:
    target = "trigger._target_=mine.Trigger"
    assert composed(target, "allow_plugins=[mine]").trigger._target_ == "mine.Trigger"
    for trusted in ("[]", "[mine2]", "[mine.sub]"):
        with pytest.raises(ConfigError, match=r"`trigger\._target_`: 'mine\.Trigger' is not"):
            composed(target, f"allow_plugins={trusted}")
    with pytest.raises(ConfigError, match=r"`logger\._target_`: 'mine\.Logger' is not allowed"):
        composed("logger._target_=mine.Logger", "allow_plugins=[mine]")


@pytest.mark.parametrize(
    "name",
    ["victim", "../x.log", "a/x.log", "~/.bashrc", "/etc/x.log",
     "${hydra.runtime.output_dir}/../x.log",
     "${hydra.runtime.output_dir}/.bashrc", "${hydra.runtime.output_dir}/${hydra.job.name}",
     "/<output_dir>x/y.log"],
)  # fmt: skip
def test_a_log_file_outside_the_folder_of_the_cell_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a log file must be in the cell's folder"):
        composed(
            f'+hydra.job_logging.handlers.y={{class: logging.FileHandler, filename: "{name}"}}'
        )
    with pytest.raises(ConfigError, match="a log file must be in the cell's folder"):
        composed("hydra.job.name=a/../../b")


@pytest.mark.parametrize("value", [[""], ["a b"], ["os;x"], ["../x"], [3], "os", {"a": 1}, None])
def test_invalid_package_names_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="`allow_plugins` must be a list of package names"):
        package_names(value)


@pytest.mark.parametrize("name", sorted(LOGGING))
def test_log_handlers_are_allowed_only_in_logging_sections(name: str) -> None:
    check_targets({"handlers": {"x": {"class": name}}}, where="hydra.job_logging")
    with pytest.raises(ConfigError):
        check_targets({"x": {"class": name}}, where="hydra.callbacks")


def test_checking_which_classes_a_configuration_names_does_not_change_the_configuration() -> None:
    config = composed(
        "hydra.job_logging.handlers.file.filename=${hydra.runtime.output_dir}/${hydra.job.num}.log"
    )
    before = OmegaConf.to_yaml(config)
    check_composed(config, Trust())
    assert OmegaConf.to_yaml(config) == before
    assert OmegaConf.is_missing(config.hydra.job, "num")
    assert OmegaConf.is_missing(config.hydra.runtime, "output_dir")


def test_allowed_packages_are_recorded_and_change_no_result(tmp_path: Path) -> None:
    store = tmp_path / "store"
    plain = run_here(store, tmp_path / "a")
    trusting = run_here(store, tmp_path / "b", "allow_plugins=[our_cluster]")
    assert (plain["run"]["allow_plugins"], trusting["run"]["allow_plugins"]) == (
        [],
        ["our_cluster"],
    )
    assert lasting(plain) == lasting(trusting)


def test_an_allowed_callback_runs(tmp_path: Path) -> None:
    """This shows that the refusals in the other tests come from the check of target classes."""
    (tmp_path / "marker.py").write_text(MARKER + "class Callback: ...\n")
    words = [*TINY, "+hydra.callbacks.x._target_=marker.Callback", "allow_plugins=[marker]"]
    ((code, _, said, _),) = many(tmp_path, [[*words, "dry_run=true"]])[0]
    assert (code, (tmp_path / "imported").exists()) == (0, True), said
