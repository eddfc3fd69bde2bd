"""The tables of the documents in multirun_reports/defenses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tests.documents.cells import Cell, cells, figure, mean, spread, the
from tests.documents.markers import markdown, table

EMBEDDED = (
    "none", "random", "oracle", "clean_data", "confusion", "scan", "beatrix", "spectral_uncentered",
    "spectre", "spectral_plus", "activation_clustering", "elliptic_envelope", "strip", "spectral",
    "spectral_every_class", "knn", "isolation_forest", "one_class_svm", "asset", "abl",
    "local_outlier_factor", "neural_cleanse", "anp", "d_br", "abl_unlearning", "fine_pruning",
)  # fmt: skip
LEARNED = (
    "pixel", "pattern", "patch", "blended", "adaptive_blend", "adaptive_patch", "tact",
    "label_consistent", "sleeper_agent", "narcissus", "reflection", "sinusoid",
)  # fmt: skip
PHOTOGRAPHED = ("pixel", "pattern", "blended", "adaptive_blend")
ON_PHOTOGRAPHS = (
    "beatrix", "spectre", "scan", "spectral_plus", "elliptic_envelope", "knn",
    "activation_clustering", "one_class_svm", "spectral", "isolation_forest", "spectral_uncentered",
    "local_outlier_factor", "random", "spectral_every_class", "abl",
)  # fmt: skip
SUSPICIOUS = ("scan", "spectral", "spectral_plus", "activation_clustering", "spectre")
RECIPES = {
    "demo": "nothing", "demo_crop_flip": "crop and flip", "demo_cutout": "cutout",
    "demo_mixup": "mixup", "demo_cutmix": "cutmix", "demo_strong": "all of them",
}  # fmt: skip
PUBLISHED = ("`defense=`", "trigger", "ratio", "Nat1", "ASR1")
VARIED = {"fine_pruning": "max_accuracy_drop", "asset": "epochs"}


@table("defenses_embedded")
def _embedded() -> str:
    columns = (("AUROC", 3), ("#Pois Left", 0), ("ASR2", 1))
    rows = []
    for name in EMBEDDED:
        places = [
            spread(cells("defenses/embedded", trigger=trigger, defense=name), column, digits)
            for trigger in ("pixel", "pattern")
            for column, digits in columns
        ]
        rows.append([f"`{name}`", *places, mean(cells("defenses/embedded", defense=name), "Nat2")])
    head = ["pixel: AUROC", "#Pois Left", "ASR2", "pattern: AUROC", "#Pois Left", "ASR2", "Nat2"]
    return markdown(["`defense=`", *head], rows)


@table("defenses_matrix")
def _matrix() -> str:
    """How many of 100 poisoned images each filter leaves, sorted by the mean over the first nine
    attacks."""
    asr = [the("defenses/matrix", trigger=t, defense="spectral")["ASR1"] for t in LEARNED]
    names = dict.fromkeys(cell["Defense"] for cell in cells("defenses/matrix"))
    left = {
        name: [the("defenses/matrix", trigger=t, defense=name)["#Pois Left"] for t in LEARNED]
        for name in names
    }
    order = sorted(names, key=lambda name: (name == "random", np.mean(left[name][:9])))
    rows = [["ASR1, %", *(f"{value:.0f}" for value in asr), ""]]
    rows += [[f"`{n}`", *map(str, left[n]), f"{np.mean(left[n][:9]):.1f}"] for n in order]
    head = ["`defense=`", *(f"`{t}`" for t in LEARNED), "mean of the first nine"]
    return markdown(head, rows)


@table("defenses_photographs")
def _photographs() -> str:
    places = [(ratio, trigger) for ratio in ("1%", "5%", "10%") for trigger in PHOTOGRAPHED]
    rows = [_attacked(column, places) for column in ("Nat1", "ASR1", "#Pois")]
    for name in ON_PHOTOGRAPHS:
        row = [f"`{name}`"]
        for ratio, trigger in places:
            cell = the("defenses/photographs", trigger=trigger, ratio=ratio, defense=name)
            share = 100 * cell["#Pois Left"] / cell["#Pois"]
            row.append(f"{share:.0f} ({cell['AUROC']:.2f})")
        rows.append(row)
    return markdown(["`defense=`", *(f"{trigger} {ratio}" for ratio, trigger in places)], rows)


@table("defenses_published_filters")
def _published_filters() -> str:
    """One row per filter of the sweep, in the order of the sweep."""
    rows = []
    for cell in cells("defenses/published"):
        found = cell["record"]["detection"]
        if cell["Nat2"] is None:
            shares = [f"{100 * found[name]:.1f}" for name in ("tpr", "fpr")]
            rows.append([*_published(cell), f"{cell['AUROC']:.3f}", *shares])
    return markdown([*PUBLISHED, "AUROC", "TPR", "FPR"], rows)


@table("defenses_published_repairs")
def _published_repairs() -> str:
    """One row per repair of the sweep, in the order of the sweep."""
    rows = [
        [*_published(cell), *(f"{cell[column]:.1f}" for column in ("Nat2", "ASR2"))]
        for cell in cells("defenses/published")
        if cell["Nat2"] is not None
    ]
    return markdown([*PUBLISHED, "Nat2", "ASR2"], rows)


@table("defenses_published_variants")
def _published_variants() -> str:
    """One row per cell of the sweep in which one thing is changed at a time."""
    rows = []
    for cell in cells("defenses/published_variants"):
        config = cell["record"]["config"]
        option = VARIED[cell["Defense"]]
        name = f"`{_versioned(cell)}`, `{option}={config['defense'][option]}`"
        shares = [figure(cell[column], column, 1) for column in ("Nat1", "ASR1", "Nat2", "ASR2")]
        rows.append(
            [name, cell["record"]["choices"]["model"], *shares, figure(cell["AUROC"], "AUROC")]
        )
    return markdown(["`defense=`", "model", "Nat1", "ASR1", "Nat2", "ASR2", "AUROC"], rows)


def _published(cell: Cell) -> list[str]:
    """The places of a row before the figures of the defense."""
    shares = (f"{cell[column]:.1f}" for column in ("Nat1", "ASR1"))
    return [f"`{_versioned(cell)}`", f"`{cell['Trigger']}`", cell["Ratio"], *shares]


def _versioned(cell: Cell) -> str:
    """The name of the defense with its version: `anp@2`."""
    version = cell["record"]["config"]["code"]["defenses"][cell["Defense"]]
    return f"{cell['Defense']}@{version}" if version > 1 else str(cell["Defense"])


def _attacked(column: str, places: Sequence[tuple[str, str]]) -> list[str]:
    found = [
        the("defenses/photographs", trigger=trigger, ratio=ratio, defense="spectral")
        for ratio, trigger in places
    ]
    return [column, *(f"{cell[column]:.{int(column != '#Pois')}f}" for cell in found)]


def _variants(sweep: str, rank: int, power: int, rounds: int, **wanted: object) -> list[Cell]:
    settings = {"rank": rank, "tail_power": power, "rounds": rounds}
    found = [cell for cell in cells(sweep, **wanted)
             if settings.items() <= cell["record"]["config"]["defense"].items()]  # fmt: skip
    # Variants of a filter that differ only in what they remove have the same scores.
    assert found, settings
    return found


@table("defenses_directions")
def _directions() -> str:
    """The number of poisoned images left, averaged over fourteen triggers. The lowest mean is
    bold."""
    sweep, ranks = "defenses/spectral_variants", (1, 4, 8, 16)
    settings = list(itertools.product((0, 2, 4, 8), (1, 4)))
    means = {
        (power, rounds, rank): mean(_variants(sweep, rank, power, rounds), "#Pois Left", 1)
        for power, rounds in settings
        for rank in ranks
    }
    best = min(means.values(), key=float)
    rows = [
        [power, rounds, *(_bold(means[power, rounds, rank], best) for rank in ranks)]
        for power, rounds in settings
    ]
    return markdown(["`tail_power`", "`rounds`", "`rank`: 1", *map(str, ranks[1:])], rows,
                    right="llrrrr")  # fmt: skip


def _bold(text: str, best: str) -> str:
    return f"**{text}**" if text == best else text


@table("defenses_directions_layers")
def _layers() -> str:
    rows = []
    for layer in ("penultimate", "layer4", "layer4.0", "layer3:pool"):
        found = [cells("defenses/spectral_layers", layer=layer, defense=name)
                 for name in ("spectral", "spectral_plus")]  # fmt: skip
        assert {len(group) for group in found} == {14}
        rows.append([f"`{layer}`", *(mean(group, "#Pois Left", 1) for group in found)])
    head = ["`protocol.layer`", "`spectral`", "`spectral_plus`: rank 16, power 4, four rounds"]
    return markdown(head, rows)


@table("defenses_directions_photographs")
def _directions_photographs() -> str:
    """The number of poisoned images left: for a ratio of 1 % at three layers, and for ratios of 5
    and 10 % at the report's layer."""
    sweep = "defenses/spectral_photographs"
    rows = []
    for rank, power, rounds in itertools.product((1, 16), (0, 4), (1, 4)):
        if rank == 1 and power:
            continue

        def left(trigger: str, ratio: str, layer: str, s: tuple[int, ...]) -> str:
            found = _variants(sweep, *s, trigger=trigger, ratio=ratio, layer=layer)
            (count,) = {cell["#Pois Left"] for cell in found}
            return str(count)

        setting = (rank, power, rounds)
        faint = [
            ", ".join(left(t, "1%", layer, setting) for t in ("blended", "adaptive_blend", "patch"))
            for layer in ("penultimate", "layer4", "layer4.0")
        ]
        strong = [
            ", ".join(left(t, ratio, "penultimate", setting) for ratio in ("5%", "10%"))
            for t in ("blended", "adaptive_blend")
        ]
        rows.append([*map(str, setting), *faint, *strong])
    head = ["`rank`", "`tail_power`", "`rounds`", "1 %: `penultimate`", "`layer4`", "`layer4.0`",
            "5 %, 10 %: `blended`", "`adaptive_blend`"]  # fmt: skip
    return markdown(head, rows, right="lllrrrrr")


