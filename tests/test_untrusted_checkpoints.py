"""A checkpoint is a stranger's: whatever its files say, none of its code runs and none is fetched."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoModelForCausalLM

from pipeline.base.config import ModelConfig
from pipeline.engine.loading import load_causal_lm, model_shape
from pipeline.finetuning.run import _check_model
from pipeline.syntax.tokenizer import load_tokenizer as load_cached_tokenizer
from tests.pipeline.finetuning.inputs import base_model, configuration
from tools_service.base.checkpoints import load_config, load_model, load_tokenizer, require_whole
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.config import EncoderConfig, QAConfig
from tools_service.retrieval.encoder import Encoder
from tools_service.tools.seq2seq import load_seq2seq

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "tools_service", "demo", "bench", "cluster")
CHECKPOINTS = Path("tools_service/base/checkpoints.py")
LOADERS = ("from_pretrained", "from_config", "_from_config")

CODE = "evil"
AUTO_MAP = {
    "AutoConfig": f"{CODE}.Config",
    "AutoModel": f"{CODE}.Model",
    "AutoModelForCausalLM": f"{CODE}.Model",
    "AutoModelForSeq2SeqLM": f"{CODE}.Model",
    "AutoTokenizer": [f"{CODE}.Slow", f"{CODE}.Fast"],
}
ELSEWHERE = {name: f"a-stranger/code--{CODE}.{name}" for name in AUTO_MAP}
KERNEL = "kernels-community/flash-attn"

# By what is asked for: changes of config.json, tokenizer_config.json and generation_config.json.
HOSTILE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "code of its own": ({"auto_map": AUTO_MAP}, {}, {}),
    "code of its own, unknown model": ({"auto_map": AUTO_MAP, "model_type": "evil"}, {}, {}),
    "code of another repository": ({"auto_map": ELSEWHERE}, {}, {}),
    "code of another repository, unknown model": ({"auto_map": ELSEWHERE, "model_type": "evil"}, {}, {}),
    "auto_map that is text": ({"auto_map": "AutoConfig AutoModel", "model_type": "evil"}, {}, {}),
    "a tokenizer of its own": ({}, {"auto_map": {"AutoTokenizer": [f"{CODE}.Slow", f"{CODE}.Fast"]}}, {}),
    "a tokenizer of its own, old form": ({}, {"auto_map": [f"{CODE}.Slow", None]}, {}),
    "a tokenizer class of its own": (
        {"model_type": "evil"},
        {"auto_map": AUTO_MAP, "tokenizer_class": "EvilTokenizer"},
        {},
    ),
    "all of its own": ({"auto_map": AUTO_MAP, "model_type": "evil"}, {"auto_map": AUTO_MAP}, {}),
    "a kernel for attention": ({"attn_implementation": KERNEL}, {}, {}),
    "a kernel for attention, private name": ({"_attn_implementation": KERNEL}, {}, {}),
    "a kernel for attention, internal name": ({"_attn_implementation_internal": KERNEL}, {}, {}),
    "a kernel with a revision": ({"attn_implementation": "a-stranger/kernel@main:run"}, {}, {}),
    "a paged kernel": ({"attn_implementation": f"paged|{KERNEL}"}, {}, {}),
    "kernels in parts": ({"attn_implementation": {"": KERNEL, "text_config": KERNEL}}, {}, {}),
    "flash attention": ({"attn_implementation": "flash_attention_2"}, {}, {}),
    "flex attention": ({"attn_implementation": "flex_attention"}, {}, {}),
    "no attention at all": ({"attn_implementation": 7}, {}, {}),
    "kernels for layers": ({"use_kernels": True, "kernel_config": {"RMSNorm": "a-stranger/norm"}}, {}, {}),
    "a kernel for experts": ({"experts_implementation": "sonicmoe"}, {}, {}),
    "a kernel for experts, private name": ({"_experts_implementation": "deepgemm"}, {}, {}),
    "quantization": ({"quantization_config": {"quant_method": "mxfp4"}}, {}, {}),
    "unknown quantization": ({"quantization_config": {"quant_method": "evil", "module": CODE}}, {}, {}),
    "quantization in a part": ({"text_config": {"quantization_config": {"load_in_4bit": True}}}, {}, {}),
    "compression": ({"compression_config": {"quant_method": "compressed-tensors"}}, {}, {}),
    "a pipeline of its own": ({"custom_pipelines": {"text-generation": {"impl": f"{CODE}.P"}}}, {}, {}),
    "custom_pipeline": ({"custom_pipeline": CODE}, {}, {}),
    "generation of its own": ({}, {}, {"custom_generate": CODE, "trust_remote_code": True}),
    "trust": ({"trust_remote_code": True, "auto_map": AUTO_MAP}, {"trust_remote_code": True}, {}),
    "pickled weights": ({"transformers_weights": "adapter_model.bin"}, {}, {}),
    "weights outside the folder": ({"transformers_weights": "../elsewhere.safetensors"}, {}, {}),
    "positions of another type": ({"max_position_embeddings": "many"}, {}, {}),
}

SOURCE = """from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): config_class = Config
class Fast(PreTrainedTokenizerFast): pass
class Slow(PreTrainedTokenizerFast): pass
generate = P = Model
"""


def _finetune_checks(path: str) -> object:
    model = ModelConfig(path=path, dtype="float32", device="cpu")
    return _check_model(configuration(Path(path), model=model))


LOADING: dict[str, Callable[[str], object]] = {
    "configuration": lambda path: load_config(path, "model.path"),
    "tokenizer": lambda path: load_tokenizer(path, "model.path"),
    "tokenizer of plan and annotate": load_cached_tokenizer,
    "model": lambda path: load_model(AutoModel, path, "model.path", dtype="float32"),
    "weights": lambda path: require_whole(AutoModelForCausalLM, path, "model.path"),
    "shape": model_shape,
    "annotate, generate, evaluate": lambda path: load_causal_lm(
        ModelConfig(path=path, dtype="float32", device="cpu")
    ),
    "finetune": _finetune_checks,
    "index": lambda path: Encoder(EncoderConfig(model=path, device="cpu")),
    "question answering": lambda path: load_seq2seq(QAConfig(model=path, device="cpu"), "qa"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("untrusted") / "base")


def change(path: Path, changes: dict[str, Any]) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | changes))


def is_called(marker: Path) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        marker.touch()
        raise OSError("called")

    return call


def refusal(load: Callable[[], object]) -> str | None:
    """The project's own error; any other is raised."""
    try:
        load()
    except ToolformerError as error:
        return str(error)
    return None


