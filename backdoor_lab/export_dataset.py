"""python -m backdoor_lab.export_dataset CELL_FOLDER --as LAYOUT --out DIR: a cell's poisoned set.

Writes the poisoned training set in the order of training, the clean test images and the triggered
test images, without loss, with card.json and README.md. LAYOUT is folder (PNG files and
metadata.csv), npz, parquet (needs pyarrow) or toolbox (the files of backdoor-toolbox). DIR must be
new or empty. `dataset=poisoned dataset.root=DIR` reads the set.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab.core.errors import EXIT_DONE, ConfigError, StoreError, many
from backdoor_lab.core.options import Parser, add_plugin_words, parser_of, path_of
from backdoor_lab.core.terminal import plain, run_command
from backdoor_lab.exchange.layouts import LAYOUTS
from backdoor_lab.pipeline.imported import TRIGGER
from backdoor_lab.plugin_configs import trust_words
from backdoor_lab.results.artifact_reader import ArtifactReader
from backdoor_lab.results.cell_folder import completed_record, store_of
from backdoor_lab.results.store_location import STORE_HELP

if TYPE_CHECKING:
    from backdoor_lab.data.base import Arrays, Split
    from backdoor_lab.exchange.card import Described
    from backdoor_lab.results.stored_results import Training

_LATE = "after_augmentation"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 1 if the data is not in the store or does not match the
    record, 2 for invalid arguments and cells that cannot be exported."""
    return run_command(_parser(), _export, arguments)


def _export(asked: Namespace) -> int:
    trust_words(asked.plugins)
    card = export_dataset(asked.cell, asked.out, layout=asked.layout, store=asked.store)
    counts = card["counts"]
    said = [many(counts["train"], "training image"), f"{counts['poisoned']} poisoned"]
    said += [many(counts["covers"], "cover"), many(counts["test"], "test image")]
    said.append(f"{counts['triggered'] + counts['triggered_elsewhere']} triggered")
    print(plain(f"{asked.out}: {', '.join(said)}"))
    return EXIT_DONE


def export_dataset(
    cell: Path, out: Path, *, layout: str, store: Path | None = None
) -> dict[str, Any]:
    """Write the poisoned data set of a cell to the folder `out`, which must be new or empty, in one
    of the layouts `LAYOUTS`. Returns the card.

    The data must match the hashes in the record. Raises ConfigError for an invalid path and for a
    cell whose training set cannot be exported, DataError for an unusable record, StoreError if an
    entry of the store is missing or does not match the record, StoreFullError if the disk is full.
    """
    if not out.parent.is_dir() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ConfigError(f"`--out` must be a new or empty folder in an existing one, got {out}")
    record = completed_record(cell, "training set")
    _check_kind(cell, record)
    root = store_of(cell, store)
    from backdoor_lab.data.hub.parquet import pyarrow
    from backdoor_lab.exchange.write import write_set

    if layout == "parquet":
        pyarrow()
    training, arrays = _read(root, record)
    return write_set(out, arrays, layout, _described(record, training))


def _check_kind(cell: Path, record: dict[str, Any]) -> None:
    """Raises ConfigError if the cell's training set cannot be exported."""
    if (record.get("protocol") or {}).get("apply_trigger") == _LATE:
        raise ConfigError(
            f"{cell}: with protocol.apply_trigger={_LATE}, the training images get the trigger in"
            " each batch, after augmentation, so there is no set of poisoned images to export: run"
            " the cell with protocol.apply_trigger=before_augmentation"
        )
    if record["config"]["trigger"].get("_target_") == TRIGGER:
        raise ConfigError(
            f"{cell}: the data set of this cell was poisoned before it was read, and its training"
            " set is that data set: copy the folder dataset.root instead"
        )


