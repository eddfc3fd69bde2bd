"""Which images are poisoned, how many, and the resulting training set, counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

import backdoor_lab.run  # noqa: F401  (registers the resolver by_source)
from backdoor_lab.attacks import plan as attack
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.pattern import Pattern
from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.attacks.plan import (
    APPLY_TRIGGER,
    PLACEMENTS,
    PoisonSpec,
    asr_test_set,
    count,
    cover_count,
    eligible_count,
    elsewhere_test_set,
    implied,
)
from backdoor_lab.attacks.poison import classes_after, content_digest, poison
from backdoor_lab.attacks.poison import clean as clean_set
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages, PoisonResult
from backdoor_lab.defenses.options import OPTION_KEYS, SCOPES, FilterOptions

ROOT = Path(__file__).resolve().parents[3]
PRESETS = sorted(path.stem for path in (ROOT / "conf/protocol").glob("*.yaml"))
# 40 images of class a, 60 of b, 100 of c.
SIZES = [40, 60, 100]
SHUFFLED = torch.randperm(200, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(3).repeat_interleave(torch.tensor(SIZES))[SHUFFLED]
PLAN_KEYS = ("ratio_of", "placement", "poison_from", "asr_on", "apply_trigger")


def clean(labels: Tensor = LABELS) -> LabeledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (len(labels), 3, 8, 8), generator=generator).byte()
    return LabeledImages(images, labels, ("a", "b", "c"), digest="clean")


def preset(name: str, source: int | None) -> dict[str, Any]:
    whole = OmegaConf.create({"source": source})
    whole.protocol = OmegaConf.load(ROOT / f"conf/protocol/{name}.yaml")
    found: Any = OmegaConf.to_container(whole.protocol, resolve=True)
    return found


def plan_of(name: str, ratio: float, source: int | None = None, target: int = 0) -> PoisonSpec:
    words = preset(name, source)
    return PoisonSpec(target, source, ratio, **{key: words[key] for key in PLAN_KEYS})


def made(plan: PoisonSpec, *, seed: int = 0, trigger: Any = None) -> PoisonResult:
    return poison(clean(), trigger or Pixel(), plan, seed=seed)


@pytest.mark.parametrize(("name", "source"), [(name, s) for name in PRESETS for s in (None, 1)])
def test_every_protocol_preset_sets_every_key(name: str, source: int | None) -> None:
    """Each key of each preset has one of its documented values."""
    words = preset(name, source)
    assert words["name"] == name
    known = {"ratio_of": attack.RATIO_OF, "placement": PLACEMENTS,
             "poison_from": attack.POISON_FROM,
             "asr_on": attack.ASR_ON, "apply_trigger": APPLY_TRIGGER, "filter_scope": SCOPES,
             "center": (True, False)}  # fmt: skip
    for key, values in known.items():
        assert words[key] in values, key
    FilterOptions(**{key: words[key] for key in OPTION_KEYS})
    assert set(words) == {
        *known,
        "name",
        "version",
        "removal_budget",
        "max_removed",
        "layer",
        "clean_holdout",
    }


# Target a (40 of 200), source b (60).
BY_HAND = [
    # preset, ratio, source, poisoned, eligible, training images
    ("group13", 0.05, None, 2, 160, 202),
    ("group13", 0.1, None, 4, 160, 204),
    ("group13", 0.1, 1, 4, 60, 204),
    ("group13", 1, None, 40, 160, 240),
    ("group13_literal", 0.05, None, 10, 160, 210),
    ("group13_literal", 0.1, None, 20, 160, 220),
    ("group13_literal", 0.1, 1, 20, 60, 220),
    ("group13_literal", 0.8, None, 160, 160, 360),
    ("madry2018", 0.05, 1, 3, 60, 200),
    ("madry2018", 0.1, 1, 6, 60, 200),
    ("realistic", 0.05, None, 10, 160, 200),
    ("realistic", 0.1, None, 20, 160, 200),
]
for tool in ("backdoorbench", "backdoorbox", "backdoor_toolbox"):
    BY_HAND += [(tool, 0.05, None, 10, 200, 200), (tool, 0.1, None, 20, 200, 200)]


# The classes of as many eligible images: the source, all but the target, or all.
ORIGINS = {60: {1}, 160: {1, 2}, 200: {0, 1, 2}}


def test_the_hand_counted_table_covers_every_protocol_preset() -> None:
    """The table was counted for these class sizes."""
    assert torch.bincount(LABELS).tolist() == SIZES
    assert {row[0] for row in BY_HAND} == set(PRESETS)


@pytest.mark.parametrize(("name", "ratio", "source", "poisoned", "eligible", "n"), BY_HAND)
def test_poison_and_training_set_sizes_match_hand_counts(
    name: str, ratio: float, source: int | None, poisoned: int, eligible: int, n: int
) -> None:
    """The number of eligible images matches, too."""
    plan = plan_of(name, ratio, source)
    assert count(plan, SIZES) == poisoned
    assert eligible_count(plan, SIZES) == eligible
    result = made(plan)
    training = result.training
    assert len(training) == n
    assert int(result.is_poison.sum()) == len(result.source_index) == poisoned
    assert (training.labels[result.is_poison] == plan.target).all()
    origins = LABELS[result.source_index]
    assert set(origins.tolist()) <= ORIGINS[eligible]
    foreseen = classes_after(LABELS, plan, classes=3, seed=0)
    sizes = torch.bincount(training.labels, minlength=3).tolist()
    assert sizes == foreseen
    if plan.placement == "append":
        assert sizes == [40 + poisoned, 60, 100]
    elif source == 1:
        assert sizes == [40 + poisoned, 60 - poisoned, 100]


def test_poison_is_appended_after_the_original_images_or_replaces_them() -> None:
    """Appended poison comes last, and the originals stay; with ``placement="replace"``, poison
    takes their place."""
    appended = made(PoisonSpec(0, None, 0.1))
    assert torch.equal(appended.training.index[:200], torch.arange(200))
    assert torch.equal(appended.training.labels[:200], LABELS)
    assert appended.is_poison.nonzero().flatten().tolist() == [200, 201, 202, 203]
    replaced = made(PoisonSpec(0, None, 0.1, placement="replace"))
    assert torch.equal(replaced.is_poison.nonzero().flatten(), replaced.source_index)
    rest = ~replaced.is_poison
    assert torch.equal(replaced.training.labels[rest], LABELS[rest])


def test_a_trigger_applied_after_augmentation_leaves_the_stored_images_clean() -> None:
    """With the trigger applied after augmentation, rows are clean originals marked as triggered."""
    late = made(PoisonSpec(0, None, 0.1, apply_trigger="after_augmentation"))
    assert torch.equal(late.training.rows, clean().images[late.source_index])
    assert torch.equal(late.training.is_triggered_late(torch.arange(204)), late.is_poison)
    early = made(PoisonSpec(0, None, 0.1))
    assert torch.equal(early.training.rows, Pixel()(late.training.rows))
    assert not early.training.is_triggered_late(torch.arange(204)).any()


def test_ratio_zero_gives_exactly_the_clean_training_set() -> None:
    """No image carries the trigger."""
    for stamp in APPLY_TRIGGER:
        training = made(PoisonSpec(0, None, 0.0, apply_trigger=stamp)).training
        assert training.late_trigger is None
        assert torch.equal(training.gather(torch.arange(200)), clean().images)


def test_the_option_asr_on_selects_the_classes_of_the_asr_test_set() -> None:
    """Cases: all classes but the target, only the source class, and all classes."""
    labels = torch.tensor([0, 1, 2, 0, 1])
    assert asr_test_set(labels, PoisonSpec(0, None, 0.1)).tolist() == [1, 2, 4]
    assert asr_test_set(labels, PoisonSpec(0, None, 0.1, asr_on="all")).tolist() == [0, 1, 2, 3, 4]
    of_source = PoisonSpec(0, 2, 0.1, poison_from="source", asr_on="source")
    assert asr_test_set(labels, of_source).tolist() == [2]


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "backdoorbox"])
def test_asr_test_set_holds_no_image_of_the_target_class(name: str) -> None:
    """A target-class image classified as the target is not a successful attack."""
    plan = plan_of(name, 0.1, 1 if name == "madry2018" else None)
    assert not (LABELS[asr_test_set(LABELS, plan)] == plan.target).any()


def test_poison_indices_refer_to_the_whole_data_set() -> None:
    """They are neither positions within a class nor class numbers."""
    result = made(
        PoisonSpec(0, 1, 0.1, ratio_of="source", poison_from="source", placement="replace")
    )
    where = result.is_poison.nonzero().flatten()
    assert (LABELS[where] == 1).all()
    assert torch.equal(result.training.gather(where), Pixel()(clean().images[where]))
    assert where.max() > len(SIZES)


def test_every_attack_option_changes_the_digest() -> None:
    """Trigger, target, ratio, placement and seed each give another training set."""
    plans = [PoisonSpec(0, None, 0.1), PoisonSpec(1, None, 0.1), PoisonSpec(0, None, 0.2),
             PoisonSpec(0, None, 0.1, placement="replace"), PoisonSpec(0, None, 0.0)]  # fmt: skip
    sets = [made(plan) for plan in plans]
    sets += [made(plans[0], trigger=Pattern()), made(plans[0], seed=1)]
    digests = [content_digest(each.training, "clean") for each in sets]
    assert len(set(digests)) == len(digests)
    # The same images and order, other labels.
    pair = [
        made(PoisonSpec(t, None, 0.1, ratio_of="all", poison_from="all")).training for t in (0, 1)
    ]
    assert content_digest(pair[0], "clean") != content_digest(pair[1], "clean")
    late = made(PoisonSpec(0, None, 0.1, apply_trigger="after_augmentation")).training
    stamps = [content_digest(late, "clean", stamp) for stamp in ("pixel", "pattern")]
    assert len({*stamps, *digests}) == len(digests) + 2
    assert content_digest(sets[0].training, "other data") != digests[0]


def test_equal_training_sets_have_equal_digests() -> None:
    """Removing all appended poison gives the clean set, hence the clean digest."""
    nothing = content_digest(made(PoisonSpec(0, None, 0.0)).training, "clean")
    for stamp in APPLY_TRIGGER:
        result = made(PoisonSpec(0, None, 0.1, apply_trigger=stamp))
        rest = result.training.keep(~result.is_poison, "")
        assert (
            content_digest(rest, "clean", "pixel" if stamp == "after_augmentation" else "")
            == nothing
        )
        one_left = result.is_poison.clone()
        one_left[-1] = False
        left = result.training.keep(~one_left, "")
        assert content_digest(left, "clean") != nothing
    replaced = made(PoisonSpec(0, None, 0.1, placement="replace"))
    rest = replaced.training.keep(~replaced.is_poison, "")
    assert content_digest(rest, "clean") != nothing


@pytest.mark.parametrize("ratio", [-0.1, 1.001, 1.5, float("nan"), "10%", True, None, float("inf")])
def test_a_ratio_out_of_range_is_refused(ratio: Any) -> None:
    with pytest.raises(ConfigError, match="`ratio` must satisfy 0 <= ratio <= 1, got"):
        PoisonSpec(0, None, ratio)


def test_too_few_or_too_many_poisoned_images_are_refused() -> None:
    """The message shows the arithmetic: requested, base count and eligible images."""
    with pytest.raises(ConfigError, match=r"`ratio`=0\.01 of 40 images .*less than one image"):
        count(PoisonSpec(0, None, 0.01), SIZES)
    plan = PoisonSpec(2, None, 0.6, ratio_of="all")
    message = r"`ratio`=0\.6 of 200 images .*requires 120 poisoned .*only 100 are eligible"
    with pytest.raises(ConfigError, match=message):
        count(plan, SIZES)
    with pytest.raises(ConfigError, match="only 40 are eligible"):
        count(PoisonSpec(1, 0, 41, ratio_of="count", poison_from="source"), SIZES)
    # ratio_of=count takes a whole number of images.
    assert count(PoisonSpec(0, None, 7, ratio_of="count"), SIZES) == 7
    with pytest.raises(ConfigError, match=r"`ratio` must be a whole number, got 7\.5"):
        PoisonSpec(0, None, 7.5, ratio_of="count")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"source": 0}, "`source` and `target` must differ"),
        ({"source": 1}, "ignores it"),
        ({"source": None, "poison_from": "source"}, "needs a class in `source`"),
        ({"source": None, "asr_on": "source"}, "needs a class in `source`"),
        ({"source": None, "ratio_of": "source"}, "needs a class in `source`"),
        ({"source": None, "placement": "apend"}, "Did you mean 'append'"),
        ({"source": None, "apply_trigger": "during"}, "Known: before_augmentation, after"),
        ({"source": None, "label_mode": "dirty"}, "Known: all_to_one, all_to_all, clean"),
        ({"source": None, "label_mode": "clean"}, "contradict each other"),
        ({"source": None, "poison_from": "target"}, "contradict each other"),
        ({"source": None, "label_mode": "all_to_all"}, "needs protocol.poison_from=all"),
        (
            {"source": 1, "label_mode": "all_to_all", "poison_from": "all", "asr_on": "all"},
            "every class",
        ),
        (
            {
                "source": None,
                "label_mode": "all_to_all",
                "poison_from": "all",
                "asr_on": "all",
                "cover_rate": 1.0,
            },
            "leaves none for cover images",
        ),
        ({"source": None, "cover_rate": -1.0}, "`cover_rate` must satisfy 0 <= cover_rate"),
    ],
)
def test_contradictory_protocol_options_are_refused(words: dict[str, Any], message: str) -> None:
    """Examples are an unused source, a missing source, and misspelled values."""
    with pytest.raises(ConfigError, match=message):
        PoisonSpec(target=0, ratio=0.1, **words)


def test_a_clean_label_attack_replaces_only_target_class_images() -> None:
    """10 % of the images of class b are poisoned; they keep their positions and labels."""
    plan = PoisonSpec(1, None, 0.1, label_mode="clean", **implied("clean", on_source=False))
    result = made(plan)
    assert len(result.source_index) == 6
    assert (LABELS[result.source_index] == 1).all()
    assert torch.equal(result.training.labels, LABELS)
    assert torch.equal(result.is_poison.nonzero().flatten(), result.source_index)
    assert classes_after(LABELS, plan, classes=3, seed=0) == SIZES
    assert (LABELS[asr_test_set(LABELS, plan)] != 1).all()
    assert plan.wanted(torch.tensor([0, 1, 2]), 3).tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="requires 180 poisoned images, but only 60"):
        count(
            PoisonSpec(1, None, 0.9, ratio_of="all", label_mode="clean", poison_from="target"),
            SIZES,
        )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_all_to_all_shifts_every_label_by_one(placement: str) -> None:
    """The last class becomes the first; 10 % of all images are poisoned and every test image
    counts."""
    words = implied("all_to_all", on_source=False)
    plan = PoisonSpec(1, None, 0.1, label_mode="all_to_all", placement=placement, **words)
    result = made(plan)
    assert len(result.source_index) == 20
    origins = LABELS[result.source_index]
    assert set(origins.tolist()) == {0, 1, 2}
    assert torch.equal(result.training.labels[result.is_poison], (origins + 1) % 3)
    foreseen = classes_after(LABELS, plan, classes=3, seed=0)
    assert torch.bincount(result.training.labels, minlength=3).tolist() == foreseen
    assert asr_test_set(LABELS, plan).tolist() == list(range(200))
    assert plan.wanted(torch.tensor([0, 1, 2]), 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("source", [None, 1])
def test_covers_keep_their_labels(placement: str, source: int | None) -> None:
    """There are two covers per poisoned image, drawn from classes other than target and source. The
    poisoned images are the same as without covers."""
    words = implied("all_to_one", on_source=source is not None)
    plan = PoisonSpec(0, source, 0.1, placement=placement, cover_rate=2.0, **words)
    result = made(plan)
    origins, covers = result.source_index, result.cover_index
    assert (len(origins), len(covers)) == (4, 8)
    assert not set(origins.tolist()) & set(covers.tolist())
    assert not set(LABELS[covers].tolist()) & {0, source}
    assert torch.equal(result.training.labels[result.is_cover], LABELS[covers])
    assert (result.training.labels[result.is_poison] == 0).all()
    assert not (result.is_poison & result.is_cover).any()
    seen = result.training.gather(torch.arange(len(result.training)))
    assert torch.equal(seen[result.is_cover], Pixel()(clean().images[covers]))
    foreseen = classes_after(LABELS, plan, classes=3, seed=0)
    assert torch.bincount(result.training.labels, minlength=3).tolist() == foreseen
    bare = PoisonSpec(0, source, 0.1, placement=placement, **words)
    assert torch.equal(made(bare).source_index, origins)


def test_more_covers_than_available_images_are_refused() -> None:
    """The message shows the arithmetic: 96 of 160 are poisoned, so 64 are left as covers."""
    plan = PoisonSpec(0, None, 0.48, ratio_of="all", cover_rate=1.0)
    with pytest.raises(ConfigError, match="with 96 poisoned .* 96 cover images, but only 64"):
        cover_count(plan, SIZES)


def test_the_images_for_asr_on_other_classes_exclude_source_and_target() -> None:
    """It is empty when there is no source class."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    words = implied("all_to_one", on_source=True)
    assert elsewhere_test_set(labels, PoisonSpec(0, 1, 0.1, **words)).tolist() == [2, 5]
    assert elsewhere_test_set(labels, PoisonSpec(0, None, 0.1)).tolist() == []


