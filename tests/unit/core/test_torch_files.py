"""Files of torch.save are read without running code from them."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.torch_files import load_torch_file


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call: tuple[Any, ...] = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Sneaky(OrderedDict):
    """A dictionary whose unpickling makes a folder."""

    def __init__(self, marker: str) -> None:
        super().__init__(a=1)
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        items = iter([("a", Call(os.mkdir, self.marker))])
        return OrderedDict, (), {"marker": self.marker}, None, items


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_torch_file(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_a_state_dict_is_read_as_plain_tensors(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    path = saved(tmp_path / "model.pt", module.state_dict())
    found = load_torch_file(path)
    assert type(found) is dict
    assert list(found) == list(module.state_dict())
    assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())
    assert not any(value.requires_grad for value in found.values())


def test_tensors_in_the_format_before_version_1_6_are_read(tmp_path: Path) -> None:
    value = {"a": torch.arange(6).reshape(2, 3), "b": [np.arange(3)]}
    path = saved(tmp_path / "old.pt", value, _use_new_zipfile_serialization=False)
    found = load_torch_file(path)
    assert torch.equal(found["a"], value["a"])
    assert found["b"][0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float32", "float64", ">i4"])
@pytest.mark.parametrize("old", [False, True])
def test_arrays_and_numbers_of_numpy_are_read(dtype: str, old: bool, tmp_path: Path) -> None:
    """Files of NumPy 1 name numpy.core, those of NumPy 2 numpy._core."""
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = {"plain": array, "columns": np.asfortranarray(array), array[1, 2]: (array[0, 1],)}
    path = saved(tmp_path / "arrays.pt", value)
    if old:
        replaced(path, b"numpy._core.", b"numpy.core.")
    found = load_torch_file(path)
    for name in ("plain", "columns"):
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")
    last = list(found)[-1]
    assert (last, found[last]) == (array[1, 2].item(), (array[0, 1].item(),))
    assert type(last) is type(array[1, 2].item())


def replaced(path: Path, old: bytes, new: bytes) -> None:
    """Replaces bytes in the pickle of a file in the zip format."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            changed = data.replace(old, new) if name.endswith("data.pkl") else data
            assert changed != data or not name.endswith("data.pkl")
            archive.writestr(name, changed)


def test_plain_containers_are_read(tmp_path: Path) -> None:
    value = {
        "none": None, 3: [True, 2.5, "é", b"raw"], "nested": {"a": (1, {2, 3})},
        "counter": Counter(a=2), "size": torch.Size([1, 2]), "dtype": torch.float32,
        "bytes": bytearray(b"x"),
    }  # fmt: skip
    found = load_torch_file(saved(tmp_path / "plain.pt", value))
    assert found == {
        "none": None, 3: [True, 2.5, "é", b"raw"], "nested": {"a": (1, {2, 3})},
        "counter": {"a": 2}, "size": (1, 2), "dtype": "torch.float32", "bytes": b"x",
    }  # fmt: skip
    assert type(found["counter"]) is dict


def test_a_value_that_occurs_twice_stays_one_value(tmp_path: Path) -> None:
    shared = [torch.zeros(1)]
    found = load_torch_file(saved(tmp_path / "twice.pt", {"a": shared, "b": shared}))
    assert found["a"] is found["b"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "list", "key", "dict subclass", "tensor", "deep"])
def test_a_file_that_calls_a_function_leaves_no_trace(
    where: str, zipped: bool, tmp_path: Path
) -> None:
    marker = str(tmp_path / "boom")
    bomb = Call(os.mkdir, marker)
    value = {
        "alone": bomb, "list": [[1, bomb]], "key": {"a": {"b": (bomb,)}},
        "dict subclass": Sneaky(marker), "tensor": OrderedDict(w=torch.zeros(2), x=bomb),
        "deep": {"model": OrderedDict(a=[{"b": [bomb]}])},
    }[where]  # fmt: skip
    path = saved(tmp_path / "evil.pt", value, _use_new_zipfile_serialization=zipped)
    assert f"{os.mkdir.__module__}.mkdir, which is refused" in refusal(path)
    assert not Path(marker).exists()


