"""Chats as prompts: the tokenizer's template, a file, and none."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fixtures.small_models import causal_lm, tokenizer
from pipeline.base.config import ModelConfig
from pipeline.base.inference_config import GenerateConfig
from pipeline.base.serve_config import ServeConfig
from pipeline.serving.chat import chat_template
from pipeline.serving.errors import ApiError
from pipeline.serving.protocol import Message
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

CHAT = [Message(role="system", content="Be brief."), Message(role="user", content="Who <|end|> are you?")]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}assistant:"


def config(folder: Path, template: str | None) -> ServeConfig:
    generation = GenerateConfig(model=ModelConfig(path=str(folder)))
    return ServeConfig(generation=generation, chat_template=template)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder; only the tokenizer in it is read."""
    causal_lm("llama", len(tokenizer("bytes"))).config.save_pretrained(tmp_path)
    tokenizer("bytes").save_pretrained(tmp_path)
    return tmp_path


def test_plain_puts_the_messages_one_below_the_other(model: Path) -> None:
    assert chat_template(config(model, "plain"))(CHAT) == "Be brief.\nWho <|end|> are you?"


def test_a_template_gives_token_ids_with_its_special_tokens(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    ids = chat_template(config(model, str(file)))(CHAT[:1])
    words = tokenizer("bytes")
    assert isinstance(ids, list)
    assert ids.count(words.eos_token_id) == 1
    assert words.decode(ids) == "system: Be brief.<|end|>assistant:"


def test_without_a_template_a_chat_is_refused_with_the_option(model: Path) -> None:
    with pytest.raises(ApiError, match="--chat-template plain"):
        chat_template(config(model, None))(CHAT)


def test_the_tokenizers_own_template_is_used(model: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE)
    ids = chat_template(config(model, None))(CHAT[:1])
    assert isinstance(ids, list)
    assert tokenizer("bytes").decode(ids).endswith("assistant:")


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_template_that_cannot_be_read_is_refused_at_the_start(
    model: Path, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "template.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"--chat-template .*template.jinja"):
        chat_template(config(model, str(file)))


def test_a_template_that_refuses_is_an_error_of_the_request(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ raise_exception('no system message') }}")
    with pytest.raises(ApiError, match="no system message") as error:
        chat_template(config(model, str(file)))(CHAT)
    assert (error.value.status, error.value.param) == (400, "messages")
