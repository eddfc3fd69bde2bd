"""Recorded results: every trigger, every defense, two trained networks and twelve cells, all tiny.

    python -m tests.golden.snapshots             # prints differences from snapshots.json
    python -m tests.golden.snapshots trigger/    # only for cases with this prefix
    python -m tests.golden.snapshots --write trigger/blended   # rewrites these cases

Rewrite a case only for a change that is meant to alter its result, and say so in the commit.
Integer arrays that do not depend on floating-point results are compared by hash on every machine.
Other arrays are compared by hash if the processor, the instruction set and the version of torch are
those named in the file. Otherwise, they are compared by value, within `TOLERANCE`. At the demo's
learning rate, a difference in the last digit grows during training into a different network.
Therefore the demo's metrics are compared only on the machine named in the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from backdoor_lab.attacks.base import AttackContext, Trigger
from backdoor_lab.attacks.plan import PoisonSpec, implied
from backdoor_lab.attacks.poison import poison
from backdoor_lab.core.instantiate import Shared, build
from backdoor_lab.core.types import Features, LabeledImages, TrainingSet
from backdoor_lab.defenses.base import DefenderKnowledge, Defense, OracleControl
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.training.evaluate import channel_stats
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.train import TrainingJob, fit
from tests.helpers.cells import BRIEF_STEPS, CPU, run_here
from tests.helpers.contexts import context

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("snapshots.json")
TOLERANCE = 1e-3
"""Relative to the largest value in the sample, for floating-point results on another machine."""
SAMPLE = 24
CLASSES = ("a", "b", "c", "d")
# Enough optimization steps to reveal a change, but few enough for a test.
BRIEF = {
    "steps": 2,
    "epochs": 1,
    "pretrain_epochs": 1,
    "training_epochs": 1,
    "unlearning_epochs": 1,
}
# Triggers whose images are the outcome of floating-point optimization or of a network.
OPTIMIZED = (
    "label_consistent", "low_frequency_authors", "narcissus", "sleeper_agent", "steganographic",
)  # fmt: skip
DEMO = (
    "dataset.size=16", "dataset.per_class_train=60", "dataset.per_class_test=20",
    "dataset.noise=8", "model.width=16", "recipe=demo", "recipe.epochs=2", "recipe.batch_size=32",
    "recipe.lr=0.1", "recipe.weight_decay=5.5e-3", "defense=spectral",
)  # fmt: skip

EARLIER = {"spectral_uncentered": "spectral_uncentred"}
"""Choices renamed since the file was written, each with its name in the file."""

Case = dict[str, Any]


def environment() -> dict[str, str]:
    """Describes everything that determines the last digits of a floating-point result."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    facts = dict(
        reversed([tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line])
    )
    keys = ("model name", "cpu family", "model", "stepping", "cache size")
    return {
        "processor": ", ".join(facts.get(key, "?") for key in keys),
        "features": hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:10],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "torch": torch.__version__,
    }


def array(values: Tensor, *, exact: bool = False) -> Case:
    """An array as stored in a snapshot: its shape, its hash, and, unless `exact`, some of its
    values."""
    found = values.detach().cpu().contiguous().numpy()
    text = f"{found.dtype}{found.shape}".encode() + found.tobytes()
    case: Case = {"shape": list(found.shape), "sha256": hashlib.sha256(text).hexdigest()}
    if not exact:
        flat = found.astype(np.float64).ravel()
        picked = flat[np.linspace(0, max(0, len(flat) - 1), min(SAMPLE, len(flat))).astype(int)]
        seen = flat[~np.isnan(flat)]
        case["mean"] = float(seen.mean()) if len(seen) else None
        case["sample"] = [None if np.isnan(v) else float(v) for v in picked]
    return case


def differences(case: Case, now: Case, *, same_machine: bool) -> list[str]:
    """Describes where a case differs from its snapshot. Empty if there is no difference."""
    if case.keys() != now.keys():
        return [f"has {sorted(now)} in place of {sorted(case)}"]
    return [text for key in case for text in _differs(key, case[key], now[key], same_machine)]


def _differs(key: str, then: Any, now: Any, same_machine: bool) -> Iterator[str]:
    if isinstance(then, dict) and "sample" in then and not same_machine:
        if then["shape"] != now["shape"]:
            yield f"{key}: shape {now['shape']} in place of {then['shape']}"
        elif not _close([then["mean"], *then["sample"]], [now["mean"], *now["sample"]]):
            yield f"{key}: values differ by more than {TOLERANCE:g} of the largest"
    elif isinstance(then, dict) and "sha256" in then:
        if then["sha256"] != now["sha256"]:
            yield f"{key}: another array of shape {now['shape']}"
    elif isinstance(then, dict):
        if same_machine and then != now:
            yield f"{key}: {now} in place of {then}"
    elif then != now:
        yield f"{key}: {now!r} in place of {then!r}"