@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch boom",), f"{os.system.__module__}.system"),
        (eval, ("open('boom', 'w')",), "eval"),
        (exec, ("open('boom', 'w')",), "exec"),
        (open, ("boom", "w"), "io.open"),
        (getattr, (1, "real"), "getattr"),
        (torch.load, ("x",), "torch.serialization.load"),
        (np.load, ("x", None, True), "numpy.load"),
        (pickle.loads, (b"N.",), "pickle.loads"),
    ],
)
def test_the_refused_function_is_named_and_not_called(
    function: Any, args: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "evil.pt", {"a": Call(function, *args)})
    assert f"refers to {named}, which is refused" in refusal(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["evil.pt"]


def test_a_plain_pickle_that_calls_a_function_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Call(os.mkdir, str(tmp_path / "boom"))))
    refusal(path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, "text" * 100])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_of_another_program_is_refused_without_torch_asking_for_reports(
    value: Any, protocol: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "imgs"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    said = refusal(path)
    assert "not a" in said
    assert "file of torch.save" in said
    assert "file an issue" not in said
    assert "\n" not in said
    if protocol == 4:
        assert "not a valid file of torch.save (read as a pickle, it has the instruction" in said
    assert not [each for each in recwarn if "pickle protocol" in str(each.message)]


def test_a_whole_network_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    path = saved(tmp_path / "network.pt", torch.nn.Linear(2, 2))
    assert "torch.nn.modules.linear.Linear, which is refused" in refusal(path)


def test_torch_script_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    assert "TorchScript" in refusal(path)


def test_the_tar_format_is_refused(tmp_path: Path) -> None:
    path, marker = tmp_path / "old.pt", tmp_path / "boom"
    raw = pickle.dumps(Call(os.mkdir, str(marker)))
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    assert "tar format" in refusal(path)
    assert not marker.exists()


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "objects.pt", {"a": np.array([None, {}], dtype=object)})
    assert "'O8' are not loaded" in refusal(path)


def test_flags_that_turn_numbers_into_pointers_have_no_effect(tmp_path: Path) -> None:
    """With these flags, NumPy would treat the bytes of the array as addresses of objects."""
    dtype = Call(np.dtype, "i8", False, True)
    dtype.call = (*dtype.call, (3, "<", None, None, None, -1, -1, 63))
    maker: Any = np.zeros(1).__reduce__()[0]
    array = Call(maker, np.ndarray, (0,), b"b")
    array.call = (*array.call, (1, (2,), dtype, False, b"A" * 16))
    found = load_torch_file(saved(tmp_path / "flags.pt", {"a": array}))
    assert not found["a"].dtype.hasobject
    assert found["a"].tolist() == [0x4141414141414141] * 2


@pytest.mark.parametrize(
    ("state", "said"),
    [((1, (3,), "dtype", False, b"A" * 16), "has 16 bytes"),
     ((1, (10**15,), "dtype", False, b"A" * 16), "has 16 bytes"),
     ((1, (-2,), "dtype", False, b"A" * 16), "has 16 bytes"),
     ((1, (2,), None, False, b"A" * 16), "objects"),
     ((1, (2,), "dtype", False, [1, 2]), "objects"),
     ((1, (2,)), "not enough values")],
)  # fmt: skip
def test_arrays_whose_bytes_do_not_fit_their_shape_are_refused(
    state: Any, said: str, tmp_path: Path
) -> None:
    maker: Any = np.zeros(1).__reduce__()[0]
    array = Call(maker, np.ndarray, (0,), b"b")
    filled = tuple(np.dtype("i8") if each == "dtype" else each for each in state)
    array.call = (*array.call, filled)
    assert said in refusal(saved(tmp_path / "array.pt", [array]))