def _read(root: Path, record: dict[str, Any]) -> tuple[Training, Arrays]:
    """Returns the training set of a cell, and all splits for export."""
    from backdoor_lab.data.base import Split
    from backdoor_lab.data.cache import content_digest
    from backdoor_lab.pipeline.test_sets import test_sets_of

    reader = ArtifactReader(root, checked=True)
    training, test = reader.training(record), reader.test_set(record)
    prepared = reader.prepared(record)
    if training is None or test is None or prepared is None:
        raise _unusable(record, "; ".join(reader.notes))
    if (
        _training_digest(training, record) != record["hashes"].get("training1")
        or content_digest(Split(*test), training.classes) != record["hashes"]["test"]
    ):
        raise _unusable(record, "the data in the store is not that of the record")
    sets = test_sets_of(record, Split(*test), training.classes, prepared, None)
    return training, _arrays(training, Split(*test), sets)


def _unusable(record: dict[str, Any], why: str) -> StoreError:
    return StoreError(
        f"{why}: remove the cell's record.json, then repeat the cell's command to compute the data"
        f" ({record['run'].get('command')})"
    )


def _training_digest(training: Training, record: dict[str, Any]) -> str:
    import torch

    from backdoor_lab.attacks.poison import content_digest
    from backdoor_lab.core.types import TrainingSet

    # The digest covers the clean images by their own digest, so only their number counts here.
    base = torch.empty(len(training.base), 0)
    rows, index, labels = map(torch.tensor, (training.rows, training.index, training.labels))
    found = TrainingSet(base, rows, index, labels, training.classes, "")
    return content_digest(found, record["hashes"]["data"])


def _arrays(training: Training, test: Split, sets: Any) -> Arrays:
    import numpy as np

    from backdoor_lab.core.types import ImportedAttack
    from backdoor_lab.data.base import Arrays, Split

    rows, made = np.arange(len(training.index)), training.is_poison | training.is_cover
    source = np.full(len(rows), -1)
    source[made] = training.original[training.index[made] - len(training.base)]
    both = (sets.triggered, sets.elsewhere)
    index = np.concatenate([sets.kept[sets.rows], sets.kept[sets.rows_elsewhere]])
    attack = ImportedAttack(
        training.is_poison, training.is_cover, source,
        np.concatenate([each.images for each in both]),
        np.concatenate([each.labels for each in both]), index,
        np.arange(len(index)) >= len(sets.rows),
    )  # fmt: skip
    train = Split(training.images(rows), training.labels)
    return Arrays(train, test, training.classes, attack)


def _described(record: dict[str, Any], training: Training) -> Described:
    import torch

    from backdoor_lab.exchange.card import Described
    from backdoor_lab.exchange.network_card import PROTOCOL
    from backdoor_lab.training.evaluate import channel_stats

    chosen, options, protocol = record["choices"], record["config"]["trigger"], record["protocol"]
    module = str(options.get("_target_")).split(".")[-2:][0]
    version = record["config"].get("code", {}).get("triggers", {}).get(module)
    trigger = {key: value for key, value in options.items() if not key.startswith("_")}
    trigger |= {"name": chosen["trigger"]} | ({} if version is None else {"version": version})
    stats = channel_stats(torch.from_numpy(training.base))
    return Described(
        dataset=chosen["dataset"], trigger=trigger, target=chosen["target"],
        source=chosen.get("source"), ratio=chosen["ratio"], seed=chosen["seed"],
        protocol={key: protocol[key] for key in PROTOCOL if key in protocol},
        normalization={
            key: values.double().tolist()
            for key, values in zip(("mean_255", "std_255"), stats, strict=True)
        },
        cell=record.get("id"), command=_command(record),
    )  # fmt: skip


def _command(record: dict[str, Any]) -> str | None:
    """The cell's command without overrides that name a path, which may have spaces: a set may go to
    other people. None if it is not a command of a shell."""
    command = record["run"].get("command")
    if not isinstance(command, str):
        return None
    try:
        # The added slash marks words with a backslash, which the shell removes.
        words = shlex.split(command.replace("\\", "/\\"))
    except ValueError:
        return None
    return shlex.join(word for word in words if "/" not in word)


def _parser() -> Parser:
    parser = parser_of("export_dataset", __doc__)
    parser.add_argument("cell", metavar="CELL_FOLDER", type=path_of)
    parser.add_argument("--as", dest="layout", choices=LAYOUTS, required=True)
    parser.add_argument("--out", type=path_of, required=True, metavar="DIR")
    parser.add_argument("--store", type=path_of, metavar="FOLDER", help=STORE_HELP)
    add_plugin_words(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
