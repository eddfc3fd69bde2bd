"""Exit codes, file names and fixed sentences of the report of a scan."""

from __future__ import annotations

EXIT_ALARM, EXIT_NOT_CALIBRATED = 3, 4
MEANING = (
    "An alarm means that the class has a coherent subgroup of unusual images: a backdoor, a"
    " mislabeled group, duplicates or a subclass. Look at the suspects."
)
LIMITS = (
    "A scan without an alarm does not show that the set is clean. It cannot see a trigger that its"
    " networks did not learn, poison in every class (all-to-all), or poison in images that were not"
    " examined. How much poison would have been found in this set was not measured."
)
FILES = {
    "page": "index.html", "json": "scan.json", "classes": "classes.csv",
    "suspects": "suspects.csv", "keep": "keep.csv",
}  # fmt: skip