@table("defenses_suspicious")
def _suspicious() -> str:
    rows = []
    for name in SUSPICIOUS:
        found = cells("defenses/suspicious", defense=name)
        clean, poisoned = ([c for c in found if (c["Ratio"] != "0%") == p] for p in (False, True))
        networks = {(c["Seed"], c["record"]["hashes"]["weights1"]): c for c in clean}.values()
        accused = sum(_count(c, "n_accused") for c in networks)
        named = sum(_count(c, "n_named") for c in poisoned)
        others = sum(_count(c, "n_accused") for c in poisoned) - named
        runs = len(poisoned)
        rows.append([f"`{name}`", f"{accused} in {len(networks)}", f"{named} of {runs}",
                     f"{others} in {runs}", mean(poisoned, "#Pois Left", 1)])  # fmt: skip
    head = ["`defense=`", "clean: classes flagged", "poisoned: target named",
            "other classes flagged", "#Pois Left of 100, mean"]  # fmt: skip
    return markdown(head, rows, right="lrrrr")


def _count(cell: Cell, name: str) -> int:
    return int(cell["record"]["counts"][name])


@table("defenses_augmentation")
def _augmentation() -> str:
    rows = []
    for recipe, adds in RECIPES.items():
        places = [
            spread(cells("defenses/augmentation", trigger=trigger, recipe=recipe), column, digits)
            for trigger in ("pixel", "pattern")
            for column, digits in (("ASR1", 1), ("#Pois Left", 0), ("ASR2", 1))
        ]
        nat = mean(cells("defenses/augmentation", recipe=recipe), "Nat1")
        rows.append([f"`{recipe}`", adds, *places, nat])
    head = ["pixel: ASR1", "#Pois Left", "ASR2", "pattern: ASR1", "#Pois Left", "ASR2", "Nat1"]
    return markdown(["`recipe=`", "adds", *head], rows)
