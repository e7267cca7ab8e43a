"""The first selected texts of a corpus, with annotate's ids, and the reasons against the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.fixtures import small_run
from pipeline.base.config import CorpusConfig, MethodConfig, ModelConfig, TryConfig
from pipeline.base.records import Text
from pipeline.corpus.files import CorpusError, find_files
from pipeline.corpus.texts import read_corpus
from pipeline.syntax.tokenizer import TokenCounter
from pipeline.trying.scan import NothingSelectedError, Scan, scan, shown_reasons
from tools_service.config import ToolsConfig

pytestmark = pytest.mark.unit


def config(world: Path, corpus: Path | None = None, **options: object) -> TryConfig:
    method = small_run.method(world / "prompts").model_copy(update={"tools": ("Calendar",)})
    return TryConfig.model_validate(
        {
            "corpus": CorpusConfig(paths=(str(corpus or world / "pages"),)),
            "model": ModelConfig(path=str(world / "model"), dtype="float32", device="cpu"),
            "method": method,
            "tools": ToolsConfig(),
            "tool": "Calendar",
            **options,
        }
    )


def scanned(settings: TryConfig) -> Scan:
    method: MethodConfig = settings.method_of_tool("Calendar")
    return scan(settings, method, lambda _: None)


def all_texts(settings: TryConfig) -> list[Text]:
    files = find_files(settings.corpus).files
    return list(read_corpus(files, settings.corpus, TokenCounter(settings.model.path)))


def test_all_selected_texts_come_with_annotates_ids_and_the_others_with_reasons(world: Path) -> None:
    settings = config(world)
    found = scanned(settings)
    texts = {text.text_id: text for text in all_texts(settings)}
    assert [text for text, _ in found.selected] == [texts[text.text_id] for text, _ in found.selected]
    assert {selection.date[:7] for _, selection in found.selected if selection.date} == {"2019-03"}
    assert (len(found.selected), found.looked_at, found.complete) == (6, 10, True)
    assert found.turned_down == {"no date in the URL": 3, "skipped: not JSON": 1}


def test_the_scan_ends_with_enough_texts_or_at_its_limit(world: Path) -> None:
    enough = scanned(config(world, texts=2))
    assert (len(enough.selected), enough.looked_at, enough.complete) == (2, 2, False)
    limited = scanned(config(world, max_scanned=3))
    assert (len(limited.selected), limited.looked_at, limited.complete) == (2, 3, False)


def test_a_typed_text_is_tried_whether_or_not_it_is_selected(world: Path) -> None:
    [(text, selection)] = scanned(config(world, text="It is Monday.")).selected
    assert (text.text, selection.chosen, selection.rule) == ("It is Monday.", False, "no: no URL")


def test_without_a_selected_text_the_error_has_reasons_and_numbers(world: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"A text without a URL, number {n}."}) for n in range(3)]
    (tmp_path / "mine.jsonl").write_text("\n".join([*lines, '{"text": "short"}']))
    with pytest.raises(
        NothingSelectedError, match=r"none of the 4 texts of the corpus .*: 3 x no URL, 1 x skipped: short"
    ):
        scanned(config(world, tmp_path / "mine.jsonl"))
    with pytest.raises(NothingSelectedError, match="none of the 2 texts looked at"):
        scanned(config(world, tmp_path / "mine.jsonl", max_scanned=2))


def test_a_corpus_that_is_not_there_is_an_error(world: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere"):
        scanned(config(world, tmp_path / "nowhere"))


def test_a_long_list_of_reasons_is_cut() -> None:
    assert shown_reasons({f"r{n}": 9 - n for n in range(7)}).endswith("5 x r4, 2 more reasons")
