"""The entry point: runs one cell or a sweep with Hydra. For an error that the user can fix, prints
one line without a traceback.

Heavy imports are inside functions, so that ``--help`` and tab completion respond quickly.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from backdoor_lab import config_loader
from backdoor_lab.config_loader import conf_dir
from backdoor_lab.core import shutdown, validation
from backdoor_lab.core.atomic_io import digest, explained
from backdoor_lab.core.errors import (
    EXIT_BAD_CONFIG,
    EXIT_DONE,
    EXIT_SOME_FAILED,
    OUT_OF_MEMORY,
    ConfigError,
    LabError,
    is_out_of_memory,
    reason_of,
)
from backdoor_lab.core.output import survive_lost_output
from backdoor_lab.core.resources import wait_briefly
from backdoor_lab.core.terminal import plain
from backdoor_lab.hydra_options import flags_first, logging_error, not_given

# Prefixes of overrides that do not affect results. Sweeps that differ only in these share a folder.
NO_EFFECT = ("hydra", "hydra/", "hydra.", "trainer", "logger", "store", "name", "dry_run",
         "allow_plugins", "plugins", "retries", "fail_fast", "estimate_first",
         "dataset_label")  # fmt: skip
ADDRESS_SPACE = 4_000_000_000
"""The smallest limit of the address space (ulimit -v), in bytes, with which PyTorch is loaded. With
a lower limit, loading may abort the process: 3.07e9 bytes were too few, 4.1e9 were enough."""
_outcome: dict[str, Any] = {}
_TRACEBACKS = bool(os.environ.get("HYDRA_FULL_ERROR"))
"""Whether the user requests the traceback of every error. Read here because `main` sets
HYDRA_FULL_ERROR itself."""


def cell_id(_root_: DictConfig) -> str:
    """The resolver of ``${cell_id:}``: returns the id of the configured cell. The id is also the
    name of the cell's folder."""
    from backdoor_lab.sweep.compose import plain

    return _preflight().identify(plain(_root_)).id


def sweep_name(_root_: DictConfig) -> str:
    """The resolver of ``${sweep_name:}``, which names the folder of a sweep.

    The folder's name is `name` followed by a hash of the overrides that affect results, so that a
    repeated command uses the same folder. The hash is omitted if the only such override is
    ``experiment=<name>``.
    """
    overrides = OmegaConf.select(_root_, "hydra.overrides.task") or []
    asked = sorted(each for each in overrides if not each.lstrip("+~").startswith(NO_EFFECT))
    name = validation.safe_name("name", str(_root_.name))
    only_experiment = [each for each in asked if each != f"experiment={name}"] == []
    return name if only_experiment and asked else f"{name}-{digest(asked, 8)}"


def cells_at_once(_root_: DictConfig) -> int:
    """The resolver of ``${cells_at_once:}``: how many cells this machine can run at the same
    time."""
    from backdoor_lab.sweep.launching.parallel import automatic

    return automatic(_root_).cells


def protocol_versions() -> str:
    """The resolver of ``${protocol_versions:}``: every protocol with its version."""
    from backdoor_lab.identity import committed

    found = committed()["protocols"]
    return ", ".join(f"{name}@{entry['version']}" for name, entry in sorted(found.items()))


def threat_models() -> str:
    """The resolver of ``${threat_models:}``: one line with the threat model of each trigger."""
    from backdoor_lab.attacks.threat_model import of_every_trigger
    from backdoor_lab.config_loader import conf_dir

    found = of_every_trigger(Path(conf_dir()))
    width = max(map(len, found))
    return "\n".join(f"  {name:{width}}  {each}" for name, each in found.items())


def by_source(without: str, _root_: DictConfig) -> str:
    """The resolver of ``${by_source:x}``: ``source`` if the configuration has a source class, else
    x."""
    return without if _root_.source is None else "source"


def task(config: DictConfig) -> Any:
    """Run one cell in the process that the launcher chose for it. Returns its status, or a
    LostProcess if the cell ran in a child process that died."""
    from backdoor_lab.sweep.compose import plain
    from backdoor_lab.sweep.launching.parallel import parallel
    from backdoor_lab.sweep.launching.task import run_in_sweep

    survive_lost_output()
    shutdown.install()
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    # Not the current folder: with hydra.job.chdir, that is the cell's folder.
    asked = plain(config, Path(settings.runtime.cwd))
    if OmegaConf.is_missing(settings.job, "num"):
        return _single(asked, folder)
    cells = parallel(settings.launcher)
    journal = folder / f"{settings.job.name}.log"
    return run_in_sweep(asked, folder, cells, journal)


def _single(config: dict[str, Any], folder: Path) -> str:
    from backdoor_lab.sweep.job import run_job
    from backdoor_lab.sweep.manifest import status_of

    try:
        status = run_job(config, folder, parallel_cells=1)
    except Exception as error:
        if is_out_of_memory(error) and status_of(folder) == OUT_OF_MEMORY:
            _outcome["code"] = EXIT_SOME_FAILED
            return OUT_OF_MEMORY
        # Hydra would print an error raised here in its own format.
        _outcome["error"] = error
        return str(error)
    if status != "done":
        _outcome["code"] = EXIT_SOME_FAILED
    return status