def test_a_mapping_that_hides_its_methods_is_read(tmp_path: Path) -> None:
    hidden = Call(OrderedDict)
    hidden.call = OrderedDict, ([("a", 1)],), {"items": 2, "keys": 3, "__iter__": 4}
    assert load_torch_file(saved(tmp_path / "hidden.pt", hidden)) == {"a": 1}


def test_a_tensor_that_repeats_few_bytes_counts_with_all_its_elements(tmp_path: Path) -> None:
    path = saved(tmp_path / "bomb.pt", {"a": torch.zeros(1).expand(10**9, 10**6)})
    assert path.stat().st_size < 4096
    assert "4,000,000,000,000,000 bytes" in refusal(path)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    """torch never compresses; a small file could fill the memory."""
    plain, path = saved(tmp_path / "plain.pt", torch.zeros(10**6)), tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(plain) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert path.stat().st_size < 10_000
    assert "records claim" in refusal(path)


def test_a_tensor_that_claims_more_numbers_than_are_stored_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "claims.pt", {"a": torch.arange(4.0)})
    replaced(path, b"K\x04", b"M\x00\x40")
    refusal(path)


def test_lists_within_lists_have_a_limit(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    assert "nested deeper than 64" in refusal(saved(tmp_path / "deep.pt", deep))


def test_a_list_that_contains_itself_is_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "cycle" in refusal(saved(tmp_path / "cycle.pt", endless))


def test_lists_that_repeat_each_other_are_converted_once(tmp_path: Path) -> None:
    """Without this, 40 lists would have 2**40 items."""
    doubled: Any = [0]
    for _ in range(40):
        doubled = [doubled, doubled]
    found = load_torch_file(saved(tmp_path / "doubled.pt", doubled))
    assert found[0] is found[1]


@pytest.mark.parametrize(
    "value",
    [torch.eye(2).to_sparse(), torch.empty(2, device="meta"),
     torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)],
)  # fmt: skip
def test_tensors_that_are_not_plain_are_refused(value: Any, tmp_path: Path) -> None:
    assert "not plain" in refusal(saved(tmp_path / "tensor.pt", [value]))


def test_files_larger_than_the_limit_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "large.pt", torch.zeros(1000))
    assert "at most 4,000 can be loaded" in refusal(path, limit=4000)
    assert len(load_torch_file(path, limit=8000)) == 1000


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "broken link", "circular link"])
def test_paths_without_a_regular_file_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.symlink_to("nothing" if kind == "broken link" else path)
    said = {"missing": "no such file", "folder": "a directory", "pipe": "a named pipe"}
    assert said.get(kind, kind) in refusal(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"text",
        b"PK\x03\x04",
        b"\x80\x02}q\x00.",
        b"\x80\x02",
        np.random.default_rng(0).bytes(200),
    ],
)
def test_damaged_files_are_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(raw)
    refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(zipped: bool, tmp_path: Path) -> None:
    path = saved(
        tmp_path / "cut.pt", {"a": torch.arange(100)}, _use_new_zipfile_serialization=zipped
    )
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, len(whole) // 40):
        path.write_bytes(whole[:size])
        refusal(path)


def test_the_environment_cannot_switch_the_protection_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    refusal(saved(tmp_path / "evil.pt", Call(os.mkdir, str(tmp_path / "boom"))))
    assert not (tmp_path / "boom").exists()


def test_names_that_other_packages_allow_are_refused(tmp_path: Path) -> None:
    """torch has one list for the whole process, and packages add to it. It stays as it was."""
    path = saved(tmp_path / "evil.pt", [Call(os.mkdir, str(tmp_path / "boom"))])
    torch.serialization.add_safe_globals([os.mkdir])
    before = set(torch.serialization.get_safe_globals())
    try:
        refusal(path)
        assert set(torch.serialization.get_safe_globals()) == before
        load_torch_file(saved(tmp_path / "array.pt", np.zeros(1)))
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(before - {os.mkdir}))
    assert not (tmp_path / "boom").exists()