@pytest.mark.parametrize("asked", HOSTILE)
def test_nothing_of_a_stranger_runs(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    marker, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(base, folder)
    for file in ("evil.py", "custom_generate/generate.py", "modeling_llama.py", "configuration_llama.py"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(SOURCE.format(marker=str(marker)))
    names = ("config.json", "tokenizer_config.json", "generation_config.json")
    for name, changes in zip(names, HOSTILE[asked], strict=True):
        change(folder / name, changes)
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_in_module", is_called(marker))
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", is_called(marker))
    monkeypatch.setattr("transformers.modeling_utils.kernelize", is_called(marker))
    monkeypatch.setattr(builtins, "input", is_called(marker))
    for load in LOADING.values():
        message = refusal(lambda load=load: load(str(folder)))
        assert message is None or str(folder) in message
        assert "trust_remote_code" not in (message or "")
        assert (message or "").count("\n") < 3
        assert not marker.exists()


def test_the_code_of_these_tests_would_run_if_it_were_trusted(base: Path, tmp_path: Path) -> None:
    marker, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "evil.py").write_text(SOURCE.format(marker=str(marker)))
    change(folder / "config.json", {"auto_map": AUTO_MAP})
    from transformers import AutoConfig

    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()


@pytest.mark.parametrize("asked", ["eager", "sdpa", None])
def test_a_choice_between_transformers_own_implementations_is_kept(
    base: Path, tmp_path: Path, asked: str | None
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    change(folder / "config.json", {"attn_implementation": asked})
    model = load_model(AutoModelForCausalLM, str(folder), "model.path", dtype="float32")
    assert model.config._attn_implementation == (asked or "sdpa")


def test_what_needs_its_own_code_is_refused_with_the_reason(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    change(folder / "config.json", {"auto_map": AUTO_MAP, "model_type": "evil"})
    with pytest.raises(ConfigurationError, match=r"model\.path .*auto_map\), which is never run"):
        load_config(str(folder), "model.path")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a-stranger/model"}')
    with pytest.raises(ConfigurationError, match="adapter"):
        load_config(str(folder), "model.path")


def _calls() -> Iterator[tuple[Path, ast.Call, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    function = node.func
                    name = getattr(function, "attr", getattr(function, "id", ""))
                    yield path.relative_to(ROOT), node, name


def test_every_call_that_loads_a_checkpoint_trusts_nothing() -> None:
    """All such calls are in one file, and say literally that no code is trusted."""
    seen = set()
    for path, call, name in _calls():
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        trusted = keywords.get("trust_remote_code")
        if trusted is not None or name in LOADERS:
            assert trusted is not None, (path, call.lineno)
            assert ast.unparse(trusted) == "False", (path, call.lineno)
        if name in LOADERS and isinstance(call.func, ast.Attribute):
            assert path == CHECKPOINTS, (path, call.lineno)
            owner = ast.unparse(call.func.value)
            seen.add((owner, name))
            runs_attention = owner not in ("AutoTokenizer", "AutoConfig", "GenerationConfig")
            assert not runs_attention or "attn_implementation" in keywords
    assert seen == {
        ("AutoTokenizer", "from_pretrained"),
        ("AutoConfig", "from_pretrained"),
        ("GenerationConfig", "from_pretrained"),
        ("auto_class", "from_pretrained"),
        ("auto_class", "from_config"),
    }


def test_nothing_else_can_run_a_strangers_code() -> None:
    """Pickles, evaluated text, pipelines and downloads of transformers are not used on checkpoints."""
    forbidden = {"eval", "exec", "load_custom_generate", "get_class_from_dynamic_module", "get_kernel"}
    unsafe = {("pickle", "load"), ("pickle", "loads"), ("hub", "load"), ("transformers", "pipeline")}
    for path, call, name in _calls():
        where = (str(path), call.lineno)
        if isinstance(call.func, ast.Name):
            assert name not in forbidden, where
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        assert (owner.rpartition(".")[2], name) not in unsafe, where
        if (owner, name) == ("torch", "load"):
            weights_only = {k.arg: k.value for k in call.keywords}.get("weights_only")
            assert weights_only is None or ast.unparse(weights_only) == "True", where
