"""Names of plug-ins that collide, and what is read of packages that are not trusted."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backdoor_lab.config_loader import conf_dir
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.identity.plugin_code import plugin_facts
from backdoor_lab.plugin_configs import PluginConfigs
from backdoor_lab.plugins.methods import distribution_of, entry_points, untrusted
from backdoor_lab.plugins.trust import Trust, trust, trusted
from tests.helpers.blocks import blocks
from tests.helpers.project import PACKAGE, ROOT

TRIGGER = """
from backdoor_lab.attacks.base import Trigger
class Dot(Trigger):
    def __init__(self, *, row: int = 3) -> None:
        self.row = row
    def apply_test(self, images):
        images[:, :, self.row, 0] = 255
        return images
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with entry points and, in `conf`, YAML files. Its code must not be
    imported unless it is trusted: the name ``IMPORTED`` in `sys` says so."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "IMPORTED", [], raising=False)
    packages = []

    def add(package: str, points: str, *conf: str) -> None:
        packages.append(package)
        folder, info = tmp_path / package, tmp_path / f"{package}-1.0.dist-info"
        (folder / "conf").mkdir(parents=True)
        info.mkdir()
        (folder / "__init__.py").write_text(f"import sys\nsys.IMPORTED.append({package!r})\n")
        (folder / "dots.py").write_text(TRIGGER)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        for name in conf:
            (folder / "conf" / name).parent.mkdir(exist_ok=True)
            (folder / "conf" / name).write_text(f"_target_: {package}.dots.Dot\nname: dot\n")

    yield add
    trust(Trust())
    for name in [n for n in sys.modules if n.partition(".")[0] in packages]:
        del sys.modules[name]


def configs(*packages: str) -> PluginConfigs:
    return PluginConfigs.of(Trust(packages), Path(conf_dir()))


def points(name: str = "dot", package: str = "one", group: str = "triggers") -> str:
    return f"[backdoor_lab.{group}]\n{name} = {package}.dots:Dot\n"


def test_entry_points_are_listed_without_importing_anything(install: Install) -> None:
    install("one", points())
    assert [each.module for each in entry_points() if each.name == "dot"] == ["one.dots"]
    said = untrusted("trigger", "dot", Trust(("other",)))
    assert said is not None
    assert "allow_plugins=[one,other]" in said
    assert untrusted("trigger", "dot", Trust(("one",))) is None
    assert untrusted("defense", "dot", Trust()) is None
    assert sys.IMPORTED == []  # type: ignore[attr-defined]


def test_the_distribution_of_an_editable_installation_is_found_by_its_entry_points(
    install: Install, tmp_path: Path
) -> None:
    install("one", points())  # There is no RECORD, and so no list of files.
    (tmp_path / "one-1.0.dist-info").rename(tmp_path / "one_dist-2.5.dist-info")
    metadata = tmp_path / "one_dist-2.5.dist-info/METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: one-dist\nVersion: 2.5\n")
    assert "one" not in importlib.metadata.packages_distributions()
    trust(Trust(("one",)))
    facts = plugin_facts("one")
    assert (facts["distribution"], facts["version"]) == ("one-dist", "2.5")
    assert distribution_of("nothing_at_all") is None
    assert sys.IMPORTED == []  # type: ignore[attr-defined]


def test_only_methods_without_a_yaml_file_are_imported(install: Install) -> None:
    install("one", points(), "trigger/dot.yaml")
    install("two", points("spot", "two"))
    found = configs("one", "two")
    assert sys.IMPORTED == ["two"]  # type: ignore[attr-defined]
    assert found.generated == {
        ("trigger", "spot"): {"_target_": "two.dots.Dot", "name": "spot", "row": 3}
    }
    assert [*found.folders] == ["one"] or {*found.folders} == {"one", "two"}


def test_names_that_two_plugins_or_a_plugin_and_this_package_have_are_refused(
    install: Install,
) -> None:
    install("one", points())
    install("two", points(package="two"))
    install("three", points("pixel", "three"))
    install("four", points("four", "four"), "defense/spectral.yaml")
    install("five", points("five", "five"), "config.yaml")
    install("six", points("Not-A-Name", "six"))
    install("warp", points("seven", "warp"))
    cases = {
        ("one", "two"): "the plug-in two has a trigger called dot, and so has the plug-in one",
        ("three",): "three has a trigger called pixel, and so has this package: give it another",
        ("four",): r"a defense called spectral \(conf/defense/spectral.yaml\), and so has this",
        ("five",): r"\(conf/config.yaml\), and so has this package",
        ("six",): "calls a trigger 'Not-A-Name': a name has only lower-case letters",
        ("warp",): "the plug-in warp has the name of a trigger of this package: rename",
    }
    for packages, said in cases.items():
        with pytest.raises(ConfigError, match=said):
            configs(*packages)
        assert trusted() == Trust()
    # A collision of packages that are not trusted does not matter.
    assert ("trigger", "dot") in configs("one").generated


def test_an_entry_point_into_this_package_or_to_nothing_is_refused(install: Install) -> None:
    install("one", "[backdoor_lab.triggers]\ndot = one.dots:Missing\n")
    install("two", "[backdoor_lab.triggers]\nspot = backdoor_lab.attacks.pixel:Pixel\n")
    with pytest.raises(ConfigError, match="`trigger=dot`: one has no Missing in one.dots"):
        configs("one")
    assert configs("two").generated == {}
    with pytest.raises(ConfigError, match="backdoor_lab is this package itself"):
        configs("backdoor_lab")


def test_the_guide_shows_the_files_of_the_example_package() -> None:
    """The sweep of tests/unit/plugins/test_example_package.py therefore tests the guide."""
    example = ROOT / "tests/plugin_example"
    shown = {}
    for block in blocks(PACKAGE / "plugins/README.md"):
        first, _, rest = block.text.partition("\n")
        shown[first.removeprefix("# ")] = rest
    files = [path for path in example.rglob("*") if path.is_file() and path.name != "__init__.py"]
    files = [path for path in files if "__pycache__" not in path.parts]
    assert len(files) == 4
    for path in files:
        assert shown[path.relative_to(example).as_posix()] == path.read_text()
