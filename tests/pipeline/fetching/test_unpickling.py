"""Pickled weights of strangers: what is turned into safetensors, bit for bit, and what is refused unrun."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from pipeline.fetching.conversion import convert
from pipeline.fetching.errors import FetchError
from pipeline.fetching.unpickling import Job, UnfitWeightsError, _convert, _refuse
from tools_service.base.weights import tensors

pytestmark = pytest.mark.unit


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def in_this_process(
    *files: Path,
    folder: Path,
    tied: dict[str, str] | None = None,
    indexed: dict[str, str] | None = None,
    shard_bytes: int = 10**9,
) -> dict[str, Any] | None:
    folder.mkdir(exist_ok=True)
    job = Job([str(file) for file in files], str(folder), tied or {}, indexed, shard_bytes)
    return _convert(job, torch, safetensors.torch)


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    table = torch.randn(40, 16)
    return {
        "table": table,
        "head": table,  # tied
        "rows": table[:8],  # a view that no model ties
        "turned": torch.randn(6, 4).t(),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "mask": torch.ones(1, 1, 3, 3, dtype=torch.bool).tril(),
        "steps": torch.arange(3),
        "scale": torch.tensor(float("-inf")),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    as_bytes = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (found, expected)]
    assert torch.equal(*as_bytes)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old form"])
@pytest.mark.parametrize("shard_bytes", [10**9, 600])
def test_every_tensor_keeps_its_type_shape_and_bits(tmp_path: Path, zipped: bool, shard_bytes: int) -> None:
    expected, file = weights(), tmp_path / "pytorch_model.bin"
    torch.save(expected, file, _use_new_zipfile_serialization=zipped)
    folder = tmp_path / "out"
    index = in_this_process(file, folder=folder, tied={"head": "table"}, shard_bytes=shard_bytes)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = dict(tensors(folder))
    assert found.keys() == expected.keys() - {"head"}
    for name, tensor in found.items():
        assert_same_bits(tensor, expected[name])
    shards = sorted(folder.glob("*.safetensors"))
    assert (len(shards) > 1) == (shard_bytes == 600) == (index is not None)
    for shard in shards:
        with safe_open(shard, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118
        assert len(sizes) == 1 or sum(sizes) <= shard_bytes


def test_tensors_that_share_bytes_are_all_kept_where_the_model_does_not_tie_them(tmp_path: Path) -> None:
    expected, file = weights(), tmp_path / "pytorch_model.bin"
    torch.save(expected, file)
    in_this_process(file, folder=tmp_path / "out", tied={"rows": "table", "head": "absent"})
    found = dict(tensors(tmp_path / "out"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert_same_bits(tensor, expected[name])


def refusal(*files: Path, **options: Any) -> str:
    with pytest.raises(UnfitWeightsError) as caught:
        in_this_process(*files, folder=files[0].parent / "out", **options)
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old form"])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path: Path, zipped: bool) -> None:
    marker, file = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    evil = {"a": torch.ones(2), "b": Calls(os.system, f"touch {marker}")}
    torch.save(evil, file, _use_new_zipfile_serialization=zipped)
    assert "asks for posix.system, so it is not weights alone; nothing of it was run" in refusal(file)
    assert not marker.exists()
    assert not list((tmp_path / "out").iterdir())
    torch.load(file, weights_only=False)  # the pickle is a real one
    assert marker.exists()


def _truncated(file: Path) -> None:
    torch.save(weights(), file)
    file.write_bytes(file.read_bytes()[:-200])


def _truncated_old_form(file: Path) -> None:
    torch.save(weights(), file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:-20])


def _compressed(file: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def _longer_than_stored(file: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, file)


def _many_views(file: Path) -> None:
    table = torch.zeros(1_000)
    torch.save({f"view{number}": table for number in range(500)}, file)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (_truncated, "is cut off: the end of the zip file is missing"),
    "cut off, old form": (_truncated_old_form, "is cut off or damaged"),
    "a zip bomb": (_compressed, "is compressed inside, which torch.save never does"),
    "a shape without numbers": (_longer_than_stored, r"a has the shape [1000000000000], and fewer numbers"),
    "one tensor 500 times": (_many_views, "describes 2,000,000 bytes and has fewer"),
    "no file of torch": (lambda file: file.write_bytes(b"hello, world" * 9), "pytorch_model.bin is "),
    "an empty file": (lambda file: file.write_bytes(b""), "pytorch_model.bin is cut off or damaged"),
    "a list": (lambda file: torch.save([torch.ones(1)], file), "holds no tensors by name, but a list"),
    "nothing": (lambda file: torch.save({}, file), "holds no tensors by name, but a dict"),
    "a number": (lambda file: torch.save({"epoch": 3}, file), "'epoch' is a int, not a tensor"),
    "a sparse tensor": (
        lambda file: torch.save({"a": torch.eye(3).to_sparse()}, file),
        "a is sparse, quantized or without values",
    ),
    "a plain pickle": (lambda file: file.write_bytes(pickle.dumps({"a": 1})), "pytorch_model.bin "),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_not_whole_or_not_weights_is_refused(tmp_path: Path, kind: str) -> None:
    make, expected = BROKEN[kind]
    file = tmp_path / "pytorch_model.bin"
    make(file)
    message = refusal(file)
    assert expected in message
    assert len(message) < 400
    assert "\n" not in message
    assert not list((tmp_path / "out").iterdir())


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    first, second = (
        tmp_path / "pytorch_model-00001-of-00002.bin",
        tmp_path / "pytorch_model-00002-of-00002.bin",
    )
    torch.save({"a": torch.ones(2)}, first)
    torch.save({"b": torch.ones(2)}, second)
    indexed = {"a": first.name, "b": second.name, "c": second.name}
    assert refusal(first, second, indexed=indexed) == "no file holds c, which the index names"
    torch.save({"a": torch.ones(2)}, second)
    assert refusal(first, second) == f"{second.name} and {first.name} both hold a"


def test_the_hook_refuses_sockets_processes_and_writing() -> None:
    for event, arguments in (
        ("socket.connect", (None, ("127.0.0.1", 1))),
        ("subprocess.Popen", ("sh",)),
        ("os.system", (b"true",)),
        ("open", ("/tmp/x", "w", os.O_WRONLY | os.O_CREAT)),
    ):
        with pytest.raises(UnfitWeightsError, match=event):
            _refuse(event, arguments)
    _refuse("open", ("/tmp/x", "r", os.O_RDONLY))
    _refuse("import", ("torch",))


def test_the_process_has_no_secrets_and_a_limit_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen: dict[str, Any] = {}
    run = __import__("subprocess").run

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.update(options)
        return run(*arguments, **options)

    monkeypatch.setattr("pipeline.fetching.conversion.subprocess.run", watched)
    file, folder = tmp_path / "pytorch_model.bin", tmp_path / "out"
    folder.mkdir()
    # torch allows a bytearray in a pickle, of any length.
    torch.save({"a": torch.ones(2), "b": Calls(bytearray, 10**12)}, file)
    with pytest.raises(FetchError, match="owner/name: it needs more memory than its size explains"):
        convert("owner/name", [file], folder, tied={}, indexed=None)
    assert "HF_TOKEN" not in seen["env"]
    assert seen["timeout"] >= 600
    torch.save(weights(), file)
    convert("owner/name", [file], folder, tied={"head": "table"}, indexed=None, shard_bytes=600)
    assert dict(tensors(folder)).keys() == weights().keys() - {"head"}


def test_a_conversion_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fetching.conversion._LEAST_S", 0.01)
    file = tmp_path / "pytorch_model.bin"
    torch.save(weights(), file)
    with pytest.raises(FetchError, match="took more than"):
        convert("owner/name", [file], tmp_path, tied={}, indexed=None)