def test_the_clean_training_set_has_the_same_digest_as_one_poisoned_with_ratio_zero() -> None:
    nothing = content_digest(made(PoisonSpec(0, None, 0.0)).training, "clean")
    assert clean_set(clean()).digest == nothing


def test_the_choice_of_poisoned_images_depends_on_the_seed_but_not_on_the_trigger() -> None:
    """The same seed selects the same images for every trigger and placement."""
    plan = PoisonSpec(0, None, 0.1, ratio_of="all")
    first = made(plan, seed=3).source_index
    torch.manual_seed(99)
    assert torch.equal(made(plan, seed=3, trigger=Pattern()).source_index, first)
    replaced = PoisonSpec(0, None, 0.1, ratio_of="all", placement="replace")
    assert torch.equal(made(replaced, seed=3).source_index, first)
    assert not torch.equal(made(plan, seed=4).source_index, first)


class Last(Pixel):
    """Poisons the last eligible images."""

    def choose(self, candidates: Tensor, wanted: int, context: AttackContext) -> Tensor:
        return candidates[-wanted:]


def test_a_trigger_can_choose_the_images_to_poison() -> None:
    """The number of poisoned images is that of a random choice; at ratio 0 the trigger chooses
    none."""
    plan = PoisonSpec(1, None, 0.1, label_mode="clean", **implied("clean", on_source=False))
    where = (LABELS == 1).nonzero().flatten()
    found = made(plan, trigger=Last())
    assert torch.equal(found.source_index, where[-6:])
    assert torch.equal(found.is_poison.nonzero().flatten(), where[-6:])
    assert len(made(replace(plan, ratio=0), trigger=Last()).source_index) == 0


