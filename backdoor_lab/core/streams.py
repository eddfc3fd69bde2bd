"""The labels of all random streams.

A generator's seed is a hash of the cell's seed and of labels (see rng.py): changing a label changes
the random numbers and every result that depends on them. Never change a label, not even when
classes, stages or options are renamed; only the names of the constants may change. A new stream
needs a new label.
"""

from __future__ import annotations

from typing import NewType

Stream = NewType("Stream", str)

# Streams of the cell itself.
POISON = Stream("poison")
COVERS = Stream("covers")
HOLDOUT = Stream("holdout")
TRANSFORMED_TEST = Stream("transformed test")

# Training: initial weights and the order of images.
TRAIN = Stream("train")
RETRAIN = Stream("retrain")
SURROGATE = Stream("surrogate")
AUTOENCODER = Stream("autoencoder")
WEIGHTS = Stream("weights")
ORDER = Stream("order")
AUGMENTATION = Stream("augmentation")
FLIPS = Stream("flips")
WHITENING = Stream("whitening")
MIXING = Stream("mixing")
DROPOUT = Stream("dropout")

# Triggers.
TRIGGER = Stream("trigger")
BLENDED = Stream("blended")
BLEND_PATTERN = Stream("blend pattern")
LOW_FREQUENCY = Stream("low_frequency")
NARCISSUS = Stream("narcissus")
PATCHES = Stream("patches")
PIECES = Stream("pieces")
REFLECTION = Stream("reflection")
SLEEPER_AGENT = Stream("sleeper_agent")
STEGANOGRAPHIC = Stream("steganographic")
WARP = Stream("warp")

# Filters and controls.
FILTER = Stream("filter")
TIES = Stream("ties")
MODIFIED_Z = Stream("modified z")
RANDOM_REMOVAL = Stream("random removal")
CLUSTERS = Stream("clusters")
GROUPS = Stream("groups")
DETECTOR = Stream("Detector")
ELLIPTIC_ENVELOPE = Stream("Envelope")
ISOLATION_FOREST = Stream("Forest")
KNN = Stream("Knn")
LOCAL_OUTLIER_FACTOR = Stream("LocalOutlier")
ONE_CLASS_SVM = Stream("Svm")

# Defenses that train networks.
DEFENSE = Stream("defense")
CLEAN_IMAGES = Stream("clean images")
CONFUSION = Stream("confusion")
DISTINGUISHING = Stream("distinguishing")
ISOLATION = Stream("isolation")
OFFSET = Stream("offset")
OVERLAYS = Stream("overlays")
PATCHED = Stream("patched")
PRUNING = Stream("pruning")
PRUNING_AUGMENTATION = Stream("pruning augmentation")
REFERENCE_IMAGES = Stream("reference images")
REVERSED = Stream("reversed")
TRAINING_ON = Stream("training on")
TRANSFORMATION = Stream("transformation")
TUNING = Stream("tuning")
UNLEARNING = Stream("unlearning")
UNLEARNING_AUGMENTATION = Stream("unlearning augmentation")

# Scans.
SCAN_NETWORK = Stream("scan network")
SCAN_SAMPLE = Stream("scan sample")
SCAN_FILTER = Stream("scan filter")
SCAN_FOLDS = Stream("scan folds")
SCAN_FOLD = Stream("scan fold")
SCAN_PERMUTATIONS = Stream("scan permutations")
SCAN_REFERENCE = Stream("scan reference")
SCAN_CANARY = Stream("scan canary")
SCAN_TRIAL = Stream("scan trial")


def unlearning_pass(number: int, sign: float) -> Stream:
    """Returns the stream label of one pass of alternating unlearning, such as ``unlearning 0
    -1.0``."""
    return Stream(f"unlearning {number} {sign}")
