"""Exports: rows of each format, read by the libraries that people use; what is refused; the upload."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.config import ExportConfig
from pipeline.cli.main import main
from pipeline.exporting.hub import PushError, push
from pipeline.exporting.run import ExportManifest, export
from pipeline.storage.kinds import EXPORT
from pipeline.storage.row_files import ROWS
from tests.pipeline.exporting.augmented import PLAIN, TEXT, as_earlier_versions_wrote, augmented
from tools_service.base.errors import ConfigurationError
from tools_service.base.ownership import NotOwnError

pytestmark = pytest.mark.unit


def exported(tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    data = tmp_path / "augmented"
    if not data.exists():
        augmented(tmp_path)
    config = ExportConfig(data=data, output=tmp_path / "export", **options)
    manifest = export(config)
    assert (manifest.texts, manifest.tools) == (
        3,
        {"QA": 3, "Calculator": 3} | dict.fromkeys(("WikiSearch", "Calendar", "MT"), 0),
    )
    lines = (config.output / ROWS / "00000.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_text_is_c_star(tmp_path: Path) -> None:
    assert exported(tmp_path) == [{"text_id": n, "text": TEXT} for n in range(3)]


def test_segments_mask_what_tools_write(tmp_path: Path) -> None:
    assert exported(tmp_path, mask_results=True)[0]["segments"] == [
        {"text": "[QA(who?) ->", "label": True},
        {"text": " a nurse]", "label": False},
        {"text": " The nurse saw 18 of 40 patients, [Calculator(18 / 40) ->", "label": True},
        {"text": " 0.45]", "label": False},
        {"text": " 45%.", "label": True},
    ]


def test_chat_has_the_form_of_openai(tmp_path: Path) -> None:
    row = exported(tmp_path, format="chat", instruction="Write.")[0]

    def called(number: int, name: str, argument: str) -> list[dict[str, Any]]:
        function = {"name": name, "arguments": json.dumps({"input": argument})}
        return [{"id": f"00000000{number}", "type": "function", "function": function}]

    assert row["messages"] == [
        {"role": "user", "content": "Write."},
        {"role": "assistant", "content": "", "tool_calls": called(0, "QA", "who?")},
        {"role": "tool", "tool_call_id": "000000000", "name": "QA", "content": "a nurse"},
        {
            "role": "assistant",
            "content": "The nurse saw 18 of 40 patients,",
            "tool_calls": called(1, "Calculator", "18 / 40"),
        },
        {"role": "tool", "tool_call_id": "000000001", "name": "Calculator", "content": "0.45"},
        {"role": "assistant", "content": " 45%."},
    ]
    said = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    assert "".join(said) == PLAIN
    tools = {tool["function"]["name"]: tool["function"] for tool in json.loads(row["tools"])}
    assert list(tools) == ["QA", "WikiSearch", "Calculator", "Calendar", "MT"]
    assert tools["QA"]["description"] == "Answers a question about facts with a few words."
    assert tools["QA"]["parameters"]["required"] == ["input"]
    assert tools["Calendar"]["parameters"] == {"type": "object", "properties": {}}


def test_without_an_instruction_a_chat_begins_with_the_assistant(tmp_path: Path) -> None:
    row = exported(tmp_path, format="chat", instruction=None, tools_as="list")[0]
    assert row["messages"][0]["role"] == "assistant"
    assert json.loads(row["tools"][0]["function"]["parameters"])["required"] == ["input"]


def test_sharegpt_alternates(tmp_path: Path) -> None:
    """LLaMA-Factory drops a conversation whose turns do not alternate or whose number is odd."""
    turns = exported(tmp_path, format="sharegpt", instruction="Write.")[0]["conversations"]
    assert [turn["from"] for turn in turns[0::2]] == ["human", "observation", "human", "observation"]
    assert [turn["from"] for turn in turns[1::2]] == ["function_call", "gpt", "function_call", "gpt"]
    assert json.loads(turns[1]["value"]) == {"name": "QA", "arguments": {"input": "who?"}}
    assert [turn["value"] for turn in turns if turn["from"] == "human"] == ["Write.", "Continue."]
    assert "".join(turn["value"] for turn in turns if turn["from"] == "gpt") == PLAIN


def test_c_star_of_an_earlier_version_is_exported_alike(tmp_path: Path) -> None:
    new = exported(tmp_path, format="chat")
    as_earlier_versions_wrote(tmp_path / "augmented")
    assert exported(tmp_path, format="chat") == new


@pytest.mark.parametrize("file_type", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["text", "chat", "sharegpt"])
def test_the_libraries_of_the_field_read_an_export(tmp_path: Path, form: Any, file_type: Any) -> None:
    datasets = pytest.importorskip("datasets")
    duckdb, pandas, polars = map(pytest.importorskip, ("duckdb", "pandas", "polars"))
    config = ExportConfig(
        data=augmented(tmp_path), output=tmp_path / "export", format=form, file_type=file_type
    )
    export(config)
    loaded = datasets.load_dataset(str(config.output), cache_dir=str(tmp_path / "cache"))
    assert {name: split.num_rows for name, split in loaded.items()} == {"train": 3}
    file = config.output / ROWS / f"00000.{file_type}"
    assert len(duckdb.sql(f"select * from '{file}'").fetchall()) == 3
    if file_type == "jsonl":
        assert len(pandas.read_json(file, lines=True)) == polars.read_ndjson(file).height == 3
    else:
        assert len(pandas.read_parquet(file)) == polars.read_parquet(file).height == 3


def test_files_can_be_read_by_all_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        exported(tmp_path)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) > 8  # of annotations, C*, and the export
    assert {path.name: oct(mode) for path, mode in modes.items() if mode != 0o644} == {}


def test_an_edited_card_stays(tmp_path: Path) -> None:
    exported(tmp_path)
    card = tmp_path / "export" / "README.md"
    exported(tmp_path, mask_results=True)
    assert "results masked" in card.read_text()
    edited = card.read_text().replace("# license: choose one and write it here", "license: cc0-1.0")
    card.write_text(edited)
    exported(tmp_path)
    assert card.read_text() == edited


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = augmented(tmp_path)
    with pytest.raises(ConfigurationError, match="name a folder that merge wrote"):
        export(ExportConfig(data=tmp_path / "annotations", output=tmp_path / "export"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for output in (mine, data, tmp_path / "annotations"):
        before = sorted(output.rglob("*"))
        with pytest.raises(NotOwnError):
            export(ExportConfig(data=data, output=output))
        assert sorted(output.rglob("*")) == before
    for options in (
        ["--format", "chat", "--mask-results"],
        ["--format", "sharegpt", "--instruction", "None"],
    ):
        assert main(["export", str(data), "--output", str(tmp_path / "export"), *options]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "export").exists()


def test_the_command_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "export"
    assert main(["export", str(augmented(tmp_path)), "--format", "chat", "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["3 texts with 6 calls, as chat", str(output)]
    assert list(EXPORT.foreign(output)) == []
    assert EXPORT.marks["manifest.json"] <= ExportManifest.model_fields.keys()


class Hub:
    """The hub's calls that an upload makes."""

    def __init__(self, private: bool = True) -> None:
        self.private = private
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create_repo", options))
        return f"https://hub/{repo_id}"

    def repo_info(self, repo_id: str, **options: Any) -> Hub:
        return self

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))


