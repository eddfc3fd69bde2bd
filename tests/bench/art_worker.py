"""Computes ART's spectral scores. The spectral benchmark runs it in an environment that has ART.

    python art_worker.py FEATURES.npy

Prints READY. Then, for every line of input, scores all classes and prints the seconds. The file
has the features, of shape (classes, n, d).
"""

import sys
import time
import warnings

import numpy as np

warnings.filterwarnings("ignore")

from art.defences.detector.poison.spectral_signature_defense import (  # type: ignore[import-not-found] # noqa: E402
    SpectralSignatureDefense,
)


def main(path: str) -> None:
    """Answer each line of input, until the input ends."""
    features = np.load(path, allow_pickle=False)
    print("READY", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        for each in features:
            SpectralSignatureDefense.spectral_signature_scores(each)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
