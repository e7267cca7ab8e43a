"""Step 7: continues texts with a model that calls tools (paper section 4.2, "Decoding").

In: prompts, the date of each, a model, a tool client. Out: one `Generation` per prompt, in order.
decoding.py has the rules; docs/evaluation.md lists them, docs/decisions/0006 gives the reasons.
This module batches the prompts and converts between text and tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice

from pipeline.base.inference_config import GenerateConfig
from pipeline.engine.model import LanguageModel
from pipeline.inference.call_parser import ApiTokenMask
from pipeline.inference.decoding import Decoder, DecodingState
from pipeline.inference.generation import Generation, PromptError
from pipeline.inference.params import DecodingParams
from pipeline.syntax.tokenizer import decode_continuations, tokenize_continuations
from tools_service.contract.tool import ToolUnavailableError
from tools_service.tools.client import ToolClient
from tools_service.tools.registry import require_available

logger = logging.getLogger(__name__)

# Prompts are sorted by length within so many batches; more save padding but delay the first result.
_WINDOW_BATCHES = 4


class Generator:
    """Continues prompts with one model and one tool client."""

    def __init__(self, model: LanguageModel, tools: ToolClient) -> None:
        self.model = model
        self.tools = tools
        self.api_mask = ApiTokenMask(model.call_tokens, model.device)

    def generate(
        self,
        prompts: Sequence[str],
        params: DecodingParams,
        dates: Sequence[str | None] | None = None,
        batch_size: int = 64,
    ) -> Iterator[Generation]:
        """Yields the continuations in the order of the prompts, while later prompts still wait.

        Batches have prompts of similar length, at most `batch_size` of them and at most the model's
        `max_batch_tokens` tokens; the batches do not change the results. `dates` (YYYY-MM-DD) are
        for the calendar. Decoding also stops at an end-of-text token and at a full context.
        Trailing spaces of a prompt are removed, because the first generated token brings its own.
        A prompt that cannot be continued is refused alone. Raises InferenceError for logits that are
        not finite.
        """
        states = (
            self._state(prompt, date, params)
            for prompt, date in zip(prompts, dates or [None] * len(prompts), strict=True)
        )
        while window := list(islice(states, _WINDOW_BATCHES * batch_size)):
            decoded = self._run([s for s in window if isinstance(s, DecodingState)], params, batch_size)
            for state in window:
                if isinstance(state, PromptError):
                    yield Generation("", (), (), "refused", 0, state)
                else:
                    yield next(decoded)

    def encode(self, prompt: str) -> list[int]:
        """The tokens of ``" "`` and the prompt, as in every step; BOS if the tokenizer adds one.

        Raises PromptError for an empty prompt, one that leaves no room in the context, and one that
        is no text in UTF-8.
        """
        if not prompt.isascii() and prompt.encode("utf-8", "replace").decode("utf-8") != prompt:
            raise PromptError("not_text", f"the prompt {prompt[:60]!r} is not text in UTF-8")
        tokens = list(self.model.call_tokens.bos)
        if stripped := prompt.rstrip(" "):
            tokens += tokenize_continuations(self.model.tokenizer, [" " + stripped])[0].ids.tolist()
        if not tokens:
            raise PromptError("empty", "a prompt is empty, and the tokenizer has no BOS to start from")
        if len(tokens) >= self.model.max_positions:
            problem = f"no room for one more in the context of {self.model.max_positions}"
            message = f"the prompt {prompt[:60]!r} has {len(tokens)} tokens: {problem}"
            raise PromptError("too_long", message)
        return tokens

    def _state(self, prompt: str, date: str | None, params: DecodingParams) -> DecodingState | PromptError:
        try:
            return DecodingState(self.encode(prompt), date, params.calls_disabled)
        except PromptError as error:
            return error

    def _run(
        self, states: list[DecodingState], params: DecodingParams, batch_size: int
    ) -> Iterator[Generation]:
        """Decodes the states in batches of similar length; yields their generations in order."""
        by_length = sorted(states, key=lambda state: len(state.tokens))
        for start in range(0, len(states), batch_size):
            group = by_length[start : start + batch_size]
            lengths = [len(state.tokens) for state in group]
            for batch in self.model.batch_by_length(lengths, forwards=params.max_new_tokens):
                batch_states = [group[index] for index in batch]
                Decoder(self.model, self.tools, params, self.api_mask, batch_states).run()
        texts = decode_continuations(self.model.tokenizer, [state.text_tokens for state in states])
        for state, text in zip(states, texts, strict=True):
            assert state.stop_reason is not None
            if params.stop_at_newline:
                blank = len(text) - len(text.lstrip())
                text = text[:blank] + text[blank:].partition("\n")[0]  # noqa: PLW2901
            calls, failed = tuple(state.calls), tuple(state.failed)
            yield Generation(text, calls, failed, state.stop_reason, len(state.text_tokens))


def available_tools(config: GenerateConfig) -> tuple[str, ...]:
    """The tools not in `tools_off` that this machine can run; logs a warning for the others."""
    tools: list[str] = []
    for tool in (name for name in config.tools.specs if name not in config.tools_off):
        try:
            require_available([tool], config.tools, field="tools_off")
            tools.append(tool)
        except ToolUnavailableError as error:
            logger.warning("%s is switched off: %s", tool, error)
    return tuple(tools)