def _close(then: list[float | None], now: list[float | None]) -> bool:
    if [v is None for v in then] != [v is None for v in now]:
        return False
    a, b = (np.array([v for v in values if v is not None]) for values in (then, now))
    return bool(np.abs(a - b).max(initial=0) <= TOLERANCE * np.abs(a).max(initial=1e-12))


# Inputs: NumPy's generators give the same numbers on every machine.


def pictures(n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Smooth random images uint8 (n, C, H, W)."""
    channels, height, width = shape
    coarse = np.random.default_rng(seed).integers(0, 226, (n, channels, 4, 4), dtype=np.uint8)
    large = coarse.repeat(height // 4, axis=2).repeat(width // 4, axis=3)
    noise = np.random.default_rng(seed + 1).integers(0, 30, large.shape, dtype=np.uint8)
    return torch.from_numpy(large + noise)


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


class Network(nn.Module):
    """A convolution, batch normalization, pooling and a linear layer in float64."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last = nn.Linear(6 * 16, len(CLASSES))
        self.double()
        for number, weight in enumerate(self.parameters()):
            if weight.ndim > 1:
                weight.data = normal(*weight.shape, seed=seed + number) / weight[0].numel() ** 0.5
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images.double() / 128 - 1)).relu()
        said: Tensor = self.last(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
        return said


def names(group: str) -> list[str]:
    """The choices of a configuration group."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def options(group: str, name: str) -> dict[str, Any]:
    """A choice's options under protocol=group13, with shortened optimization."""
    whole = OmegaConf.create(
        {
            "source": None,
            "protocol": OmegaConf.load(ROOT / "conf/protocol/group13.yaml"),
            group: OmegaConf.merge(
                OmegaConf.load(ROOT / "conf/config.yaml").get(group) or {},
                OmegaConf.load(ROOT / f"conf/{group}/{name}.yaml"),
            ),
        }
    )
    for key, value in {**BRIEF, **BRIEF_STEPS.get(name, {})}.items():
        if key in whole[group]:
            whole[group][key] = value
    found: Any = OmegaConf.to_container(whole[group], resolve=True)
    return found


# Cases.


def trigger_case(name: str) -> Case:
    """The training set of 64 images after poisoning with a trigger, and triggered test images."""
    trigger = build("trigger", options("trigger", name), Trigger)
    train = LabeledImages(pictures(64, (3, 32, 32), 1), torch.arange(64) % 4, CLASSES, "snapshot")
    source = 2 if trigger.source_specific else None
    words = {"label_mode": trigger.label_mode, "cover_rate": min(trigger.cover_rate, 1.0)}
    chosen = implied(trigger.label_mode, on_source=source is not None)
    plan = PoisonSpec(1, source, 0.3, **{**words, **chosen})
    work = AttackContext(train, 1, source, 5, lambda: Network(3, 7))
    trigger.check_image_size(3, 32, 32)
    if trigger.needs_preparing:
        trigger.state = trigger.prepare(work)
    made = poison(train, trigger, plan, seed=5, context=work)
    exact = not {name, name.removesuffix("_authors")} & {*OPTIMIZED}
    return {
        "rows": array(made.training.rows, exact=exact),
        "index": array(made.training.index, exact=True),
        "labels": array(made.training.labels, exact=True),
        "source_index": array(made.source_index, exact=True),
        "cover_index": array(made.cover_index, exact=True),
        "triggered": array(trigger(pictures(6, (3, 32, 32), 9)), exact=exact),
    }


def planted() -> tuple[Features, Tensor]:
    """Features of 160 examples of four classes, and a mask of the twelve examples of class 1 that
    are shifted."""
    values = normal(160, 6, seed=3) + 2 * normal(4, 6, seed=4)[torch.arange(160) % 4]
    labels = torch.arange(160) % 4
    is_poison = torch.arange(160) >= 148
    labels[is_poison] = 1
    values[is_poison] += 5 * normal(6, seed=6).abs() / 2
    return Features(values.float(), labels), is_poison


def defense_case(name: str) -> Case:
    """The scores and removals of a filter or control, or the weights after a repair."""
    kinds: Any = (Defense, OracleControl, ModelRepair)
    shared = Shared(asdict(DEFAULTS), FilterOptions)
    defense: Any = build("defense", options("defense", name), kinds, shared)
    features, is_poison = planted()
    images = pictures(160, (3, 16, 16), 11)
    images[is_poison, :, -3:, -3:] = 255
    aside = (pictures(48, (3, 16, 16), 13), torch.arange(48) % 4)
    given = context(
        images, features.labels, network=Network(3, 17), fresh=lambda seed: Network(3, 19 + seed),
        clean=aside, seed=5, classes=4,
    )  # fmt: skip
    if isinstance(defense, ModelRepair):
        network, _ = defense.repair(given)
        flat = [value.double().flatten() for value in network.state_dict().values()]
        return {"weights": array(torch.cat(flat))}
    if isinstance(defense, OracleControl):
        verdict = defense.judge(is_poison)
    else:
        clean = Features(normal(48, 6, seed=8).float(), aside[1])
        told = defense.requires()
        verdict = defense(
            features,
            DefenderKnowledge(
                given.classes, target=1, epsilon=12, seed=5,
                clean=clean if "clean" in told else None,
                context=replace(given, clean=given.clean if "clean images" in told else None)
                if "context" in told else None,
            ),
        )  # fmt: skip
    return {"keep": array(verdict.keep, exact=True), "scores": array(verdict.scores)}


def training_case(**recipe: Any) -> Case:
    """The weights of a ResNet18 of width 16 after two epochs on 96 images.

    The learning rate is low, so that rounding differences stay small on another machine.
    """
    images, labels = pictures(96, (3, 16, 16), 21), torch.arange(96) % 4
    images[labels == 1, :, 4:8, 4:8] = 250
    mean, std = channel_stats(images)
    training = TrainingSet(images, images[:0], torch.arange(96), labels, CLASSES, "")
    said = {"name": "t", "epochs": 2, "batch_size": 32, "lr": 0.005, "schedule": "onecycle",
            "warmup": 0.25, **recipe}  # fmt: skip
    model = {"name": "resnet18", "width": 16, "stem": "cifar"}
    module = fit(TrainingJob(model, Recipe.of(said), training, 1, mean, std), CPU)
    weights = [value.double().flatten() for value in module.net.state_dict().values()]
    return {"weights": array(torch.cat(weights)), "loss": array(torch.tensor(module.history))}


def demo_case(trigger: str, target: str, ratio: str) -> Case:
    """The metrics of one of the demo's twelve cells, at a reduced size."""
    with tempfile.TemporaryDirectory() as folder:
        record = run_here(
            Path(folder, "store"), Path(folder, "cell"), *DEMO,
            f"trigger={trigger}", f"target={target}", f"ratio={ratio}",
        )  # fmt: skip
    counts = record["counts"]
    poisoned = ("n_train", "n_clean", "n_poisoned", "n_eligible", "n_removed", "n_test", "n_asr")
    return {
        **{key: counts[key] for key in poisoned},
        "measured": {
            **{key: record[key] for key in ("nat1", "asr1", "nat2", "asr2")},
            "pois_left": counts["pois_left"],
            "auroc": record["detection"]["auroc"],
            "weights": [record["hashes"]["weights1"], record["hashes"]["weights2"]],
        },
        "poison_indices": array(torch.tensor(record["poison_indices"]), exact=True),
    }


def cases() -> dict[str, Callable[[], Case]]:
    """Every case by its name."""
    found: dict[str, Callable[[], Case]] = {}
    for name in names("trigger"):
        found[f"trigger/{name}"] = lambda name=name: trigger_case(name)  # type: ignore[misc]
    for name in names("defense"):
        found[f"defense/{EARLIER.get(name, name)}"] = lambda name=name: defense_case(name)  # type: ignore[misc]
    found["training/plain"] = training_case
    found["training/crop and flip"] = lambda: training_case(crop_padding=2, flip=True)
    for trigger in ("pixel", "pattern"):
        for target in ("bird", "dog", "horse"):
            for ratio in ("0.05", "0.1"):
                asked = (trigger, target, ratio)
                found["demo/" + " ".join(asked)] = lambda asked=asked: demo_case(*asked)  # type: ignore[misc]
    return found


def computed(case: Callable[[], Case]) -> Case:
    """Computes a case on one thread, independently of the state of torch's global generator."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return json.loads(json.dumps(case()))


def read() -> dict[str, Any]:
    """Reads the committed snapshots: `environment` and `cases`."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def write(content: dict[str, Any]) -> None:
    """Writes one line per case, so that a commit shows which cases were rewritten."""
    lines = [f"{json.dumps(name)}: {json.dumps(content['cases'][name], sort_keys=True)}"
             for name in sorted(content["cases"])]  # fmt: skip
    head = json.dumps(content["environment"], sort_keys=True)
    body = ",\n".join(lines)
    FILE.write_text(f'{{"environment": {head},\n"cases": {{\n{body}\n}}}}\n')


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Exit code 0 if nothing differs, 1 if something does."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.snapshots", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of cases' names; none: all")
    parser.add_argument("--write", action="store_true", help="write these cases anew")
    asked = parser.parse_args(arguments)
    known = read() if FILE.exists() else {"environment": environment(), "cases": {}}
    same, bad = known["environment"] == environment(), 0
    for name, case in cases().items():
        if asked.names and not name.startswith(tuple(asked.names)):
            continue
        now = computed(case)
        if asked.write:
            known["cases"][name] = now
            continue
        told = differences(known["cases"].get(name, {}), now, same_machine=same)
        bad += bool(told)
        for text in told:
            print(f"{name}: {text}")
    if asked.write:
        if known["environment"] != environment():
            print("these cases come from another machine than the rest of the file: write all")
            return 1
        write(known)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
