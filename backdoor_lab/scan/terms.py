"""Exit codes, file names and fixed sentences of the report of a scan."""

from __future__ import annotations

EXIT_ALARM, EXIT_NOT_CALIBRATED = 3, 4
MEANING = (
    "An alarm means that the class has a coherent subgroup of unusual images: a backdoor, a"
    " mislabeled group, duplicates or a subclass. Look at the suspects."
)
TRUSTED_MEANING = (
    "An alarm means that the class differs from the trusted images: a backdoor, mislabeled images,"
    " or images of another source or processing. The suspects are ranked by the statistics of the"
    " class, not by the test that raised the alarm. Look at them."
)
FILES = {
    "page": "index.html", "json": "scan.json", "classes": "classes.csv",
    "suspects": "suspects.csv", "power": "power.csv", "keep": "keep.csv",
}  # fmt: skip


def limits(measured: bool) -> str:
    """Returns what a scan cannot see. `measured`: whether canaries were planted."""
    power = (
        "Its power was measured with the planted triggers only; other triggers may be missed more"
        " often."
        if measured
        else "How much poison would have been found in this set was not measured."
    )
    return (
        "A scan without an alarm does not show that the set is clean. It looks for a pixel color or"
        " a frequency that at least eight unusual images of a class share. It cannot see triggers"
        " that differ from image to image or change their place, clean-label poison that its"
        " networks did not learn, poison in more than half of the classes (all-to-all among it), or"
        f" poison in images that were not examined. {power}"
    )
