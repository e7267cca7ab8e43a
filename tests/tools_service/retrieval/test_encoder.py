"""Encoders: pooling and prefixes as plain transformers gives them, whatever the batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from tests.tools_service.encoders import DIMENSION, bert
from tools_service.config import EncoderConfig
from tools_service.retrieval.encoder import Encoder, EncoderError
from tools_service.retrieval.passages import Passage

pytestmark = pytest.mark.unit

WORDS = ["query", "passage", ":", "the", "lighthouse", "ships", "sea", "otter", "swims", "river", "reel"]
TEXTS = ["lighthouse", "the otter swims the river " * 4, "ships sea", "", "reel " * 100]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("bert"), WORDS)


def config(model: str, **changes: Any) -> EncoderConfig:
    return EncoderConfig(**{"model": model, "max_tokens": 16, "batch_size": 2, "device": "cpu"} | changes)


@torch.inference_mode()
def by_hand(model: str, text: str, pooling: str) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(model)(text, truncation=True, max_length=16, return_tensors="pt")
    hidden = AutoModel.from_pretrained(model)(**ids).last_hidden_state[0]
    return hidden[0] if pooling == "cls" else hidden.mean(dim=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_pooled_tokens_of_the_prefixed_text(model: str, pooling: str, normalize: bool) -> None:
    encoder = Encoder(config(model, pooling=pooling, normalize=normalize))
    wanted = torch.stack([by_hand(model, f"query: {text}", pooling) for text in TEXTS])
    if normalize:
        wanted = torch.nn.functional.normalize(wanted, dim=-1)
    found = encoder.encode_queries(TEXTS)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), DIMENSION))
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_passages_have_their_title_and_prefix(model: str) -> None:
    encoder = Encoder(config(model, query_prefix="passage: sea "))
    passages = encoder.encode_passages([Passage("sea", "otter swims")])
    np.testing.assert_allclose(passages, encoder.encode_queries(["otter swims"]), atol=1e-6)


def test_hostile_texts_have_vectors_and_none_have_none(model: str) -> None:
    encoder = Encoder(config(model))
    assert np.isfinite(encoder.encode_queries(["\ud800", "\x00", "sea " * 10**5])).all()
    assert encoder.encode_queries([]).shape == (0, DIMENSION)


def test_threads_encode_at_once_and_agree(model: str) -> None:
    encoder = Encoder(config(model))
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: encoder.encode_queries(TEXTS), range(8)):
            np.testing.assert_allclose(found, encoder.encode_queries(TEXTS), atol=1e-6)


def test_what_cannot_be_an_encoder_is_refused_with_the_field(model: str, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"encoder\.model '.*nowhere': cannot load it"):
        Encoder(config(str(tmp_path / "nowhere")))
    with pytest.raises(EncoderError, match=r"encoder\.max_tokens = 65: .* reads 64 at most"):
        Encoder(config(model, max_tokens=65))


def test_pickled_weights_are_refused(model: str, tmp_path: Path) -> None:
    copy = Path(bert(tmp_path / "pickled", WORDS))
    torch.save(AutoModel.from_pretrained(copy).state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="cannot load it"):
        Encoder(config(str(copy)))


def test_a_checkpoint_without_a_pooling_layer_is_an_encoder(model: str, tmp_path: Path) -> None:
    copy = Path(bert(tmp_path / "bare", WORDS))
    weights = load_file(copy / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    found = Encoder(config(str(copy))).encode_queries(TEXTS)
    np.testing.assert_allclose(found, Encoder(config(model)).encode_queries(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    "text", ["[SEP]", "[PAD]", "a [CLS] b", "[SEP][SEP]", "[MASK] [PAD] [PAD]", "x[PAD]x"]
)
def test_special_tokens_in_a_text_are_text(model: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(config(model))
    read: list[list[int]] = []
    forward = encoder._forward
    monkeypatch.setattr(encoder, "_forward", lambda ids: read.extend(ids) or forward(ids))
    encoder.encode_queries([text])
    assert not set(read[0][1:-1]) & {0, 2, 3}  # padding, beginning and end of the small encoder
