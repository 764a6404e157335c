"""A model's folder: what is read and written, that each file is whole or absent, and what is said of a damaged one."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_study.core import hub
from llm_study.core.hub import CONFIG, INDEX, WEIGHTS, load_tensors, read_config, read_json, save_folder

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5), "c": torch.zeros(100)}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether both hold the same names, shapes, dtypes and values."""
    return found.keys() == expected.keys() and all(
        found[n].dtype == x.dtype and torch.equal(found[n], x) for n, x in expected.items()
    )


def sharded(folder: Path) -> Path:
    """Write three shards with an index, and return the folder."""
    save_folder(folder, {"model_type": "made up"}, TENSORS, max_shard_bytes=1)
    return folder


def change_index(folder: Path, tensor: str, file: object) -> None:
    index = json.loads((folder / INDEX).read_text("utf-8"))
    index["weight_map"][tensor] = file
    (folder / INDEX).write_text(json.dumps(index), "utf-8")


# --- round trips


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=6),
    dtype=st.sampled_from(DTYPES),
    limit=st.integers(1, 300),
)
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype, limit: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    tensors = {f"layer.{i}": torch.randint(0, 2, shape).to(dtype) for i, shape in enumerate(shapes)}
    config = {"a": 1, "名": ["ü"]}
    save_folder(folder, config, tensors, max_shard_bytes=limit)
    assert same(load_tensors(folder), tensors)
    assert read_config(folder) == config
    sizes = [sum(x.nbytes for x in load_file(file).values()) for file in folder.glob("*.safetensors")]
    largest = max(x.nbytes for x in tensors.values())
    assert max(sizes) <= max(limit, largest)
    assert {file.name.startswith(".") for file in folder.iterdir()} == {False}  # nothing temporary is left


def test_names_of_shards_and_their_index(tmp_path: Path) -> None:
    sharded(tmp_path)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([CONFIG, INDEX, *names])
    assert read_json(tmp_path / INDEX) == {
        "metadata": {"total_size": 4 * 111},
        "weight_map": dict(zip("abc", names, strict=True)),
    }


def test_shards_are_filled_in_order(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(10) for name in "abcde"}  # 40 bytes each
    save_folder(tmp_path, {}, tensors, max_shard_bytes=80)
    assert [sorted(load_file(file)) for file in sorted(tmp_path.glob("*.safetensors"))] == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
    ]


def test_one_file_wherever_it_fits(tmp_path: Path) -> None:
    save_folder(tmp_path, {}, TENSORS, max_shard_bytes=4 * 111)
    assert (tmp_path / WEIGHTS).exists()
    assert not (tmp_path / INDEX).exists()


def test_a_shared_tensor_is_stored_once_under_its_first_name(tmp_path: Path) -> None:
    x = torch.arange(12.0).view(3, 4)
    save_folder(tmp_path, {}, {"first": x, "second": x, "flat": x.view(12), "turned": x.T, "part": x[1]})
    expected = {"first": x, "flat": x.view(12), "turned": x.T, "part": x[1]}
    assert same(load_tensors(tmp_path), expected)
    assert (tmp_path / WEIGHTS).stat().st_size < 4 * (12 * 3 + 4) + 1000


def test_a_later_call_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", "utf-8")
    save_folder(tmp_path, {}, {"a": torch.ones(2)})
    assert same(load_tensors(tmp_path), {"a": torch.ones(2)})
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG, WEIGHTS, "tokenizer.json"]
    sharded(tmp_path)
    assert same(load_tensors(tmp_path), TENSORS)
    assert not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize("broken", ["_write_tensors", "json.dumps"])
