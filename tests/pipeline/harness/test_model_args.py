"""The harness's model_args become a configuration, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'lm_eval>=0.4.13,<0.5'")

from pipeline.harness.errors import HarnessError
from pipeline.harness.model_args import config_of
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit


def test_names_reach_the_model_decoding_and_the_harness() -> None:
    arguments = {
        "pretrained": "m",
        "dtype": "float32",
        "k": 3,
        "max_calls": 2,
        "calls": False,
        "batch_size": 5,
    }
    config = config_of({**arguments, "max_batch_size": 64})
    generation = config.generation
    assert (generation.model.path, generation.model.dtype) == ("m", "float32")
    assert (generation.k, generation.max_calls, generation.max_new_tokens) == (3, 2, 256)
    assert (config.calls, config.batch_size) == (False, 5)


def test_a_tools_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "tools.toml"
    file.write_text("[wikisearch]\nsource = ['wiki']\n")
    assert config_of({"tools_file": str(file)}).generation.tools != config_of({}).generation.tools
    with pytest.raises(ConfigurationError, match="missing"):
        config_of({"tools_file": str(tmp_path / "missing.toml")})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kk": 3}, "model_args: kk"),
        ({"k": -1}, "model_args: k"),
        ({"device": "cuda:0"}, "device"),
        ({"batch_size": "auto"}, "batch_size"),
        ({"calls": "maybe"}, "calls"),
        ({"max_length": 1}, "max_length"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        config_of(arguments)
