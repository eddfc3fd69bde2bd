"""Which changes give a cell another id, and which configurations are refused before any work."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from backdoor_lab.core.errors import ConfigError, LabError
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.classes import class_number
from backdoor_lab.run import conf_dir
from backdoor_lab.sweep.compose import ConfigComposer, plain
from backdoor_lab.sweep.preflight import Preflight
from backdoor_lab.sweep.trial import try_network
from tests.helpers.cells import TINY, cell_of, configuration

SAFE = re.compile(r"[a-z0-9_.-]{1,64}\Z")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells") / "store"


@pytest.fixture(scope="module")
def checks() -> Preflight:
    return Preflight()


@pytest.mark.parametrize(
    "same",
    [
        "target=2", "target='bird'", "ratio=0.30000000000000004", "ratio=3e-1",
        "trainer.threads=2.0", "trainer=auto trainer.checkpoint=false",
        "trainer.threads=2 logger=csv name=other protocol=group13",
        "store.root={root}/2", "seed=0.0 recipe.epochs=1.0 recipe.batch_size=32.0 recipe.lr=5e-2",
    ],
)  # fmt: skip
def test_equivalent_configurations_have_the_same_id(
    root: Path, checks: Preflight, same: str
) -> None:
    words = same.format(root=root).split()
    assert checks.cell(configuration(root, *words)).id == checks.cell(configuration(root)).id


def test_the_floating_point_error_of_a_ratio_is_rounded_away(root: Path, checks: Preflight) -> None:
    found, meant = (
        checks.cell(configuration(root, f"ratio={text}"))
        for text in ("0.15000000000000002", "0.15")
    )
    assert found.id == meant.id
    assert found.ratio == 0.15


def test_the_path_of_the_data_does_not_change_the_id(root: Path, tmp_path: Path) -> None:
    import numpy as np

    images = np.zeros((20, 4, 4, 3), np.uint8)
    images[:, 0, 0] = np.arange(20)[:, None]
    labels = np.arange(20) % 2
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "set.npz", train_images=images, train_labels=labels,
                 test_images=images + 100, test_labels=labels)  # fmt: skip
    tiny = [word for word in TINY if not word.startswith("dataset")]
    from hydra import compose, initialize_config_dir

    from backdoor_lab.run import conf_dir
    from backdoor_lab.sweep.compose import plain

    found = []
    for folder in ("a", "b"):
        where = ["dataset=arrays", f"dataset.root={tmp_path}/{folder}/set.npz", "target='1'"]
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            config = compose("config", [*tiny, *where, f"store.root={root}"])
        found.append(Preflight().cell(plain(config)))
    assert found[0].id == found[1].id
    assert found[0].target == "1"


def test_every_option_that_affects_results_changes_the_id(root: Path, checks: Preflight) -> None:
    changes = [
        "", "ratio=0.25", "seed=1", "target=dog", "trigger=pattern", "trigger.color=254",
        "trigger.position=[0,0]", "defense=none", "defense=oracle", "defense=random",
        "defense.removal_budget=15%", "defense.center=false", "protocol=realistic",
        "protocol=backdoorbench", "protocol.placement=replace", "protocol.asr_on=all",
        "protocol.apply_trigger=after_augmentation", "protocol.layer=layer4",
        "protocol.max_removed=50%",
        "model.width=5", "model.stem=imagenet", "model.name=resnet34", "recipe.epochs=2",
        "recipe.flip=true", "recipe=small", "dataset.seed=1", "dataset.noise=13",
        "dataset.per_class_train=21", "dataset.channels=1",
        "source=cat", "source=dog", "ratio=0.1 protocol=group13_literal", "ratio=0.1",
    ]  # fmt: skip
    ids = {}
    for change in changes:
        cell = checks.cell(configuration(root, *change.split()))
        assert SAFE.match(cell.id), cell.id
        ids.setdefault(cell.id, []).append(change)  # type: ignore[attr-defined]
    assert [same for same in ids.values() if len(same) > 1] == []


def test_the_cell_id_names_the_source_class_if_one_is_set(root: Path, checks: Preflight) -> None:
    cells = [
        checks.cell(configuration(root, *words.split()))
        for words in ("", "source=cat", "source=3", "source=cat target=0", "trigger=tact")
    ]
    names = [cell.id.rpartition("-")[0].partition("-r0.3")[0] for cell in cells]
    assert names == [
        "pixel-bird", "pixel-cat-to-bird", "pixel-cat-to-bird", "pixel-cat-to-airplane",
        "tact-bird",
    ]  # fmt: skip
    assert cells[1].id == cells[2].id


def test_cell_ids_are_safe_folder_names_for_any_class_name(root: Path) -> None:
    config = configuration(root, "target=0")
    names = ["../../x", "a b;rm -rf", "ÄÖÜ", "." * 70, "x" * 300, "-", "con\n"]
    for name in names:
        other = Cell.of(config, (name, "b"), "0")
        assert SAFE.match(other.id), other.id
        assert other.id.startswith("pixel-")
    assert len({Cell.of(config, (name, "b"), "0").id for name in names}) == len(names)


REFUSED = [
    # unknown keys and choices, in each group
    ("dataset.sise=3", "sise", "dataset"),
    ("dataset=cifar", "cifar10", "dataset"),
    ("model.depth=3", "depth", "model"),
    ("+model.depth=3", "depth", "model"),
    ("+trigger.colour=3", "'color'", "trigger"),
    ("+protocol.ratio=3", "ratio_of", "protocol"),
    ("+defense.removal_budgets=3", "'removal_budget'", "defense"),
    ("+recipe.epoch=3", "'epochs'", "recipe"),
    ("+trainer.devices=3", "devices", "trainer"),
    ("+store.path=x", "path", "store"),
    ("+foo=1", "foo", "Known: dataset, model"),
    ("trigger=pixle", "pixle", "pixel"),
    ("model.name=resnet81", "'resnet81'", "Did you mean 'resnet"),
    ("protocol.layer=layer9", "'layer9'", "penultimate, last_stage_input, conv1"),
    ("protocol.layer=layer4.2", "Their submodules are accepted too", "layer1.0 or layer1.0:pool"),
    ("protocol.layer=3", "`protocol.layer` must be a non-empty string", "3"),
    ("protocol.layer=null", "`protocol.layer` must be a non-empty string", "None"),
    ("+logger._target_=os.system", "logger", "os.system"),
    ("trigger._target_=os.system", "trigger._target_", "os.system"),
    # types and ranges
    ("ratio=nan", "0 <= ratio <= 1", "nan"),
    ("ratio=1.01", "0 <= ratio <= 1", "got 1.01"),
    ("ratio=-0.1", "0 <= ratio <= 1", "-0.1"),
    ("ratio=10%", "0 <= ratio <= 1", "got '10%': for 10 %, write 0.1"),
    ("recipe.lr=5%", "`recipe.lr`", "for 5 %, write 0.05"),
    ("ratio=true", "0 <= ratio <= 1", "True"),
    ("ratio=null", "0 <= ratio <= 1", "None"),
    ("seed=-1", "0 <= seed", "-1"),
    ("seed=1.5", "`seed`", "1.5"),
    ("seed=x", "`seed`", "'x'"),
    ("recipe.epochs=0", "1 <= recipe.epochs", "0"),
    ("recipe.lr=fast", "recipe.lr", "'fast'"),
    ("model.width=0", "1 <= model.width", "0"),
    ("trigger.color=300", "trigger.color", "300"),
    ("trigger.position=[1]", "[row, column]", "[1]"),
    ("trainer.threads=0", "1 <= trainer.threads", "0"),
    ("trainer.precision=16", "trainer.precision", "'16'"),
    ("trainer.checkpoint=1", "trainer.checkpoint", "true or false"),
    ("dataset.channels=2", "dataset.channels", "2"),
    ("defense.removal_budget=lots", "defense.removal_budget", "'lots'"),
    ("protocol.placement=prepend", "protocol.placement", "'prepend'"),
    # classes
    ("target=10", "`target` 10 is not known", "ship, truck, or 0 to 9."),
    ("target=brid", "`target` 'brid'", "Did you mean 'bird'? Known: airplane, automobile"),
    ("target=-1", "`target` -1", "airplane"),
    ("target=true", "`target`=true was read as true or false", "quote it (target=\"'true'\")"),
    ("target=null", "`target`=null was read as null", "quote it (target=\"'null'\")"),
    ("source=false", "`source`=false was read as true or false", "quote it (source=\"'false'\")"),
    ("target=1.10", "`target`=1.1 was read as a number", "quote it"),
    ("source=brid", "`source` 'brid'", "Did you mean 'bird'?"),
    ("source=bird", "`source` and `target` must differ", "2"),
    ("source=2 target=bird", "must differ", "2"),
    ("source=cat protocol.poison_from=all",
     "protocol.poison_from=all", "protocol.poison_from=source"),
    ("trigger=tact label_mode=all_to_all", "`trigger=tact` attacks one source class", "all_to_all"),
    ("protocol=madry2018", "`protocol.ratio_of=source` needs a class in `source`", "null"),
    # ratios, budgets and covers
    ("ratio=0.001", "`ratio`=0.001 of 20 images", "less than one image"),
    ("protocol.ratio_of=all ratio=0.95", "190 poisoned images", "180 are eligible"),
    ("protocol.ratio_of=count ratio=1.5", "`ratio`", "whole number, got 1.5"),
    ("defense.removal_budget=26",
     "`defense.removal_budget=26` would remove 26 of the 26 examples of class bird",
     "nothing would be left"),
    ("protocol=group13_literal ratio=0.1 defense.filter_scope=all",
     "with ε = 20 would remove 30 of the 20 examples of class airplane",
     "defense.filter_scope=all"),
    ("defense=oracle cover_rate=50", "cover_rate", "50"),
    ("defense=none protocol.placement=replace protocol.poison_from=source source=cat"
     " protocol.ratio_of=count ratio=20", "relabels every training image of class cat", "append"),
    # incompatible options
    ("trigger.position=[8,0]", "pixel (8, 0) lies outside images of 8x8", "`trigger`"),
    ("trigger.position=[0,-9]", "pixel (0, -9) lies outside images of 8x8", "`trigger`"),
    ("ratio=0 trigger.position=[8,0]", "pixel (8, 0) lies outside images of 8x8", "`trigger`"),
    ("model.name=alexnet model.width=null model.stem=null", "`model.name=alexnet`", "3x8x8"),
    ("trainer=gpu", "trainer=gpu", "trainer=cpu"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "rule", "more"), REFUSED, ids=[case[0] for case in REFUSED])
def test_bad_configurations_are_refused_before_any_work(
    root: Path, checks: Preflight, monkeypatch: pytest.MonkeyPatch, words: str, rule: str, more: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    kinds = (ConfigError, HydraException, OmegaConfBaseException)
    with pytest.raises(kinds) as caught:
        checks.cell(configuration(root, *words.split()))
    message = str(caught.value)
    assert rule in message
    assert more in message
    if isinstance(caught.value, LabError):
        assert "\n" not in message
        assert caught.value.exit_code == 2


def test_repairs_by_sgd_refuse_recipes_with_adamw(root: Path) -> None:
    words = ("recipe=adamw", "defense=fine_pruning", "protocol.clean_holdout=20")
    with pytest.raises(ConfigError, match="FinePruning trains by SGD .*optimizer=sgd"):
        cell_of(root, *words)
    assert cell_of(root, "recipe=adamw", "defense=spectral").recipe.optimizer == "adamw"
    assert cell_of(root, *words, "defense=fine_tuning").recipe.momentum == 0


@pytest.mark.parametrize(
    "words", ["~recipe.lr", "~model.width", "~trainer.threads", "~protocol.layer", "~store.root",
              "~recipe", "~trainer", "~logger", "~seed", "~target", "model=null", "trainer=null",
              "model.width=32.0", "store.root=null", "protocol=null"],
)  # fmt: skip
def test_missing_keys_are_refused_and_named_in_the_error(
    root: Path, checks: Preflight, words: str
) -> None:
    config, key = edited(root, words)
    with pytest.raises(ConfigError, match=re.escape(key)):
        checks.cell(config)


@pytest.mark.parametrize(
    ("words", "default"),
    [("trainer.threads=null", "trainer.threads=1"), ("~dataset.size", "dataset.size=32")],
)
def test_missing_optional_keys_get_their_default_values(
    root: Path, checks: Preflight, words: str, default: str
) -> None:
    config, _ = edited(root, words)
    assert checks.cell(config).id == checks.cell(configuration(root, default)).id


def edited(root: Path, words: str) -> tuple[dict[str, Any], str]:
    """A configuration in which one key is removed or changed, and the name of the key."""
    config = configuration(root)
    key, _, value = words.lstrip("~").partition("=")
    group, _, name = key.partition(".")
    place = config[group] if name else config
    if words.startswith("~"):
        del place[name or group]
    else:
        place[name or group] = {"null": None, "32.0": 32.0}[value]
    return config, name or group


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        said = rf"{tmp_path}.*file is (not a writable|a file, not a folder)"
        with pytest.raises(ConfigError, match=said):
            cell_of(root)
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(ConfigError, match="not a writable directory"):
            cell_of(tmp_path / "locked" / "store")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (2, "2"),
        (10, "10"),
        (3, "1"),
        ("10", "10"),
        (1, "1"),
        ("Gr\u00f6\u00dfe", "Gro\u0308\u00dfe"),
    ],
)
def test_a_class_name_takes_precedence_over_a_class_number(given: int | str, name: str) -> None:
    """Class names may be numbers that differ from the class indices, or decomposed Unicode."""
    classes = ("0", "10", "2", "1", "Gro\u0308\u00dfe")
    assert classes[class_number("target", given, classes)] == name


def test_a_number_that_is_not_a_class_name_is_a_class_index() -> None:
    assert class_number("target", 1, ("0", "10", "2")) == 1


@pytest.mark.parametrize("key", ["target", "source"])
def test_the_error_for_an_ambiguous_class_number_names_both_classes(key: str) -> None:
    classes = ("01", "02", "03", "04")
    with pytest.raises(ConfigError) as caught:
        class_number(key, 1, classes)
    for part in ("class number 1, which is '02'", "called '01'", f"{key}=\"'02'\"", "\"'01'\""):
        assert part in str(caught.value)
    # Unambiguous: a string, a number that fits one class only, an exact name.
    assert class_number(key, "01", classes) == 0
    assert class_number(key, 0, classes) == 0
    assert class_number(key, 0, ("00", "01")) == 0
    assert class_number(key, 1, ("1", "0")) == 0


def test_holding_out_every_image_of_a_test_class_is_refused(tmp_path: Path) -> None:
    images = np.zeros((52, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(52)
    labels = np.repeat([0, 1], [46, 6])
    np.savez(tmp_path / "set.npz", train_images=images[::-1], train_labels=labels[::-1],
             test_images=images + 100, test_labels=labels)  # fmt: skip
    words = ("dataset=arrays", f"dataset.root={tmp_path}/set.npz", "target='0'")
    tiny = [word for word in TINY if not word.startswith("dataset")]

    def cell(held: float) -> Cell:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            asked = [
                *tiny,
                *words,
                f"protocol.clean_holdout={held}",
                f"store.root={tmp_path}/store",
            ]
            asked.append("ratio=0.05")
            return Preflight().cell(plain(compose("config", asked)))

    with pytest.raises(ConfigError, match=r"would leave 0 of the 6 test images of class 1 "):
        cell(12)
    assert cell(6.0).id == cell(6).id
    assert cell(6.0).protocol["clean_holdout"] == 6


def test_a_data_set_without_a_name_is_named_after_its_file(tmp_path: Path) -> None:
    images = np.zeros((40, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(40)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "grey.npz", train_images=images, train_labels=labels,
             test_images=images + 100, test_labels=labels)  # fmt: skip
    tiny = [word for word in TINY if not word.startswith("dataset")]
    words = ("dataset=arrays", f"dataset.root={tmp_path}/grey.npz", "target='1'")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = plain(compose("config", [*tiny, *words, f"store.root={tmp_path}/store"]))
    assert config["dataset"]["name"] is None
    assert Preflight().cell(config).choices["dataset"] == "grey"


def test_a_network_that_returns_more_than_logits_in_training_is_refused() -> None:
    model = {"name": "googlenet", "width": None, "stem": None}
    with pytest.raises(
        ConfigError, match=r"`model.name=googlenet` returns GoogLeNetOutputs while t"
    ):
        try_network(model, "penultimate", (3, 64, 64), 10)


def test_the_configuration_of_a_job_does_not_depend_on_earlier_jobs(root: Path) -> None:
    jobs = [
        ["defense=random", "defense.like={removal_budget:15%}"],
        ["defense=random", "defense.like={center:false}"],
        ["defense=random", "ratio=0.2"],
    ]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        loader = ConfigLoaderImpl(GlobalHydra.instance().config_loader().get_search_path())
        base = [*TINY, f"store.root={root}"]
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        expander = ConfigComposer(loader, master)
        found = [expander.config([*base, *job]) for job in jobs]
        asked = [plain(compose("config", [*base, *job])) for job in jobs]
    assert found == asked


def test_the_layer_of_a_defense_replaces_the_layer_of_the_protocol(
    root: Path, checks: Preflight
) -> None:
    """`random` uses the layer of the method that it copies. `defense.layer=null` changes neither
    the protocol's layer nor the id."""

    def cell(*words: str) -> Cell:
        return checks.cell(configuration(root, *words))

    plain_cell = cell("defense=spectre")
    assert plain_cell.protocol["layer"] == "penultimate"
    assert cell("defense=spectre", "defense.layer=null").id == plain_cell.id
    own = cell("defense=spectre", "defense.layer=layer3")
    assert own.protocol["layer"] == own.decides()["protocol"]["layer"] == "layer3"
    assert own.id != plain_cell.id
    control = cell(
        "defense=random", "defense.like._target_=backdoor_lab.defenses.spectre.SPECTRE",
        "+defense.like.layer=layer2",
    )  # fmt: skip
    assert control.protocol["layer"] == "layer2"
    assert cell("defense=none", "protocol.layer=layer2").protocol["layer"] == "layer2"
    assert cell("defense=beatrix", "protocol.clean_holdout=20").protocol["layer"] == "penultimate"


def test_an_unknown_layer_of_a_defense_is_refused_before_any_work(
    root: Path, checks: Preflight
) -> None:
    with pytest.raises(ConfigError, match=r"layer`.*layer9"):
        checks.cell(configuration(root, "defense=spectre", "defense.layer=layer9"))
    words = ("defense=beatrix", "defense.layer=layer9", "protocol.clean_holdout=20")
    with pytest.raises(ConfigError, match=r"`defense\.layer`.*layer9"):
        checks.cell(configuration(root, *words))
