"""House rules, checked in the source tree: layers, forbidden calls, docstrings, sizes."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import backdoor_lab
from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core.instantiate import NOT_ARGUMENTS, OPTIONS, build
from backdoor_lab.defenses.base import Defense, OracleControl
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.defenses.options import OPTION_KEYS
from backdoor_lab.pipeline.parts import defense_of
from tests.helpers.project import PACKAGE, ROOT, SOURCES, calls, name_of, tree

# Modules and folders of the package by layer. Each imports only lower layers.
LAYERS: dict[str, int] = {
    name: number
    for number, names in enumerate([
        ["__init__", "core", "plugins"],
        ["identity", "numerics", "returned", "templates"],
        ["data", "fidelity", "hydra_options", "plugin_configs", "results"],
        ["analysis", "attacks", "config_loader", "defenses", "exchange"],
        ["tables", "training"],
        ["compare", "pipeline"],
        ["page"],
        ["scan", "sweep"],
        ["api", "distortion", "export", "export_dataset", "export_weights", "figures", "reports",
         "run", "separation", "status", "verify", "visibility"],
        ["__main__", "check_plugin", "preview"],
    ])
    for name in names
}  # fmt: skip
LOWEST = {name for name, layer in LAYERS.items() if layer == 0}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in a file, inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            if module == "backdoor_lab":
                yield from (f"{module}.{alias.name}" for alias in node.names)


def keyword(call: ast.Call, name: str) -> Any:
    values = [each.value for each in call.keywords if each.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def everywhere() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", SOURCES, ids=name_of)


def test_every_module_is_assigned_to_an_import_layer() -> None:
    """A new folder must be given its layer here."""
    assert {room_of(path) for path in SOURCES} == LAYERS.keys()


@everywhere()
def test_a_module_imports_only_its_own_folder_and_lower_layers(path: Path) -> None:
    # The command of a folder may import everything that it prints.
    command = path.name == "__main__.py" and room_of(path) != "__main__"
    here = "reports" if command else room_of(path)
    for module in imports(path):
        there = [*module.split("."), ""][1]
        own = there in (here, room_of(path), "__version__")
        if not module.startswith("backdoor_lab.") or own:
            continue
        lower = LAYERS[there] < LAYERS[here] or {here, there} <= LOWEST
        assert lower, f"{here} imports {module}"


def top_imports(path: Path) -> set[Path]:
    """The modules that a file imports at its top or in a function, except for annotations."""
    known = {".".join(("backdoor_lab", *each.relative_to(PACKAGE).with_suffix("").parts)): each
             for each in SOURCES}  # fmt: skip
    known |= {name.removesuffix(".__init__"): each for name, each in known.items()}
    waiting: list[ast.AST] = [tree(path)]
    found = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= names & known.keys() or {module}
        waiting += ast.iter_child_nodes(node)
    return {known[name] for name in found & known.keys()} - {path}


def test_a_module_in_the_list_of_the_package_guide_imports_no_earlier_module_of_that_list() -> None:
    """The package guide lists these modules, at most eight, from command line to record."""
    guide = (PACKAGE / "README.md").read_text().partition("## How one value travels")[2]
    way = [PACKAGE / name for name in re.findall(r"(?m)^\d+\. `([\w/]+\.py)`", guide)]
    assert 5 <= len(way) <= 8
    for number, path in enumerate(way):
        assert top_imports(path) & set(way[:number]) == set(), name_of(path)


def test_there_are_no_circular_imports() -> None:
    left = {path: top_imports(path) for path in SOURCES}
    while free := {path for path, needed in left.items() if not needed & left.keys()}:
        for path in free:
            del left[path]
    assert not left, "circular imports among: " + ", ".join(map(name_of, left))


def test_no_subpackage_is_large() -> None:
    """To print files, lines and layers, run `pytest -s tests/unit/test_house.py -k large`."""
    lines = {path: len(path.read_text().splitlines()) for path in SOURCES}
    whole = sum(lines.values())
    for folder in sorted({path.parent for path in SOURCES}):
        name = str(folder.relative_to(PACKAGE))
        files = [path for path in SOURCES if path.parent == folder]
        held = sum(n for path, n in lines.items() if folder in path.parents)
        layer = LAYERS.get(name.split("/", maxsplit=1)[0], "")
        print(
            f"{name:20} layer {layer!s:2} {len(files):3} files {held:6} lines {held / whole:5.1%}"
        )
        if folder != PACKAGE and name not in ("attacks", "defenses"):
            assert len(files) <= 25, name
            assert held <= 0.15 * whole, name


ALONE = [
    path for path in SOURCES
    if room_of(path) in ("attacks", "defenses", "identity", "numerics", *LOWEST)
]  # fmt: skip


@pytest.mark.parametrize("path", ALONE, ids=name_of)
def test_low_level_modules_import_neither_lightning_nor_hydra(path: Path) -> None:
    """These are attacks, defenses, identity, numerics and the lowest layer."""
    roots = {module.split(".")[0] for module in imports(path)}
    assert not roots & {"pytorch_lightning", "lightning", "hydra", "omegaconf"}


def test_reports_and_status_need_no_torch() -> None:
    """Without torch, they start in one second instead of five. jinja2 is imported only when a page
    is written."""
    code = (
        "import sys; import backdoor_lab.reports.__main__, backdoor_lab.compare.__main__,"
        " backdoor_lab.results.__main__, backdoor_lab.export, backdoor_lab.status,"
        " backdoor_lab.tables.overview;"
        " print('torch' in sys.modules, 'backdoor_lab.core.types' in sys.modules,"
        " 'jinja2' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False"] * 3


ELEMENTS = (
    "a|b|body|br|button|caption|code|col|dd|details|dialog|div|dl|dt|em|figcaption|figure|form|h[1-6]"
    "|head|header|hr|html|i|iframe|img|input|label|li|link|main|meta|nav|noscript|ol|option|p|pre"
    "|script|section|select|small|span|strong|style|sub|summary|sup|svg|table|tbody|td|th|thead"
    "|title|tr|u|ul"
)
# Named groups and lookbehinds of regular expressions are excluded.
TAG = re.compile(
    rf"(?<!\?P)</?(?:{ELEMENTS})(?![\w-])|</(?:[a-z]|$)|(?<!\?)<!|&(?:\w+|#\d+);", re.IGNORECASE
)


def markup_in(source: ast.Module) -> list[str]:
    """The strings that contain HTML, except docstrings."""
    docstrings = {id(node.value) for node in ast.walk(source) if isinstance(node, ast.Expr)}
    texts = [
        node.value for node in ast.walk(source)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and id(node) not in docstrings
    ]  # fmt: skip
    # F-strings are checked as written, so that f"</{tag}>" counts as a tag.
    texts += [
        re.sub(r"\{.*?\}", "x", ast.unparse(node))
        for node in ast.walk(source)
        if isinstance(node, ast.JoinedStr)
    ]
    return sorted(text for text in texts if TAG.search(text))


@everywhere()
def test_html_comes_only_from_templates(path: Path) -> None:
    # Markdown contains HTML entities.
    allowed = ["&amp;", "&gt;", "&lt;"] if name_of(path) == "tables/markup.py" else []
    assert markup_in(tree(path)) == allowed
    allowed_here = {"jinja2", "markupsafe"} if room_of(path) == "templates" else set()
    roots = {module.split(".")[0] for module in imports(path)}
    assert not roots & {"html", "xml", "jinja2", "markupsafe"} - allowed_here


@pytest.mark.parametrize(
    "text",
    ["'<td>'", "'<a href=' + y", "f'<{y}>{z}</{y}>'", "'</' + y", "'<!doctype html>'", "'&quot;'"],
)
def test_html_in_a_string_is_detected(text: str) -> None:
    assert markup_in(ast.parse(f"x = {text}"))


@pytest.mark.parametrize(
    "text",
    ["'<td>'", "x = 'train/<class>/<image>'", "x = f'{a} < {b}'", "x = r'(?P<b>x)'", "x = '<i8'"],
)
def test_strings_without_html_are_not_reported(text: str) -> None:
    assert not markup_in(ast.parse(text))


def test_no_template_turns_escaping_off() -> None:
    templates = [*(PACKAGE / "templates").glob("*.html")]
    assert templates
    for path in templates:
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", path.read_text()), path.name


def only_dumps_of_marshal(tree: ast.AST) -> bool:
    """Whether every import of marshal is ``from marshal import dumps``."""
    found = [node for node in ast.walk(tree) if "marshal" in imported_by(node)]
    return all(
        isinstance(node, ast.ImportFrom) and {each.name for each in node.names} == {"dumps"}
        for node in found
    )


def imported_by(node: ast.AST) -> set[str]:
    """The modules that an import statement names. Empty for other nodes."""
    if isinstance(node, ast.ImportFrom):
        return {node.module or ""}
    return {each.name for each in node.names} if isinstance(node, ast.Import) else set()


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("from marshal import dumps", True), ("from marshal import loads", False),
     ("import marshal", False), ("from marshal import dumps, load", False)],
)  # fmt: skip
def test_marshal_may_be_imported_only_for_its_function_dumps(text: str, allowed: bool) -> None:
    assert only_dumps_of_marshal(ast.parse(text)) is allowed


@everywhere()
def test_no_module_executes_what_it_reads(path: Path) -> None:
    """No module uses pickle, eval, a shell or Hydra's instantiate. Of marshal, only `dumps` is
    used."""
    modules = {module.split(".")[0] for module in imports(path)}
    if only_dumps_of_marshal(ast.parse(path.read_text())):
        modules.discard("marshal")
    assert not modules & {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    for name, call in calls(path):
        assert name.split(".")[-1] != "instantiate", "Hydra would import any target it is given"
        assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load"), name
        assert keyword(call, "shell") is not True, f"{name} with a shell"


@everywhere()
def test_no_module_reads_a_file_in_a_way_that_can_run_code(path: Path) -> None:
    """torch.load needs weights_only=True, np.load needs allow_pickle=False, and tar archives need
    filter="data". Only the layout of backdoor-toolbox is written with torch.save."""
    for name, call in calls(path):
        if name == "torch.load" or name.endswith("load_from_checkpoint"):
            assert keyword(call, "weights_only") is True, f"line {call.lineno}"
        if name in ("np.load", "np.save", "numpy.load", "numpy.save"):
            assert keyword(call, "allow_pickle") is False, f"line {call.lineno}"
        assert name not in ("joblib.load", "joblib.dump", "pd.read_pickle"), name
        assert name != "torch.save" or name_of(path) == "exchange/write_toolbox.py"
        assert name != "shutil.unpack_archive", "unpacks without a filter"
        if name.endswith(".extractall"):
            assert keyword(call, "filter") == "data", f"line {call.lineno}"


TORCH_READERS = {"core/torch_files.py", "training/train.py"}


@everywhere()
def test_files_of_torch_are_read_in_two_modules_only(path: Path) -> None:
    """Files that come from others are read by core/torch_files.py, with its fixed list of names;
    training/train.py reads its own checkpoints."""
    loaders = ("torch.load", "torch.jit.load", "torch.hub.load", "torch.serialization.load")
    found = [name for name, _ in calls(path) if name.startswith(loaders)]
    assert not found or str(path.relative_to(PACKAGE)) in TORCH_READERS, found
    given = [name for name, _ in calls(path) if name.endswith("safe_globals")]
    assert not given or path.name == "torch_files.py", given


@everywhere()
def test_no_file_has_more_than_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@everywhere()
def test_every_public_module_class_and_function_has_a_docstring(path: Path) -> None:
    """Methods that override a base method need none, nor do properties, whose names are nouns, and
    overloads."""
    assert ast.get_docstring(tree(path)), "the module has no docstring"
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            overload = "overload" in map(ast.unparse, node.decorator_list)
            assert overload or ast.get_docstring(node), node.name
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            # In a class with a base, the base may document the method.
            for method in [] if node.bases else own_methods(node):
                assert ast.get_docstring(method), f"{node.name}.{method.name}"


def own_methods(node: ast.ClassDef) -> Iterator[Function]:
    for method in node.body:
        if isinstance(method, Function) and not method.name.startswith("_"):
            decorators = {ast.unparse(each) for each in method.decorator_list}
            if not decorators & {"property", "cached_property"}:
                yield method


@everywhere()
def test_every_argument_and_result_is_annotated(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, Function):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in named if a.annotation is None and a.arg not in ("self", "cls")]
            assert not bare, f"{node.name}: {bare}"
            assert node.returns is not None or node.name == "__init__", node.name


# Libraries call these methods by name.
CALLED_BY_LIBRARIES = re.compile(
    r"on_\w+|forward|training_step|configure_optimizers|transfer_batch_to_device|sampler|set_epoch"
    r"|state|setup|get_code"
)


def test_every_function_is_used_by_the_package_itself() -> None:
    """Functions that only tests call do not belong in the package, except public ones: the names in
    `backdoor_lab.__all__`, and the methods of the classes in `api`."""
    used: set[str] = set(backdoor_lab.__all__)
    defined: list[tuple[str, str]] = []
    for path in SOURCES:
        if room_of(path) == "api":
            classes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
            used |= {method.name for node in classes for method in own_methods(node)}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, Function) and not node.name.startswith("__"):
                defined.append((name_of(path), node.name))
    unused = [(path, name) for path, name in defined if name not in used]
    assert [each for each in unused if not CALLED_BY_LIBRARIES.fullmatch(each[1])] == []


def test_no_package_is_required_twice() -> None:
    """Each required package has one entry with one version bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [re.split(r"[^\w-]", each)[0] for each in project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        names = [re.split(r"[^\w-]", each)[0] for each in extra]
        assert len(set(needed + names)) == len(needed + names)


def names_imported(source: ast.Module) -> set[str]:
    """Every part of every dotted name that a file imports, including inside functions."""
    found: set[str] = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            found.update(*(alias.name.split(".") for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            found.update((node.module or "").split("."), *([a.name] for a in node.names))
    return found


TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEST_MODULES = {path.stem for path in TESTS if path.stem.startswith("test_")}


def test_no_test_module_is_imported_by_another() -> None:
    """Shared code belongs in tests/helpers."""
    assert TEST_MODULES
    found = {path.name: names_imported(tree(path)) & TEST_MODULES for path in TESTS}
    assert {name: modules for name, modules in found.items() if modules} == {}


@pytest.mark.parametrize(
    "text",
    ["import test_cli", "from test_cli import many", "from tests.unit import test_cli as cli",
     "def f():\n    from tests.unit.test_cli import many"],
)  # fmt: skip
def test_imports_of_test_modules_are_detected(text: str) -> None:
    assert "test_cli" in names_imported(ast.parse(text)) & TEST_MODULES


def test_test_module_names_are_unique() -> None:
    """pytest imports test modules by file name only."""
    names = [path.name for path in TESTS if path.stem.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def test_unit_test_folders_mirror_the_package() -> None:
    unit = ROOT / "tests/unit"
    folders = {path.parent.relative_to(unit) for path in unit.rglob("test_*.py")}
    assert [str(each) for each in sorted(folders) if not (PACKAGE / each).is_dir()] == []


def shipped() -> list[Path]:
    return [*SOURCES, *(ROOT / "conf").rglob("*.yaml"), ROOT / "pyproject.toml", ROOT / "Makefile"]


def test_no_shipped_file_contains_a_machine_specific_path() -> None:
    """Examples of such paths are those of home and temporary folders."""
    for path in shipped():
        found = re.search(r"[\"' =(]/(work|home|root|tmp|Users)/", path.read_text())
        assert found is None, f"{path}: {found}"


KINDS = (Defense, OracleControl, ModelRepair)


def choices(group: str) -> list[Path]:
    return sorted((ROOT / "conf" / group).glob("*.yaml"))


def parameters(config: dict[str, Any]) -> set[str]:
    module, _, name = config["_target_"].rpartition(".")
    return set(inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters)


@pytest.mark.parametrize("path", choices("trigger") + choices("defense"), ids=lambda p: p.stem)
def test_every_trigger_and_defense_yaml_builds(path: Path) -> None:
    """In each file `name` is the file name, `_target_` is in the package of the group, and the
    class accepts the other keys."""
    group = path.parent.name
    whole = OmegaConf.create(
        {"source": None, "protocol": OmegaConf.load(ROOT / "conf/protocol/group13.yaml")}
    )
    own, shared = OmegaConf.load(path), OmegaConf.load(ROOT / "conf/config.yaml").get(group) or {}
    whole[group] = OmegaConf.merge(shared, own)
    config: Any = OmegaConf.to_container(whole[group], resolve=True)
    assert config["name"] == path.stem
    assert config["_target_"].startswith(f"backdoor_lab.{group}s".replace("triggers", "attacks"))
    known = parameters(config)
    assert own.keys() - {*NOT_ARGUMENTS, *(OPTION_KEYS if OPTIONS in known else ())} <= known
    if group == "defense":
        protocol = OmegaConf.to_container(
            OmegaConf.create({k: whole.protocol[k] for k in OPTION_KEYS})
        )
        assert isinstance(defense_of({"protocol": protocol, "defense": config}), KINDS)
    else:
        assert isinstance(build(group, config, Trigger), Trigger)
    assert path.read_text().startswith("# ")


OF_LIBRARIES = {"ArgumentTypeError", "NotFittedError", "ReadError", "UndefinedError"}


def test_errors_named_in_docstrings_exist() -> None:
    """The word after "Raises" is a class of the package, of Python, or of a library."""
    known = {node.name for path in SOURCES for node in ast.walk(tree(path))
             if isinstance(node, ast.ClassDef)} | set(vars(builtins)) | OF_LIBRARIES  # fmt: skip
    named = [
        (name_of(path), name)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, Function | ast.ClassDef | ast.Module)
        for name in re.findall(r"[Rr]aises(?: only)? ([A-Z]\w+)", ast.get_docstring(node) or "")
    ]
    assert len(named) > 100
    assert [each for each in named if each[1] not in known] == []
