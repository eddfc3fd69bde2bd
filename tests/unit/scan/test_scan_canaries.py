"""Canaries: where they are planted, how they are counted, and that a scan of copies resumes."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.scan import attacker, canaries, copies, run, statistics
from backdoor_lab.scan.canaries import (
    RATES,
    Canary,
    as_text,
    copies_for,
    kinds_of,
    plant,
    schedule,
    trigger_of,
)
from backdoor_lab.scan.images import ScanImages, examined, scan_images
from backdoor_lab.scan.networks import Layers
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.power import (
    Outcome,
    counted,
    poison_range,
    powers,
    smallest_found,
)
from backdoor_lab.scan.run import run_scan
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.train import TrainingJob, fit
from tests.helpers.cells import CPU
from tests.helpers.scanning import OPTIONS, arrays, found_of, pixels, reference

CANARIES = dataclasses.replace(OPTIONS, canaries="pattern", minutes=1.0)


def outcome(found: bool, images: int = 10, number: int = 5, rate: float = 0.05) -> Outcome:
    return Outcome(Canary(0, "pattern", rate, 1, images), found, 0.05, 0.9, number, 0, 9.0, 1.0)


def clean_set(size: int = 8, shown: int | None = None) -> ScanImages:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 3, size, size), dtype=np.uint8)
    names = [str(row) for row in range(300)]
    return scan_images(images, np.arange(300) % 5, list("abcde"), names, "set", shown)


@pytest.mark.parametrize("kind", ["pixel", "pattern", "blended", "adaptive_blend", "tact"])
def test_canaries_with_changed_labels_are_appended_to_their_class(kind: str) -> None:
    found = clean_set()
    usable = torch.arange(300) >= 100
    planted = plant(found, Canary(3, kind, 0.1, 2, 6), usable, 0)
    copy = planted.found
    assert torch.equal(copy.labeled.images[:300], found.labeled.images)
    assert torch.equal(copy.labeled.labels[:300], found.labeled.labels)
    added = copy.labeled.labels[300:]
    covers = round(6 * trigger_of(kind).cover_rate)
    assert len(added) == 6 + covers
    assert int((added == 2).sum()) == 6
    assert len(copy.names) == len(copy)
    assert copy.labeled.digest != found.labeled.digest
    # Each added image is closest to the usable image that it was made from.
    flat = found.labeled.images.flatten(1).double()
    nearest = torch.cdist(copy.labeled.images[300:].flatten(1).double(), flat).argmin(dim=1)
    assert bool(usable[nearest].all())
    assert bool((found.labeled.labels[nearest[added == 2]] != 2).all())
    assert planted.probes.shape[1:] == (3, 8, 8)
    assert len(planted.probes) > 0


def test_canaries_with_clean_labels_change_usable_images_of_their_class_in_place() -> None:
    found = clean_set()
    usable = torch.arange(300) >= 100
    copy = plant(found, Canary(0, "sinusoid", 0.1, 1, 6), usable, 0).found
    assert torch.equal(copy.labeled.labels, found.labeled.labels)
    differs = (copy.labeled.images != found.labeled.images).flatten(1).any(dim=1)
    assert int(differs.sum()) == 6
    assert bool((found.labeled.labels[differs] == 1).all())
    assert bool(usable[differs].all())


TRAINED = ["label_consistent", "narcissus", "sleeper_agent", "steganographic"]


@pytest.mark.parametrize("kind", TRAINED)
def test_triggers_that_must_be_trained_are_planted_with_a_surrogate_of_the_same_images(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, usable = clean_set(32), torch.arange(300) >= 100
    options = ScanOptions(canaries="none", width=1, epochs=1)
    seen = []

    def watched(job: TrainingJob, machine: ComputeDevice) -> Classifier:
        seen.append(job.training)
        return fit(job, machine)

    def short(kind: str) -> Trigger:
        made = trigger_of(kind)
        monkeypatch.setattr(made, "steps", 60 if kind == "narcissus" else 3)
        return made

    monkeypatch.setattr(attacker, "fit", watched)
    monkeypatch.setattr(canaries, "trigger_of", short)
    context = partial(attacker.context_of, options=options, machine=CPU)
    canary = Canary(0, kind, 0.1, 1, 6)
    copy, again = (plant(found, canary, usable, 0, context).found for _ in range(2))
    assert torch.equal(copy.labeled.images, again.labeled.images)
    assert all(torch.equal(each.base, found.labeled.images[100:]) for each in seen)
    assert all(len(each) == 200 for each in seen)
    assert len(seen) == (0 if kind == "steganographic" else 2)
    changed = (copy.labeled.images[:300] != found.labeled.images).flatten(1).any(dim=1)
    assert int(changed.sum()) + len(copy) - 300 == 6
    assert bool((copy.labeled.labels[:300][changed] == 1).all())
    assert bool(usable[changed].all())
    assert copy.labeled.labels[300:].tolist() == [1] * (len(copy) - 300)


def test_canaries_are_planted_at_the_original_size_and_then_resized() -> None:
    found = clean_set(16, 8)
    assert found.originals is not None
    assert found.originals.shape == (300, 3, 16, 16)
    copy = plant(found, Canary(0, "pixel", 0.1, 0, 6), torch.ones(300, dtype=torch.bool), 0).found
    added = copy.labeled.images[300:]
    flat = found.labeled.images.flatten(1).double()
    distances = torch.cdist(added.flatten(1).double(), flat)
    before = found.labeled.images[distances.argmin(dim=1)]
    changed = (added != before).any(dim=1)
    # One pixel of 16x16 becomes part of a pixel of 8x8, and antialiasing spreads it to neighbors.
    assert bool((changed.flatten(1).sum(dim=1) <= 4).all())
    brightness = added.double() - before.double()
    assert float(brightness.abs().max()) < 200
    part = found.part(torch.arange(10))
    assert part.originals is not None
    assert torch.equal(part.originals, found.originals[:10])


def test_the_schedule_depends_on_the_seed_only_and_takes_each_kind_and_rate_in_turn() -> None:
    found = clean_set()
    planned = schedule(found, ["pattern", "blended"], [0, 3], 12, 7)
    cells = [(each.kind, each.rate) for each in planned]
    assert cells[:6] == [(kind, rate) for rate in RATES for kind in ("pattern", "blended")]
    assert cells[6:] == cells[:6]
    assert {each.label for each in planned} == {0, 3}
    assert planned == schedule(found, ["pattern", "blended"], [0, 3], 12, 7)
    assert planned[:5] == schedule(found, ["pattern", "blended"], [0, 3], 5, 7)
    assert planned != schedule(found, ["pattern", "blended"], [0, 3], 12, 8)
    assert [each.images for each in planned[:5:2]] == [1, 3, 6]
    assert schedule(found, ["pattern"], [], 12, 7) == []


def test_a_kind_and_rate_is_reliable_blind_or_undecided_by_its_exact_interval() -> None:
    def verdict(found: int, missed: int) -> str:
        [power] = powers([outcome(True)] * found + [outcome(False)] * missed)
        assert (power.found, power.copies) == (found, found + missed)
        return power.verdict

    assert verdict(11, 0) == "reliable"
    assert verdict(10, 0) == "undecided"
    assert verdict(0, 6) == "blind"
    assert verdict(0, 5) == "undecided"
    assert verdict(5, 5) == "undecided"


def test_the_smallest_reliable_rate_needs_all_larger_rates_to_be_reliable() -> None:
    def group(rate: float, found: bool) -> list[Outcome]:
        return [outcome(found, rate=rate)] * 12

    good = powers([*group(0.02, False), *group(0.05, True), *group(0.1, True)])
    smallest = smallest_found(good)["pattern"]
    assert smallest is not None
    assert smallest.rate == 0.05
    gap = powers([*group(0.02, True), *group(0.05, False), *group(0.1, True)])
    smallest = smallest_found(gap)["pattern"]
    assert smallest is not None
    assert smallest.rate == 0.1
    none = powers([*group(0.02, True), *group(0.1, False)])
    assert smallest_found(none) == {"pattern": None}


def test_the_number_of_poisoned_images_is_scaled_by_the_canaries_that_were_found() -> None:
    group = [outcome(True, 10, 5), outcome(True, 10, 8), *[outcome(True, 10, 10)] * 3]
    assert poison_range(20, group, 1.0) == (20, 40)
    assert poison_range(20, group, 2.5) == (50, 100)
    # A canary that was missed says nothing about the number.
    assert poison_range(20, [*group, outcome(False, 10, 1)], 1.0) == (20, 40)
    assert poison_range(20, group[1:], 1.0) is None
    assert counted(torch.tensor([0.1, 0.2, 0.1, 9.0, 8.0, 0.3], dtype=torch.float64)) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("patern", "Did you mean 'pattern'"),
        (["pixel", "pixel"], "twice"),
        (["narcissus"], "must be trained"),
        (3, "must be default, none or a list"),
        ([1], "must be default, none or a list"),
    ],
)
def test_wrong_kinds_of_canaries_are_refused(value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kinds_of(as_text(value))


def test_the_time_decides_the_number_of_copies() -> None:
    assert copies_for(10, 90.0) == 6
    assert copies_for(1, 90.0) == 0
    assert copies_for(10, 0.0) == 1000
    assert kinds_of(as_text(["pixel", "warp"])) == ("pixel", "warp")
    assert kinds_of(as_text([])) == kinds_of(as_text(None)) == ()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store for scans whose features are pixels, and whose networks take ten seconds each."""

    def slow(*given: object, **more: object) -> Layers:
        return dataclasses.replace(pixels(*given, **more), seconds=10.0)  # type: ignore[arg-type]

    for module in (statistics, run, copies):
        monkeypatch.setattr(module, "network_stage", slow)
    return Store(tmp_path / "store")


