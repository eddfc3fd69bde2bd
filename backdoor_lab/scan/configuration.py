"""The configuration of a scan: conf/scan.yaml, and its sections of conf/config.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.paths import absolute, settle

SECTIONS = ("dataset", "trainer", "scan", "store", "seed", "dry_run")


def composed(given: Sequence[str]) -> dict[str, Any]:
    """Returns the plain configuration of a scan, with the section `scan`. At most one of `given` is
    a path; the others are overrides. Raises ConfigError for invalid ones."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from backdoor_lab.config_loader import conf_dir, install
    from backdoor_lab.core.targets import check_targets

    paths = [each for each in given if "=" not in each or Path(each).exists()]
    overrides = [each for each in given if each not in paths]
    chosen = any(each.startswith("dataset=") for each in overrides)
    if len(paths) + chosen != 1:
        raise ConfigError("give one training set: its path, or dataset=NAME")
    if paths:
        overrides = [*source_config(absolute("path", paths[0])), *overrides]
    for each in overrides:
        section = each.partition("=")[0].partition(".")[0]
        if section not in SECTIONS:
            raise unknown(f"`{each}`: section", section, SECTIONS)
    install()
    try:
        own = OmegaConf.load(Path(conf_dir()) / "scan.yaml")
        OmegaConf.set_struct(own, True)
        for each in overrides:
            key, equals, value = each.partition("=")
            if key.startswith("scan.") and equals:
                validation.keys("scan", [key.removeprefix("scan.")], map(str, own))
                parsed = OmegaConf.from_dotlist([f"value={value}"])
                OmegaConf.update(own, key.removeprefix("scan."), parsed.value)
        rest = [each for each in overrides if not each.startswith("scan.")]
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            config = compose("config", rest)
            found = {key: config[key] for key in SECTIONS if key != "scan"}
            found = {
                key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value)
                else value
                for key, value in found.items()
            }  # fmt: skip
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    check_targets(found)
    settle(found)
    return found | {"scan": OmegaConf.to_container(own)}


def source_config(path: Path) -> list[str]:
    """Returns the overrides that select the data set at `path`: an .npz file, or otherwise a
    folder, an archive or a .csv file of images."""
    group = "arrays" if path.suffix == ".npz" else "image_folder"
    quoted = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return [f"dataset={group}", f'dataset.root="{quoted}"']
