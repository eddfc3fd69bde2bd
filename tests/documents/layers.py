"""The tables of multirun_reports/paper that compare the layers of a network."""

from __future__ import annotations

from collections.abc import Sequence

from tests.documents.cells import SWEEPS, Cell, cells, figure
from tests.documents.markers import markdown, table

LAYERS = ("penultimate", "layer4", "layer4.0", "layer4.0:pool", "layer3", "layer3:pool")
Attack = tuple[str, str, str]
RETRAINED = ("Trigger", "Target", "Ratio", "Seed", "Layer", "Defense", "#Pois", "Nat1", "ASR1",
             "#Pois Left", "Nat2", "ASR2")  # fmt: skip


def _left(
    sweeps: Sequence[str], lines: Sequence[tuple[str, str]], attacks: Sequence[Attack]
) -> str:
    """The number of poisoned images left and the AUROC, with a row for each filter and layer and a
    column for each network."""
    found = cells(*(f"paper/{sweep}" for sweep in sweeps))
    at = {(c["Defense"], c["Layer"], c["Trigger"], c["Ratio"], c["Target"]): c for c in found}
    heads = []
    for trigger, ratio, target in attacks:
        cell = at[(*lines[0], trigger, ratio, target)]
        heads.append(f"{trigger} {ratio} → {target} ({cell['#Pois']}, ASR1 {cell['ASR1']:.0f})")
    rows = [
        [f"`{line[0]}`", f"`{line[1]}`",
         *(f"{at[(*line, *attack)]['#Pois Left']} ({at[(*line, *attack)]['AUROC']:.2f})"
           for attack in attacks)]
        for line in lines
    ]  # fmt: skip
    return markdown(["`defense`", "`protocol.layer`", *heads], rows)


@table("layers_bird")
def _bird() -> str:
    attacks = [
        ("pattern", "10%", "bird"), ("pattern", "10%", "horse"), ("pattern", "5%", "bird"),
        ("pixel", "10%", "bird"), ("pixel", "10%", "horse"), ("pixel", "5%", "bird"),
    ]  # fmt: skip
    sweeps = ("layers", "layers_horse", "layers_pixel")
    return _left(sweeps, [("spectral", layer) for layer in LAYERS], attacks)


@table("layers_elsewhere")
def _elsewhere() -> str:
    attacks = [
        ("pattern", "10%", "dog"), ("pattern", "10%", "horse"), ("pattern", "10%", "bird"),
        ("pattern", "5%", "dog"), ("pixel", "10%", "dog"), ("pixel", "10%", "bird"),
        ("pixel", "10%", "horse"),
    ]  # fmt: skip
    lines = [(d, layer) for d in ("spectral", "spectral_plus") for layer in LAYERS[:4]]
    return _left(("layers_seed1", "layers_seed1_5"), lines, attacks)


@table("layers_directions")
def _directions() -> str:
    attacks = [
        ("pattern", "10%", "horse"), ("pixel", "10%", "horse"), ("pixel", "5%", "horse"),
        ("pixel", "5%", "bird"), ("pixel", "5%", "dog"), ("pattern", "10%", "dog"),
        ("pattern", "5%", "dog"),
    ]  # fmt: skip
    lines = [(d, layer) for layer in LAYERS[:3] for d in ("spectral", "spectral_plus")]
    return _left(("long", "layers_horse", "layers_pattern", "layers_pixel"), lines, attacks)


@table("layers_retrained")
def _retrained() -> str:
    """The results of retraining. Each line is selected by sweep, attack, seed, layer and filter.
    With the layer "any", all layers must give the same result."""
    lines = [
        ("reproduction", "pattern", "horse", "10%", 0, "penultimate", "spectral"),
        ("horse", "pattern", "horse", "10%", 0, "layer4.0", "spectral"),
        ("horse", "pattern", "horse", "10%", 0, "any", "random"),
        ("plus_retrained", "pattern", "horse", "10%", 0, "penultimate", "spectral_plus"),
        ("layer4_0", "pattern", "dog", "10%", 0, "layer4.0", "spectral"),
        ("plus_retrained", "pattern", "dog", "10%", 0, "penultimate", "spectral_plus"),
        ("layer4_0", "pattern", "dog", "5%", 0, "layer4.0", "spectral"),
        ("layer4_0", "pattern", "bird", "5%", 0, "layer4.0", "spectral"),
        ("plus_retrained", "pattern", "bird", "5%", 0, "penultimate", "spectral_plus"),
        ("plus", "pixel", "horse", "10%", 0, "penultimate", "spectral_plus"),
        ("pixel_horse", "pixel", "horse", "10%", 0, "layer4.0", "spectral"),
        ("pixel_horse", "pixel", "horse", "10%", 0, "layer4.0", "spectral_plus"),
        ("long_retrained", "pixel", "bird", "5%", 0, "layer4.0", "spectral_plus"),
        ("long_retrained", "pixel", "bird", "5%", 0, "layer4.0", "random"),
        ("pattern_seed1", "pattern", "horse", "10%", 1, "layer4.0", "spectral"),
        ("pattern_seed1", "pattern", "dog", "10%", 1, "layer4.0", "spectral"),
        ("plus_retrained", "pattern", "dog", "10%", 1, "penultimate", "spectral_plus"),
        ("pixel_seed1", "pixel", "dog", "10%", 1, "layer4.0", "spectral"),
        ("pixel_seed1", "pixel", "dog", "10%", 1, "layer4.0", "random"),
    ]
    return markdown(RETRAINED, [_line(*line) for line in lines])


def _line(
    sweep: str, trigger: str, target: str, ratio: str, seed: int, layer: str, defense: str
) -> list[str]:
    asked = {"trigger": trigger, "target": target, "ratio": ratio, "seed": seed, "defense": defense}
    if layer != "any":
        asked["layer"] = layer
    found = cells(f"paper/{sweep}", **asked)
    shown = [_figures(cell) for cell in found]
    assert shown, asked
    assert all(each == shown[0] for each in shown), asked
    place = layer if layer == "any" else f"`{layer}`"
    return [trigger, target, ratio, str(seed), place, defense, *shown[0]]


def _figures(cell: Cell) -> list[str]:
    return [figure(cell[name], name) for name in RETRAINED[6:]]


@table("layers_separation")
def _separation() -> str:
    """A table from the output of `separation`, which was saved while the features were in the
    store."""
    text = (SWEEPS / "paper/features.md").read_text(encoding="utf-8")
    section = text.split("\n## layers_horse\n")[1].split("\n| trigger")[1]
    head, _, *lines = (
        [c.strip() for c in line.split(" | ")] for line in section.splitlines() if line
    )
    at = [dict(zip(head, line, strict=True)) for line in lines]
    wanted = ("Along δ", "Own largest", "Ratio", "\\|cos\\|", "AUROC top", "AUROC δ |")
    rows = [[f"`{line['protocol.layer']}`", *(line[n].rstrip(" |") for n in wanted)] for line in at]
    names = ["`protocol.layer`", "variance along δ", "the class' own largest", "ratio",
             "cosine of δ and the top direction", "AUROC on that direction",
             "AUROC on δ"]  # fmt: skip
    return markdown(names, rows)
