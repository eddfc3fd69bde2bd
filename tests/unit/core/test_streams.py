"""Labels of random streams: fixed strings, in one module, used only by name."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
from pathlib import Path

import pytest

import backdoor_lab
from backdoor_lab.core import rng, streams
from backdoor_lab.defenses.detector import Detector
from backdoor_lab.defenses.elliptic_envelope import EllipticEnvelope
from backdoor_lab.defenses.isolation_forest import IsolationForest
from backdoor_lab.defenses.knn import KNN
from backdoor_lab.defenses.local_outlier_factor import LocalOutlierFactor
from backdoor_lab.defenses.one_class_svm import OneClassSVM
from backdoor_lab.pipeline.stages.training import TRAININGS

PACKAGE = Path(backdoor_lab.__file__).parent
DRAWING = {"derive", "generator", "torch_generator", "numpy_generator"}
PINNED = {
    "CLEAN_IMAGES": "clean images",
    "POISON": "poison", "COVERS": "covers", "HOLDOUT": "holdout", "TRAIN": "train",
    "RETRAIN": "retrain", "SURROGATE": "surrogate", "AUTOENCODER": "autoencoder",
    "WEIGHTS": "weights", "ORDER": "order", "AUGMENTATION": "augmentation", "MIXING": "mixing",
    "FLIPS": "flips", "WHITENING": "whitening", "TRANSFORMED_TEST": "transformed test",
    "DROPOUT": "dropout", "TRIGGER": "trigger", "BLENDED": "blended",
    "BLEND_PATTERN": "blend pattern", "LOW_FREQUENCY": "low_frequency", "NARCISSUS": "narcissus",
    "PATCHES": "patches", "PIECES": "pieces", "REFLECTION": "reflection",
    "SLEEPER_AGENT": "sleeper_agent", "STEGANOGRAPHIC": "steganographic", "WARP": "warp",
    "FILTER": "filter", "TIES": "ties", "MODIFIED_Z": "modified z",
    "RANDOM_REMOVAL": "random removal", "CLUSTERS": "clusters", "DETECTOR": "Detector",
    "ELLIPTIC_ENVELOPE": "Envelope", "ISOLATION_FOREST": "Forest", "KNN": "Knn",
    "LOCAL_OUTLIER_FACTOR": "LocalOutlier", "ONE_CLASS_SVM": "Svm", "DEFENSE": "defense",
    "CONFUSION": "confusion", "GROUPS": "groups", "REFERENCE_IMAGES": "reference images",
    "DISTINGUISHING": "distinguishing", "ISOLATION": "isolation", "OFFSET": "offset",
    "OVERLAYS": "overlays", "PATCHED": "patched",
    "PRUNING": "pruning", "PRUNING_AUGMENTATION": "pruning augmentation", "REVERSED": "reversed",
    "TRAINING_ON": "training on", "TRANSFORMATION": "transformation", "TUNING": "tuning",
    "UNLEARNING": "unlearning", "UNLEARNING_AUGMENTATION": "unlearning augmentation",
    "SCAN_NETWORK": "scan network", "SCAN_SAMPLE": "scan sample", "SCAN_FILTER": "scan filter",
    "SCAN_FOLDS": "scan folds", "SCAN_FOLD": "scan fold",
    "SCAN_PERMUTATIONS": "scan permutations", "SCAN_REFERENCE": "scan reference",
    "SCAN_CANARY": "scan canary", "SCAN_TRIAL": "scan trial",
}  # fmt: skip


def test_the_labels_that_seed_random_streams_have_not_changed() -> None:
    """The text of a label seeds a random stream, so changing it would change results."""
    found = {name: text for name, text in vars(streams).items() if name.isupper()}
    assert found == PINNED
    assert len(set(found.values())) == len(found)
    assert streams.unlearning_pass(3, -1.0) == "unlearning 3 -1.0"


def test_the_seed_of_a_random_stream_is_a_hash_of_its_labels() -> None:
    expected = int.from_bytes(hashlib.sha256(b"7/order/2").digest()[:8], "big") >> 1
    assert rng.derive(7, streams.ORDER, 2) == expected


def test_renaming_stages_and_classes_does_not_change_their_random_streams() -> None:
    """A label is a fixed string, even if it equals the name of a stage or class."""
    assert TRAININGS == {"train": "train", "retrain": "retrain", "surrogate": "surrogate"}
    kinds = (EllipticEnvelope, IsolationForest, KNN, LocalOutlierFactor, OneClassSVM)
    assert [kind.stream for kind in kinds] == ["Envelope", "Forest", "Knn", "LocalOutlier", "Svm"]
    detectors = [
        module.read_text() for module in PACKAGE.glob("defenses/*.py")
        if re.search(r"^class \w+\(\w*Detector\)", module.read_text(), re.MULTILINE)
        and module.stem != "detector"
    ]  # fmt: skip
    assert len(detectors) == len(kinds)
    assert all("    stream = streams." in text for text in detectors)
    assert "__name__" not in inspect.getsource(Detector)


def texts_in_calls(code: str) -> list[str]:
    """String constants among the arguments of a call that draws random numbers."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            name = (
                node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            )
            given = [*node.args, *(each.value for each in node.keywords)]
            texts = [
                part
                for each in given
                for part in ast.walk(each)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
                if not isinstance(each, ast.Call)
            ]
            if name in DRAWING:
                found += [str(each.value) for each in texts]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_labels_of_random_streams_are_constants_of_the_streams_module(path: Path) -> None:
    """No call has a string literal, an f-string or a class name as its label. New labels belong in
    streams.py."""
    assert texts_in_calls(path.read_text()) == []
    for line in path.read_text().splitlines():
        if any(f"{name}(" in line for name in DRAWING):
            assert "__name__" not in line
            assert 'f"' not in line


def test_the_check_finds_random_stream_labels_that_are_string_literals() -> None:
    for call in ("derive(s, 'a')", "work.generator('a', 1)", "torch_generator(0, *('a', 2))"):
        assert texts_in_calls(call) == ["a"]
    assert texts_in_calls("derive(s, streams.ORDER, f(config['seed']))") == []