def main() -> NoReturn:
    """Run the command, then exit with code 0, 1, 2 or 75 (see errors.py)."""
    _outcome.update(code=EXIT_DONE, driver=os.getpid(), error=None)
    # With this setting Hydra raises its errors; otherwise it prints them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    wait_briefly()
    survive_lost_output()
    if hasattr(signal, "SIGPIPE") and {"--help", "--cfg", "-c", "--info", "-i"} & set(sys.argv):
        # Exit silently if the reader of the output exits, as in `... --help | head`.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.argv[1:] = map(_with_home_quoted, sys.argv[1:])
    try:
        sys.argv[1:] = flags_first(sys.argv[1:], Path(conf_dir()))
        _refuse_rerun()
        _check_address_space()
        code = _run()
    except Exception as error:
        sys.exit(_explain(error))
    sys.exit(code)


def _run() -> int:
    """Run one cell or a sweep with Hydra. Returns the exit code."""
    from backdoor_lab.sweep.single import EndedEarly
    from backdoor_lab.sweep.sweeper import ResumeSweeper

    ResumeSweeper.last_code = EXIT_DONE
    try:
        _hydra_main()
    except EndedEarly as end:
        # Raise the error outside the `except` block; otherwise it would be its own cause.
        _outcome["error"] = end.error
    if _outcome["error"] is not None:
        raise _outcome["error"]
    return int(_outcome["code"] or ResumeSweeper.last_code)


def _refuse_rerun() -> None:
    """Raises ConfigError for --experimental-rerun: it loads a pickle, which can run any code."""
    if any(word.startswith("--e") and "--experimental-rerun".startswith(word.partition("=")[0])
           for word in sys.argv[1:]):  # fmt: skip
        raise ConfigError(
            "--experimental-rerun loads a pickle, which can run any code: repeat the command"
            " instead; it resumes where it stopped"
        )


def _with_home_quoted(word: str) -> str:
    """Put quotes around a path with a leading ``~``, as Hydra's grammar requires:
    ``store.root=~/x``."""
    found = re.fullmatch(r"(\+{0,2}[\w./@-]+)=(~[^\s'\",{}\[\]$]*)", word)
    return f'{found[1]}="{found[2]}"' if found else word


def _check_address_space() -> None:
    """Raises ConfigError if the address space is limited (ulimit -v) to so little that loading
    PyTorch would abort the process."""
    try:
        import resource
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < ADDRESS_SPACE:
        raise ConfigError(
            f"the address space of this process is limited to {limit:,} bytes, and PyTorch needs"
            f" {ADDRESS_SPACE:,}: raise the limit (ulimit -v)"
        )


def _hydra_main() -> None:
    start: Any = hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
    start(task)()


def _explain(error: BaseException) -> int:
    """Print an error that the user can fix as a one-line message and return the exit code. Any
    other error is raised again, so that Python prints its traceback."""
    known = _known(error)
    if known is None and isinstance(error, OSError):
        known = explained(error, Path(error.filename or "."))
    if known is None and is_out_of_memory(error):
        known = ConfigError(f"there is not enough memory for this command: {reason_of(error)}")
    if known is None:
        raise error
    if _TRACEBACKS:
        traceback.print_exception(error)
    code = known.exit_code if isinstance(known, LabError) else EXIT_BAD_CONFIG
    origin = ""
    if isinstance(known, ConfigError):
        origin = not_given(known, sys.argv[1:], Path(conf_dir()))
    print(f"error: {plain(_one_line(known))}{origin}", file=sys.stderr)
    return code


def _known(error: BaseException | None) -> BaseException | None:
    from hydra.errors import HydraException, OverrideParseException

    first = None
    while error is not None:
        if isinstance(error, (LabError, OverrideParseException)):
            return error
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            first = first or error
        if isinstance(error, ValueError) and str(error).startswith("Only one of --run"):
            first = ConfigError(f"{error}: for --cfg and --info, leave out -m (--multirun)")
        if isinstance(error, ValueError) and str(error).startswith("Config group override must"):
            first = ConfigError(f"{error}: set the group to one of its choices (see --help)")
        first = logging_error(error) or first
        error = error.__cause__ or error.__context__
    return first


def _one_line(error: BaseException) -> str:
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("full_key:", "object_type=", "reference_type=", "See https", "Check that the",
             "Config search path", "provider=")  # fmt: skip
    said = " ".join(line for line in lines if not line.startswith(noise))
    override = str(getattr(error, "override", None) or "")
    if override not in said:
        said = f"{override}: {said}"
    if "LexerNoViableAlt" in said:
        said += " (a value with other characters needs quotes: 'target=\"é\"')"
    if override.endswith(",") and "<EOF>" in said:
        said = f"{override}: write several values without spaces between them: target=cat,dog"
    return said or type(error).__name__


def register() -> None:
    """Register this package's resolvers, sweeper and configuration loader with Hydra."""
    config_loader.install()
    # Launcher files are validated against the plugins' own schemas on purpose.
    warnings.filterwarnings("ignore", "(?s).*is validated against ConfigStore schema")
    OmegaConf.register_new_resolver("cell_id", cell_id, replace=True)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("cells_at_once", cells_at_once, replace=True)
    OmegaConf.register_new_resolver("protocol_versions", protocol_versions, replace=True)
    OmegaConf.register_new_resolver("threat_models", threat_models, replace=True)
    OmegaConf.register_new_resolver("by_source", by_source, replace=True)
    import backdoor_lab.sweep.sweeper  # noqa: F401


def _preflight() -> Any:
    from backdoor_lab.sweep.preflight import preflight

    return preflight()


register()