def test_an_upload_is_private_and_of_the_folder_s_own_files(tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    exported(tmp_path)
    (tmp_path / "export" / "secret.env").write_text("KEY=1")
    (tmp_path / "export" / "rows" / "notes.txt").write_text("mine")
    hub = Hub()
    assert push(tmp_path / "export", "me/texts", api=hub) == "https://hub/me/texts"
    (_, created), (_, uploaded) = hub.calls
    assert created == {"repo_type": "dataset", "private": True, "exist_ok": True}
    files = [
        path.relative_to(tmp_path / "export").as_posix()
        for path in (tmp_path / "export").rglob("*")
        if path.is_file()
    ]
    sent = filter_repo_objects(files, allow_patterns=uploaded["allow_patterns"])
    assert sorted(sent) == ["README.md", "manifest.json", "rows/00000.jsonl"]


def test_a_public_data_set_needs_the_option(tmp_path: Path) -> None:
    hub = Hub(private=False)
    with pytest.raises(PushError, match="public already; add --public"):
        push(tmp_path, "me/texts", api=hub)
    assert [name for name, _ in hub.calls] == ["create_repo"]
    push(tmp_path, "me/texts", public=True, api=hub)


@pytest.mark.parametrize("name", ["me/texts", "a b/c"])
def test_a_hub_out_of_reach_is_one_sentence(tmp_path: Path, name: str) -> None:
    from huggingface_hub import HfApi

    with pytest.raises(PushError, match=f"{name} was not uploaded: .*HF_TOKEN"):
        push(tmp_path, name, api=HfApi(endpoint="http://127.0.0.1:9", token="hf_none"))
