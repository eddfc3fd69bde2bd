"""python -m backdoor_lab.export_weights CELL_FOLDER --out FILE.safetensors: a cell's network.

Writes a float32 state_dict with torchvision's names. The file's metadata explain how to load it.
FILE.card.json next to it states Nat and ASR of the network, and the hashes of what they were
measured on; `python -m backdoor_lab.verify` checks it. --which 1 selects the network before the
defense, 2 (the default) the network after it.
"""

from __future__ import annotations

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import backdoor_lab
from backdoor_lab.core import validation
from backdoor_lab.core.artifacts import WEIGHTS, map_split
from backdoor_lab.core.atomic_io import write_atomic
from backdoor_lab.core.errors import EXIT_DONE, ConfigError, DataError, LabError, StoreError
from backdoor_lab.core.options import Parser, add_plugin_words, parser_of, path_of
from backdoor_lab.core.small_files import UnreadableFileError, read_json
from backdoor_lab.core.terminal import plain, run_command
from backdoor_lab.exchange.network_card import Measured, network_card
from backdoor_lab.exchange.network_file import card_of
from backdoor_lab.plugin_configs import trust_words
from backdoor_lab.results.artifact_reader import ArtifactReader
from backdoor_lab.results.cell_folder import RECORD, completed_record, store_of
from backdoor_lab.results.seal import write_sealed
from backdoor_lab.results.stages import attacked_stage
from backdoor_lab.results.store_location import STORE_HELP
from backdoor_lab.results.values import ratio_words

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 1 if the weights are not in the store or do not match
    the record, 2 for invalid arguments."""
    return run_command(_parser(), _export, arguments)


def _export(asked: Namespace) -> int:
    trust_words(asked.plugins)
    said = export_weights(asked.cell, asked.out, which=asked.which, store=asked.store)
    print(plain(f"{asked.out}: {said['network']}"))
    return EXIT_DONE


def export_weights(
    cell: Path, out: Path, *, which: int = 2, store: Path | None = None
) -> dict[str, str]:
    """Write the network of a cell to the file `out`, and its card next to it (`card_of`). Returns
    the metadata stored in the file.

    The weights, and the images that the normalization is computed from, must match the hashes in
    the record. Raises ConfigError for an invalid path, DataError for an unusable record, StoreError
    if an entry of the store is missing or does not match the record.
    """
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise ConfigError(f"`--out` must be a .safetensors file in an existing folder, got {out}")
    record = _record(cell)
    root = store_of(cell, store)
    from safetensors.torch import save

    weights = _weights(root, record, _stage(record, which), f"weights{which}")
    metadata = {**_normalisation(root, record, which), **_facts(record, which)}
    card = _card(root, record, which, metadata)
    write_atomic(out, save({k: v.contiguous() for k, v in weights.items()}, metadata))
    write_sealed(card_of(out), card)
    return metadata


def _card(
    root: Path, record: dict[str, Any], which: int, metadata: dict[str, str]
) -> dict[str, Any]:
    values = {k: json.loads(metadata[k]) for k in ("classes", "image", "mean_255", "std_255")}
    measured = _measured(root, record, values["classes"])
    if measured.triggered is None:
        log.warning(
            "the card has no hash of the triggered test images: the trigger, or the images that it"
            " is applied to, cannot be read from the store"
        )
    return network_card(
        record, which, measured, version=backdoor_lab.__version__, classes=values["classes"],
        image=values["image"],
        normalization={k: values[k] for k in ("mean_255", "std_255")},
    )  # fmt: skip


def _measured(root: Path, record: dict[str, Any], classes: list[str]) -> Measured:
    """The hashes of the test images that the cell's networks were measured on; None for those that
    are not in the store."""
    from backdoor_lab.data.base import Split
    from backdoor_lab.data.cache import content_digest
    from backdoor_lab.pipeline.test_sets import test_sets_of

    reader = ArtifactReader(root, checked=True)
    test, prepared = reader.test_set(record), reader.prepared(record)
    if test is None or content_digest(Split(*test), tuple(classes)) != record["hashes"].get("test"):
        return Measured(None, None)
    try:
        attack = reader.imported_attack(record)
        sets = test_sets_of(record, Split(*test), classes, prepared or {}, attack)
        digests = [content_digest(each, tuple(classes)) for each in (sets.clean, sets.triggered)]
    except (LabError, KeyError, TypeError, ValueError):
        return Measured(None, None)
    return Measured(digests[0], None if prepared is None else digests[1])


def _stage(record: dict[str, Any], which: int) -> str:
    after = "repair" if "repair" in record["run"]["stages"] else "retrain"
    return attacked_stage(record) if which == 1 else after


def _record(cell: Path) -> dict[str, Any]:
    """Read the record of a completed cell. Raises the errors of `completed_record`."""
    record = completed_record(cell, "weights")
    if not isinstance(record["config"].get("model"), dict):
        raise DataError(f"{cell / RECORD} is damaged: it is not a valid record")
    return record


def _weights(root: Path, record: dict[str, Any], stage: str, name: str) -> dict[str, Any]:
    """The tensors stored by a training stage. They must match the hash in the record."""
    from safetensors import SafetensorError

    from backdoor_lab.core.tensor_io import tensors_digest

    try:
        entry = validation.safe_name(f"run.stages.{stage}.id", record["run"]["stages"][stage]["id"])
    except (KeyError, TypeError) as error:
        other = "; use --which 1 for the attacked network" if name != "weights1" else ""
        raise DataError(f"the record has no output of stage {stage}{other}") from error
    path = WEIGHTS.path(root / stage / entry)
    try:
        found = WEIGHTS.read(path.parent)
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is missing: remove the cell's record.json, then repeat the cell's command to"
            f" recompute the file ({record['run'].get('command')})"
        ) from error
    except (OSError, UnreadableFileError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read ({error})") from error
    if tensors_digest(found) != record["hashes"].get(name):
        raise StoreError(
            f"the weights in {path} do not match the hash `{name}` in the record: remove the file's"
            " folder and the cell's record.json, then repeat the cell's command"
        )
    return found


def _normalisation(root: Path, record: dict[str, Any], which: int) -> dict[str, str]:
    """Class names, image shape, and the mean and standard deviation that the network's images are
    normalized by, as text: those of the clean training images, or those of the given network that
    was attacked or repaired."""
    import torch

    from backdoor_lab.training.evaluate import channel_stats

    images, classes = _training_images(root, record["hashes"].get("data"))
    mean, std = (values.double() for values in channel_stats(torch.from_numpy(images)))
    attack = ArtifactReader(root).imported_attack(record)
    if attack is not None and attack.normalization is not None:
        mean, std = (torch.tensor(values).double() for values in attack.normalization)
    given = record["config"].get("attacked")
    if isinstance(given, dict) and _stage(record, which) != "retrain":
        mean, std = (torch.tensor(given[key]).double() for key in ("mean_255", "std_255"))
    values = {"mean_255": mean, "std_255": std, "mean": mean / 255, "std": std / 255}
    shape = {"classes": classes, "image": list(images.shape[1:])}
    return {k: json.dumps(v.tolist()) for k, v in values.items()} | {
        k: json.dumps(v) for k, v in shape.items()
    }


def _training_images(root: Path, digest: Any) -> tuple[Any, list[str]]:
    """The clean training images with this digest, uint8 (n, C, H, W), and the names of the
    classes."""
    from backdoor_lab.data.base import Split
    from backdoor_lab.data.cache import content_digest

    for path in sorted(root.glob("data/*/manifest.json")):
        try:
            meta = read_json(path)["meta"]
            if meta["digests"]["train"] != digest:
                continue
            images, labels = map_split(path.parent, "train", mode="c")
            classes = [str(name) for name in meta["classes"]]
            sound = content_digest(Split(images, labels), tuple(classes)) == digest
        except (OSError, UnreadableFileError, ValueError, KeyError, TypeError):
            continue
        if sound:
            return images, classes
    raise StoreError(
        f"{root} does not contain the data set that the network was trained on, so its"
        " normalization is unknown: repeat the cell's command, which reads the data again"
    )


def _facts(record: dict[str, Any], which: int) -> dict[str, str]:
    """The metadata of the file: a description and values. All are text, as safetensors requires."""
    model, chosen = record["config"]["model"], record["choices"]
    ratio_of = (record.get("protocol") or {}).get("ratio_of")
    ratio = ratio_words(chosen["ratio"], ratio_of)
    said = {"train": "before", "attacked": "before", "repair": "repaired by",
            "retrain": "retrained after"}  # fmt: skip
    when = said[_stage(record, which)]
    given = attacked_stage(record) == "attacked" and _stage(record, which) != "retrain"
    made = "given, not trained," if given else "trained"
    words = (
        f"{model.get('name')} {made} on {chosen.get('dataset')} poisoned with {chosen['trigger']}"
        f" for {chosen['target']} (ratio {ratio}), {when} the defense {chosen['defense']}"
    )
    return {
        "format": "pt",
        "network": words,
        "model": json.dumps(model),
        "stem": str(model.get("stem")),
        "width": str(model.get("width")),
        "weights": str(record["hashes"][f"weights{which}"]),
        "cell": str(record.get("id")),
        "measured_on": str(record["run"].get("device")),
        "choices": json.dumps(chosen),
        **{k: json.dumps(record.get(f"{k}{which}")) for k in ("nat", "asr")},
    }


def _parser() -> Parser:
    parser = parser_of("export_weights", __doc__)
    parser.add_argument("cell", metavar="CELL_FOLDER", type=path_of)
    parser.add_argument("--out", type=path_of, required=True, metavar="FILE.safetensors")
    parser.add_argument("--which", type=int, choices=(1, 2), default=2)
    parser.add_argument(
        "--store", type=path_of, metavar="FOLDER",
        help=STORE_HELP,
    )  # fmt: skip
    add_plugin_words(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