def test_what_was_there_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    sharded(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(f"{hub.__name__}.{broken}", fail)
    with pytest.raises(OSError, match="no space left"):
        save_folder(tmp_path, {}, {"a": torch.ones(2)})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_reader_never_sees_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a file is moved into its place it is complete, and everything is read as it was before the call."""
    sharded(tmp_path)
    moved = []

    def replace(source: Path, target: Path) -> None:
        if not moved:
            assert same(load_tensors(tmp_path), TENSORS)
        moved.append(Path(target).name)
        if source.name.endswith(".json.tmp") or "json" in source.name:
            json.loads(source.read_bytes())
        else:
            load_file(source)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    save_folder(tmp_path, {}, {"a": torch.ones(2)})
    assert moved == [WEIGHTS, CONFIG]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor a of shape \(2, 3\) is on the meta device"):
        save_folder(tmp_path / "new", {}, {"a": torch.zeros(2, 3, device="meta")})
    with pytest.raises(ValueError, match="there are 0 tensors to write, expected at least 1"):
        save_folder(tmp_path / "new", {}, {})
    with pytest.raises(ValueError, match="max_shard_bytes is 0, expected at least 1"):
        save_folder(tmp_path / "new", {}, TENSORS, max_shard_bytes=0)
    assert not (tmp_path / "new").exists()


# --- config.json


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no JSON: Expecting value"),
        (b"{", "no JSON: Expecting property name"),
        (b"\xff\xfe{", "no JSON: "),
        (b"[" * 100_000, "no JSON: "),
        (b"[1]", "holds a list, expected an object"),
        (b'"text"', "holds a string, expected an object"),
        (b"3", "holds a number, expected an object"),
        (b"true", "holds true or false, expected an object"),
        (b"null", "holds null, expected an object"),
    ],
)
def test_a_config_that_is_no_object(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / CONFIG}: {problem}")


def test_no_folder_and_no_config(tmp_path: Path) -> None:
    for read in (read_config, load_tensors):
        with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
            read(tmp_path / "nowhere")
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="file: is a file, expected the folder of a model"):
            read(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r": has no config\.json"):
        read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json: there is no such file"):
        read_json(tmp_path / CONFIG)


# --- weights


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "weights.pkl"])
def test_a_pickle_is_not_read(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save(Trap(), tmp_path / name)
    with pytest.raises(ValueError, match="weights in a pickle, which can run code, are not read") as caught:
        load_tensors(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


def test_a_file_cut_off_anywhere(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for size in [0, 1, 7, 8, 9, 60, len(whole) - 4 * 111, len(whole) - 1]:
        (tmp_path / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(ValueError) as caught:
            load_tensors(tmp_path)
        said = str(caught.value)
        assert said.startswith(f"{tmp_path / WEIGHTS}: cut off")
        assert f"has {size} bytes, expected" in said
        if size > len(whole) - 4 * 111 - 1:
            assert said.endswith(f"expected {len(whole)}")


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / WEIGHTS)
    size = (tmp_path / WEIGHTS).stat().st_size
    with (tmp_path / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=f"damaged: has {size + 4} bytes, expected {size}$"):
        load_tensors(tmp_path)


def header_of(tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + b"\0" * 100,
        b"version https://git-lfs.github.com/spec/v1\n" * 3,
        header_of([1]),
        header_of({"a": 1}),
        header_of({"a": {**F32, "data_offsets": "x"}}),
        header_of({"a": {**F32, "data_offsets": [0, "4"]}}),
        header_of({"a": {**F32, "dtype": "F99"}}) + b"\0" * 4,
        header_of({"a": {**F32, "shape": [2]}}) + b"\0" * 4,
        header_of({"a": {**F32, "data_offsets": [4, 0]}}),
        header_of({"a": F32, "b": F32}) + b"\0" * 4,
        (3).to_bytes(8, "little") + b"{}}",
        (3).to_bytes(8, "little") + b"\xff\xff\xff",
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_tensors(tmp_path)


# --- shards


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../other/model.safetensors",
        "..",
        "sub/../../model.safetensors",
        "C:\\model.safetensors",
        "C:model.safetensors",
        "..\\model.safetensors",
        "sub\\model.safetensors",
        "\\\\host\\share\\model.safetensors",
        "a\0b",
        "",
        ".",
    ],
)
def test_an_index_that_leads_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    save_file(TENSORS, tmp_path / "other" / WEIGHTS)
    folder = sharded(tmp_path / "model")
    change_index(folder, "b", name)
    with pytest.raises(ValueError) as caught:
        load_tensors(folder)
    assert str(caught.value) == f"{folder / INDEX}: tensor b is said to be in {name!r}, outside the folder {folder}"


def test_a_link_that_leads_outside(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "secret.safetensors")
    folder = sharded(tmp_path / "model")
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    change_index(folder, "b", "link.safetensors")
    with pytest.raises(ValueError, match=r"'link\.safetensors' is a link to .*secret\.safetensors, outside the folder"):
        load_tensors(folder)
    (folder / "deep").symlink_to(tmp_path)
    change_index(folder, "b", "deep/secret.safetensors")
    with pytest.raises(ValueError, match="is a link to"):
        load_tensors(folder)


def test_links_inside_the_folder_and_in_a_cache_of_the_hub(tmp_path: Path) -> None:
    snapshot = sharded(tmp_path / "models--a--b" / "snapshots" / "0123")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.glob("*.safetensors"))):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..", "..", "blobs", str(number)))
    assert same(load_tensors(snapshot), TENSORS)
    inside = sharded(tmp_path / "model")
    (inside / "other.safetensors").symlink_to(inside / "model-00002-of-00003.safetensors")
    change_index(inside, "b", "other.safetensors")
    assert same(load_tensors(inside), TENSORS)


def test_a_folder_reached_by_a_link(tmp_path: Path) -> None:
    sharded(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert same(load_tensors(tmp_path / "link"), TENSORS)


def test_a_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003\.safetensors: the shard is missing"):
        load_tensors(tmp_path)


def test_a_shard_that_lacks_a_tensor(tmp_path: Path) -> None:
    sharded(tmp_path)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    save_file({"other": torch.ones(2)}, shard)
    with pytest.raises(ValueError) as caught:
        load_tensors(tmp_path)
    assert str(caught.value) == f"{shard}: lacks tensor b, which {INDEX} promises"


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    shard = tmp_path / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model-00003-of-00003\.safetensors: cut off: has"):
        load_tensors(tmp_path)


def test_of_two_shards_that_hold_a_tensor_the_index_decides(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"b": torch.zeros(7), "c": TENSORS["c"]}, tmp_path / "model-00003-of-00003.safetensors")
    assert same(load_tensors(tmp_path), TENSORS)


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (None, "weight_map is null, expected an object"),
        ([], "weight_map is a list, expected an object"),
        ({}, "weight_map is an object without entries, expected an object"),
        ({"a": 3}, "the file of tensor a is 3, expected a name"),
        ({"a": None}, "the file of tensor a is None, expected a name"),
    ],
)
def test_an_index_that_is_no_map(tmp_path: Path, place: object, problem: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": place}), "utf-8")
    with pytest.raises(ValueError) as caught:
        load_tensors(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / INDEX}: {problem}")
