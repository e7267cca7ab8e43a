"""What a staged model must be: loadable, whole, and of use to what loads it.

In: a folder, and what wants the model. Out: its size, or the error that the model's user would raise, with
the model's own name. Configuration and tokenizer are checked before weights are downloaded, the weights one
tensor at a time. What only a run of the model shows is left to the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from pipeline.base.config import ModelConfig
from pipeline.engine.loading import refused, require_model
from pipeline.fetching.errors import FetchError
from pipeline.fetching.wanted import WantedModel
from tools_service.base.checkpoints import empty_model, load_config, load_tokenizer, require_whole
from tools_service.base.errors import ToolformerError
from tools_service.config import EncoderConfig, MTConfig, QAConfig
from tools_service.retrieval.encoder import Encoder
from tools_service.tools.mt import require_english
from tools_service.tools.qa import require_reader

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CAUSAL = ("ForCausalLM", "LMHeadModel")  # ends of the names of classes in config.json
_POOLING = ("pooler.",)  # of an encoder: retrieval pools by itself


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters of a model, and the names of weights that it takes from another name."""

    parameters: int
    tied: dict[str, str]

    def memory_bytes(self, dtype: str) -> int:
        """Bytes of the weights in memory, once."""
        return self.parameters * _BYTES[dtype]


def size_of(folder: Path, wanted: WantedModel) -> ModelSize:
    """The size of the model that config.json in `folder` describes. Raises FetchError."""
    with _named(folder, wanted), refused(f"{wanted.name}: transformers cannot make this model"):
        config = load_config(str(folder), wanted.field, FetchError)
        with torch.device("meta"):
            model = empty_model(_auto_class(config, wanted), config)
    parameters = sum(weight.numel() for weight in model.parameters())
    return ModelSize(parameters, dict(getattr(model, "all_tied_weights_keys", None) or {}))


def check_tokenizer(folder: Path, wanted: WantedModel) -> None:
    """Raise FetchError if configuration and tokenizer in `folder` do not serve what wants the model."""
    path, settings = str(folder), wanted.settings
    with _named(folder, wanted):
        config = load_config(path, wanted.field, FetchError)
        if _auto_class(config, wanted) is AutoModelForCausalLM:
            require_model(ModelConfig(path=path))
            return
        tokenizer = load_tokenizer(path, wanted.field, FetchError)
        if isinstance(settings, MTConfig):
            require_english(tokenizer, wanted.name)
        if isinstance(settings, QAConfig):
            require_reader(settings, config.model_type)


def check_weights(folder: Path, wanted: WantedModel) -> None:
    """Raise FetchError unless the weights in `folder` are those of its configuration, and all finite."""
    path, settings = str(folder), wanted.settings
    with _named(folder, wanted):
        if isinstance(settings, EncoderConfig):
            Encoder(settings.model_copy(update={"model": path, "device": "cpu"}))
            return
        auto_class = _auto_class(load_config(path, wanted.field, FetchError), wanted)
        unused = _POOLING if auto_class is AutoModel else ()
        require_whole(auto_class, path, wanted.field, FetchError, unused)


def _auto_class(config: Any, wanted: WantedModel) -> Any:
    """The class that loads the model: that of its user, or by its configuration."""
    if isinstance(wanted.settings, ModelConfig):
        return AutoModelForCausalLM
    if isinstance(wanted.settings, QAConfig | MTConfig) or config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    named = getattr(config, "architectures", None) or [""]
    return AutoModelForCausalLM if str(named[0]).endswith(_CAUSAL) else AutoModel


@contextmanager
def _named(folder: Path, wanted: WantedModel) -> Iterator[None]:
    """Let errors name the model, and not the folder in which it is put together."""
    try:
        yield
    except ToolformerError as error:
        message = str(error).replace(str(folder), wanted.name)
        raise FetchError(message) from error
