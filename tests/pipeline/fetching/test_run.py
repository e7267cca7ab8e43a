"""Staging the models of the paper from a hub on loopback: what is there afterwards, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import file_download

from pipeline.base.config import ModelConfig
from pipeline.base.fetch_config import FetchConfig
from pipeline.engine.errors import ModelError
from pipeline.engine.loading import load_causal_lm, require_model
from pipeline.fetching.errors import FetchError
from pipeline.fetching.plan import plan_fetch
from pipeline.fetching.run import fetch
from pipeline.fetching.unpickling import Job, Result, UnfitWeightsError, _convert
from tests.pipeline.fetching.local_hub import COMMIT, LocalHub, pickled, serving
from tests.pipeline.scripted import tokenizer
from tests.tools_service.small_seq2seq import byte_level_tokenizer, nllb, nllb_tokenizer, save, t5
from tools_service.base.checkpoints import _in_short, load_config
from tools_service.base.ownership import NotOwnError
from tools_service.base.staged_models import hub_name, read_staged, staged_source
from tools_service.base.weights import tensors
from tools_service.config import MTConfig, QAConfig, ToolsConfig
from tools_service.tools.registry import with_absolute_paths
from tools_service.tools.seq2seq import load_seq2seq

pytestmark = pytest.mark.unit

GPTJ, NLLB, READER = "EleutherAI/gpt-j-6b", "facebook/nllb-200-distilled-600M", "google/flan-t5-large"
STATES: dict[str, dict[str, torch.Tensor]] = {}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models of the same architectures, stored as the published ones are."""
    from bench.fixtures.small_models import causal_lm

    folder = tmp_path_factory.mktemp("models")
    words = tokenizer("bytes")
    STATES[GPTJ] = pickled(folder / "gptj", causal_lm("gptj", len(words)).half(), words)
    languages = nllb_tokenizer(["hola amigo", "hello"], ["eng_Latn", "spa_Latn"])
    STATES[NLLB] = pickled(folder / "nllb", nllb(len(languages)), languages, shards=2)
    letters = byte_level_tokenizer(["hello there"])
    save(folder / "t5", t5(len(letters)), letters)
    return {GPTJ: folder / "gptj", NLLB: folder / "nllb", READER: folder / "t5"}


