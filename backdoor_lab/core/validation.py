"""Checks values.

All error messages have the same form, for example "`ratio` must satisfy 0 <= ratio <= 1, got nan".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, unknown

LARGEST = 2**31
"""Upper bound of integers that have no other bound; all libraries used here support it."""
LONGEST = 1e9
"""Longest duration in seconds that a record may state for a stage or a cell (about 30 years)."""
NAME = re.compile(r"[a-z0-9_.-]{1,64}\Z")
_FILTERS = {
    "classes": "filter_scope", "budget": "removal_budget", "budget_cap": "max_removed",
    "centred": "center",
}  # fmt: skip
RENAMED: dict[str, dict[str, str]] = {
    "": {"labels": "label_mode", "covers": "cover_rate"},
    "protocol": {
        **_FILTERS, "eligible": "poison_from", "inject": "placement", "stamp": "apply_trigger",
        "holdout": "clean_holdout",
    },
    "recipe": {"batch": "batch_size", "crop": "crop_padding"},
    "trigger": {
        "train_alpha": "strength_train", "alpha_train": "strength_train",
        "alpha": "strength_test", "alpha_test": "strength_test",
        "train_delta": "strength_train", "delta": "strength_test",
        "amplitude": "strength_train", "test_amplitude": "strength_test",
        "amplify": "strength_test", "magnitude": "strength", "opacity": "strength",
        "noise_seed": "pattern_seed", "scene_seed": "pattern_seed",
        "field_seed": "pattern_seed", "patch_seed": "pattern_seed",
        "residual": "eps", "sources": "max_sources", "patch": "patch_size",
        "batch": "batch_size",
    },
    "trigger.patches": {"at": "position", "train": "strength_train", "test": "strength_test"},
    "defense": {
        **_FILTERS, "dims": "n_components", "neighbours": "n_neighbors", "trees": "n_estimators",
        "size_below": "size_threshold", "silhouette_above": "silhouette_threshold",
        "isolate": "isolation_ratio", "clean": "clean_ratio", "poison": "poison_ratio",
        "drop": "max_accuracy_drop", "patched": "patched_ratio", "overlays": "n_overlays",
        "overlay": "overlay_weight", "false_alarms": "false_positive_rate",
    },
}  # fmt: skip
"""Maps each section of the configuration to its renamed keys: name in version 0.1 -> name since
version 0.2."""

RENAMED_VALUES: dict[str, dict[str, str]] = {
    "protocol.apply_trigger": {"before": "before_augmentation", "after": "after_augmentation"},
    "defense": {"spectral_uncentred": "spectral_uncentered"},
}
"""Maps each key of the configuration to its renamed values: value in version 0.1 -> value since
version 0.2."""

RENAMED_CLASSES: dict[str, str] = {
    "attacks.frequency.Frequency": "FTrojan",
    "attacks.reflection.Reflection": "Refool",
    "attacks.sinusoid.Sinusoid": "SIG",
    "attacks.steganographic.Steganographic": "ISSBA",
    "attacks.tact.Tact": "TaCT",
    "attacks.warp.Warp": "WaNet",
    "defenses.abl.Abl": "ABL",
    "defenses.abl_unlearning.AblUnlearning": "ABLUnlearning",
    "defenses.anp.Anp": "ANP",
    "defenses.asset.Asset": "ASSET",
    "defenses.confusion.Confusion": "ConfusionTraining",
    "defenses.d_br.DBr": "DBR",
    "defenses.elliptic_envelope.Envelope": "EllipticEnvelope",
    "defenses.isolation_forest.Forest": "IsolationForest",
    "defenses.knn.Knn": "KNN",
    "defenses.local_outlier_factor.LocalOutlier": "LocalOutlierFactor",
    "defenses.none.Keep": "NoDefense",
    "defenses.one_class_svm.Svm": "OneClassSVM",
    "defenses.scan.Scan": "SCAn",
    "defenses.spectral.Spectral": "SpectralSignatures",
    "defenses.spectre.Spectre": "SPECTRE",
    "defenses.strip.Strip": "STRIP",
}
"""Maps each renamed class, as its path inside the package in version 0.1, to its name since version
0.2."""

RENAMED_METHODS: dict[str, str] = {
    "stamp": "apply_test",
    "look": "score_class",
    "rate": "score_images",
}
"""Maps the renamed methods that a trigger or a defense must implement: name in version 0.1 -> name
since version 0.2."""


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that fits a float. Booleans are not numbers."""
    if type(value) is float:
        return math.isfinite(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def non_negative(value: Any, *, high: float = math.inf) -> float | None:
    """Returns `value` as a float if `value` is a finite number with ``0 <= value <= high``,
    otherwise None. Used for values from untrusted files."""
    return float(value) if is_number(value) and 0 <= value <= high else None


def number(name: str, value: Any, *, low: float = -math.inf, below: float = math.inf) -> float:
    """Returns `value` as a float with ``low <= value < below``. Raises ConfigError for anything
    else, including text, bool and NaN."""
    if not is_number(value) or not low <= value < below:
        must = _span(name, low, below)
        raise ConfigError(f"`{name}` must {must}, got {value!r}{percent_hint(value)}")
    return float(value)


def share(name: str, value: Any) -> float:
    """Returns `value` as a float with ``0 <= value <= 1``. Raises ConfigError for anything else,
    including text, bool and NaN."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ConfigError(
            f"`{name}` must satisfy 0 <= {name} <= 1, got {value!r}{percent_hint(value)}"
        )
    return float(value)


def percent_hint(value: Any) -> str:
    """Returns a hint to append to an error message: how to write `value` as a fraction if it is a
    percentage given as text. Otherwise returns an empty string.

    >>> percent_hint("2.5%")
    ': for 2.5 %, write 0.025'
    """
    found = (
        re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,9})?)\s*%\s*", value) if type(value) is str else None
    )
    return f": for {found[1]} %, write {float(found[1]) / 100:.12g}" if found else ""


def whole(name: str, value: Any, *, low: float = 0, below: float = math.inf) -> int:
    """Returns `value` as an int with ``low <= value < below``; accepts 3.0. Raises ConfigError for
    other values, such as 3.5."""
    number(name, value, low=low, below=below)
    # Compare without conversion to float, which cannot represent every int above 2**53.
    if value != int(value):
        raise ConfigError(f"`{name}` must be a whole number, got {value!r}")
    if below == math.inf and value >= LARGEST:
        raise ConfigError(f"`{name}` must be smaller than 2**31, got {value!r}")
    return int(value)


def choice(name: str, value: Any, known: Iterable[Any]) -> Any:
    """Returns `value` if it is one of `known`; otherwise raises ConfigError."""
    known = list(known)
    if value not in known:
        if (current := new_value(name, value)) in known:
            raise ConfigError(f"`{name}`: {value!r} was renamed to {current!r}")
        raise unknown(f"`{name}`", value, known)
    return value


def text(name: str, value: Any) -> str:
    """Returns `value` if it is a non-empty string; otherwise raises ConfigError."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"`{name}` must be a non-empty string, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """Returns `value` if it is a bool; otherwise raises ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"`{name}` must be true or false, got {value!r}")
    return value


def keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ConfigError for a key that is not in `known`."""
    given, known = list(given), list(known)
    for key in given:
        if key not in known:
            section = where.partition("=")[0]
            if new_name(section, key) in known:
                refuse_renamed(section, [key])
            error = unknown(f"key in `{where}`:" if where else "key", key, known)
            prefix = f"{section}." if section else ""
            error.unknown_keys = [f"{prefix}{each}" for each in given if each not in known]
            raise error


def new_name(section: str, key: str) -> str | None:
    """Returns the new name of `key` in a configuration section if version 0.2 renamed it; otherwise
    None.

    >>> new_name("protocol", "inject")
    'placement'
    """
    whole = re.sub(r"\[\d+\]", "", section)
    return (RENAMED.get(whole) or RENAMED.get(whole.partition(".")[0], {})).get(key)


def new_value(key: str, value: object) -> str | None:
    """Returns the new name of `value`, one of the values of the configuration key `key`. None if
    version 0.2 did not rename the value.

    >>> new_value("protocol.apply_trigger", "before")
    'before_augmentation'
    """
    return RENAMED_VALUES.get(key, {}).get(value) if isinstance(value, str) else None


def new_class(target: str) -> str | None:
    """Returns the new ``_target_`` if version 0.2 renamed the class `target`; otherwise None.

    >>> new_class("backdoor_lab.defenses.none.Keep")
    'backdoor_lab.defenses.none.NoDefense'
    """
    found = RENAMED_CLASSES.get(target.removeprefix("backdoor_lab."))
    return None if found is None else f"{target.rpartition('.')[0]}.{found}"


def refuse_renamed(section: str, given: Iterable[str]) -> None:
    """Raises ConfigError if one of the keys in `given` was renamed in the section `section`."""
    for key in given:
        if current := new_name(section, key):
            prefix = f"{section}." if section else ""
            raise ConfigError(f"`{prefix}{key}` was renamed to `{prefix}{current}`")


def new_column(name: str) -> str | None:
    """Returns the new name of a table column if its configuration key was renamed in version 0.2;
    otherwise None. The columns of top-level keys start with ``protocol.``.

    >>> new_column("config.defense.budget")
    'config.defense.removal_budget'
    >>> new_column("protocol.labels")
    'protocol.label_mode'
    """
    prefix = "config." if name.startswith("config.") else ""
    section, _, key = name.removeprefix(prefix).rpartition(".")
    current = new_name(section, key)
    if section in ("", "protocol"):
        section, current = "protocol", current or new_name("", key)
    return None if current is None else f"{prefix}{section}.{current}"


def safe_name(name: str, value: Any) -> str:
    """Returns `value` if it is safe as a file name: it matches [a-z0-9_.-]{1,64} and is not '.' or
    '..'. Otherwise raises ConfigError."""
    if not isinstance(value, str) or not NAME.match(value) or set(value) == {"."}:
        raise ConfigError(f"`{name}` must match [a-z0-9_.-]{{1,64}}, got {value!r}")
    return value


def inside(root: Path, path: Path) -> Path:
    """Returns `path` with links resolved. Raises ConfigError if the result is outside `root`."""
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise ConfigError(f"path {path} is outside the folder {root}")
    return resolved


def _span(name: str, low: float, below: float) -> str:
    left = "" if low == -math.inf else f"{_shown(low)} <= "
    right = "" if below == math.inf else f" < {_shown(below)}"
    return f"satisfy {left}{name}{right}" if left or right else "be a finite number"


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
