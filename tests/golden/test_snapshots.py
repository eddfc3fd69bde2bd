"""Results equal the recorded ones: see snapshots.py."""

from __future__ import annotations

import copy

import pytest

from tests.golden import snapshots

KNOWN = snapshots.read()
SAME_MACHINE = KNOWN["environment"] == snapshots.environment()
CASES = snapshots.cases()


def test_every_case_has_a_snapshot_and_every_snapshot_a_case() -> None:
    assert set(KNOWN["cases"]) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_result_of_every_case_equals_its_snapshot(name: str) -> None:
    now = snapshots.computed(CASES[name])
    assert not snapshots.differences(KNOWN["cases"][name], now, same_machine=SAME_MACHINE)


@pytest.mark.parametrize("same_machine", [True, False])
def test_a_changed_result_is_detected(same_machine: bool) -> None:
    """The changes are in an integer array (compared by hash), a floating-point value (beyond the
    tolerance), a metric and a count."""
    of = KNOWN["cases"]
    changes = [
        ("trigger/pixel", ("rows", "sha256"), "0" * 64),
        ("defense/spectral", ("keep", "sha256"), "0" * 64),
        ("demo/pixel bird 0.05", ("n_removed",), -1),
    ]
    if same_machine:
        changes.append(("demo/pixel bird 0.05", ("measured", "nat1"), 0.0))
    else:
        changes.append(("training/plain", ("weights", "mean"), 1.0))
    for name, path, value in changes:
        changed = copy.deepcopy(of[name])
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert snapshots.differences(of[name], changed, same_machine=same_machine), (name, path)
