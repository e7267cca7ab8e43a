"""A chat as a prompt: by the tokenizer's chat template, by one of the user's, or without one (`plain`).

In: messages. Out: a text to continue, or the token ids that a template gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from pipeline.base.serve_config import ServeConfig
from pipeline.serving.errors import ApiError
from pipeline.serving.protocol import Message
from pipeline.syntax.tokenizer import load_tokenizer
from tools_service.base.errors import ConfigurationError

PLAIN = "plain"

Render = Callable[[Sequence[Message]], str | list[int]]


def plain(messages: Sequence[Message]) -> str:
    """The texts of the messages, one below the other."""
    return "\n".join(message.text for message in messages)


def chat_template(config: ServeConfig) -> Render:
    """How a chat becomes a prompt. ConfigurationError for a file that cannot be read."""
    if config.chat_template == PLAIN:
        return plain
    tokenizer, template = load_tokenizer(config.generation.model.path), None
    if config.chat_template is not None:
        try:
            template = Path(config.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = f"--chat-template {config.chat_template}: {error}"
            raise ConfigurationError(f"{problem}; name a Jinja file, or {PLAIN}") from error
    elif not tokenizer.chat_template:
        return _refuse

    def render(messages: Sequence[Message]) -> list[int]:
        fields = [{"role": message.role, "content": message.text} for message in messages]
        try:
            tokens: Any = tokenizer.apply_chat_template(
                fields, chat_template=template, add_generation_prompt=True, return_dict=False
            )
            return list(tokens)
        except (TemplateError, ValueError, TypeError) as error:
            message = f"the chat template refuses these messages: {error}"
            raise ApiError(400, message, param="messages", code="invalid_messages") from error

    return render


def _refuse(messages: Sequence[Message]) -> str:
    message = (
        "this model's tokenizer has no chat template; use /v1/completions, or start the server with "
        f"--chat-template {PLAIN} or --chat-template FILE"
    )
    raise ApiError(400, message, param="messages", code="no_chat_template")