@pytest.mark.parametrize(
    "wrong", [torch.arange(3), torch.tensor([2, 1, 0, 3, 4, 5]), torch.ones(6), [1, 2]], ids=str
)
def test_an_invalid_image_choice_is_refused(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has another length, order, dtype or type."""
    monkeypatch.setattr(Last, "choose", lambda *given: wrong)
    plan = PoisonSpec(1, None, 0.1, label_mode="clean", **implied("clean", on_source=False))
    with pytest.raises(ConfigError, match=r"Last.choose` must return None or 6 of the indices"):
        made(plan, trigger=Last())


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=3, max_size=60),
    target=st.integers(0, 2),
    ratio=st.floats(0, 1),
    ratio_of=st.sampled_from(["target", "all"]),
    placement=st.sampled_from(PLACEMENTS),
    poison_from=st.sampled_from(["not_target", "all"]),
    seed=st.integers(0, 2**62),
)
def test_poison_indices_are_valid_for_any_configuration(
    labels: list[int], target: int, ratio: float, ratio_of: str, placement: str, poison_from: str,
    seed: int,
) -> None:  # fmt: skip
    """They are in range, unique, sorted, and never of the target class unless all classes are
    eligible."""
    plan = PoisonSpec(
        target, None, ratio, ratio_of=ratio_of, placement=placement, poison_from=poison_from
    )
    train = clean(torch.tensor(labels))
    try:
        result = poison(train, Pixel(), plan, seed=seed)
    except ConfigError:
        with pytest.raises(ConfigError, match=r"less than one image|are eligible"):
            count(plan, torch.bincount(train.labels, minlength=3).tolist())
        return
    chosen = result.source_index
    assert torch.equal(chosen, chosen.unique())
    assert all(0 <= index < len(labels) for index in chosen.tolist())
    if poison_from == "not_target":
        assert not (train.labels[chosen] == target).any()
    index = result.training.index
    assert len(index.unique()) == len(index)
    assert int((index >= len(labels)).sum()) == len(chosen)
    assert len(index) == len(labels) + (len(chosen) if placement == "append" else 0)
