"""What papers, their authors' repositories and other studies report of the attacks in
multirun_reports/attacks/published, with the source of each figure. All figures are of CIFAR-10
unless stated otherwise."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from backdoor_lab.core.errors import many
from tests.documents.cells import SWEEPS, Cell, cells, figure
from tests.documents.markers import markdown, table

SWEEP = "attacks/published"
#: One run of BackdoorBench with PreActResNet18. The line of each attack follows.
BENCH = "`backdoorbench/backdoorbench.github.io@b98eab4:static/data/results.csv:"
WANET = "`VinAIResearch/Warping-based_Backdoor_Attack-release@45e8c33:README.md:"


@dataclass(frozen=True)
class Reported:
    """The figures that are closest to a measured cell.

    - `accuracy`, `asr`: in %, as text; empty if the source does not give it.
    - `source`: where the figures are; empty if none was reached.
    - `differs`: what differs here from the study, apart from network, training and JPEG images.
    - `limit`: the largest change, in gray levels, that the authors' code or their paper allows, or
      another measure of visibility that they state.
    """

    accuracy: str = ""
    asr: str = ""
    source: str = ""
    differs: str = ""
    limit: str = ""


REPORTED = {
    "blended": Reported(
        "93.5", "99.9", f"BackdoorBench, 10 % ({BENCH}11606`)",
        "noise blended in, not BackdoorBench's image; the same opacity",
        "the pattern at 0.2",
    ),
    "sinusoid_backdoorbench": Reported(
        "93.6", "97.1", f"BackdoorBench, 5 % ({BENCH}12165`)",
        "nothing; the paper uses other data, poisons 20 to 40 % of the class, and trains with a"
        " lower amplitude than it tests with",
        "40, of BackdoorBench",
    ),
    "warp": Reported(
        "94.15", "99.55",
        f"authors, 10 % ({WANET}68`)",
        "the authors control training and draw poison and noise anew for each batch;"
        f" BackdoorBench reports 91.3, 89.7 ({BENCH}12406`)",
    ),
    "low_frequency": Reported(
        "93.2", "99.3", f"BackdoorBench, 10 % ({BENCH}12006`)",
        "a drawn pattern, theirs is optimized",
        "51",
    ),
    "low_frequency_authors": Reported(
        "", "95", "the paper, as quoted in `YiZeng623/frequency-backdoor#1`",
        "optimized on another network, and for the configured target class",
        "51",
    ),
    "frequency": Reported(
        "about 86", "about 100",
        "authors, 5 %, read off a chart (`SoftWiser-group/FTrojan@300e054:Poster.pdf`)",
        "the authors keep the epoch with the best accuracy",
    ),
    "tact": Reported(differs="a white square instead of an image; 150 covers of two classes"),
    "adaptive_blend": Reported(
        differs="noise instead of an image; covers come from outside the target class",
        limit="pieces of the pattern at 0.15; at test time the pattern at 0.2",
    ),
    "adaptive_patch": Reported(differs="drawn patches instead of images, of the same sizes"),
    "reflection": Reported(
        "", "at least 75.2",
        "authors, on five other data sets, less than 3.27 % (`liuyunfei.net/projects/eccv20`)",
        "drawn scenes, neither chosen by their effect nor filtered",
        "SSIM 0.7 to 0.85",
    ),
    "patch": Reported(
        "91.3", "95.0", f"BackdoorBench, 10 % ({BENCH}11526`)",
        "one pixel away from the corner; no crop and no flip, which cut or move the patch there",
    ),
    "pixel": Reported(
        differs="nothing; position, color and classes of Tran et al.'s code"
        " (`MadryLab/backdoor_data_poisoning@c15096f:config.json`)",
    ),
    "pattern": Reported(
        "93.24", "100", "ABL's authors, 10 % (WRN-16-1; `bboylyg/ABL@3fd736c:README.md:188`)",
        "four white pixels, in ABL the five others of the 3 × 3 are black; no crop and no flip",
    ),
    "label_consistent": Reported(
        "93.8", "90.6", f"BackdoorBench, 1 % ({BENCH}11924`)",
        "a surrogate that is trained normally; BackdoorBench's images are files",
        "8 and the marks, 255",
    ),
    "narcissus": Reported(
        "", "78.1 to 100", "a user's four runs of the authors' code (`reds-lab/Narcissus#3`)",
        "300 steps on 64 images, the authors' 15,000 on 350; no other data for the surrogate",
        "16; 48 at test time",
    ),
    "sleeper_agent_authors": Reported(
        "", "85.27",
        "paper, mean over more than 20 pairs of classes (`hsouri/Sleeper-Agent#1`)",
        "one pair of classes; the surrogate is not retrained; a drawn patch",
        "16; at test time the patch",
    ),
    "steganographic_authors": Reported(
        "92.9", "97.9", f"BackdoorBench, 10 %, 1 bit ({BENCH}12246`)",
        "100 bits, the paper's, in images of 32 pixels, not 224; another encoder",
        "16 here, none there",
    ),
}  # fmt: skip


@table("attacks_published")
def _published() -> str:
    """One row per measured trigger: our figures, the ASR of a network trained without poison, and
    the figures that others report."""
    attacked = [cell for cell in cells(SWEEP) if cell["Ratio"] != "0%"]
    without = {_attack(cell): cell["ASR1"] for cell in cells(SWEEP, ratio="0%")}
    rows = []
    for cell in attacked:
        name, paper = cell["Trigger"], REPORTED[cell["Trigger"]]
        shares = [figure(cell[column], column, 1) for column in ("Nat1", "ASR1")]
        clean = without.get(_attack(cell))
        shares.append("–" if clean is None else figure(clean, "ASR1", 1))
        ratio = many(cell["#Pois"], "image") if _counted(cell) else cell["Ratio"]
        rows.append([f"`{name}`", cell["Target"], ratio, *shares, paper.accuracy or "–",
                     paper.asr or "–", paper.source or "not reached", paper.differs])  # fmt: skip
    head = ["`trigger=`", "target", "ratio", "Nat1", "ASR1", "ASR1 at 0 %", "reported: accuracy",
            "ASR", "by", "what differs here"]  # fmt: skip
    return markdown(head, rows, right="lllrrrrrll")


def _attack(cell: Cell) -> tuple[str, ...]:
    return tuple(str(cell[name]) for name in ("Trigger", "Source", "Target"))


def _counted(cell: Cell) -> bool:
    return bool(cell["record"]["config"]["protocol"]["ratio_of"] == "count")


@table("attacks_published_visibility")
def _visibility() -> str:
    """One row per measured trigger, from the file that backdoor_lab.distortion wrote."""
    columns = [
        f"{name}_{when}" for when in ("train", "test") for name in ("psnr", "ssim", "largest")
    ]
    rows = []
    with (SWEEPS / SWEEP / "distortion.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            name = line["trigger"].partition("@")[0]
            shown = [f"{float(line[c]):.{3 if c.startswith('ssim') else 1}f}" for c in columns]
            rows.append([f"`{name}`", *shown, REPORTED[name].limit or "–"])
    head = ["`trigger=`", "training: PSNR", "SSIM", "largest", "test: PSNR", "SSIM", "largest",
            "limit"]  # fmt: skip
    return markdown(head, rows, right="lrrrrrrl")