def test_a_scan_reports_its_power_and_resumes_after_each_copy(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_of(*arrays(poisoned=0))
    planted: list[int] = []
    original = copies.plant

    def counting(given: ScanImages, canary: Canary, *others: Any) -> object:
        planted.append(canary.copy)
        if len(planted) == 4:
            raise KeyboardInterrupt
        return original(given, canary, *others)

    monkeypatch.setattr(copies, "plant", counting)
    with pytest.raises(KeyboardInterrupt):
        run_scan(found, CANARIES, store, CPU, [reference(2.0)])
    report = run_scan(found, CANARIES, store, CPU, [reference(2.0)])
    # A minute is enough for six copies of ten seconds.
    assert planted == [0, 1, 2, 3, 3, 4, 5]
    assert report.exit_code == 0
    power = report.power
    assert power["kind"].tolist() == ["pattern"] * 3
    assert power["rate"].tolist() == list(RATES)
    assert power["copies"].tolist() == [2, 2, 2]
    assert "6 copies with one canary each, planted at 8 x 8 pixels" in report.text()
    assert "other triggers may be missed" in report.text()
    assert [each["verdict"] for each in report.json()["power"]] == ["undecided"] * 3
    assert report.smallest() == [
        "pattern: undecided with 2 to 2 copies per rate (reliable needs at least 11, all found)"
    ]
    assert "found in" in str(powers(report.outcomes)[0])


def test_suspects_of_an_alarm_are_not_used_and_its_class_gets_no_canary(store: Store) -> None:
    given = found_of(*arrays(poisoned=16, each=160))
    options = dataclasses.replace(CANARIES, minutes=2.0)
    report = run_scan(given, options, store, CPU, [reference(2.0)])
    assert report.alarmed == ["2"]
    assert len(report.outcomes) == 12
    assert all(each.canary.label != 2 for each in report.outcomes)
    found = [each for each in report.outcomes if each.found]
    assert [each.canary.images for each in found if each.canary.images >= 8] == [8, 16] * 4
    assert all(each.statistic >= 5 for each in found)
    quotients = [each.canary.images / each.counted for each in found]
    number = report.findings[2].counted
    low, high = int(min(quotients) * number), min(160, int(np.ceil(max(quotients) * number)))
    like = f"if they are like the {len(found)} canaries that were found"
    assert len(found) == 8
    assert f"ALARM: {low} to {high} images (in 78 % of cases), {like}" in report.text()


def test_without_p_values_or_time_there_are_no_canaries_and_the_report_says_why(
    store: Store,
) -> None:
    found = found_of(*arrays(poisoned=0))
    assert "no class has a p value" in run_scan(found, CANARIES, store, CPU, []).text()
    short = dataclasses.replace(CANARIES, minutes=0.1)
    report = run_scan(found, short, store, CPU, [reference(2.0)])
    assert "one copy takes about" in report.text()
    assert "more than scan.minutes=0.1" in report.text()
    assert "was not measured" in report.text()
    assert report.power.empty


def test_other_scans_of_the_same_images_are_listed(store: Store) -> None:
    found = found_of(*arrays())
    first = run_scan(found, OPTIONS, store, CPU, [reference(2.0)])
    assert first.earlier == []
    assert run_scan(found, OPTIONS, store, CPU, [reference(2.0)]).earlier == []
    second = run_scan(found, dataclasses.replace(OPTIONS, seed=1), store, CPU, [reference(2.0)])
    assert [(each.options, each.verdict) for each in second.earlier] == [
        ("seed=0", "alarm at 0.05: 2")
    ]
    assert "earlier scan of" in second.text()
    other = run_scan(found_of(*arrays(1)), OPTIONS, store, CPU, [reference(2.0)])
    assert other.earlier == []
    against = run_scan(found, OPTIONS, store, CPU, [reference(9.0)])
    assert "another reference or other trusted images" in [e.options for e in against.earlier]


def test_probes_are_not_part_of_the_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def watched(training: TrainingSet, shown: TrainingSet, *_: object, **__: object) -> Layers:
        seen.append((len(training), len(shown)))
        return pixels(training, shown)

    monkeypatch.setattr(copies, "network_stage", watched)
    found = clean_set()
    canary = Canary(0, "pattern", 0.1, 2, 6)
    planted = plant(found, canary, torch.ones(300, dtype=torch.bool), 0)
    monkeypatch.setattr(copies, "statistics_of", lambda *_: None)
    copies._with_probes(planted.found, planted.probes, canary, OPTIONS, None, CPU)  # type: ignore[arg-type]
    assert seen == [(306, 306 + len(planted.probes))]


def test_scans_of_the_same_images_with_another_draw_or_size_are_listed(store: Store) -> None:
    given = found_of(*arrays(each=650))
    first = run_scan(given, OPTIONS, store, CPU, [reference(2.0)])
    second = run_scan(given, dataclasses.replace(OPTIONS, seed=1), store, CPU, [reference(2.0)])
    assert not torch.equal(first.images.labeled.images, second.images.labeled.images)
    assert [each.options for each in second.earlier] == ["seed=0"]
    assert "2,500 of 3,250 images were examined" in second.text()


def test_the_draw_from_large_classes_depends_on_the_content_of_the_set() -> None:
    images, labels = arrays(each=650)
    first = examined(found_of(images, labels), 0)
    images[0, 0, 0, 0] += 1
    second = examined(found_of(images, labels), 0)
    assert len(first) == len(second) == 2500
    assert not torch.equal(first, second)
    assert torch.equal(first, examined(found_of(*arrays(each=650)), 0))
