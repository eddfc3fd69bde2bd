"""A tiny network with the poisoned data set that it is measured on, as BackdoorBench releases
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from backdoor_lab.training.models import build_model
from tests.helpers.foreign_layouts import CLASSES, TEST, clean_images, record_folder, stamped

MODEL = {"name": "resnet18", "width": 4, "stem": "cifar"}
MEAN, STD = [100.0, 100.0, 100.0], [50.0, 50.0, 50.0]


def network(seed: int = 0) -> torch.nn.Module:
    """An untrained network for the classes of the data set."""
    return build_model(MODEL, channels=3, classes=len(CLASSES), seed=seed).eval()


def predicted(net: torch.nn.Module, images: Any) -> torch.Tensor:
    """The classes that the network predicts for uint8 images."""
    values = (torch.from_numpy(images).float() - MEAN[0]) / STD[0]
    with torch.inference_mode():
        return net(values).argmax(dim=1)


def released(base: Path, seed: int = 0) -> tuple[Path, dict[str, Any]]:
    """Writes a record folder with a network; returns it with a true card of the network."""
    root = record_folder(base)
    path = root / "attack_result.pt"
    net = network(seed)
    content = torch.load(path, weights_only=False)
    torch.save(content | {"model": net.state_dict()}, path)
    images, labels = clean_images(TEST, 1)
    attacked = labels != 0
    nat = float((predicted(net, images).numpy() == labels).mean())
    asr = float((predicted(net, stamped(images[attacked])).numpy() == 0).mean())
    return root, card_for(nat, asr, int(attacked.sum()))


def card_for(nat: float, asr: float, attacked: int) -> dict[str, Any]:
    """The card of the network without hashes of the test sets."""
    return {
        "format": 1, "kind": "network", "model": MODEL, "classes": list(CLASSES),
        "image": [3, 8, 8], "normalization": {"mean_255": MEAN, "std_255": STD},
        "claims": {"nat": {"value": nat, "n": TEST}, "asr": {"value": asr, "n": attacked}},
        "target": CLASSES[0],
    }  # fmt: skip


def written(path: Path, card: Any) -> Path:
    """Writes a card; returns its path."""
    path.write_text(card if isinstance(card, str) else json.dumps(card))
    return path