@pytest.fixture
def hub(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The hub, and an HF_HOME of its own."""
    with serving(LocalHub(models=dict(models))) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        files = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home/hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "home/token"))
        yield hub


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert in this process, which is quicker; test_unpickling.py has the other one."""

    def run(_name: str, job: Job, _seconds: float) -> Result:
        try:
            return Result(index=_convert(job, torch, safetensors.torch))
        except UnfitWeightsError as error:
            return Result(error=str(error))

    monkeypatch.setattr("pipeline.fetching.conversion._run", run)


def paper(**changes: Any) -> FetchConfig:
    return FetchConfig(for_tools=("QA", "MT", "Calculator", "WikiSearch"), actors=8, **changes)


def stage(config: FetchConfig) -> list[str]:
    said: list[str] = []
    fetch(config, lambda planned: None, said.append)
    return said


def test_the_models_of_the_paper_are_staged_converted_and_found_by_name(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_fetch(paper())
    assert [model.wanted.name for model in planned] == [GPTJ, READER, NLLB]
    assert [bool(model.files and model.files.pickled) for model in planned] == [True, False, True]
    assert [model.wanted.copies for model in planned] == ["8 actors", "1 replica", "1 replica"]
    weights = (hub.models[GPTJ] / "pytorch_model.bin").stat().st_size
    assert weights < planned[0].download_bytes < 2 * weights
    assert planned[0].size.memory_bytes("bfloat16") * 2 == planned[0].size.memory_bytes("float32")
    assert not (tmp_path / "home/toolformer").exists()  # a plan writes nothing
    assert staged_source(GPTJ) == GPTJ

    stage(paper())
    for name in (GPTJ, NLLB):
        folder = Path(staged_source(name))
        found, expected = dict(tensors(folder)), STATES[name]
        assert found.keys() <= expected.keys()
        for tensor_name, tensor in found.items():
            assert tensor.dtype == expected[tensor_name].dtype
            assert torch.equal(tensor, expected[tensor_name])
        manifest = read_staged(folder)
        assert manifest is not None
        assert (manifest.source, manifest.revision, manifest.commit) == (name, None, COMMIT)
        assert manifest.pickled
        assert {state.name for state in manifest.files} == {
            path.name for path in folder.iterdir() if path.name != "manifest.json"
        }
        assert all(state.sha256 for state in (*manifest.files, *manifest.pickled))
        assert hub_name(str(folder)) == name
    assert STATES[GPTJ].keys() == dict(tensors(Path(staged_source(GPTJ)))).keys()
    assert sorted(path.name for path in (tmp_path / "home/toolformer").iterdir()) == [
        "EleutherAI--gpt-j-6b",
        "facebook--nllb-200-distilled-600M",
        "google--flan-t5-large",
    ]

    hub.sent.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert stage(paper()) == []  # nothing to do, and the hub is not asked
    assert plan_fetch(paper())[0].files is None
    require_model(ModelConfig())  # the recipe's own name
    model, _ = load_causal_lm(ModelConfig(dtype="float32", device="cpu"))
    assert torch.equal(model.lm_head.weight.to_dense(), STATES[GPTJ]["lm_head.weight"].float())
    translator, _ = load_seq2seq(MTConfig(device="cpu"), "tools.mt")
    assert torch.equal(translator.get_input_embeddings().weight, STATES[NLLB]["model.shared.weight"])
    load_seq2seq(QAConfig(device="cpu"), "tools.qa")
    assert ModelConfig().with_absolute_path().path == staged_source(GPTJ) != GPTJ
    assert with_absolute_paths(ToolsConfig()).of("MT").model == staged_source(NLLB)
    assert not hub.sent


@pytest.mark.usefixtures("here")
def test_another_revision_replaces_what_is_staged_and_none_leaves_it(hub: LocalHub) -> None:
    stage(FetchConfig(models=(GPTJ,), revision="float16"))
    folder = Path(staged_source(GPTJ))
    assert staged_source(GPTJ, COMMIT) == staged_source(GPTJ, "float16") == str(folder)
    assert staged_source(GPTJ, "main") == GPTJ
    hub.sent.clear()
    for revision in (None, "float16", COMMIT):
        stage(FetchConfig(models=(GPTJ,), revision=revision))
    assert not hub.sent
    stage(FetchConfig(models=(GPTJ,), revision="main"))
    manifest = read_staged(folder)
    assert manifest is not None
    assert manifest.revision == "main"


@pytest.mark.usefixtures("here")
def test_what_is_staged_without_a_revision_is_main(hub: LocalHub) -> None:
    stage(FetchConfig(models=(GPTJ,)))
    hub.sent.clear()
    stage(FetchConfig(models=(GPTJ,), revision="main"))
    assert not hub.sent
    assert staged_source(GPTJ, "main") == staged_source(GPTJ) != GPTJ
    assert load_config(GPTJ, "model.path")._commit_hash == COMMIT  # the identity that it has on the hub


def test_a_damaged_model_is_staged_again(hub: LocalHub) -> None:
    stage(FetchConfig(models=(READER,)))
    weights = Path(staged_source(READER), "model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    stage(FetchConfig(models=(READER,)))
    assert weights.read_bytes() == whole


@pytest.mark.usefixtures("here")
def test_an_interrupted_download_goes_on_and_leaves_nothing_half_done(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))
    folder = tmp_path / "home/toolformer/facebook--nllb-200-distilled-600M"
    http_get = file_download.http_get

    def interrupted(url: str, *arguments: Any, **options: Any) -> None:
        if url.endswith(second):
            raise KeyboardInterrupt
        http_get(url, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage(FetchConfig(models=(NLLB,)))
    assert not folder.exists()
    assert staged_source(NLLB) == NLLB
    sent = hub.sent[first]
    assert sent > 0
    assert not hub.sent[second]
    stage(FetchConfig(models=(NLLB,)))
    assert hub.sent[first] == sent  # not again
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def _gate(hub: LocalHub) -> None:
    hub.gated.add(GPTJ)


def _wrong_bytes(hub: LocalHub) -> None:
    hub.wrong.add("pytorch_model.bin")


def _with_config(**values: Any) -> Callable[[LocalHub], None]:
    def change(hub: LocalHub) -> None:
        config = hub.models[GPTJ] / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | values))

    return change


def _without(*patterns: str) -> Callable[[LocalHub], None]:
    def remove(hub: LocalHub) -> None:
        for pattern in patterns:
            for path in hub.models[GPTJ].glob(pattern):
                path.unlink()

    return remove


def _with_index(file: str) -> Callable[[LocalHub], None]:
    def write(hub: LocalHub) -> None:
        folder = hub.models[GPTJ]
        (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00002.bin")
        index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": file}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    return write


def _evil(hub: LocalHub) -> None:
    from tests.pipeline.fetching.test_unpickling import Calls

    torch.save({"a": Calls(os.system, "false")}, hub.models[GPTJ] / "pytorch_model.bin")


def _hollow(hub: LocalHub) -> None:
    state = dict(STATES[GPTJ])
    del state["lm_head.weight"]
    torch.save(state, hub.models[GPTJ] / "pytorch_model.bin")


def _infinite(hub: LocalHub) -> None:
    state = dict(STATES[GPTJ])
    state["lm_head.weight"] = torch.full_like(state["lm_head.weight"], float("nan"))
    torch.save(state, hub.models[GPTJ] / "pytorch_model.bin")


REFUSED: dict[str, tuple[Callable[[LocalHub], object], str]] = {
    "gated": (_gate, "must grant access.*hf auth login.*HF_TOKEN"),
    "missing": (lambda hub: hub.models.pop(GPTJ), "the hub has no such model, or it is private"),
    "damaged on its way": (_wrong_bytes, "pytorch_model.bin was damaged on its way"),
    "no checkpoint": (_without("config.json"), "no config.json: it is no checkpoint of transformers"),
    "no weights": (_without("*.bin"), "it has no weights in model.safetensors or pytorch_model.bin, none"),
    "no tokenizer": (_without("tokenizer*"), "it has no tokenizer"),
    "code of its own": (
        _with_config(model_type="evil", auto_map={"AutoConfig": "evil.Config"}),
        r"needs code of its own \(auto_map\), which is never run",
    ),
    "quantized": (_with_config(quantization_config={"quant_method": "mxfp4"}), "quantized weights are not"),
    "an index outside": (_with_index("../evil.bin"), r"names '../evil.bin', which is no file of its weights"),
    "an index too many": (_with_index("pytorch_model-00002-of-00002.bin"), "00002.bin is missing, which"),
    "a malicious pickle": (_evil, "asks for posix.system, so it is not weights alone; nothing of it was run"),
    "weights missing": (_hollow, "no weights for lm_head.weight"),
    "weights not finite": (_infinite, "lm_head.weight holds numbers that are not finite"),
    "a layer too few": (_with_config(n_layer=1), "have no place in the model"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_staged_is_one_sentence_and_leaves_no_folder(
    hub: LocalHub, tmp_path: Path, what: str
) -> None:
    change, expected = REFUSED[what]
    hub.models[GPTJ] = Path(shutil.copytree(hub.models[GPTJ], tmp_path / "repository"))
    change(hub)
    with pytest.raises(FetchError, match=expected) as caught:
        stage(FetchConfig(for_tools=()))
    message = str(caught.value)
    assert GPTJ in message
    assert "\n" not in message
    assert str(tmp_path) not in message
    assert staged_source(GPTJ) == GPTJ
    assert not (tmp_path / "home/toolformer/EleutherAI--gpt-j-6b").exists()


@pytest.mark.usefixtures("here")
def test_a_wrong_revision_no_network_and_a_full_disk_are_said(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = FetchConfig(models=(GPTJ,), revision="v9")
    with pytest.raises(FetchError, match="it has no revision 'v9'; name a branch, tag or commit"):
        stage(one)
    for models in ((), (GPTJ, "b/c")):
        with pytest.raises(FetchError, match="revision: name the one model that it is of, with --models"):
            stage(FetchConfig(models=models, revision="v9"))
    with monkeypatch.context() as patch:
        full = shutil._ntuple_diskusage(10, 10, 1_000)
        patch.setattr("pipeline.fetching.plan.shutil.disk_usage", lambda _: full)
        with pytest.raises(FetchError, match=r"staging needs .* and 1\.0 kB are free; make room"):
            stage(FetchConfig(models=(GPTJ,)))
    assert not hub.sent["pytorch_model.bin"]
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(FetchError, match="it is not staged, and HF_HUB_OFFLINE forbids asking the hub"):
            stage(FetchConfig(models=(GPTJ,)))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="the hub cannot be reached"):
        stage(FetchConfig(models=(GPTJ,)))


@pytest.mark.usefixtures("here")
def test_a_folder_is_converted_and_what_is_not_ours_stays(models: dict[str, Path], tmp_path: Path) -> None:
    source = str(models[GPTJ])
    with pytest.raises(ModelError, match=rf"pickled weights.*toolformer fetch --model {source}"):
        load_causal_lm(ModelConfig(path=source, dtype="float32", device="cpu"))
    config = FetchConfig(models=(source,), output=tmp_path / "out")
    stage(config)
    model, _ = load_causal_lm(ModelConfig(path=str(tmp_path / "out/gptj"), dtype="float32", device="cpu"))
    assert torch.equal(model.lm_head.weight.to_dense(), STATES[GPTJ]["lm_head.weight"].float())
    assert stage(config) == []
    assert not any(path.name.endswith(".safetensors") for path in models[GPTJ].iterdir())

    (tmp_path / "out/gptj/mine.txt").write_text("mine")
    (models[GPTJ] / "pytorch_model.bin").touch()
    (tmp_path / "out/gptj/config.json").unlink()
    with pytest.raises(NotOwnError, match=r"mine\.txt"):
        stage(config)
    with pytest.raises(FetchError, match="which has none; leave it out"):
        stage(FetchConfig(models=(source,), revision="main"))
    assert stage(FetchConfig(models=(str(models[READER]),))) == [f"{models[READER]}: checking"]


def test_the_message_about_pickled_weights_of_the_hub_names_the_command() -> None:
    said = f"{GPTJ} does not appear to have a file named model.safetensors or model.safetensors.index.json"
    expected = (
        f"it has no weights in safetensors; `toolformer fetch --model {GPTJ}` makes a copy with safetensors"
    )
    assert _in_short(OSError(said), GPTJ) == expected


def test_the_configuration_of_a_staged_model_is_read_without_the_hub(hub: LocalHub) -> None:
    stage(FetchConfig(models=(READER,)))
    hub.models.clear()
    assert load_config(READER, "model.path").model_type == "t5"
